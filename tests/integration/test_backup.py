from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import asyncpg
import pytest
import trio

from convo import config, upkeep
from convo.errors import Refused
from convo.store.backup import _pipe, backup, restore, split_password
from convo.store.private import programs


async def ask(url: str, query: str) -> Any:
    async def on_asyncio() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(query)
        finally:
            connection.terminate()

    return await trio.to_thread.run_sync(asyncio.run, on_asyncio())


async def test_what_was_backed_up_comes_back_over_what_came_later(empty_database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    await ask(empty_database, "CREATE TABLE kept AS SELECT 'Nguyễn' AS name")
    assert await backup(empty_database, file) == file.stat().st_size
    await ask(empty_database, "UPDATE kept SET name = 'changed'")
    await restore(empty_database, file)
    assert await ask(empty_database, "SELECT name FROM kept") == "Nguyễn"


async def test_what_came_after_the_backup_is_gone_when_it_is_restored(database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    newest = await ask(database, "SELECT max(version) FROM schema_version")
    await backup(database, file)
    # A newer program's: every kind of thing that a migration makes, in all orders of dependence.
    for statement in (
        "INSERT INTO schema_version (version) VALUES (9999)",
        "CREATE TYPE mood AS ENUM ('good', 'bad')",
        "CREATE DOMAIN short AS text CHECK (length(VALUE) < 9)",
        "CREATE TYPE pair AS (a integer, b integer)",
        "CREATE FUNCTION later_now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT convo_now()'",
        "CREATE TABLE later (n serial PRIMARY KEY, at timestamptz DEFAULT later_now(), m mood, s short, p pair)",
        'CREATE TABLE "Even later" (n integer REFERENCES later)',
        "CREATE VIEW seen AS SELECT later.n, job.seq FROM later JOIN job ON job.seq = later.n",
        "CREATE SEQUENCE apart",
        "ALTER TABLE job ADD COLUMN later text",
    ):
        await ask(database, statement)
    for _ in range(2):
        await restore(database, file)
        assert await ask(database, "SELECT max(version) FROM schema_version") == newest
        found = await ask(
            database,
            "SELECT array_agg(name::text) FROM (SELECT relname AS name FROM pg_class UNION SELECT proname FROM pg_proc"
            " UNION SELECT typname FROM pg_type UNION SELECT attname FROM pg_attribute) AS every"
            " WHERE name IN ('later', 'later_now', 'Even later', 'seen', 'apart', 'mood', 'short', 'pair')",
        )
        assert found is None


async def test_what_belongs_to_somebody_else_is_left_alone(empty_database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    await ask(empty_database, "CREATE TABLE kept AS SELECT 7 AS n")
    await backup(empty_database, file)
    role = f"other_{os.getpid()}"
    await ask(empty_database, f"CREATE ROLE {role}")
    try:
        await ask(empty_database, "CREATE TABLE theirs AS SELECT 8 AS n")
        await ask(empty_database, f"ALTER TABLE theirs OWNER TO {role}")
        await restore(empty_database, file)
        assert await ask(empty_database, "SELECT kept.n + theirs.n FROM kept, theirs") == 15
    finally:
        await ask(empty_database, f"DROP OWNED BY {role}")  # noqa: ASYNC102  (nobody cancels a test)
        await ask(empty_database, f"DROP ROLE {role}")  # noqa: ASYNC102


async def test_who_served_when_the_backup_was_made_does_not_come_back_alive(database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    await ask(database, "INSERT INTO process (name, pid, host, connections_max) VALUES ('here/one', 1, 'here', 9)")
    await backup(database, file)
    await ask(database, "DELETE FROM process")
    settings = config.load(None, {"CONVO_DATABASE__URL": database}, {})
    for _ in range(2):
        await upkeep.restore(settings, file)
    assert await ask(database, "SELECT count(*) FROM process") == 0


async def test_a_backup_is_for_its_owner_only_and_leaves_nothing_beside_it(empty_database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    await backup(empty_database, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


async def test_a_failed_backup_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    file.write_text("the one before")
    with pytest.raises(Refused, match="pg_dump"):
        await backup(f"postgresql://convo@/convo?host={tmp_path}", file)
    assert file.read_text() == "the one before"
    assert list(tmp_path.iterdir()) == [file]


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "convo.backup"
    with pytest.raises(Refused, match=r"missing/convo\.backup: No such file"):
        await backup("postgresql://convo@/convo", file)
    with pytest.raises(Refused, match=r"missing/convo\.backup cannot be read: No such file"):
        await restore("postgresql://convo@/convo", file)


async def test_a_file_that_is_no_backup_is_refused_before_anything_is_touched(
    empty_database: str, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no backup")
    await ask(empty_database, "CREATE TABLE kept AS SELECT 7 AS n")
    with pytest.raises(Refused, match="is not a backup"):
        await restore(empty_database, tmp_path / "notes.txt")
    assert await ask(empty_database, "SELECT n FROM kept") == 7


async def test_a_restore_that_the_database_refuses_changes_nothing_and_says_why(
    empty_database: str, tmp_path: Path
) -> None:
    file = tmp_path / "convo.backup"
    await ask(
        empty_database, "CREATE TABLE kept AS SELECT repeat(md5(n::text), 50) AS t FROM generate_series(1, 999) n"
    )
    await backup(empty_database, file)
    await ask(empty_database, "UPDATE kept SET t = 'later'")
    # In a schema of somebody else's, who would miss it.
    await ask(empty_database, "CREATE SCHEMA theirs CREATE VIEW needs_it AS SELECT * FROM public.kept")
    with pytest.raises(Refused, match=r"other objects depend on it[\s\S]*needs_it"):
        await restore(empty_database, file)
    assert await ask(empty_database, "SELECT min(t) || max(t) FROM kept") == "laterlater"


async def test_what_a_reader_sent_before_it_failed_is_not_committed(empty_database: str) -> None:
    await ask(empty_database, "CREATE SCHEMA mine")
    await ask(empty_database, "CREATE TABLE mine.kept AS SELECT 7 AS n")
    found = await programs.find()
    writing = [str(found.folder / "psql"), "--no-psqlrc", "--quiet", f"--dbname={split_password(empty_database)[0]}"]
    for code, left in ((1, 7), (0, None)):
        reading = ["/bin/sh", "-c", f"echo 'DELETE FROM mine.kept;'; exit {code}"]
        with tempfile.TemporaryFile() as said:
            assert await _pipe(reading, writing, {}, said) is (code == 0)
        assert await ask(empty_database, "SELECT n FROM mine.kept") == left


async def test_a_backup_cut_short_restores_nothing_at_all(empty_database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    await ask(
        empty_database, "CREATE TABLE kept AS SELECT repeat(md5(n::text), 50) AS t FROM generate_series(1, 999) n"
    )
    await backup(empty_database, file)
    os.truncate(file, file.stat().st_size * 3 // 4)
    await ask(empty_database, "UPDATE kept SET t = 'later'")
    with pytest.raises(Refused, match="nothing was changed: pg_restore"):
        await restore(empty_database, file)
    assert await ask(empty_database, "SELECT min(t) || max(t) FROM kept") == "laterlater"


@pytest.mark.parametrize(
    ("url", "bare", "password"),
    [
        ("postgresql://me@h/d", "postgresql://me@h/d", None),
        ("postgresql://me:s%40%3Ae@h:1/d?sslmode=require", "postgresql://me@h:1/d?sslmode=require", "s@:e"),
        ("postgresql://me@h/d?password=a%26b&sslmode=prefer", "postgresql://me@h/d?sslmode=prefer", "a&b"),
        ("postgresql://c@/c?host=/a/b%20c&port=5432", "postgresql://c@/c?host=/a/b%20c&port=5432", None),
        ("postgresql://me:@h1:1,h2:2/d", "postgresql://me@h1:1,h2:2/d", ""),
    ],
)
def test_a_password_leaves_the_url_wherever_it_stood(url: str, bare: str, password: str | None) -> None:
    assert split_password(url) == (bare, password)


async def test_no_password_stands_among_the_arguments(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def note(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        seen.append((command, options))
        return subprocess.CompletedProcess(command, 0, b"postgres (PostgreSQL) 18.6\n", b"")

    with mock.patch.object(trio, "run_process", note):
        await backup("postgresql://me:hush@h/d", tmp_path / "convo.backup")
    command, options = seen[-1]
    assert command[0].endswith("pg_dump")
    assert "hush" not in " ".join(command)
    assert options["env"]["PGPASSWORD"] == "hush"
