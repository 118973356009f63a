from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.lowlevel

from convo.runtime.bell import Bell
from convo.store.jobs.remote_bell import RemoteBell
from tests.support.making import ask, open_process


class Heard:
    """Counts how often a bell was rung, once for each time that nobody had asked in between."""

    def __init__(self) -> None:
        self.bell = Bell()
        self.rings = 0

    async def count(self) -> None:
        while True:
            await self.bell.rung()
            self.rings += 1


@asynccontextmanager
async def listening(database: str, *, look_seconds: float = 60.0) -> AsyncIterator[tuple[Heard, RemoteBell]]:
    """Listen in one process, and yield the bell of another one, that of the listener is known to be there."""
    heard = Heard()
    async with (
        open_process(database) as here,
        open_process(database, owner="there/two") as there,
        trio.open_nursery() as nursery,
    ):
        ringing = RemoteBell(here.postgres.dedicated(), Bell(), lambda: True, 60.0)
        listener = RemoteBell(there.postgres.dedicated(), heard.bell, lambda: False, look_seconds)
        for keeper in (heard.count, listener.listen, listener.run, ringing.run):
            nursery.start_soon(keeper)
        with trio.fail_after(5):
            while not heard.rings:  # noqa: ASYNC110
                await trio.sleep(0.01)
        yield heard, ringing
        nursery.cancel_scope.cancel()


async def test_a_ring_is_heard_in_another_process_at_once(database: str) -> None:
    async with listening(database) as (heard, bell):
        before = heard.rings
        bell.ring()
        with trio.fail_after(1):
            while heard.rings == before:  # noqa: ASYNC110
                await trio.sleep(0.001)


async def test_many_commits_in_a_moment_are_few_rings(database: str) -> None:
    async with listening(database) as (heard, bell):
        before = heard.rings
        for _ in range(200):
            bell.ring()
            await trio.lowlevel.checkpoint()
        await trio.sleep(0.5)
    assert 1 <= heard.rings - before < 40


async def test_after_its_connection_was_ended_a_listener_listens_again(database: str) -> None:
    end = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'convo two'
    """
    async with listening(database, look_seconds=0.1) as (heard, bell), open_process(database) as other:
        assert await ask(other.postgres, end) == 1  # that process has no other
        await trio.sleep(0.5)
        before = heard.rings
        bell.ring()
        with trio.fail_after(1):
            while heard.rings == before:  # noqa: ASYNC110
                await trio.sleep(0.001)


async def test_nobody_is_woken_where_nobody_is_to_know(database: str) -> None:
    async with open_process(database) as process:
        bell = RemoteBell(process.postgres.dedicated(), Bell(), lambda: False, 60.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bell.run)
            bell.ring()
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'NOTIFY%'"
        assert await ask(process.postgres, query) == 0
