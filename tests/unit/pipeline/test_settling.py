from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from convo.pipeline.at_work import JobAtWork
from convo.pipeline.settling import Settling
from convo.runtime.bell import Bell
from tests.support.making import lease

SECONDS = 1.0


class Settled:
    """Settles each job in ``SECONDS``, shielded as endings are, and notes when it has."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[tuple[int, float]] = []

    async def settle(self, job: JobAtWork) -> None:
        self.begun.append(job.lease.seq)
        with trio.CancelScope(shield=True):
            await trio.sleep(SECONDS)
        self.ended.append((job.lease.seq, trio.current_time()))


def job(seq: int) -> JobAtWork:
    return JobAtWork(lease(seq), {})


@asynccontextmanager
async def settling(settled: Settled, count: int, bell: Bell) -> AsyncIterator[Settling]:
    """Run so many that settle; leaving cancels them."""
    made = Settling(settled.settle, bell)
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(made.run)
        await wait_all_tasks_blocked()
        yield made
        nursery.cancel_scope.cancel()


async def test_a_worker_is_free_while_its_job_is_settled(autojump_clock: MockClock) -> None:
    settled = Settled()
    async with settling(settled, 2, Bell()) as made:
        began = trio.current_time()
        for seq in (1, 2):
            await made.hand_over(job(seq))
        assert trio.current_time() == began
        await trio.sleep(SECONDS)
        await wait_all_tasks_blocked()
        assert sorted(settled.ended) == [(1, began + SECONDS), (2, began + SECONDS)]


async def test_where_all_who_settle_are_busy_the_worker_does_it_and_nothing_waits(autojump_clock: MockClock) -> None:
    settled = Settled()
    async with settling(settled, 1, Bell()) as made:
        began = trio.current_time()
        for seq in (1, 2):
            await made.hand_over(job(seq))
        assert trio.current_time() == began + SECONDS
        await wait_all_tasks_blocked()
        assert sorted(settled.ended) == [(1, began + SECONDS), (2, began + SECONDS)]


async def test_a_stop_settles_what_was_handed_over_before(autojump_clock: MockClock) -> None:
    settled = Settled()
    async with settling(settled, 2, Bell()) as made:
        await made.hand_over(job(1))
        await wait_all_tasks_blocked()
        # The second is handed over, and nobody has begun with it.
        await made.hand_over(job(2))
        assert settled.begun == [1]
    assert sorted(seq for seq, _ in settled.ended) == [1, 2]
    assert not made.busy


async def test_it_is_busy_until_the_last_job_is_settled_and_rings_then(autojump_clock: MockClock) -> None:
    bell = Bell()
    async with settling(Settled(), 1, bell) as made:
        assert not made.busy
        began = trio.current_time()
        await made.hand_over(job(1))
        # At once, and not when somebody begins with it: the worker looks idle from now on.
        assert made.busy
        with trio.fail_after(10):
            await bell.rung()
        assert trio.current_time() == began + SECONDS
        assert not made.busy


async def test_a_bug_in_a_settle_leaves_nothing_busy(autojump_clock: MockClock) -> None:
    async def broken(_: JobAtWork) -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    made = Settling(broken, Bell())
    try:
        await made.hand_over(job(1))
    except ZeroDivisionError:
        assert not made.busy
    else:
        raise AssertionError("it must not be silent")
