from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import trio
from trio.testing import MockClock

from convo.analysis.analyze import PartFailure
from convo.errors import RemoteGarbage, RemoteUnavailable
from convo.pipeline.at_work import JobAtWork
from convo.pipeline.endings import Endings
from convo.settings import Settings
from convo.store.jobs.lease import Lease
from tests.support.making import lease, told


class StuckJobs:
    """A job table on which nothing ends."""

    async def release(self, *_: object, **__: object) -> None:
        await trio.sleep_forever()


class ParkingJobs:
    """A job table that notes for how long each job is parked at least."""

    def __init__(self) -> None:
        self.parked: list[float] = []

    async def park(self, *_: object, later: float, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        self.parked.append(later)


class Model:
    """A dependency that is out, or not."""

    out = False

    def flows(self) -> bool:
        return not self.out

    def take_owed(self) -> dict[int, int]:
        return {}


class Held:
    """Notes what is to be given back later."""

    def __init__(self) -> None:
        self.later: list[Lease] = []
        self.gone: list[Lease] = []

    def let_go(self, leases: Sequence[Lease]) -> None:
        self.gone += leases

    def give_back_later(self, job: JobAtWork) -> None:
        self.later.append(job.lease)


def endings(jobs: object, held: object, **dependencies: object) -> Endings:
    return Endings(
        settings=Settings(),
        jobs=cast("Any", jobs),
        part_writer=cast("Any", None),
        settler=cast("Any", None),
        held=cast("Any", held),
        dependencies=cast("Any", dependencies),
        ended=lambda _: None,
    )


async def test_an_ending_that_does_not_end_is_given_up_after_its_share_of_the_stop(autojump_clock: MockClock) -> None:
    held = Held()
    began = trio.current_time()
    with told() as events:
        await endings(StuckJobs(), held).release(JobAtWork(lease(), {}), "why")
    assert trio.current_time() - began == Settings().shutdown.settle_seconds
    assert "ending_failed" in events
    assert held.later == [lease()]
    assert held.gone == [lease()], "a lease is not renewed while its job ends"


async def test_a_parked_job_waits_a_backoff_only_when_its_dependency_flows_again(autojump_clock: MockClock) -> None:
    jobs, model = ParkingJobs(), Model()
    failures: Any = {"emotion": PartFailure(by="m/1", error=RemoteUnavailable("llm", "down"))}
    with told():
        for model.out in (False, True):
            await endings(jobs, Held(), llm=model).park(JobAtWork(lease(), {}), failures)
    backoff = Settings().jobs.backoff_seconds
    assert backoff <= jobs.parked[0] <= 2 * backoff
    assert jobs.parked[1] == 0.0


async def test_a_job_that_failed_as_all_do_lets_others_find_out_first(autojump_clock: MockClock) -> None:
    jobs, model = ParkingJobs(), Model()
    model.out = True
    failures: Any = {"emotion": PartFailure(by="m/1", error=RemoteGarbage("llm", "no JSON"))}
    failures["emotion"].error.systemic = True
    with told():
        await endings(jobs, Held(), llm=model).park(JobAtWork(lease(), {}), failures)
    assert jobs.parked[0] >= Settings().jobs.backoff_seconds
