from __future__ import annotations

from io import StringIO

from msgspec import structs
from rich.console import Console

from convo.capacity.ceilings import Ceiling
from convo.capacity.forecast import CapacityReport
from convo.commands.capacity_drawing import draw_capacity
from convo.web.description import samples


def drawn(report: CapacityReport, width: int = 250) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(draw_capacity(report))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_bottleneck_the_formulas_and_the_plan_are_shown() -> None:
    text = drawn(samples.CAPACITY)
    assert "measured over 36000 conversations in 3600 s." in text
    assert "taken in and analysed: at most 42.7/s (39.3 to 46.3) by one process; the bottleneck is workers" in text
    assert "jobs.workers 64 / 1.5 s (a job)" in text
    assert "1,000,000 conversations: taken in within" in text
    assert "jobs.workers of each" in text
    assert "tokens in a month, millions: in" in text
    assert "116,640.0" in text, "50/s x 30 days x 900 tokens"


def test_the_table_of_the_resources_fits_a_terminal_of_80_columns() -> None:
    text = drawn(samples.CAPACITY, width=80)
    assert samples.CAPACITY.resources
    for one in samples.CAPACITY.resources:
        assert any(f" {one.name} " in line and f" {one.per_second:,.1f} (" in line for line in text.splitlines())


def test_what_is_not_measured_is_called_so_and_several_processes_add_up() -> None:
    assert samples.CAPACITY.plan is not None
    plan = structs.replace(samples.CAPACITY.plan, formulas=())
    free = structs.replace(plan, tokens_in_month=0.0, tokens_out_month=None, price_month=0.0)
    assert "tokens" not in drawn(structs.replace(samples.CAPACITY, plan=free)).partition("needed")[2]
    report = structs.replace(samples.CAPACITY, accepts=None, analyses=None, resources=(), many=None, plan=None)
    assert "taken in: not measured" in drawn(report)
    assert "3 like it: at most 128.0/s (117.9 to 139.0)" in drawn(structs.replace(samples.CAPACITY, processes=3))


def test_what_is_not_known_well_is_a_range_and_says_what_would_tell_it_better() -> None:
    unsure = Ceiling(
        per_second=2_000.0, low=1_500.0, high=2_700.0, bottleneck="interpreter", sharpen="a minute at 667/s"
    )
    text = drawn(structs.replace(samples.CAPACITY, accepts=unsure, processes=2))
    assert "taken in: between 1,500.0 and 2,700.0/s by one process; the bottleneck is interpreter" in text
    assert "2 like it: between 3,000.0 and 5,400.0/s. Not enough load was seen yet: a minute at 667/s" in text
    assert "2,000.0" not in text
