from __future__ import annotations

import math
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import cast

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from convo.errors import DatabaseUnavailable, RemoteDenied, RemoteError
from convo.pipeline.held import HeldLeases
from convo.pipeline.publisher import LEASED_AHEAD_MAX, Handed, Publisher
from convo.resilience.dependency import Dependency
from convo.runtime.bell import Bell
from convo.settings import JobsSettings, RemoteSettings
from convo.store.jobs.lease import Lease
from convo.store.jobs.rescue import Rescue
from convo.store.jobs.table import Jobs
from tests.support.making import lease, told

JOBS = JobsSettings(poll_seconds=1, heartbeat_seconds=5)


class ReadyJobs:
    """A queue of jobs that are due; notes every lease and rescue."""

    def __init__(self, ready: int = 0) -> None:
        self.ready = [lease(seq) for seq in range(1, ready + 1)]
        self.leases: list[tuple[float, int]] = []
        self.rescues: list[float] = []
        self.away = False
        self.suspects: list[Lease] = []
        self.out: list[list[str]] = []
        self.probes: list[tuple[float, str]] = []
        self.rescue_seconds = 0.0
        self.claims: list[float] = []
        self.claimable = True
        self.found = Rescue()
        self.returned: list[int] = []

    async def lease_suspect(self, *, out: Collection[str] = ()) -> list[Lease]:
        await trio.lowlevel.checkpoint()
        return [self.suspects.pop(0)] if self.suspects else []

    async def claim_suspects(self, *, out: Collection[str] = ()) -> bool:
        await trio.lowlevel.checkpoint()
        self.claims.append(trio.current_time())
        return bool(self.suspects) and self.claimable

    async def lease_probe(self, dependency: str) -> list[Lease]:
        await trio.lowlevel.checkpoint()
        self.probes.append((trio.current_time(), dependency))
        return [lease(1000 + len(self.probes))]

    async def lease(self, count: int, *, out: Collection[str] = ()) -> list[Lease]:
        await trio.lowlevel.checkpoint()
        self.out.append(list(out))
        self.leases.append((trio.current_time(), count))
        if self.away:
            raise DatabaseUnavailable("away")
        taken, self.ready = self.ready[:count], self.ready[count:]
        return taken

    async def rescue(self, *, gives_up: bool = True) -> Rescue:
        await trio.lowlevel.checkpoint()
        self.rescues.append(trio.current_time())
        await trio.sleep(self.rescue_seconds)
        return self.found

    async def has_suspects(self, *, out: Collection[str] = ()) -> bool:
        await trio.lowlevel.checkpoint()
        return bool(self.suspects)

    async def return_unbegun(self, leases: Sequence[Lease]) -> None:
        await trio.lowlevel.checkpoint()
        self.returned += [one.seq for one in leases]


class HeldNames:
    """Notes which leases are held, before a worker has them."""

    def __init__(self) -> None:
        self.kept: list[int] = []

    def keep(self, one: Lease, _since: float) -> None:
        self.kept.append(one.seq)

    def let_go(self, leases: Collection[Lease]) -> None:
        for one in leases:
            self.kept.remove(one.seq)


class Paced:
    """Lets jobs start one by one, with a pause, while it is ``pressed``."""

    def __init__(self, seconds: float) -> None:
        self.pressed = False
        self._seconds = seconds
        self._next_at = 0.0

    def allowed(self) -> float:
        return float(trio.current_time() >= self._next_at) if self.pressed else math.inf

    def started(self, jobs: int) -> None:
        self._next_at = trio.current_time() + self._seconds * jobs

    def wait_seconds(self) -> float:
        return self._next_at - trio.current_time()


class Feed:
    """A publisher at work, and the receiving end of its channel."""

    def __init__(self, jobs: ReadyJobs, dependencies: Sequence[Dependency], workers: int) -> None:
        self.jobs = jobs
        self.ended: list[int] = []
        self.bell = Bell()
        self.send, self.receive = trio.open_memory_channel[Handed](LEASED_AHEAD_MAX)
        settings = msgspec.structs.replace(JOBS, workers=workers)
        self.pacer = Paced(0.2)
        self.held = HeldNames()
        self.publisher = Publisher(
            cast("Jobs", jobs),
            settings,
            self.bell,
            dependencies,
            self.ended.append,
            cast("HeldLeases", self.held),
            self.pacer,
            settling=lambda: self.settling,
        )
        self.settling = False
        self.handed: list[tuple[int, float, float]] = []

    async def work(self, seconds: float) -> None:
        """Be a worker that takes ``seconds`` for a job."""
        async with self.receive.clone() as channel:
            async for one, asked in channel:
                self.handed.append((one.seq, asked, trio.current_time()))
                await trio.sleep(seconds)
                self.bell.ring()


@asynccontextmanager
async def feeding(
    jobs: ReadyJobs, *dependencies: Dependency, workers: int = 0, seconds: float = 1.0
) -> AsyncIterator[Feed]:
    feed = Feed(jobs, dependencies, workers)
    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(feed.work, seconds)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as publishing:
            await publishing.start(feed.publisher.run, feed.send, feed.receive)
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


async def test_no_more_jobs_start_than_the_pace_allows(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs()
    async with feeding(jobs, workers=3, seconds=0.0) as feed:
        await trio.sleep(0.25)
        jobs.ready = [lease(seq) for seq in range(1, 21)]
        feed.pacer.pressed = True
        feed.bell.ring()
        await trio.sleep(0.9)
        assert [count for _, count in jobs.leases[1:]] == [1] * len(feed.handed)
        starts = [at for _, _, at in feed.handed]
        assert starts == pytest.approx([0.25, 0.45, 0.65, 0.85, 1.05])
        feed.pacer.pressed = False
        await trio.sleep(0.2)
        assert len(feed.handed) == 20


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


async def test_a_fifth_of_a_second_of_work_is_leased_ahead_and_held(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs(ready=10_000)
    async with feeding(jobs, workers=4, seconds=0.02) as feed:
        await trio.sleep(3)
        jobs.leases.clear()
        await trio.sleep(1)
    assert len(feed.handed) == pytest.approx(4 / 0.02 * 4, rel=0.05)
    # 200 jobs/s are 40 ahead; it leases when half of them are taken.
    assert max(count for _, count in jobs.leases) <= 40
    assert 200 / 40 <= len(jobs.leases) <= 200 / 20 * 1.5
    waited = [at - asked for _, asked, at in feed.handed]
    assert max(waited) <= 0.23


async def test_what_waits_at_a_stop_is_given_back_and_not_worked_on(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs(ready=10_000)
    async with feeding(jobs, workers=4, seconds=0.02) as feed:
        await trio.sleep(2.01)
    begun = [seq for seq, _, _ in feed.handed]
    assert len(jobs.returned) > 5
    assert set(begun).isdisjoint(jobs.returned)
    assert sorted([*begun, *jobs.returned]) == list(range(1, len(begun) + len(jobs.returned) + 1))
    assert set(feed.held.kept).isdisjoint(jobs.returned)


async def test_where_jobs_take_long_nothing_is_leased_ahead(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs(ready=100)
    async with feeding(jobs, workers=4, seconds=2) as feed:
        await trio.sleep(9)
    assert {at - asked for _, asked, at in feed.handed} == {0.0}
    assert jobs.returned == []


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
    assert events == ["lease_failed", "jobs_leased"]  # told once in 10 s


async def test_the_end_of_the_feed_closes_the_channel_and_the_workers_run_dry(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs(ready=1)
    async with feeding(jobs, workers=2, seconds=10):
        await trio.sleep(1)
    assert trio.current_time() == 10.0


async def test_those_who_got_all_of_their_share_may_have_more_and_are_asked_at_once(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs()
    jobs.ready = [lease(seq, fair_key=key) for seq, key in enumerate("aab", 1)]
    async with feeding(jobs, workers=4, seconds=100):
        await trio.sleep(0.5)
    assert [count for _, count in jobs.leases] == [4, 1]


async def test_where_nobody_got_his_share_it_waits(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs()
    jobs.ready = [lease(1, fair_key="a"), lease(2, fair_key="b")]
    async with feeding(jobs, workers=4, seconds=100):
        await trio.sleep(0.5)
    assert [count for _, count in jobs.leases] == [4]


# --- dependencies that are out


async def down(*, seconds: float = 60.0) -> Dependency:
    """A dependency whose breaker just opened."""
    dependency = Dependency("llm", RemoteSettings(breaker_open_seconds=seconds))

    async def attempt() -> None:
        await trio.lowlevel.checkpoint()
        raise RemoteDenied("llm", "answered 401")

    for _ in range(5):
        with pytest.raises(RemoteError):
            await dependency.call("llm.questions", attempt)
    return dependency


async def test_what_waits_for_a_dependency_that_is_out_is_left_out(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs()
    async with feeding(jobs, await down(), Dependency("memory", RemoteSettings()), workers=1):
        await trio.sleep(0.5)
    assert jobs.out == [["llm"]]
    assert jobs.probes == []


async def test_when_its_time_is_over_one_job_goes_to_find_out(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs()
    async with feeding(jobs, await down(), workers=3, seconds=1) as feed:
        await trio.sleep(70)
    assert jobs.probes == [(60.0, "llm")]
    assert [seq for seq, _, _ in feed.handed] == [1001]
    assert jobs.out[-1] == ["llm"]


async def test_a_probe_that_came_to_nothing_is_followed_by_another(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs()
    async with feeding(jobs, await down(), workers=3, seconds=1):
        await trio.sleep(80)
    assert jobs.probes == [(60.0, "llm"), (75.0, "llm")]


# --- suspects


async def test_suspects_run_alone_and_the_others_have_as_long_after_each(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs(ready=3)
    async with feeding(jobs, workers=3, seconds=10) as feed:
        await trio.sleep(1)
        jobs.suspects = [lease(77), lease(78)]
        jobs.ready = [lease(seq) for seq in range(4, 10)]
        await trio.sleep(60)
    assert [(seq, at) for seq, _, at in feed.handed] == [
        *((seq, 0.0) for seq in (1, 2, 3)),
        (77, 10.0),
        *((seq, 20.0) for seq in (4, 5, 6)),
        (78, 30.0),
        *((seq, 40.0) for seq in (7, 8, 9)),
    ]


async def test_the_time_in_which_a_suspect_waits_for_what_is_at_work_is_given_back_too(
    autojump_clock: MockClock,
) -> None:
    jobs = ReadyJobs(ready=1)
    async with feeding(jobs, workers=2, seconds=10) as feed:
        await trio.sleep(6.5)
        jobs.ready = [lease(2)]
        await trio.sleep(2)
        jobs.suspects = [lease(77), lease(78)]
        jobs.ready = [lease(seq) for seq in range(3, 20)]
        await trio.sleep(50)
    # Quiet from 10, when the first one ended, to 27: then the others can start until 44.
    assert [(seq, at) for seq, _, at in feed.handed] == [
        *((1, 0.0), (2, 7.0), (77, 17.0)),
        *((3, 27.0), (4, 27.0), (5, 37.0), (6, 37.0)),
        *((78, 47.0), (7, 57.0), (8, 57.0)),
    ]


async def test_a_suspect_waits_until_nothing_is_being_settled(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs()
    jobs.suspects = [lease(101)]
    async with feeding(jobs, workers=2) as feed:
        feed.settling = True
        await trio.sleep(20)
        assert feed.handed == []
        feed.settling = False
        feed.bell.ring()
        await wait_all_tasks_blocked()
        assert [seq for seq, _, _ in feed.handed] == [101]


async def test_where_nothing_else_is_due_the_suspects_follow_each_other(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs()
    jobs.suspects = [lease(77), lease(78), lease(79)]
    async with feeding(jobs, workers=3, seconds=10) as feed:
        await trio.sleep(60)
    assert [(seq, at) for seq, _, at in feed.handed] == [(77, 0.0), (78, 10.0), (79, 20.0)]


async def test_while_another_process_has_the_suspects_this_one_works_for_the_others(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs(ready=100)
    jobs.suspects, jobs.claimable = [lease(777)], False
    async with feeding(jobs, workers=2, seconds=1) as feed:
        await trio.sleep(20.5)
    assert [at for _, _, at in feed.handed] == [float(second) for second in range(21) for _ in range(2)]
    assert jobs.claims == [0.0, 5.0, 10.0, 15.0, 20.0]  # it asks once a heartbeat


async def test_after_the_last_suspect_nobody_waits_for_another(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs(ready=12)
    jobs.suspects = [lease(777)]
    async with feeding(jobs, workers=3, seconds=2) as feed:
        await trio.sleep(20)
    assert [at for _, _, at in feed.handed] == [0.0, *([2.0] * 3), *([4.0] * 3), *([6.0] * 3), *([8.0] * 3)]


async def test_a_rescue_that_has_more_to_do_goes_on_at_once_and_the_workers_are_fed_between(
    autojump_clock: MockClock,
) -> None:
    jobs = ReadyJobs(ready=3)
    jobs.found, jobs.rescue_seconds = Rescue(more=True), 0.25
    async with feeding(jobs, workers=1, seconds=0.25) as feed:
        await trio.sleep(2.1)
        jobs.found = Rescue()
        await trio.sleep(2.5)
    assert [seq for seq, _, _ in feed.handed] == [1, 2, 3]
    assert jobs.rescues == pytest.approx([0.25 * n for n in range(len(jobs.rescues))])
    assert len(jobs.rescues) in {9, 10}


async def test_what_a_rescue_buries_is_told_to_whoever_waits_for_it(autojump_clock: MockClock) -> None:
    jobs = ReadyJobs()
    jobs.found = Rescue(rescued=2, buried={7: "poison: 5 times"})
    with told() as events:
        async with feeding(jobs) as feed:
            await trio.sleep(1)
    assert feed.ended == [7]
    assert events == ["lease_rescued", "job_given_up"]
