"""The load test's own arithmetic and its page; what it measures needs minutes, and is run by hand."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from msgspec import structs

from convo.web.description import samples
from scripts.bench import load_test, plots
from scripts.bench.load_test import Second, Step
from scripts.bench.plots import Phase, Plot

STEP = Step(
    phase="ramp",
    begins=0.0,
    ends=5.0,
    offered=100.0,
    answered=100.0,
    analysed=50.0,
    failed=0,
    p50=1.0,
    p99=3.0,
    queue=0.0,
    analyses=False,
    client_cores=0.1,
)


class Ran:
    """A run that is over."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.answers = [(0.2, 0.001), (0.7, 0.003), (1.1, 0.002)]
        self.forecast = samples.CAPACITY
        self.recovered_seconds = 4.0

    def predicted(self) -> object:
        return samples.CAPACITY.accepts

    def ramp_forecasts(self) -> object:
        return [(100.0, samples.CAPACITY.accepts, 0.31), (170.0, None, None)]


def test_a_step_is_judged_by_what_the_mode_measures() -> None:
    assert (STEP.done, STEP.kept_up) == (100.0, True)
    with_analyses = structs.replace(STEP, analyses=True, queue=250.0)
    assert (with_analyses.done, with_analyses.kept_up) == (50.0, False)
    assert structs.replace(with_analyses, analysed=140.0).done == 100.0, "the others were left from before"
    assert structs.replace(with_analyses, queue=150.0).kept_up, "that is what is under way"
    assert not structs.replace(STEP, answered=90.0).kept_up


def test_how_far_a_forecast_is_off_is_a_share_of_what_was_measured() -> None:
    assert load_test.off_by(120.0, 100.0) == pytest.approx(0.2)
    assert load_test.off_by(80.0, 100.0) == pytest.approx(-0.2)


def test_a_leap_is_the_largest_change_from_one_figure_to_the_next_up_or_down() -> None:
    assert load_test.largest_leap([1_000.0, 1_200.0, 600.0, 650.0]) == 2.0
    assert load_test.largest_leap([1_000.0, 4_700.0]) == 4.7
    assert load_test.largest_leap([1_000.0]) == 1.0


def test_the_page_holds_its_plots_and_loads_nothing() -> None:
    held = structs.replace(STEP, phase="hold", begins=5.0, ends=9.0)
    seconds = [Second(at=1.0, analysed=2.0, queue=3.0, process_cores=0.5, machine_cores=1.5)]
    run = Ran(STEP, structs.replace(STEP, begins=4.0), held)
    text = load_test.page("accepts", run, seconds, {"machine": "<small>"}, ["forecast < measured"])  # type: ignore[arg-type]
    assert text.count("<svg") == 4
    assert "forecast &lt; measured" in text
    assert "&lt;small&gt;" in text
    assert "<td>0.31</td>" in text, "the load ratio after a step of the ramp"
    assert "src=" not in text
    assert "href=" not in text
    assert text.count(">ramp</text>") == 4, "steps of one phase are one stretch, in each plot"


def test_a_plot_is_well_formed_and_scales_to_its_largest_figure() -> None:
    plot = Plot(title="a < b", curves={"one": [(0.0, 0.0), (10.0, 50.0)]}, marks={"end": 100.0})
    root = ET.fromstring(plots.draw(plot, [Phase(name="ramp", begins=0.0, ends=10.0)]))
    lines = [one.get("points") for one in root.iter() if one.tag.endswith("polyline")]
    assert lines == ["64.0,212.0 750.0,123.0"], "50 of 100 is half of the height"


def test_a_plot_of_nothing_is_drawn_all_the_same() -> None:
    assert plots.draw(Plot(title="none", curves={"one": []}), []).endswith("</svg>")
