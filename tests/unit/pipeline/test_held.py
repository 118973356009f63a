from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from convo.errors import DatabaseUnavailable, DiskFull, LeaseLost
from convo.pipeline.at_work import JobAtWork
from convo.pipeline.held import HeldLeases
from convo.settings import JobsSettings
from convo.store.jobs.lease import Lease
from convo.store.jobs.table import Jobs
from tests.support.making import lease, told

JOBS = JobsSettings(lease_seconds=30, heartbeat_seconds=5)


class RenewingJobs:
    """Renews every lease but those whose token is in ``lost``; ``away`` makes it fail, ``slow_seconds`` slow."""

    def __init__(self) -> None:
        self.beats: list[tuple[float, list[int]]] = []
        self.lost: set[int] = set()
        self.away = False
        self.full = False
        self.released: list[tuple[float, int]] = []
        self.slow_seconds = 0.0

    async def renew(self, leases: Sequence[Lease]) -> set[int]:
        self.beats.append((trio.current_time(), sorted(one.token for one in leases)))
        await trio.sleep(self.slow_seconds)
        if self.away:
            raise DatabaseUnavailable("away")
        return {one.token for one in leases} - self.lost

    async def release(self, one: Lease) -> None:
        await trio.lowlevel.checkpoint()
        self.released.append((trio.current_time(), one.token))
        if one.token in self.lost:
            raise LeaseLost("lost")
        if self.full:
            raise DiskFull("full")


@pytest.fixture
def jobs() -> RenewingJobs:
    return RenewingJobs()


@asynccontextmanager
async def beating(jobs: RenewingJobs) -> AsyncIterator[HeldLeases]:
    held = HeldLeases(cast("Jobs", jobs), JOBS)
    async with trio.open_nursery() as nursery:
        await nursery.start(held.beat)
        yield held
        nursery.cancel_scope.cancel()


async def test_the_work_on_an_erased_job_stops_at_once_and_no_other(
    autojump_clock: MockClock, jobs: RenewingJobs
) -> None:
    async with beating(jobs) as held:
        with held.hold(lease(1), 0.0) as first, held.hold(lease(2), 0.0) as second:
            held.stop_gone([1, 3])
            assert (first.cancel_called, second.cancel_called) == (True, False)


async def test_all_leases_are_renewed_in_one_statement_at_every_heartbeat(
    autojump_clock: MockClock, jobs: RenewingJobs
) -> None:
    async with beating(jobs) as held:
        with held.hold(lease(1), trio.current_time()), held.hold(lease(2), trio.current_time()):
            assert len(held) == 2
            await trio.sleep(11)
        assert len(held) == 0
    assert jobs.beats == [(5.0, [1, 2]), (10.0, [1, 2])]


async def test_a_process_without_leases_still_says_that_it_lives(autojump_clock: MockClock, jobs: RenewingJobs) -> None:
    async with beating(jobs):
        await trio.sleep(6)
    assert jobs.beats == [(5.0, [])]


async def test_work_goes_on_for_as_long_as_its_lease_is_renewed(autojump_clock: MockClock, jobs: RenewingJobs) -> None:
    async with beating(jobs) as held:
        with held.hold(lease(1), trio.current_time()) as scope:
            await trio.sleep(301)
    assert not scope.cancelled_caught


async def test_a_lost_lease_cancels_its_work_and_no_other(autojump_clock: MockClock, jobs: RenewingJobs) -> None:
    ended: dict[int, float] = {}

    async def work(held: HeldLeases, one: Lease) -> None:
        with held.hold(one, trio.current_time()):
            await trio.sleep(20)
        ended[one.seq] = trio.current_time()

    jobs.lost = {1}
    with told() as events:
        async with beating(jobs) as held, trio.open_nursery() as workers:
            workers.start_soon(work, held, lease(1))
            workers.start_soon(work, held, lease(2))
    assert ended == {1: 5.0, 2: 20.0}
    assert events == ["lease_lost"]


async def test_work_stops_itself_when_its_last_good_renewal_is_a_lease_old(
    autojump_clock: MockClock, jobs: RenewingJobs
) -> None:
    jobs.slow_seconds = 1
    async with beating(jobs) as held:
        with trio.fail_after(1000), held.hold(lease(1), trio.current_time()) as scope:
            await trio.sleep(12.5)  # renewed at 5 and 11, each answered a second later
            jobs.away = True
            await trio.sleep_forever()
    assert scope.cancelled_caught
    # The lease counts from when it was asked for: the database's own clock for it started later.
    assert trio.current_time() == 11 + 30


async def test_the_first_lease_counts_from_when_it_was_asked_for(autojump_clock: MockClock, jobs: RenewingJobs) -> None:
    jobs.away = True
    async with beating(jobs) as held:
        await trio.sleep(7)
        with trio.fail_after(1000), held.hold(lease(1), since=4.0):
            await trio.sleep_forever()
    assert trio.current_time() == 34


async def test_a_heartbeat_that_fails_is_told_and_tried_again(autojump_clock: MockClock, jobs: RenewingJobs) -> None:
    jobs.away = True
    with told() as events:
        async with beating(jobs) as held:
            with held.hold(lease(1), trio.current_time()) as scope:
                await trio.sleep(11)
                jobs.away = False
                await trio.sleep(30)
    assert not scope.cancelled_caught
    # Told at 5 s; at 10 s the same again, which is not told.
    assert events == ["renewal_failed"]


async def test_a_lease_let_go_while_the_renewal_was_under_way_is_nobodys_loss(
    autojump_clock: MockClock, jobs: RenewingJobs
) -> None:
    jobs.slow_seconds, jobs.lost = 2, {1}
    with told() as events:
        async with beating(jobs) as held:
            with held.hold(lease(1), trio.current_time()):
                await trio.sleep(6)
            await trio.sleep(5)
    assert events == []


async def test_a_job_that_came_back_to_the_same_process_is_held_beside_its_lost_lease(
    autojump_clock: MockClock, jobs: RenewingJobs
) -> None:
    ended: dict[int, float] = {}

    async def work(held: HeldLeases, one: Lease, seconds: float) -> None:
        with held.hold(one, trio.current_time()):
            await trio.sleep(seconds)
        ended[one.token] = trio.current_time()

    jobs.lost = {7}
    async with beating(jobs) as held, trio.open_nursery() as workers:
        workers.start_soon(work, held, lease(1, token=7), 4)
        workers.start_soon(work, held, lease(1, token=8), 60)
        workers.start_soon(work, held, lease(2, token=9), 60)
    assert ended == {7: 4.0, 8: 60.0, 9: 60.0}
    assert jobs.beats[0] == (5.0, [8, 9])


async def test_of_two_leases_on_one_job_the_lost_one_is_stopped(autojump_clock: MockClock, jobs: RenewingJobs) -> None:
    jobs.lost = {7}
    async with beating(jobs) as held:
        with held.hold(lease(1, token=7), 0) as late, held.hold(lease(1, token=8), 0) as good:
            await trio.sleep(6)
    assert (late.cancelled_caught, good.cancelled_caught) == (True, False)


async def test_a_lease_whose_ending_could_not_be_stored_is_given_back_once_something_can_be(
    autojump_clock: MockClock, jobs: RenewingJobs
) -> None:
    jobs.away, jobs.full, jobs.lost = True, True, {7}
    with told() as events:
        async with beating(jobs) as held:
            for token in (7, 8, 9):
                held.give_back_later(JobAtWork(lease(token, token=token), {}))
            await trio.sleep(6)
            jobs.away = False
            await trio.sleep(5)
            jobs.full = False
            await trio.sleep(15)
    # At 5 s nothing is stored, at 10 s a renewal but no release.
    assert jobs.released == [(10.0, 7), (10.0, 8), (15.0, 8), (15.0, 9)]
    assert events == ["renewal_failed", "ending_failed", "job_released", "job_released"]
