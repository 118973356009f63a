from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import asyncpg
import pytest
import trio
import zstandard

from convo import config
from convo.commands import database as upkeep
from convo.embedded import programs
from convo.embedded.programs import Programs
from convo.errors import Refused
from convo.store import backup
from convo.store.backup import _login, _pipe, read_made_at, restore_backup, split_password, write_backup
from tests.support.hostile_backup import hostile_backup
from tests.support.making import open_dedicated, open_store


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
    assert await write_backup(empty_database, file) == file.stat().st_size
    await ask(empty_database, "UPDATE kept SET name = 'changed'")
    await restore_backup(empty_database, file)
    assert await ask(empty_database, "SELECT name FROM kept") == "Nguyễn"


async def test_what_came_after_the_backup_is_gone_when_it_is_restored(database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    newest = await ask(database, "SELECT max(version) FROM schema_version")
    await write_backup(database, file)
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
        await restore_backup(database, file)
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
    await write_backup(empty_database, file)
    role = f"other_{os.getpid()}"
    await ask(empty_database, f"CREATE ROLE {role}")
    try:
        await ask(empty_database, "CREATE TABLE theirs AS SELECT 8 AS n")
        await ask(empty_database, f"ALTER TABLE theirs OWNER TO {role}")
        await restore_backup(empty_database, file)
        assert await ask(empty_database, "SELECT kept.n + theirs.n FROM kept, theirs") == 15
    finally:
        await ask(empty_database, f"DROP OWNED BY {role}")  # noqa: ASYNC102  (nobody cancels a test)
        await ask(empty_database, f"DROP ROLE {role}")  # noqa: ASYNC102


async def test_who_served_or_was_signed_in_at_the_backup_does_not_come_back(database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    await ask(database, "INSERT INTO process (name, pid, host, connections_max) VALUES ('here/one', 1, 'here', 9)")
    signed_in = "INSERT INTO session (session_id, digest, key_id, expires_at) VALUES ('1', '', 'k', 'infinity')"
    await ask(database, signed_in)
    await write_backup(database, file)
    await ask(database, "DELETE FROM process")
    # Whoever has signed out since would be signed in again.
    await ask(database, "DELETE FROM session")
    settings = config.load_settings(None, {"CONVO_DATABASE__URL": database}, {})
    for _ in range(2):
        await upkeep.restore(settings, file)
    assert await ask(database, "SELECT count(*) FROM process") == 0
    assert await ask(database, "SELECT count(*) FROM session") == 0


async def test_a_session_that_begins_after_the_look_for_processes_keeps_the_restore_away(
    database: str, tmp_path: Path
) -> None:
    file = tmp_path / "convo.backup"
    await write_backup(database, file)
    async with open_store(database) as postgres, open_dedicated(postgres) as line:
        await line.run("test.session", lambda connection: connection.fetchval("SELECT 1"))
        with pytest.raises(Refused, match="a convo is using this database"):
            await restore_backup(database, file)
    await restore_backup(database, file)


async def test_a_restore_leaves_another_generation_and_counts_on(database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    generation, counter = "SELECT generation FROM history", "SELECT counter FROM history"
    before = await ask(database, generation), await ask(database, counter)
    await write_backup(database, file)
    await restore_backup(database, file)
    assert await ask(database, generation) != before[0]
    assert await ask(database, counter) == before[1] + 1


async def test_a_backup_is_for_its_owner_only_and_leaves_nothing_beside_it(empty_database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    await write_backup(empty_database, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


async def test_a_failed_backup_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    file.write_text("the one before")
    with pytest.raises(Refused, match="pg_dump"):
        await write_backup(f"postgresql://convo@/convo?host={tmp_path}", file, replace=True)
    assert file.read_text() == "the one before"
    assert list(tmp_path.iterdir()) == [file]


async def test_a_file_that_is_there_is_replaced_only_when_that_was_asked_for(
    empty_database: str, tmp_path: Path
) -> None:
    file, link = tmp_path / "convo.backup", tmp_path / "link"
    file.write_text("the one before")
    link.symlink_to(tmp_path / "nothing")
    for there in (file, link):
        with pytest.raises(Refused, match=r"exists already.*--force"):
            await write_backup(empty_database, there)
    assert file.read_text() == "the one before"
    assert await write_backup(empty_database, file, replace=True) == file.stat().st_size
    assert await read_made_at(file)


async def test_a_file_that_appeared_while_the_backup_was_written_is_left(empty_database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    dump = backup._dump

    async def slowly(found: Programs, url: str, written: int) -> None:
        await dump(found, url, written)
        file.write_text("somebody else's")

    with mock.patch.object(backup, "_dump", slowly), pytest.raises(Refused, match="exists already"):
        await write_backup(empty_database, file)
    assert file.read_text() == "somebody else's"
    assert list(tmp_path.iterdir()) == [file]


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "convo.backup"
    with pytest.raises(Refused, match=r"missing/convo\.backup: No such file"):
        await write_backup("postgresql://convo@/convo", file)
    with pytest.raises(Refused, match=r"missing/convo\.backup cannot be read: No such file"):
        await restore_backup("postgresql://convo@/convo", file)


async def test_a_file_that_is_no_backup_is_refused_before_anything_is_touched(
    empty_database: str, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no backup")
    await ask(empty_database, "CREATE TABLE kept AS SELECT 7 AS n")
    with pytest.raises(Refused, match="is not a backup"):
        await restore_backup(empty_database, tmp_path / "notes.txt")
    assert await ask(empty_database, "SELECT n FROM kept") == 7


async def test_a_restore_that_the_database_refuses_changes_nothing_and_says_why(
    empty_database: str, tmp_path: Path
) -> None:
    file = tmp_path / "convo.backup"
    await ask(
        empty_database, "CREATE TABLE kept AS SELECT repeat(md5(n::text), 50) AS t FROM generate_series(1, 999) n"
    )
    await write_backup(empty_database, file)
    await ask(empty_database, "UPDATE kept SET t = 'later'")
    # In a schema of somebody else's, who would miss it.
    await ask(empty_database, "CREATE SCHEMA theirs CREATE VIEW needs_it AS SELECT * FROM public.kept")
    with pytest.raises(Refused, match=r"other objects depend on it[\s\S]*needs_it"):
        await restore_backup(empty_database, file)
    assert await ask(empty_database, "SELECT min(t) || max(t) FROM kept") == "laterlater"


async def test_what_a_reader_sent_before_it_failed_is_not_committed(empty_database: str) -> None:
    await ask(empty_database, "CREATE SCHEMA mine")
    await ask(empty_database, "CREATE TABLE mine.kept AS SELECT 7 AS n")
    found = await programs.find()
    bare, environment = _login(empty_database)
    writing = [str(found.folder / "psql"), "--no-psqlrc", "--quiet", f"--dbname={bare}"]
    for code, left in ((1, 7), (0, None)):
        reading = ["/bin/sh", "-c", f"printf '%s\\n' '\\restrict x' 'DELETE FROM mine.kept;'; exit {code}"]
        with tempfile.TemporaryFile() as said:
            assert await _pipe(reading, writing, environment, said) is (code == 0)
        assert await ask(empty_database, "SELECT n FROM mine.kept") == left


async def test_a_backup_cut_short_restores_nothing_at_all(empty_database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    await ask(
        empty_database, "CREATE TABLE kept AS SELECT repeat(md5(n::text), 50) AS t FROM generate_series(1, 999) n"
    )
    await write_backup(empty_database, file)
    os.truncate(file, file.stat().st_size * 3 // 4)
    await ask(empty_database, "UPDATE kept SET t = 'later'")
    with pytest.raises(Refused, match="nothing was changed: pg_restore"):
        await restore_backup(empty_database, file)
    assert await ask(empty_database, "SELECT min(t) || max(t) FROM kept") == "laterlater"


async def test_a_backup_is_packed_and_one_of_pg_dump_itself_is_restored_too(
    empty_database: str, tmp_path: Path
) -> None:
    packed, plain = tmp_path / "convo.backup", tmp_path / "convo.0.1"
    await ask(empty_database, "CREATE TABLE kept AS SELECT repeat('x', 500) AS t FROM generate_series(1, 5000) n")
    await write_backup(empty_database, packed)
    found = await programs.find()
    bare, environment = _login(empty_database)
    await trio.run_process(
        [str(found.folder / "pg_dump"), f"--dbname={bare}", "--format=custom", "--compress=0", f"--file={plain}"],
        env=environment,
    )
    assert packed.stat().st_size * 10 < plain.stat().st_size
    assert packed.read_bytes()[:4] == zstandard.FRAME_HEADER
    for file in (packed, plain):
        await ask(empty_database, "DELETE FROM kept")
        assert await read_made_at(file)
        await restore_backup(empty_database, file)
        assert await ask(empty_database, "SELECT count(*) FROM kept") == 5000


async def test_a_pg_dump_that_was_killed_leaves_no_backup(empty_database: str, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    found = await programs.find()
    for name in ("pg_dump", "pg_restore", "psql"):
        (tools / name).symlink_to(found.folder / name)
    (tools / "pg_dump").unlink()
    (tools / "pg_dump").write_text("#!/bin/sh\nprintf PGDMP\nkill -9 $$\n")
    (tools / "pg_dump").chmod(0o700)

    async def find() -> programs.Programs:
        await trio.lowlevel.checkpoint()
        return programs.Programs(folder=tools, version=found.version)

    with mock.patch.object(programs, "find", find), pytest.raises(Refused, match=r"pg_dump .* failed \(-9\)"):
        await write_backup(empty_database, tmp_path / "convo.backup")
    assert list(tmp_path.iterdir()) == [tools]


async def test_programs_that_obey_what_a_backup_hides_are_not_used(empty_database: str) -> None:
    found = await programs.find()
    bare, environment = _login(empty_database)
    writing = [str(found.folder / "psql"), "--no-psqlrc", "--quiet", f"--dbname={bare}"]
    reading = ["/bin/sh", "-c", "echo 'CREATE TABLE made AS SELECT 1;'"]
    with tempfile.TemporaryFile() as output, pytest.raises(Refused, match=r"install 15\.14"):
        await _pipe(reading, writing, environment, output)
    assert await ask(empty_database, "SELECT to_regclass('made')") is None


async def test_a_backup_of_a_newer_convo_is_refused_and_changes_nothing(database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    await ask(database, "INSERT INTO schema_version (version) VALUES (9999)")
    await write_backup(database, file)
    await ask(database, "DELETE FROM schema_version WHERE version = 9999")
    generation = await ask(database, "SELECT generation FROM history")
    with pytest.raises(Refused, match=r"nothing was changed: .*schema version 9999"):
        await restore_backup(database, file)
    assert await ask(database, "SELECT generation FROM history") == generation


@pytest.mark.parametrize("hidden", ["\n\\! touch {made}\n", "\n\\o {made}\n\\qecho x\n", "\n\\copy t to {made}\n"])
async def test_what_a_backup_hides_reaches_nothing_on_this_machine(
    empty_database: str, tmp_path: Path, hidden: str
) -> None:
    made = tmp_path / "made"
    file = await hostile_backup(empty_database, tmp_path, f"';{hidden.format(made=made)}SELECT '")
    with pytest.raises(Refused, match=r"nothing was changed[\s\S]*backslash commands are restricted"):
        await restore_backup(empty_database, file)
    assert not made.exists()
    assert await ask(empty_database, "SELECT n FROM kept") == 8


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
    found = await programs.find()
    seen = tmp_path / "seen"
    (tmp_path / "pg_dump").write_text(f'#!/bin/sh\necho "$PGPASSWORD" "$0" "$@" > {seen}\n')
    (tmp_path / "pg_dump").chmod(0o700)

    async def find() -> programs.Programs:
        await trio.lowlevel.checkpoint()
        return programs.Programs(folder=tmp_path, version=found.version)

    with mock.patch.object(programs, "find", find):
        await write_backup("postgresql://me:hush@h/d", tmp_path / "convo.backup")
    password, command = seen.read_text().split(" ", maxsplit=1)
    assert password == "hush"
    assert "pg_dump" in command
    assert "hush" not in command
