from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import pytest
from msgspec import structs

from convo.capacity.load_ratio import Fill, LoadRatio, load_shares
from convo.capacity.usage import Usage
from convo.runtime.pace import BOOKKEEPING_SECONDS
from tests.support.machines import KNOWN_MACHINES, SyntheticMachine

# What ends them is in the process itself; what its model does is no part of the ratio.
MACHINES = {name: found for name, found in KNOWN_MACHINES.items() if found[1] in {"interpreter", "committer"}}
IDLE = Fill(admission=0.0, workers=0.0, backlog_seconds=0.0)


def workers_share(workers: float, backlog_seconds: float) -> float:
    fill = Fill(admission=0.0, workers=workers, backlog_seconds=backlog_seconds)
    return load_shares(Usage(at=5.0), fill, 30.0, 256)["workers"]


def test_workers_that_are_all_busy_are_no_load_while_nothing_is_late() -> None:
    assert workers_share(1.0, 0.0) == 0.0
    assert workers_share(1.0, 15.0) == 0.5
    assert workers_share(1.0, 30.0) == 1.0
    assert workers_share(1.0, 3_000.0) == 2.0, "more than twice as many is never asked for at once"


def test_a_backlog_that_no_worker_may_take_is_no_load() -> None:
    # More processes would not help: the day's budget is spent, or the process may not take jobs.
    assert workers_share(0.0, 3_000.0) == 0.0


def shares_of(**used: float) -> Mapping[str, float]:
    return load_shares(structs.replace(Usage(at=5.0), **used), IDLE, 30.0, 256)


def test_the_interpreter_is_full_where_it_works_or_waits_for_a_processor_nearly_all_the_time() -> None:
    assert shares_of(process_seconds=2.25)["interpreter"] == pytest.approx(0.5)
    assert shares_of(process_seconds=2.25, loop_seconds=2.2, queued_seconds=2.25)["interpreter"] == pytest.approx(1.0)


def test_transactions_without_a_pause_are_full_only_when_each_takes_all_the_rows_that_it_may() -> None:
    # At a third of the end they already follow each other without a pause.
    assert shares_of(commit_seconds=5.0, commits=1_000.0, accepted=2_560.0)["committer"] == pytest.approx(0.01)
    assert shares_of(commit_seconds=5.0, commits=10.0, accepted=2_560.0)["committer"] == pytest.approx(1.0)
    assert shares_of(commit_seconds=2.5, commits=10.0, accepted=2_560.0)["committer"] == pytest.approx(0.5)


def test_analyses_are_full_where_they_need_all_that_accepts_leave_them() -> None:
    needs = 100 * (0.0035 + BOOKKEEPING_SECONDS)
    used = {"analysed": 100.0, "analyst_seconds": 0.35, "accepted": 100.0, "commits": 100.0}
    assert shares_of(**used, pace_seconds=2 * needs)["pace"] == pytest.approx(0.5)
    assert shares_of(**used, pace_seconds=needs)["pace"] == pytest.approx(1.0)
    assert shares_of(**{**used, "accepted": 0.0}, pace_seconds=needs)["pace"] == 0.0, "nothing is kept from them"


@pytest.mark.parametrize("name", MACHINES)
def test_on_a_ramp_the_ratio_rises_with_each_step_and_is_about_one_at_the_end(name: str) -> None:
    machine, _ = MACHINES[name]
    found = [ratio_at(machine, share) for share in (0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(1.0, abs=0.15)
    assert found[2] < 0.75, "a third of the end is no reason for more processes"


def ratio_at(machine: SyntheticMachine, share: float) -> float:
    ratio = LoadRatio(30.0)
    readings = machine.readings([share * machine.end()], each=120, quiet=0)
    for earlier, later in pairwise(readings):
        step = later.since(earlier)
        ratio.note(load_shares(step, IDLE, 30.0, machine.rows_max), step.at)
    assert ratio.value is not None
    return ratio.value


def test_the_ratio_is_the_largest_share_and_follows_slowly() -> None:
    ratio = LoadRatio(30.0)
    assert ratio.value is None
    ratio.note({"interpreter": 0.0, "admission": 0.1}, 5.0)
    assert ratio.value == 0.1
    for _ in range(6):
        ratio.note({"interpreter": 1.0, "admission": 0.1}, 5.0)
    assert ratio.value == pytest.approx(1 - math.exp(-1))


def test_how_often_it_is_read_does_not_change_how_fast_it_follows() -> None:
    often, seldom = LoadRatio(30.0), LoadRatio(30.0)
    for ratio, count in ((often, 60), (seldom, 6)):
        ratio.note({"interpreter": 0.0}, 30.0)
        for _ in range(count):
            ratio.note({"interpreter": 1.0}, 60.0 / count)
    assert often.value == pytest.approx(seldom.value)
