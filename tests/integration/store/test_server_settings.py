from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest

from convo.errors import (
    DatabaseUnavailable,
    Refused,
)
from convo.store import server_settings as module
from convo.store.postgres import Postgres
from convo.store.server_settings import inspect
from tests.support.making import open_dedicated, open_store


@pytest.fixture
async def postgres(empty_database: str) -> AsyncIterator[Postgres]:
    async with open_store(empty_database) as opened:
        yield opened


async def inspected(postgres: Postgres) -> dict[str, str]:
    async with open_dedicated(postgres) as dedicated:
        return await inspect(postgres, dedicated)


async def test_inspection_tells_what_the_server_promises(postgres: Postgres) -> None:
    found = await inspected(postgres)
    assert (found["fsync"], found["full_page_writes"]) == ("on", "on")
    assert int(found["max_connections"]) > int(found["superuser_reserved_connections"])


async def test_an_older_server_is_refused_by_its_version(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OLDEST", 990_000)
    with pytest.raises(Refused, match=r"the database is PostgreSQL \d+\.\d+.*; convo needs 15 or later"):
        await inspected(postgres)


async def test_a_pooler_that_drops_settings_is_refused_by_name(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = postgres.session_settings()
    asked = iter([{**settings, "statement_timeout": "0"}, settings])
    monkeypatch.setattr(postgres, "session_settings", lambda: next(asked))
    with pytest.raises(Refused, match="pgbouncer"):
        await inspected(postgres)


async def test_a_database_that_does_not_exist_is_refused_for_good(empty_database: str) -> None:
    absent = urlsplit(empty_database)._replace(path="/convo_none").geturl()
    async with open_store(absent) as postgres:
        with pytest.raises(Refused, match='SQLSTATE 3D000: database "convo_none" does not exist') as caught:
            await inspected(postgres)
        assert isinstance(caught.value.__cause__, asyncpg.PostgresError)


async def test_a_server_that_may_come_is_waited_for(empty_database: str) -> None:
    async with open_store("postgresql://convo@127.0.0.1:1/convo") as postgres:
        with pytest.raises(DatabaseUnavailable) as caught:
            await inspected(postgres)
        # The server's own words stay at hand, and no error is its own cause.
        assert isinstance(caught.value.__cause__, OSError)
        assert "127.0.0.1" in str(caught.value.__cause__)
