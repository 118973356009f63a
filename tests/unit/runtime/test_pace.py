from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from convo.runtime import threads
from convo.runtime.pace import BOOKKEEPING_SECONDS, FLOOR, Accepts, Pace, Pacer


def started_in(pace: Pace, seconds: float) -> float:
    """Start what is allowed at each millisecond; return how many jobs started a second."""
    jobs = 0
    for step in range(int(seconds * 1000)):
        allowed = math.floor(pace.allowed(step / 1000))
        pace.started(allowed)
        jobs += allowed
    return jobs / seconds


def test_while_nothing_is_accepted_every_job_may_start() -> None:
    pace = Pace(0.0)
    assert pace.allowed(0.0) == math.inf
    pace.note_accepts(1.0, 0, 0.0, 5.0)
    assert pace.share == 1.0, "a loop that is late without accepts is no reason to wait"


def test_at_500_accepts_a_second_analyses_have_the_floor_and_no_less() -> None:
    pace = Pace(0.0)
    pace.note_accepts(1.0, 500, 0.7, 0.0)
    assert pace.share == FLOOR
    assert started_in(pace, 10.0) == pytest.approx(FLOOR / BOOKKEEPING_SECONDS, rel=0.05)


def test_few_accepts_leave_most_of_the_interpreter_to_analyses() -> None:
    pace = Pace(0.0)
    pace.note_accepts(1.0, 50, 0.1, 0.0)
    assert 0.8 < pace.share < 0.9


def test_accepts_that_wait_for_a_slow_disk_do_not_keep_analyses_waiting() -> None:
    pace = Pace(0.0)
    pace.note_accepts(1.0, 20, 1.0, 0.0)
    assert pace.share > 0.9


def test_on_a_machine_that_others_use_an_accept_needs_longer() -> None:
    pace = Pace(0.0)
    pace.note_accepts(1.0, 100, 1.0, 0.0, slowed=4.0)
    assert pace.share == FLOOR


def test_a_late_loop_beside_accepts_slows_the_analyses_down() -> None:
    pace = Pace(0.0)
    pace.note_accepts(0.05, 1, 0.001, 0.02)
    assert pace.share == FLOOR


def test_a_burst_is_noticed_at_once_and_forgotten_slowly() -> None:
    pace = Pace(0.0)
    pace.note_load(1.0)
    assert pace.share == FLOOR
    pace.note_load(0.0)
    assert pace.share < 0.2
    for _ in range(60):
        pace.note_load(0.0)
    assert pace.allowed(10.0) == math.inf


def test_jobs_that_cost_more_start_more_seldom() -> None:
    cheap, dear = Pace(0.0), Pace(0.0)
    for _ in range(100):
        dear.note_cost(1, 0.1)
    for pace in (cheap, dear):
        pace.note_load(1.0)
    assert started_in(dear, 100.0) == pytest.approx(FLOOR / (0.1 + BOOKKEEPING_SECONDS), rel=0.05)
    assert started_in(dear, 100.0) < started_in(cheap, 100.0) / 10


def test_after_the_wait_that_it_names_a_job_may_start() -> None:
    pace = Pace(0.0)
    pace.note_load(1.0)
    pace.started(math.floor(pace.allowed(1.0)))
    wait = pace.wait_seconds()
    assert 0 < wait <= BOOKKEEPING_SECONDS / FLOOR
    assert pace.allowed(1.0 + wait * 0.9) < 1
    assert pace.allowed(1.0 + wait * 1.01) >= 1


class Counted:
    """A process that accepts, as the pacer sees it."""

    def __init__(self) -> None:
        self.accepts = Accepts(0, 0.0)
        self.refuses = False

    async def accept(self, rate: float, seconds: float) -> None:
        for _ in range(round(seconds * rate)):
            await trio.sleep(1 / rate)
            self.accepts = Accepts(self.accepts.ended + 1, self.accepts.busy_seconds + 0.002)


async def test_the_pacer_follows_the_accepts_and_tells_the_threads(autojump_clock: MockClock) -> None:
    process = Counted()
    pacer = Pacer(lambda: process.accepts, lambda: process.refuses, lambda: 0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pacer.run)
        await trio.sleep(1)
        assert pacer.allowed() == math.inf
        assert pacer.share_seconds == pytest.approx(1.0, abs=0.06)
        await process.accept(500.0, 1.0)
        assert pacer.share_seconds < 1.3, "at 500 accepts a second analyses have the floor"
        assert pacer.pace.share == FLOOR
        assert threads.pause_seconds(1.0) == 1 / threads.SHARE_FLOOR - 1
        await trio.sleep(3)
        assert pacer.allowed() == math.inf
        process.refuses = True
        await trio.sleep(0.1)
        assert pacer.pace.share == FLOOR
        process.refuses = False
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert threads.pause_seconds(1.0) == pytest.approx(0.0, abs=0.01)
