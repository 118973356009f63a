from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
import trio

from convo.errors import DatabaseUnavailable, Refused
from convo.store import migrate as module
from convo.store.migrate import migrate, migrations
from convo.store.postgres import Postgres
from tests.making import ask, open_line, open_store, rows

NEWEST = migrations()[-1][0]


@pytest.fixture
async def postgres(empty_database: str) -> AsyncIterator[Postgres]:
    async with open_store(empty_database) as opened:
        yield opened


async def migrated(postgres: Postgres) -> tuple[int, int]:
    async with open_line(postgres) as line:
        return await migrate(line)


def with_one_more(monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    more = [*migrations(), (NEWEST + 1, sql)]
    monkeypatch.setattr(module, "migrations", lambda: more)


def test_the_migrations_are_numbered_from_1_without_a_gap() -> None:
    assert [number for number, _ in migrations()] == list(range(1, NEWEST + 1))


async def test_an_empty_database_gets_the_whole_schema(postgres: Postgres) -> None:
    assert await migrated(postgres) == (0, NEWEST)
    assert await rows(postgres, "SELECT version FROM schema_version ORDER BY version") == [
        (number,) for number in range(1, NEWEST + 1)
    ]
    assert await ask(postgres, "SELECT count(*) FROM job") == 0


async def test_a_second_time_changes_nothing(postgres: Postgres) -> None:
    await migrated(postgres)
    before = await rows(postgres, "SELECT version, applied_at FROM schema_version")
    assert await migrated(postgres) == (NEWEST, NEWEST)
    assert await rows(postgres, "SELECT version, applied_at FROM schema_version") == before


async def test_several_processes_at_once_migrate_once(empty_database: str) -> None:
    outcomes: list[tuple[int, int]] = []

    async def process() -> None:
        async with open_store(empty_database) as postgres:
            outcomes.append(await migrated(postgres))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(process)
    assert sorted(outcomes) == [(0, NEWEST)] + [(NEWEST, NEWEST)] * 5


async def test_only_what_is_missing_is_applied(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    await migrated(postgres)
    await ask(postgres, "INSERT INTO job (seq, fair_key) VALUES (1, 'user-1')")
    with_one_more(monkeypatch, "CREATE TABLE added (n integer)")
    assert await migrated(postgres) == (NEWEST, NEWEST + 1)
    assert await ask(postgres, "SELECT count(*) FROM added") == 0
    assert await ask(postgres, "SELECT count(*) FROM job") == 1


async def test_a_migration_that_fails_leaves_everything_as_it_was(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_one_more(monkeypatch, "CREATE TABLE added (n integer); SELECT 1 / 0")
    with pytest.raises(Exception, match="22012"):
        await migrated(postgres)
    assert await ask(postgres, "SELECT to_regclass('schema_version') IS NULL AND to_regclass('added') IS NULL")
    monkeypatch.undo()
    assert await migrated(postgres) == (0, NEWEST)


async def test_a_schema_newer_than_the_program_is_refused_with_both_versions(postgres: Postgres) -> None:
    await migrated(postgres)
    await ask(postgres, "INSERT INTO schema_version (version) VALUES ($1)", NEWEST + 5)
    with pytest.raises(Refused, match=rf"schema version {NEWEST + 5}, this program knows {NEWEST}"):
        await migrated(postgres)


async def test_a_long_migration_is_not_cut_off_by_the_settings_for_units_of_work(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_one_more(monkeypatch, "SELECT pg_sleep(0.5)")
    async with open_store(empty_database, acquire_seconds=0.1, statement_seconds=0.1) as postgres:
        assert await migrated(postgres) == (0, NEWEST + 1)


async def test_the_lock_of_a_process_that_dies_in_the_middle_is_gone_with_it(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(empty_database) as dying, open_store(empty_database) as living:
        with_one_more(monkeypatch, "SELECT pg_terminate_backend(pg_backend_pid())")
        with pytest.raises(DatabaseUnavailable):
            await migrated(dying)
        monkeypatch.undo()
        with trio.fail_after(10):
            assert await migrated(living) == (0, NEWEST)


async def test_the_log_is_compressed_bytes_that_postgresql_does_not_touch(postgres: Postgres) -> None:
    await migrated(postgres)
    query = """
    SELECT format_type(atttypid, atttypmod), attstorage FROM pg_attribute
    WHERE attrelid = 'conversation_log'::regclass AND attname = 'body'
    """
    assert await rows(postgres, query) == [("bytea", b"e")]
    assert await rows(postgres, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'conversation'::regclass"
                                " AND atttypid = 'jsonb'::regtype") == [(0,)]  # fmt: skip


@pytest.fixture
async def plain_role(empty_database: str) -> AsyncIterator[str]:
    """The URL of the database for a role that owns nothing in it."""
    role = f"plain_{urlsplit(empty_database).path.removeprefix('/')}"
    async with open_store(empty_database) as owner:
        await ask(owner, f"CREATE ROLE {role} LOGIN PASSWORD 'plain'")
        parts = urlsplit(empty_database)
        yield parts._replace(netloc=f"{role}:plain@{parts.netloc.rpartition('@')[2]}").geturl()
        await ask(owner, f"DROP ROLE {role}")


async def test_a_role_that_may_not_make_tables_is_refused_with_what_to_grant(plain_role: str) -> None:
    async with open_store(plain_role) as postgres:
        with pytest.raises(Refused, match="GRANT CREATE"):
            await migrated(postgres)
