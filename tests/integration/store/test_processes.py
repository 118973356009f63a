from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from convo.store import processes
from convo.store.jobs.table import Jobs
from tests.support.making import (
    Process,
    entry_of,
    open_dedicated,
    open_process,
    open_store,
    owned,
    seen_processes,
)


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def enter(jobs: Jobs, pid: int, host: str, connections_max: int) -> int:
    entry = entry_of(jobs.owner, pid=pid, host=host, connections_max=connections_max)
    return await processes.enter(jobs._postgres, entry)


async def test_living_processes_are_counted_with_the_connections_they_may_open(process: Process) -> None:
    assert await enter(process.jobs, 1, "here", 9) == 9
    other = owned(process, "there/two")
    assert await enter(other, 2, "there", 5) == 14
    assert await enter(process.jobs, 3, "here", 7) == 12
    assert await seen_processes(process.postgres) == ["here/one", "there/two"]
    await processes.leave(process.postgres, other.owner)
    assert await enter(process.jobs, 3, "here", 7) == 7


async def test_whoever_has_a_session_is_named_with_the_sessions_that_can_be_ended(empty_database: str) -> None:
    async with (
        open_store(empty_database) as postgres,
        open_store(empty_database) as other,
        open_dedicated(other) as line,
    ):
        assert await processes.holders(postgres) == []
        pid = await line.run("test.session", lambda connection: connection.fetchval("SELECT pg_backend_pid()"))
        (held,) = await processes.holders(postgres)
        assert held.startswith("convo (")
        assert f"sessions {pid})" in held


async def test_a_session_of_an_older_program_is_named_though_it_has_no_share(empty_database: str) -> None:
    async with (
        open_store(empty_database) as postgres,
        open_store(empty_database) as other,
        open_dedicated(other) as line,
    ):
        await line.run("test.unlock", lambda connection: connection.execute("SELECT pg_advisory_unlock_all()"))
        assert len(await processes.holders(postgres)) == 1
