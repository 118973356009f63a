from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

from convo.errors import DiskFull, RemoteUnavailable
from convo.web.description.service_views import DependencyView
from convo.web.operations import OperationsRoutes
from convo.web.pings import PingEvery, Pings
from convo.web.readiness import Readiness


class Pinged:
    """A dependency that takes ``seconds`` to answer, and fails while ``failing``."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.failing = False
        self.count = 0

    async def ping(self) -> None:
        self.count += 1
        failing = self.failing
        await trio.sleep(self.seconds)
        if failing:
            raise RemoteUnavailable("llm", "no answer")


def pings_of(**found: Pinged) -> Pings:
    return Pings({name: PingEvery(ping=one.ping, seconds=2.0) for name, one in found.items()})


def routes(pings: Pings, check_stores: Callable[[], None] = lambda: None) -> OperationsRoutes:
    readiness = Readiness()
    readiness.open()
    return OperationsRoutes(readiness=readiness, pings=pings, check_stores=check_stores, alerts=cast("Any", None))


async def ready(operations: OperationsRoutes) -> tuple[int, dict[str, Any]]:
    answer = await operations.readyz()
    return answer.status, msgspec.json.decode(answer.body)


def start_all(nursery: trio.Nursery, pings: Pings) -> None:
    for keep in pings.keepers:
        nursery.start_soon(keep)


async def test_each_is_pinged_at_its_interval_and_never_by_a_request(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    database, slow = Pinged(), Pinged(seconds=3.0)
    pings = pings_of(database=database, slow=slow)
    start_all(nursery, pings)
    await trio.sleep(10.5)
    assert (database.count, slow.count) == (6, 3)
    for _ in range(100):
        await ready(routes(pings))
    assert (database.count, slow.count) == (6, 3)


async def test_the_last_ping_is_shown_with_its_time_and_its_age(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    database = Pinged(seconds=0.25)
    pings = pings_of(database=database)
    unknown = "its first ping has not ended yet"
    assert pings.shown() == {"database": DependencyView(ok=False, seconds=None, age_seconds=None, detail=unknown)}
    start_all(nursery, pings)
    await trio.sleep(1.25)
    assert pings.shown() == {"database": DependencyView(ok=True, seconds=0.25, age_seconds=1.0)}
    database.failing = True
    await trio.sleep(1.75)
    failed = DependencyView(ok=False, seconds=0.25, age_seconds=0.5, detail="llm: no answer")
    assert pings.shown() == {"database": failed}


async def test_only_the_database_decides_and_soon(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    database, llm = Pinged(), Pinged()
    llm.failing = True
    operations = routes(pings := pings_of(database=database, llm=llm))
    assert (await ready(operations))[0] == 503
    start_all(nursery, pings)
    await trio.sleep(0.1)
    assert (await ready(operations))[0] == 200
    database.failing, llm.failing = True, False
    await trio.sleep(2.0)
    status, shown = await ready(operations)
    assert (status, shown["status"]) == (503, "unavailable")
    assert {name: one["ok"] for name, one in shown["dependencies"].items()} == {"database": False, "llm": True}


@pytest.mark.parametrize("failing", [False, True])
async def test_while_commits_fail_it_is_not_ready_however_well_it_answers(failing: bool) -> None:  # noqa: FBT001
    def check_stores() -> None:
        raise DiskFull("the disk is full")

    database = Pinged()
    database.failing = failing
    pings = pings_of(database=database)
    await pings.ping("database")
    status, shown = await ready(routes(pings, check_stores))
    seen = shown["dependencies"]["database"]
    assert (status, seen["ok"]) == (503, False)
    assert seen["detail"] == ("llm: no answer" if failing else "the disk is full")


async def test_of_two_pings_under_way_the_one_that_began_later_stands(autojump_clock: MockClock) -> None:
    """A start pings once more when it is prepared: one from before must not show its failure afterwards."""
    database = Pinged(seconds=5.0)
    database.failing = True
    pings = pings_of(database=database)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pings.ping, "database")
        await trio.sleep(1.0)
        database.seconds, database.failing = 1.0, False
        await pings.ping("database")
    assert pings.shown()["database"].ok
