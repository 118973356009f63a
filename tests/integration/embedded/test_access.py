from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest import mock

import asyncpg
import pytest
import trio

from convo.embedded import access, access_sql
from convo.embedded.server import Embedded, open_embedded, running_dsn
from convo.errors import Refused
from convo.store.migrate import migrate
from convo.store.migrations import migrations
from tests.support.asking import ask
from tests.support.making import open_dedicated, open_store
from tests.support.old_folder import NOBODY, old_server

SEVERAL = "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls FROM pg_roles"
NOT_ALLOWED = (asyncpg.InsufficientPrivilegeError,)


async def login(running: Embedded, role: str, database: str, *, uid: int | None = None, password: str = "") -> int:
    """Try to log in with psql, as another user where a uid is given; return psql's exit code."""
    psql = running.location.programs.folder / "psql"
    host = f"--host={running.socket_folder}"
    become: dict[str, Any] = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
    done = await trio.run_process(
        [
            psql,
            "--no-psqlrc",
            "--no-password",
            host,
            f"--username={role}",
            f"--dbname={database}",
            "--command=SELECT 1",
        ],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env={"PGPASSWORD": password},
        **become,
    )
    return done.returncode


async def execute(url: str, statements: str) -> None:
    async def on_asyncio() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statements)
        finally:
            connection.terminate()

    await trio.to_thread.run_sync(asyncio.run, on_asyncio())


FORBIDDEN = (
    "COPY (SELECT 1) TO PROGRAM 'cat > /dev/null'",
    "CREATE TABLE t (x text); COPY t FROM PROGRAM 'id'",
    "CREATE TABLE t (x text); COPY t FROM '/etc/passwd'",
    "COPY (SELECT 1) TO '/tmp/of-convo'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_ls_dir('/')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, '/tmp/of-convo')",
    "SELECT pg_switch_wal()",
    "SELECT pg_reload_conf()",
    "SELECT rolpassword FROM pg_authid",
    "ALTER SYSTEM SET fsync = off",
    "ALTER ROLE convo SUPERUSER",
    "ALTER DATABASE convo RENAME TO mine",
    "CREATE DATABASE other",
    "CREATE ROLE other",
    "CREATE SCHEMA other",
    "GRANT pg_read_server_files TO convo",
    "SET ROLE convo_admin",
    "SET session_replication_role = replica",
    "CREATE EXTENSION dblink",
    "CREATE FUNCTION run(text) RETURNS integer LANGUAGE c AS 'libc.so.6', 'system'",
    "CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION now()",
)


@pytest.fixture
async def shared(data_dir: Path) -> AsyncIterator[Embedded]:
    async with open_embedded(data_dir) as running:
        yield running


async def test_the_role_can_do_nothing_outside_of_its_schema(shared: Embedded) -> None:
    for statement in FORBIDDEN:
        with pytest.raises(NOT_ALLOWED, match=r"permission denied|must be|not permitted|Only roles|owner"):
            await execute(shared.dsn, statement)


async def test_the_role_owns_its_schema_and_makes_all_of_convo_there(shared: Embedded) -> None:
    assert await ask(shared.dsn, f"{SEVERAL} WHERE rolname = current_user", "SELECT current_user") == [False, "convo"]
    async with open_store(shared.dsn) as postgres, open_dedicated(postgres) as line:
        assert await migrate(line) == (0, migrations()[-1].number)
        assert await migrate(line) == (migrations()[-1].number,) * 2


async def test_nobody_gets_in_without_the_password(shared: Embedded) -> None:
    password = access.read_password(shared.data_folder)
    assert password is not None
    uids = (None, shared.data_folder.stat().st_uid, NOBODY.uid) if os.geteuid() == 0 else (None,)
    for uid in uids:
        for role in ("convo", "convo_admin", "postgres"):
            for database in ("convo", "postgres", "template1"):
                assert await login(shared, role, database, uid=uid) == 2, (uid, role, database)
                assert await login(shared, role, database, uid=uid, password="0" * 64) == 2, (uid, role, database)
    assert await login(shared, "convo", "convo", password=password) == 0
    assert await login(shared, "convo", "postgres", password=password) == 2
    assert await login(shared, "convo_admin", "convo", password=password) == 2
    rules = [line for line in (shared.data_folder / "pg_hba.conf").read_text().splitlines() if line[0] != "#"]
    assert rules == ["local convo,convo_new convo scram-sha-256"]


async def test_the_password_is_for_this_user_only_and_the_same_at_each_start(data_dir: Path) -> None:
    file = data_dir / "postgres.password"
    async with open_embedded(data_dir) as running:
        facts = file.stat()
        assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o600, os.geteuid())
        assert running.dsn == running_dsn(data_dir)
    async with open_embedded(data_dir) as again:
        assert again.dsn == running.dsn


@pytest.mark.parametrize(
    "spoil", ["open", "gone", *(pytest.param(way, marks=pytest.mark.long) for way in ("link", "empty"))]
)
async def test_a_password_that_others_may_know_is_replaced(data_dir: Path, spoil: str) -> None:
    file = data_dir / "postgres.password"
    async with open_embedded(data_dir) as running:
        await ask(running.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    known = file.read_text()
    if spoil == "open":
        file.chmod(0o640)
    elif spoil == "empty":
        file.write_text("")
    else:
        file.unlink()
    if spoil == "link":
        (data_dir / "elsewhere").write_text(known)
        (data_dir / "elsewhere").chmod(0o600)
        file.symlink_to(data_dir / "elsewhere")
    async with open_embedded(data_dir) as running:
        assert await ask(running.dsn, "SELECT n FROM kept") == [7]
        assert file.read_text() != known
        assert await login(running, "convo", "convo", password=known.strip()) == 2
    assert spoil != "link" or (data_dir / "elsewhere").read_text() == known


async def test_rights_that_the_role_was_given_are_taken_back_at_the_next_start(data_dir: Path) -> None:
    async with open_embedded(data_dir) as running, access.superuser(running.location):
        await access._run(
            running.location,
            access_sql.ADMIN,
            "postgres",
            "ALTER ROLE convo SUPERUSER CREATEDB; GRANT pg_execute_server_program TO convo;"
            " ALTER DATABASE convo OWNER TO convo; CREATE DATABASE convo_old;",
        )
    async with open_embedded(data_dir) as running:
        rights = f"{SEVERAL} WHERE rolname = current_user"
        members = "SELECT count(*) FROM pg_auth_members WHERE member = 'convo'::regrole"
        databases = "SELECT count(*) FROM pg_database WHERE datname = 'convo_old' OR datdba = 'convo'::regrole"
        assert await ask(running.dsn, rights, members, databases) == [False, 0, 0]


# --- folders of an earlier version


async def fill(url: str) -> None:
    async with open_store(url) as postgres, open_dedicated(postgres) as line:
        await migrate(line)
    await ask(
        url,
        "INSERT INTO api_key (key_id, digest, name, scopes) VALUES ('k', 'x', 'Nguyễn', '{read}')",
        "INSERT INTO run (seq, began_at, ending, made_by) SELECT n, now(), 'done', 'x' FROM generate_series(1, 999) n",
        "CREATE TYPE mood AS ENUM ('good', 'bad')",
        "CREATE DOMAIN short AS text",
        "CREATE TYPE pair AS (a integer, b integer)",
        "CREATE VIEW seen AS SELECT * FROM job",
        "CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM run",
        "CREATE SEQUENCE apart",
        'CREATE TABLE "Odd Name" (n serial, m mood)',
        "CREATE SCHEMA more CREATE TABLE there (n integer)",
        "INSERT INTO more.there VALUES (7)",
    )


NOT_OURS = """
SELECT count(*) FROM pg_shdepend
WHERE deptype = 'o' AND refobjid <> 'convo'::regrole AND dbid = (SELECT oid FROM pg_database WHERE datname = 'convo')
"""
OURS = """
SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE nspname IN ('public', 'more') AND relowner <> 'convo'::regrole
"""


async def check_upgraded(running: Embedded) -> None:
    assert await ask(
        running.dsn,
        f"{SEVERAL} WHERE rolname = current_user",
        "SELECT name FROM api_key",
        "SELECT count(*) FROM run",
        "SELECT n FROM more.there",
        OURS,
        NOT_OURS,
        "SELECT count(*) FROM pg_roles WHERE rolname = 'convo_upgrade'",
    ) == [False, "Nguyễn", 999, 7, 0, 0, 0]
    # What a later migration does, and what a restore does first.
    await execute(
        running.dsn,
        "BEGIN; ALTER TABLE job ADD COLUMN later text; DROP FUNCTION convo_now() CASCADE; DROP TYPE mood, pair CASCADE;"
        ' DROP DOMAIN short; DROP MATERIALIZED VIEW counted; DROP SEQUENCE apart; ALTER TABLE "Odd Name" RENAME TO odd',
    )


async def test_a_folder_of_an_earlier_version_is_upgraded_without_loss(data_dir: Path) -> None:
    async with old_server(data_dir) as url:
        await fill(url)
        assert await ask(url, f"{SEVERAL} WHERE rolname = current_user") == [True]
    for _ in range(2):
        async with open_embedded(data_dir) as running:
            await check_upgraded(running)
            assert await login(running, "convo", "convo") == 2
            if os.geteuid() == 0:
                assert running.data_folder.stat().st_uid not in (0, NOBODY.uid)


async def test_a_server_of_an_earlier_version_that_still_runs_is_replaced_before_its_files_change_owner(
    data_dir: Path,
) -> None:
    async with old_server(data_dir) as url:
        await fill(url)
        # As another command of this version sees it: there is no password yet.
        assert running_dsn(data_dir) == url
        async with open_embedded(data_dir) as running:
            await check_upgraded(running)


@pytest.mark.parametrize(
    "last",
    [
        "UPGRADE",
        pytest.param("MAKE_UPGRADER", marks=pytest.mark.long),
        pytest.param("make_role", marks=pytest.mark.long),
    ],
)
async def test_an_upgrade_that_was_cut_short_is_finished_at_the_next_start(data_dir: Path, last: str) -> None:
    async with old_server(data_dir) as url:
        await fill(url)
    run = access._run
    ends = {"MAKE_UPGRADER": 1, "UPGRADE": 2, "make_role": 3}[last]
    calls = iter(range(9))

    async def cut_short(*arguments: object) -> None:
        if next(calls) == ends:
            raise Refused("cut short")
        await run(*arguments)  # type: ignore[arg-type]

    with mock.patch.object(access, "_run", cut_short), pytest.raises(Refused, match="cut short"):
        async with open_embedded(data_dir):
            pytest.fail("it was taken")
    async with open_embedded(data_dir) as running:
        await check_upgraded(running)


# --- a database beside convo's own


async def test_a_new_database_takes_the_place_of_the_old_one_when_it_is_filled(shared: Embedded) -> None:
    await ask(shared.dsn, "CREATE TABLE kept AS SELECT 'old' AS n")
    async with access.new_database(shared.location) as url:
        await ask(url, "CREATE TABLE kept AS SELECT 'new' AS n")
        assert await ask(shared.dsn, "SELECT n FROM kept") == ["old"]
        with pytest.raises(NOT_ALLOWED):
            await ask(url, "COPY (SELECT 1) TO PROGRAM 'cat > /dev/null'")
    assert await ask(shared.dsn, "SELECT n FROM kept", "SELECT count(*) FROM pg_database") == ["new", 4]


async def test_a_new_database_that_could_not_be_filled_is_dropped_and_the_old_one_is_as_it_was(
    shared: Embedded,
) -> None:
    await ask(shared.dsn, "CREATE TABLE kept AS SELECT 'old' AS n")

    async def fail() -> None:
        async with access.new_database(shared.location) as url:
            await ask(url, "CREATE TABLE kept AS SELECT 'new' AS n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await ask(shared.dsn, "SELECT n FROM kept", "SELECT count(*) FROM pg_database") == ["old", 4]


async def test_a_database_in_use_is_not_replaced(shared: Embedded) -> None:
    await ask(shared.dsn, "CREATE TABLE kept AS SELECT 'old' AS n")
    async with open_store(shared.dsn) as postgres, open_dedicated(postgres) as line:
        await line.run("test.session", lambda connection: connection.fetchval("SELECT 1"))
        with pytest.raises(Refused, match="is being accessed by other users"):
            async with access.new_database(shared.location):
                pass
    assert await ask(shared.dsn, "SELECT n FROM kept", "SELECT count(*) FROM pg_database") == ["old", 4]
