from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from convo.errors import DatabaseUnavailable
from convo.store.jobs.watch import Watch
from convo.store.postgres import DURABLE, Connection
from tests.support.making import Process, open_process, told

POLL_SECONDS = 0.05


async def ended(watch: Watch, seq: int) -> None:
    with watch.waiting(seq) as event:
        await event.wait()


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


class Looks:
    """Counts the queries of a watch; ``away`` makes them fail."""

    def __init__(self, process: Process) -> None:
        self.count = 0
        self.away = False
        self._run = process.postgres.run

    async def run(self, name: str, body: Callable[[Connection], Awaitable[object]], *, begin: str = DURABLE) -> object:
        if name == "db.watch":
            self.count += 1
            if self.away:
                raise DatabaseUnavailable("away")
        return await self._run(name, body, begin=begin)


@pytest.fixture
def looks(process: Process, monkeypatch: pytest.MonkeyPatch) -> Looks:
    looking = Looks(process)
    monkeypatch.setattr(process.postgres, "run", looking.run)
    return looking


@pytest.fixture
async def watch(process: Process, looks: Looks) -> AsyncIterator[Watch]:
    watching = Watch(process.postgres, POLL_SECONDS)
    async with trio.open_nursery() as nursery:
        await nursery.start(watching.run)
        yield watching
        nursery.cancel_scope.cancel()


async def settled(process: Process) -> int:
    """Let the job that is due be settled by another process, which tells nobody here."""
    lease = await process.leased()
    await process.settler.settle(await process.analysed(lease))
    return lease.seq


async def test_who_waits_is_woken_by_an_ending_of_this_process(process: Process) -> None:
    watch = Watch(process.postgres, 3600)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ended, watch, 7)
            await wait_all_tasks_blocked()
            watch.wake(8)
            watch.wake(7)


async def test_an_ending_in_another_process_is_found_by_looking(process: Process, watch: Watch) -> None:
    await process.accepted("talk-1")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ended, watch, 1)
            assert await settled(process) == 1


async def test_a_dead_letter_has_ended_too(process: Process, watch: Watch) -> None:
    await process.accepted("talk-1")
    lease = msgspec.structs.replace(await process.leased(), attempts=4)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ended, watch, 1)
            assert await process.jobs.fail(lease, "why", {}, later=0)


async def test_one_that_ended_before_anybody_waited_is_found_too(process: Process, watch: Watch) -> None:
    await process.accepted("talk-1")
    await settled(process)
    with trio.fail_after(5):
        await ended(watch, 1)


async def test_a_job_that_goes_on_wakes_nobody(process: Process, watch: Watch, looks: Looks) -> None:
    await process.accepted("talk-1")
    with trio.move_on_after(5 * POLL_SECONDS) as scope:
        await ended(watch, 1)
    assert scope.cancelled_caught
    assert looks.count >= 1


async def test_all_who_wait_cost_one_query_each_time(process: Process, watch: Watch, looks: Looks) -> None:
    await process.accepted(*(f"talk-{n}" for n in range(20)))
    before = looks.count
    with trio.move_on_after(3.5 * POLL_SECONDS):
        async with trio.open_nursery() as nursery:
            for seq in range(1, 21):
                nursery.start_soon(ended, watch, seq)
                nursery.start_soon(ended, watch, seq)
    assert 1 <= looks.count - before <= 4


async def test_while_nobody_waits_nothing_is_asked(watch: Watch, looks: Looks) -> None:
    with trio.move_on_after(2 * POLL_SECONDS):
        await ended(watch, 1)
    before = looks.count
    await trio.sleep(4 * POLL_SECONDS)
    assert looks.count - before <= 1  # the one that was under way
    assert not watch._awaited


async def test_a_database_that_is_away_is_told_and_asked_again(process: Process, watch: Watch, looks: Looks) -> None:
    await process.accepted("talk-1")
    await settled(process)
    looks.away = True
    with told() as events, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ended, watch, 1)
            await trio.sleep(3 * POLL_SECONDS)
            looks.away = False
    assert set(events) == {"watch_failed"}
