from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from convo.errors import DatabaseUnavailable
from convo.store import sessions as module
from convo.store.postgres import Connection, DedicatedConnection, Postgres
from tests.support.making import ask, open_dedicated, open_store


@pytest.fixture
async def postgres(empty_database: str) -> AsyncIterator[Postgres]:
    async with open_store(empty_database) as opened:
        yield opened


@pytest.mark.parametrize("sqlstate", ["25006", "57P01"])
async def test_no_session_stays_on_a_server_that_became_read_only_or_goes_away(
    postgres: Postgres, sqlstate: str
) -> None:
    async def sessions(dedicated: DedicatedConnection) -> set[int]:
        found: set[int] = set()

        async def note(run: Any) -> None:
            found.add(await run("test.session", session))

        async with trio.open_nursery() as nursery:
            for run in (postgres.run, postgres.run, postgres.run, dedicated.run):
                nursery.start_soon(note, run)
        return found

    async def session(connection: Connection) -> int:
        pid: int = await connection.fetchval("SELECT pg_backend_pid() FROM pg_sleep(0.1)")
        return pid

    async def fail(connection: Connection) -> None:
        await connection.execute(f"DO $$ BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '{sqlstate}'; END $$")

    async with open_dedicated(postgres) as dedicated:
        before = await sessions(dedicated)
        assert len(before) == 4
        with pytest.raises(DatabaseUnavailable):
            await postgres.run("test.write", fail)
        assert await sessions(dedicated) & before == set()


async def test_a_server_that_does_not_say_what_it_is_is_used(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASK", "SELECT nobody_has_such_a_function()")
    assert await ask(postgres, "SELECT 1") == 1
