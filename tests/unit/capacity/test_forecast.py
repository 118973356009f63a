from __future__ import annotations

import pytest
from msgspec import structs

from convo.capacity.demands import WaitDemands
from convo.capacity.forecast import rate_of
from tests.support.capacity_report import DEMANDS, report


def test_the_least_resource_is_the_bottleneck() -> None:
    found = report()
    assert found.accepts is not None
    assert found.analyses is not None
    assert (found.accepts.bottleneck, found.analyses.bottleneck) == ("interpreter", "workers")
    assert found.analyses.per_second == 32.0
    assert found.measured.enough
    assert found.measured.note == "measured over 6000 conversations in 600 s"


def test_many_conversations_take_their_number_by_the_rate_of_all_processes() -> None:
    many = report(conversations=64_000).many
    assert many is not None
    assert many.analyse_seconds == pytest.approx(64_000 / (32.0 * 2))
    assert many.formula.endswith("64000 / (32.0/s x 2) to analyse")


def test_with_too_little_data_the_report_calls_itself_a_guess() -> None:
    few = report(structs.replace(DEMANDS, accepted=40.0, analysed=40.0, seconds=300.0))
    assert not few.measured.enough
    assert few.measured.note.startswith("measured over 40 conversations in 300 s; too few")
    assert few.analyses is not None, "it is shown all the same"
    short = report(structs.replace(DEMANDS, readings=8)).measured
    assert not short.enough
    assert "too few readings (8): take it for a guess" in short.note


def test_a_report_of_a_machine_that_others_keep_busy_says_so() -> None:
    found = report(structs.replace(DEMANDS, waits=WaitDemands(slowed=2.5)))
    assert "others want the same processors: the loop's work takes 2.5 times as long" in found.measured.note


def test_before_the_second_reading_nothing_is_known_and_that_is_what_is_answered() -> None:
    found = report(None, conversations=10, target=5.0)
    assert (found.accepts, found.analyses, found.plan, found.resources) == (None, None, None, ())
    assert "nothing is measured yet" in found.measured.note
    assert found.many is not None
    assert (found.many.accept_seconds, found.many.formula) == (None, "nothing is measured yet")
    assert found.conversation.stored_bytes == 5_000.0


def test_a_process_that_analyses_nothing_plans_no_analyses() -> None:
    found = report(structs.replace(DEMANDS, analysed=0.0, job_seconds=0.0, call_seconds={}), target=10.0)
    assert found.analyses is None
    assert found.measured.note.endswith("this process analysed none, so nothing is known of analyses")
    assert found.plan is not None
    assert (found.plan.workers, found.plan.tokens_in_month) == (None, None)
    assert found.plan.problems == (
        "nothing was analysed by this process, so workers, calls and tokens are not planned",
    )


@pytest.mark.parametrize(
    ("text", "rate"), [("500/s", 500.0), ("30000/min", 500.0), ("864000/day", 10.0), ("1.8/h", 0.0005)]
)
def test_a_target_is_a_number_by_a_unit_of_time(text: str, rate: float) -> None:
    assert rate_of(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["500", "0/s", "-1/s", "500/week", "", "1e3/s", "nan/s", "５00/s"])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write 500/s, 30000/min or 5000000/day"):
        rate_of(text)
