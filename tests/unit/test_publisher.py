from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import cast

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from convo.bell import Bell
from convo.config import JobsSettings
from convo.errors import DatabaseUnavailable
from convo.pipeline.publisher import Handed, Publisher
from convo.store.jobs import Jobs, Lease
from convo.store.rescue import Rescue
from tests.making import lease, told

JOBS = JobsSettings(poll_seconds=1, heartbeat_seconds=5)


class ReadyJobs:
    """A queue of jobs that are due; notes every lease and rescue."""

    def __init__(self, ready: int = 0) -> None:
        self.ready = [lease(seq) for seq in range(1, ready + 1)]
        self.leases: list[tuple[float, int]] = []
        self.rescues: list[float] = []
        self.away = False

    async def lease(self, count: int, *, out: Collection[str] = ()) -> list[Lease]:
        await trio.lowlevel.checkpoint()
        self.leases.append((trio.current_time(), count))
        if self.away:
            raise DatabaseUnavailable("away")
        taken, self.ready = self.ready[:count], self.ready[count:]
        return taken

    async def rescue(self) -> Rescue:
        await trio.lowlevel.checkpoint()
        self.rescues.append(trio.current_time())
        return Rescue()

    async def has_suspects(self, *, out: Collection[str] = ()) -> bool:
        await trio.lowlevel.checkpoint()
        return False


class Feed:
    """A publisher at work, and the receiving end of its channel."""

    def __init__(self, jobs: ReadyJobs) -> None:
        self.jobs = jobs
        self.bell = Bell()
        self.send, self.receive = trio.open_memory_channel[Handed](0)
        self.publisher = Publisher(cast("Jobs", jobs), JOBS, self.bell, [], lambda _: None)
        self.handed: list[tuple[int, float, float]] = []

    async def work(self, seconds: float) -> None:
        """Be a worker that takes ``seconds`` for a job."""
        async with self.receive.clone() as channel:
            async for one, asked in channel:
                self.handed.append((one.seq, asked, trio.current_time()))
                await trio.sleep(seconds)
                self.bell.ring()


@asynccontextmanager
async def feeding(jobs: ReadyJobs, *, workers: int = 0, seconds: float = 1.0) -> AsyncIterator[Feed]:
    feed = Feed(jobs)
    async with trio.open_nursery() as nursery, feed.receive:
        for _ in range(workers):
            nursery.start_soon(feed.work, seconds)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as publishing:
            await publishing.start(feed.publisher.run, feed.send)
            yield feed
            publishing.cancel_scope.cancel()


async def test_jobs_are_leased_only_for_workers_that_wait_and_all_at_once(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs(ready=5)
    async with feeding(jobs, workers=3, seconds=100) as feed:
        await trio.sleep(50)
    assert jobs.leases == [(0.0, 3)]
    assert [seq for seq, _, _ in feed.handed] == [1, 2, 3]
    assert [one.seq for one in jobs.ready] == [4, 5]


async def test_a_worker_that_becomes_free_is_served_at_once(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs(ready=3)
    async with feeding(jobs, workers=1, seconds=0.25) as feed:
        await trio.sleep(0.6)
    assert feed.handed == [(1, 0.0, 0.0), (2, 0.25, 0.25), (3, 0.5, 0.5)]


async def test_a_bell_wakes_it_before_the_poll(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs()
    async with feeding(jobs, workers=1) as feed:
        await trio.sleep(0.3)
        jobs.ready = [lease(1)]
        feed.bell.ring()
        await trio.sleep(0.1)
        assert feed.handed == [(1, 0.3, 0.3)]


async def test_without_a_bell_the_poll_finds_the_jobs_of_others(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs()
    async with feeding(jobs, workers=1) as feed:
        await trio.sleep(0.3)
        jobs.ready = [lease(1)]
        await trio.sleep(1)
        assert feed.handed == [(1, 1.0, 1.0)]


async def test_while_there_may_be_more_it_does_not_wait(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs(ready=10)
    async with feeding(jobs, workers=2, seconds=0.0) as feed:
        await trio.sleep(0.5)
    assert len(feed.handed) == 10


async def test_a_busy_house_leases_nothing(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs(ready=1)
    async with feeding(jobs):
        await trio.sleep(3)
    assert jobs.leases == []


async def test_ended_leases_are_rescued_at_every_heartbeat_also_while_all_are_busy(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs()
    async with feeding(jobs):
        await trio.sleep(11)
    assert jobs.rescues == [0.0, 5.0, 10.0]


async def test_a_database_that_is_away_is_told_and_asked_again_at_the_next_poll(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs(ready=1)
    jobs.away = True
    with told() as events:
        async with feeding(jobs, workers=1) as feed:
            await trio.sleep(1.5)
            jobs.away = False
            await trio.sleep(1)
    assert feed.handed == [(1, 2.0, 2.0)]
    assert events == ["lease_failed", "lease_failed", "jobs_leased"]


async def test_the_end_of_the_feed_closes_the_channel_and_the_workers_run_dry(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs(ready=1)
    async with feeding(jobs, workers=2, seconds=10):
        await trio.sleep(1)
    assert trio.current_time() == 10.0
