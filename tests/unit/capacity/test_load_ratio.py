from __future__ import annotations

import math

import pytest

from convo.capacity.load_ratio import Fill, LoadRatio, load_shares
from convo.capacity.usage import Usage

IDLE = Fill(admission=0.0, workers=0.0, backlog_seconds=0.0)


def workers_share(workers: float, backlog_seconds: float) -> float:
    fill = Fill(admission=0.0, workers=workers, backlog_seconds=backlog_seconds)
    return load_shares(Usage(at=5.0), fill, 30.0)["workers"]


def test_workers_that_are_all_busy_are_no_load_while_nothing_is_late() -> None:
    assert workers_share(1.0, 0.0) == 0.0
    assert workers_share(1.0, 15.0) == 0.5
    assert workers_share(1.0, 30.0) == 1.0
    assert workers_share(1.0, 3_000.0) == 2.0, "more than twice as many is never asked for at once"


def test_a_backlog_that_no_worker_may_take_is_no_load() -> None:
    # More processes would not help: the day's budget is spent, or the process may not take jobs.
    assert workers_share(0.0, 3_000.0) == 0.0


def test_the_interpreter_and_the_committer_count_by_their_time() -> None:
    shares = load_shares(Usage(at=5.0, process_seconds=4.0, commit_seconds=1.0), IDLE, 30.0)
    assert (shares["interpreter"], shares["committer"]) == (0.8, 0.2)


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
