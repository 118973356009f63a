from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import trio

from convo.conversation.digest import compact, expand
from convo.conversation.identity import id_hash
from convo.conversation.model import CANARY_USER
from convo.errors import BadRow, DatabaseUnavailable, Refused
from convo.observe import log_records
from convo.runtime.bridge import open_bridge
from convo.settings import DatabaseSettings
from convo.store import migrate as module
from convo.store.migrate import ContractWait, contract_wait, migrate, run_step
from convo.store.migrations import Migration, MigrationStep, migrations, parse_migration
from convo.store.postgres import Connection, Postgres, open_postgres
from convo.store.process_programs import announce
from convo.store.processes import ProcessEntry, enter, leave
from tests.support.making import accept, ask, open_dedicated, open_process, open_store, rows
from tests.support.running import eventually, holding

NEWEST = migrations()[-1].number


@pytest.fixture
async def postgres(empty_database: str) -> AsyncIterator[Postgres]:
    async with open_store(empty_database) as opened:
        yield opened


async def migrated(postgres: Postgres) -> tuple[int, int]:
    async with open_dedicated(postgres) as dedicated:
        return await migrate(dedicated)


def one_more(sql: str, head: str = "-- kind: expand\n-- run: transaction\n-- lock: none\n") -> Migration:
    return parse_migration(NEWEST + 1, f"{head}{sql}")


def with_one_more(monkeypatch: pytest.MonkeyPatch, sql: str, head: str = "") -> None:
    more = [*migrations(), one_more(sql, head) if head else one_more(sql)]
    monkeypatch.setattr(module, "migrations", lambda: more)


def test_the_migrations_are_numbered_from_1_without_a_gap() -> None:
    assert [one.number for one in migrations()] == list(range(1, NEWEST + 1))


async def test_an_empty_database_gets_the_whole_schema(postgres: Postgres) -> None:
    assert await migrated(postgres) == (0, NEWEST)
    assert await rows(postgres, "SELECT number FROM schema_step WHERE is_last ORDER BY number") == [
        (number,) for number in range(1, NEWEST + 1)
    ]
    assert await ask(postgres, "SELECT count(*) FROM job") == 0


async def test_a_second_time_changes_nothing(postgres: Postgres) -> None:
    await migrated(postgres)
    before = await rows(postgres, "SELECT number, step, applied_at FROM schema_step ORDER BY 1, 2")
    assert await migrated(postgres) == (NEWEST, NEWEST)
    assert await rows(postgres, "SELECT number, step, applied_at FROM schema_step ORDER BY 1, 2") == before


async def test_several_processes_at_once_migrate_once(empty_database: str) -> None:
    outcomes: list[tuple[int, int]] = []

    async def process() -> None:
        async with open_store(empty_database) as postgres:
            outcomes.append(await migrated(postgres))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(process)
    assert {after for _, after in outcomes} == {NEWEST}
    assert len(outcomes) == 6
    async with open_store(empty_database) as postgres:
        steps = sum(len(one.steps) for one in migrations())
        assert await ask(postgres, "SELECT count(*) FROM schema_step") == steps


async def test_only_what_is_missing_is_applied(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    await migrated(postgres)
    await ask(postgres, "INSERT INTO job (seq, fair_key) VALUES (1, 'user-1')")
    with_one_more(monkeypatch, "CREATE TABLE added (n integer)")
    assert await migrated(postgres) == (NEWEST, NEWEST + 1)
    assert await ask(postgres, "SELECT count(*) FROM added") == 0
    assert await ask(postgres, "SELECT count(*) FROM job") == 1


async def test_a_step_that_fails_leaves_everything_as_the_step_before_it_left_it(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_one_more(monkeypatch, "CREATE TABLE added (n integer); SELECT 1 / 0")
    with pytest.raises(Exception, match="22012"):
        await migrated(postgres)
    assert await ask(postgres, "SELECT to_regclass('added') IS NULL")
    monkeypatch.undo()
    assert await migrated(postgres) == (NEWEST, NEWEST)


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
            assert await migrated(living) == (NEWEST, NEWEST)


async def test_the_log_is_compressed_bytes_that_postgresql_does_not_touch(postgres: Postgres) -> None:
    await migrated(postgres)
    query = """
    SELECT format_type(atttypid, atttypmod), attstorage FROM pg_attribute
    WHERE attrelid = 'conversation_log'::regclass AND attname = 'body'
    """
    assert await rows(postgres, query) == [("bytea", b"e")]
    assert await rows(postgres, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'conversation'::regclass"
                                " AND atttypid = 'jsonb'::regtype") == [(0,)]  # fmt: skip


async def at_version(postgres: Postgres, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """Give the database the schema that an older program made."""
    with monkeypatch.context() as patch:
        older = migrations()[:version]
        patch.setattr(module, "migrations", lambda: older)
        assert await migrated(postgres) == (0, version)


async def test_the_rows_of_version_1_stay_and_runs_that_an_erased_canary_left_go(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    await at_version(postgres, monkeypatch, 1)
    for statement in (
        """
        INSERT INTO conversation (conversation_id, user_id, bot_id, started_at, ended_at, received_at, turns, exchanges,
                                  digest)
        VALUES ('talk-1', 'user-1', 'bot-1', now(), now(), now(), 0, 0, '1:a')
        """,
        "INSERT INTO conversation_log (seq, body) VALUES (1, 'packed')",
        "INSERT INTO part (seq, name, state, made_by, error) VALUES (1, 'emotion', 'failed', 'a/1', 'why')",
        "INSERT INTO run (seq, began_at, ending, made_by) VALUES (1, now(), 'settle', 'a'), (2, now(), 'settle', 'a')",
    ):
        await ask(postgres, f"WITH made AS ({statement} RETURNING 1) SELECT 1")
    assert await migrated(postgres) == (1, NEWEST)
    assert await rows(postgres, "SELECT seq, body, storage_ref FROM conversation_log") == [(1, b"packed", None)]
    assert await rows(postgres, "SELECT name FROM part") == [("emotion",)]
    assert await rows(postgres, "SELECT seq FROM run") == [(1,)]


@pytest.mark.parametrize(("name", "taken"), [("topics", True), ("own_part_2", True), ("", False), ("Two words", False)])
async def test_the_database_takes_any_part_whose_name_has_the_form(
    postgres: Postgres, name: str, *, taken: bool
) -> None:
    await migrated(postgres)
    insert = "WITH made AS (INSERT INTO part (seq, name, state, made_by) VALUES (1, $1, 'failed', 'a/1')) SELECT 1"
    if taken:
        await ask(postgres, insert, name)
    else:
        with pytest.raises(BadRow):
            await ask(postgres, insert, name)


@pytest.mark.parametrize(
    ("body", "storage_ref", "taken"), [(b"x", None, True), (None, "s3:x", True), (None, None, False)]
)
async def test_a_log_lies_in_its_row_or_elsewhere(
    postgres: Postgres, body: bytes | None, storage_ref: str | None, *, taken: bool
) -> None:
    await migrated(postgres)
    insert = "WITH made AS (INSERT INTO conversation_log (seq, body, storage_ref) VALUES (1, $1, $2)) SELECT 1"
    if taken:
        await ask(postgres, insert, body, storage_ref)
    else:
        with pytest.raises(BadRow):
            await ask(postgres, insert, body, storage_ref)


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


# --- beside programs at work

JOB_LOCK = "-- kind: expand\n-- run: transaction\n-- lock: ACCESS EXCLUSIVE ON job\n"
CONTRACT = "-- kind: contract\n-- needed: yes\n-- run: transaction\n-- lock: none\n"
BATCHES = "-- kind: expand\n-- run: batches\n-- lock: ROW EXCLUSIVE ON job\n"
CONCURRENT = "-- kind: expand\n-- run: concurrently\n-- lock: SHARE UPDATE EXCLUSIVE ON job\n"
MAKE_INDEX = "CREATE INDEX CONCURRENTLY IF NOT EXISTS job_added ON job (crashes);"
ACCEPT = "WITH made AS (INSERT INTO job (seq, fair_key) VALUES ($1, 'user-1') RETURNING seq) SELECT seq FROM made"
IN_MIGRATION = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%job_added%'"


@pytest.fixture
def waits() -> Iterator[list[Mapping[str, Any]]]:
    """Every time that a migration did not get its locks."""
    found: list[Mapping[str, Any]] = []
    with log_records.record_observers.adding(
        lambda name, fields: found.append(fields) if name == "migration_waits" else None
    ):
        yield found


@asynccontextmanager
async def process_at_work(url: str, name: str, **database: Any) -> AsyncIterator[Postgres]:
    """Have a session of a process with this incarnation."""
    async with open_bridge() as bridge, open_postgres(bridge, url, DatabaseSettings(**database), name=name) as postgres:
        await ask(postgres, "SELECT 1")
        yield postgres


async def test_accepts_wait_less_than_a_second_for_a_migration_that_waits_for_a_long_transaction(
    database: str, monkeypatch: pytest.MonkeyPatch, waits: list[Mapping[str, Any]]
) -> None:
    with_one_more(monkeypatch, "ALTER TABLE job ADD COLUMN added integer", JOB_LOCK)
    accepted = 0

    async def accept(connection: Connection) -> None:
        await connection.fetchval(ACCEPT, accepted)

    async with (
        process_at_work(database, "accepting") as accepting,
        open_store(database) as migrating,
        # The server ends what waits for a second.
        open_dedicated(accepting, lock_timeout="1000") as line,
        trio.open_nursery() as nursery,
    ):
        async with holding(database, "SELECT count(*) FROM job"):
            nursery.start_soon(migrated, migrating)
            while len(waits) < 3:
                await line.run("test.accept", accept)
                accepted += 1
        assert "a session (pid" in waits[0]["held_by"][0]
    assert accepted > 0
    async with open_store(database) as later:
        assert await ask(later, "SELECT count(added) FROM job") == 0
        assert await ask(later, "SELECT count(*) FROM job") == accepted


async def test_a_step_that_takes_too_long_under_its_lock_is_undone_until_nobody_waits_for_it(
    database: str, monkeypatch: pytest.MonkeyPatch, waits: list[Mapping[str, Any]]
) -> None:
    with_one_more(monkeypatch, "SELECT pg_sleep(0.8)", JOB_LOCK)
    async with open_store(database) as migrating, trio.open_nursery() as nursery:
        async with process_at_work(database, "accepting"):
            nursery.start_soon(migrated, migrating)
            with trio.fail_after(30):
                await eventually(lambda: waits)
        assert "statement timeout" in waits[0]["reason"]


async def test_a_step_that_lets_others_write_has_the_time_that_it_needs(
    database: str, monkeypatch: pytest.MonkeyPatch, waits: list[Mapping[str, Any]]
) -> None:
    head = JOB_LOCK.replace("ACCESS EXCLUSIVE", "SHARE UPDATE EXCLUSIVE")
    assert head != JOB_LOCK
    with_one_more(monkeypatch, "SELECT pg_sleep(0.8)", head)
    async with process_at_work(database, "accepting"), open_store(database) as migrating:
        assert await migrated(migrating) == (NEWEST, NEWEST + 1)
    assert waits == []


async def test_a_contract_that_nobody_serves_without_has_the_time_that_it_needs(
    database: str, monkeypatch: pytest.MonkeyPatch, waits: list[Mapping[str, Any]]
) -> None:
    with_one_more(monkeypatch, "SELECT pg_sleep(0.8)", CONTRACT.replace("none", "ACCESS EXCLUSIVE ON job"))
    async with process_at_work(database, "waiting") as waits_too, open_store(database) as migrating:
        async with open_dedicated(waits_too) as dedicated:
            await dedicated.run("test.announce", lambda connection: announce(connection, "waiting", "x", NEWEST + 1))
        assert await migrated(migrating) == (NEWEST, NEWEST + 1)
    assert waits == []


async def test_a_step_in_batches_is_committed_batch_by_batch(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    update = """
    UPDATE job SET attempts = 7
    WHERE seq = ANY(ARRAY(SELECT seq FROM job WHERE attempts <> 7 LIMIT 1000 FOR UPDATE SKIP LOCKED))
    """
    with_one_more(monkeypatch, update, BATCHES)
    async with open_store(database) as postgres:
        await ask(postgres, "WITH made AS (INSERT INTO job (seq, fair_key) SELECT n, 'u' FROM"
                            " generate_series(1, 2500) AS n RETURNING 1) SELECT count(*) FROM made")  # fmt: skip
        await migrated(postgres)
        assert await rows(postgres, "SELECT count(*) FROM job GROUP BY xmin::text ORDER BY 1") == [
            (500,),
            (1000,),
            (1000,),
        ]


async def test_an_index_that_was_interrupted_in_the_making_is_removed_and_made_at_the_next_start(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_one_more(monkeypatch, MAKE_INDEX, CONCURRENT)
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('job_added')"
    async with open_store(database) as dying, open_store(database) as other:

        async def die() -> None:
            with pytest.raises(DatabaseUnavailable):
                await migrated(dying)

        async with holding(database, "INSERT INTO job (seq, fair_key) VALUES (1, 'u')"), trio.open_nursery() as nursery:
            nursery.start_soon(die)
            while await ask(other, valid) is not False:  # noqa: ASYNC110  (seen in the database only)
                await trio.sleep(0.01)
            await ask(
                other, f"SELECT pg_terminate_backend(pid) FROM ({IN_MIGRATION} AND pid <> pg_backend_pid()) AS it"
            )
        assert await ask(other, valid) is False
        # An INVALID one of this name would be left as it is by IF NOT EXISTS.
        assert await migrated(other) == (NEWEST, NEWEST + 1)
        assert await ask(other, valid) is True


async def test_an_index_is_made_beside_a_process_that_waits_to_migrate(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_one_more(monkeypatch, MAKE_INDEX, CONCURRENT)
    begun = f"SELECT count(*) FROM ({IN_MIGRATION} AND pid <> pg_backend_pid()) AS it"
    async with (
        open_store(database) as one,
        open_store(database) as other,
        trio.open_nursery() as nursery,
        holding(database, "INSERT INTO job (seq, fair_key) VALUES (1, 'u')"),
    ):
        nursery.start_soon(migrated, one)
        while await ask(other, begun) == 0:  # noqa: ASYNC110  (seen in the database only)
            await trio.sleep(0.01)
        nursery.start_soon(migrated, other)
        await trio.sleep(0.3)  # it polls meanwhile
    async with open_store(database) as later:
        assert await ask(later, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'job_added'::regclass") is True


async def test_no_step_takes_a_stronger_lock_than_it_states(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = """
    SELECT DISTINCT relname, mode FROM pg_locks JOIN pg_class ON relation = pg_class.oid
    WHERE pid = pg_backend_pid() AND relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace
      AND relname = ANY($1::text[]) AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                                                 'AccessExclusiveLock', 'RowExclusiveLock')
    """
    known = migrations()
    async with open_dedicated(postgres) as line:
        for migration in known:
            before = [
                row[0] for row in await rows(postgres, "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p')")
            ]
            stated = {(table, lock.mode) for step in migration.steps for lock in step.locks for table in lock.tables}
            found: set[tuple[str, str]] = set()
            for step in migration.steps:
                if step.run == "concurrently":
                    continue

                async def body(
                    connection: Connection, step: MigrationStep = step, before: list[str] = before
                ) -> list[Mapping[str, Any]]:
                    await run_step(connection, step)
                    return await connection.fetch(taken, before)

                for row in await line.run("test.step", body):
                    # Whoever locks a table locks its partitions.
                    found.add((re.sub(r"_[0-9]+$", "", row["relname"]), spelt(row["mode"])))
            exclusive = {table for table, mode in stated if mode == "ACCESS EXCLUSIVE"}
            assert {one for one in found if one not in stated and one[0] not in exclusive} == set(), migration.number


def spelt(mode: str) -> str:
    """Write a mode of ``pg_locks`` as ``LOCK TABLE`` does: ``AccessExclusiveLock``."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", mode.removesuffix("Lock")).upper()


# --- contract steps, and older programs


async def waiting(postgres: Postgres) -> ContractWait | None:
    async with open_dedicated(postgres) as dedicated:
        return await contract_wait(dedicated)


async def test_a_contract_step_waits_for_older_processes_and_names_them(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process_at_work(database, "oldone") as old, process_at_work(database, "newone") as new:
        entry = ProcessEntry(
            name="folder.oldone", folder="folder", host="box-1", pid=1, connections_max=1, lease_seconds=30,
            heartbeat_seconds=5,
        )  # fmt: skip
        await enter(old, entry)
        async with open_dedicated(old) as dedicated:
            await migrate(dedicated, "oldone")
        with_one_more(monkeypatch, "CREATE TABLE added (n integer)", CONTRACT)
        async with open_dedicated(new) as dedicated:
            assert await migrate(dedicated, "newone") == (NEWEST, NEWEST)
        assert await ask(new, "SELECT to_regclass('added') IS NULL")
        found = await waiting(new)
        assert found is not None
        assert (found.number, found.needed) == (NEWEST + 1, True)
        assert re.search(r"folder\.oldone on box-1: convo [0-9.]+, last seen at 20", str(found))
        await leave(old, "folder.oldone")
        # It has left, and a session of it may be at work yet.
        assert [one.name for one in (await waiting(new) or found).older] == ["oldone"]
    async with open_store(database) as later:
        assert await migrated(later) == (NEWEST, NEWEST + 1)
        assert await waiting(later) is None


async def test_a_step_behind_a_contract_that_is_held_back_is_applied_unless_the_contract_is_needed(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = CONTRACT.replace("needed: yes", "needed: no")
    heads = {1: spare, 2: "-- kind: expand\n-- run: transaction\n-- lock: none\n", 3: CONTRACT, 4: spare}
    more = [parse_migration(NEWEST + n, f"{head}CREATE TABLE added_{n} (n integer)") for n, head in heads.items()]
    monkeypatch.setattr(module, "migrations", lambda: [*migrations(), *more])
    async with open_store(database) as postgres:
        async with process_at_work(database, "older"):
            assert await migrated(postgres) == (NEWEST, NEWEST + 2)
            # It cannot serve: this is the one to report, though another one is held back before it.
            found = await waiting(postgres)
            assert found is not None
            assert (found.number, found.needed) == (NEWEST + 3, True)
            assert await rows(
                postgres, "SELECT to_regclass('added_' || n) IS NULL FROM generate_series(1, 4) AS n"
            ) == [(absent,) for absent in (True, False, True, True)]
        assert await migrated(postgres) == (NEWEST + 2, NEWEST + 4)
        assert await waiting(postgres) is None


async def test_a_process_of_0_1_without_a_session_holds_a_contract_step_back_for_a_minute(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_one_more(monkeypatch, "CREATE TABLE added (n integer)", CONTRACT)
    async with open_store(database) as postgres:
        enters = "INSERT INTO process (name, pid, host, connections_max) VALUES ('box.example/f1', 1, 'box', 9)"
        await ask(postgres, f"WITH made AS ({enters} RETURNING 1) SELECT 1")
        assert await migrated(postgres) == (NEWEST, NEWEST)
        assert "box.example/f1 on box: a convo that states no version" in str(await waiting(postgres))
        await ask(postgres, "WITH w AS (UPDATE process SET seen_at = now() - interval '61 s' RETURNING 1) SELECT 1")
        assert await migrated(postgres) == (NEWEST, NEWEST + 1)


async def test_an_older_program_starts_beside_an_expand_and_is_refused_after_a_contract(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database) as postgres:
        for head, refused in (("", False), (CONTRACT, True)):
            with monkeypatch.context() as patch:
                with_one_more(patch, f"CREATE TABLE added_{refused} (n integer)", head)
                await ask(postgres, f"WITH gone AS (DELETE FROM schema_step WHERE number = {NEWEST + 1} RETURNING 1)"
                                    " SELECT 1")  # fmt: skip
                assert await migrated(postgres) == (NEWEST, NEWEST + 1)
            if refused:
                with pytest.raises(Refused, match=rf"schema version {NEWEST + 1}, this program knows {NEWEST}"):
                    await migrated(postgres)
            else:
                assert await migrated(postgres) == (NEWEST + 1, NEWEST + 1)


async def test_a_database_of_expand_steps_alone_lets_0_1_start(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "migrations", lambda: [one for one in migrations() if one.kind == "expand"])
    await migrated(postgres)
    # What 0.1 reads: it refuses where this is above the 1 that it knows.
    assert await ask(postgres, "SELECT max(version) FROM schema_version") == 1


# --- receipts for what was stored before them

RECEIPTS = 13
OLD_DIGESTS = (f"1:{'ab' * 32}", f"2:{'0f' * 32}", "1:short", "newer", f"100:{'ab' * 32}")
# The statement of 0.1, as far as it decides what is new.
OLD_INSERT = """
INSERT INTO conversation (conversation_id, user_id, bot_id, started_at, ended_at, received_at, turns, exchanges, digest)
SELECT id, $2, 'bot-1', now(), now(), now(), 7, 3, $3 FROM unnest($1::text[]) AS id
ON CONFLICT (conversation_id) DO NOTHING RETURNING conversation_id
"""
AGREE = """
SELECT count(*) FROM conversation AS c FULL JOIN receipt AS r USING (seq)
WHERE (r.id_hash, r.turns, r.received_at, r.state::text, convo_digest_text(r.digest), r.notes)
      IS DISTINCT FROM (convo_id_hash('default', c.conversation_id), c.turns, c.received_at, '', c.digest, c.notes)
"""


async def inserted(postgres: Postgres, ids: Sequence[str], user: str = "user-1", digest: str = OLD_DIGESTS[0]) -> int:
    """Store these as an older program does; return how many were new to it."""
    return len(await rows(postgres, OLD_INSERT, ids, user, digest))


@pytest.fixture
async def held_at_13(empty_database: str) -> AsyncIterator[Postgres]:
    """An older process is at work, so no contract step is applied."""
    async with process_at_work(empty_database, "older"), open_store(empty_database) as opened:
        yield opened


async def test_what_was_stored_before_receipts_gets_one_that_says_the_same(
    held_at_13: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    await at_version(held_at_13, monkeypatch, RECEIPTS - 1)
    for number, digest in enumerate(OLD_DIGESTS):
        assert await inserted(held_at_13, [f"Bé {number}-{n}" for n in range(3)], digest=digest) == 3
    await ask(held_at_13, r"WITH noted AS (UPDATE conversation SET notes = '{}' WHERE seq % 2 = 1) SELECT 1")
    assert (await migrated(held_at_13))[0] == RECEIPTS - 1
    assert await ask(held_at_13, AGREE) == 0
    found = await rows(held_at_13, "SELECT r.id_hash, c.conversation_id, r.digest, c.digest"
                                   " FROM receipt r JOIN conversation c USING (seq) ORDER BY seq")  # fmt: skip
    assert len(found) == 15
    for hashed, conversation_id, compacted, digest in found:
        assert (hashed, compacted) == (id_hash(conversation_id), compact(digest))
        assert expand(compacted) == digest


def in_small_batches(monkeypatch: pytest.MonkeyPatch, rows_: int) -> None:
    """Let each batch take so many rows."""

    def small(step: MigrationStep) -> MigrationStep:
        return msgspec.structs.replace(step, sql=step.sql.replace("LIMIT 1000", f"LIMIT {rows_}"))

    more = [msgspec.structs.replace(one, steps=tuple(map(small, one.steps))) for one in migrations()]
    monkeypatch.setattr(module, "migrations", lambda: more)


async def test_while_receipts_are_made_older_programs_store_on_and_nothing_is_missed_or_stored_twice(
    empty_database: str, held_at_13: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    await at_version(held_at_13, monkeypatch, RECEIPTS - 1)
    before = [f"before-{n:03}" for n in range(120)]
    canaries = [f"canary-{n:03}" for n in range(120)]
    for one in zip(before, canaries, strict=True):
        await inserted(held_at_13, one[:1])
        await inserted(held_at_13, one[1:], CANARY_USER)
    await inserted(held_at_13, ["canary-last"], CANARY_USER)
    in_small_batches(monkeypatch, 5)
    meanwhile: list[str] = []
    async with process_at_work(empty_database, "older2") as old, trio.open_nursery() as nursery:
        done = trio.Event()

        erases = "WITH gone AS (DELETE FROM conversation WHERE conversation_id = ANY($1)) SELECT 1"

        async def migrate_all() -> None:
            await migrated(held_at_13)
            done.set()

        nursery.start_soon(migrate_all)
        while not done.is_set():
            n = len(meanwhile)
            meanwhile.append(f"meanwhile-{n:04}")
            # New ones, those of the batch before, and what has no receipt yet: of them only the first is new.
            again = [*before[n % 120 :: 40], *meanwhile[-3:-1]]
            assert await inserted(old, sorted([meanwhile[-1], *again])) == 1
            await ask(old, erases, [canaries[n % 120], canaries[-1 - n % 120]])
        await ask(old, erases, ["canary-last"])
    assert len(meanwhile) > 10
    assert await ask(held_at_13, AGREE) == 0
    assert await ask(held_at_13, "SELECT count(DISTINCT id_hash) FROM receipt WHERE turns = 7") == (
        len(before) + len(meanwhile) + await ask(held_at_13, f"SELECT count(*) FROM conversation WHERE {CANARY}")
    )


CANARY = f"user_id = '{CANARY_USER}'"


async def test_a_canary_that_is_erased_while_receipts_are_made_leaves_none(
    held_at_13: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    await at_version(held_at_13, monkeypatch, RECEIPTS - 1)
    await inserted(held_at_13, ["canary-1"], CANARY_USER)
    made = migrations()[RECEIPTS - 1].steps
    async with open_dedicated(held_at_13) as dedicated:
        await dedicated.run("test.make", lambda connection: run_step(connection, made[0]))

        async def erase(connection: Connection) -> None:
            await connection.execute("DELETE FROM conversation")
            await connection.execute("SELECT pg_sleep(0.2)")  # its commit is to come

        async with trio.open_nursery() as nursery:
            nursery.start_soon(held_at_13.run, "test.erase", erase)
            await eventually_waits(held_at_13)
            await dedicated.run("test.fill", lambda connection: run_step(connection, made[1]))
    assert await ask(held_at_13, "SELECT count(*) FROM receipt") == 0


async def test_an_id_belongs_to_the_program_that_made_its_receipt_whichever_it_is(
    empty_database: str, held_at_13: Postgres
) -> None:
    """Of both programs, one waits for the other's transaction, and then finds the id taken."""
    await migrated(held_at_13)
    async with open_process(empty_database) as process:

        async def slowly(statement: str, *values: object) -> None:
            async def body(connection: Connection) -> None:
                await connection.fetch(statement, *values)
                await connection.execute("SELECT pg_sleep(0.3)")  # the row is inserted, its commit is to come

            await process.postgres.run("test.slowly", body)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slowly, NEW_INSERT, id_hash("talk-1"))
            await eventually_waits(held_at_13)
            assert await inserted(held_at_13, ["a", "talk-1", "z"]) == 2
        sent = accept("talk-2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slowly, OLD_INSERT, ["talk-2"], "user-1", sent.digest)
            await eventually_waits(held_at_13)
            stored = await process.committer.accept(sent)
        assert stored.replayed
    assert await ask(held_at_13, AGREE) == 0
    # Also where the receipt is all that there is.
    await ask(held_at_13, "WITH gone AS (DELETE FROM conversation WHERE conversation_id = 'a') SELECT 1")
    assert await inserted(held_at_13, ["a"]) == 0
    assert await ask(held_at_13, "SELECT count(*) FROM conversation") == 3


NEW_INSERT = r"""
WITH made AS (
    INSERT INTO receipt (seq, received_at, turns, id_hash, digest)
    VALUES (nextval('conversation_seq_seq'), now(), 7, $1, '\x02ab') RETURNING seq
)
INSERT INTO conversation (seq, conversation_id, user_id, bot_id, started_at, ended_at, received_at, turns, exchanges)
OVERRIDING SYSTEM VALUE SELECT seq, 'talk-1', 'user-1', 'bot-1', now(), now(), now(), 7, 3 FROM made
"""


async def eventually_waits(postgres: Postgres) -> None:
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    while not await ask(postgres, asleep):  # noqa: ASYNC110  (seen in the database only)
        await trio.sleep(0.01)


async def test_the_contract_step_ends_the_time_of_older_programs(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    await at_version(postgres, monkeypatch, RECEIPTS - 1)
    await inserted(postgres, ["talk-1", "talk-2"])
    assert await migrated(postgres) == (RECEIPTS - 1, NEWEST)
    assert await ask(postgres, "SELECT count(*) FROM receipt JOIN conversation USING (seq)") == 2
    assert await ask(postgres, "SELECT to_regclass('conversation_by_id') IS NULL")
    assert await rows(postgres, "SELECT tgname FROM pg_trigger WHERE tgrelid = 'conversation'::regclass") == []
    left = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname ~ '^convo_'"
    functions = ["convo_id_hash", "convo_is_entry_kind", "convo_make_month", "convo_note_erased_log", "convo_now"]
    functions += ["convo_refuse_job", "convo_refuse_receipt"]
    assert sorted(await rows(postgres, left)) == [(name,) for name in functions]


# --- months

MONTHS = 22
FILES = """
SELECT relname::text, pg_relation_filenode(oid) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relname ~ '^(conversation_log|run)(_0)?$' AND relkind = 'r' ORDER BY 1
"""


async def before_months(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    older = [one for one in migrations() if one.number < MONTHS]
    with monkeypatch.context() as patch:
        patch.setattr(module, "migrations", lambda: older)
        await migrated(postgres)


async def test_what_is_stored_becomes_the_first_month_without_being_rewritten(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    await before_months(postgres, monkeypatch)
    for statement in (
        "INSERT INTO conversation_log (seq, body) SELECT n, 'packed' FROM generate_series(1, 1000) AS n",
        "INSERT INTO run (seq, began_at, ending, made_by) SELECT n, now(), 'settle', 'a' FROM generate_series(1, 9) n",
    ):
        await ask(postgres, f"WITH made AS ({statement} RETURNING 1) SELECT count(*) FROM made")
    before = await rows(postgres, FILES)
    await migrated(postgres)
    assert await rows(postgres, FILES) == [(f"{name}_0", file) for name, file in before]
    assert await ask(postgres, "SELECT count(*) FROM conversation_log") == 1000
    assert await ask(postgres, "SELECT count(*) FROM run") == 9
    checks = (
        "SELECT conname::text FROM pg_constraint WHERE conname ~ '_first$' OR NOT convalidated AND conname ~ 'log|run'"
    )
    assert await rows(postgres, checks) == []
    invalid = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    assert await rows(postgres, invalid) == []


async def test_whoever_may_read_the_logs_by_name_still_may(
    postgres: Postgres, plain_role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await before_months(postgres, monkeypatch)
    role = urlsplit(plain_role).username
    await ask(postgres, f"DO $$ BEGIN GRANT SELECT, INSERT ON conversation_log, run TO {role}; END $$")
    await migrated(postgres)
    may = "SELECT has_table_privilege($1, 'run', $2) AND has_table_privilege($1, 'conversation_log', $2)"
    assert [await ask(postgres, may, role, what) for what in ("SELECT", "INSERT", "DELETE")] == [True, True, False]
    await ask(postgres, f"DO $$ BEGIN DROP OWNED BY {role}; END $$")


async def test_no_month_can_begin_beside_a_program_that_needs_the_first_one_alone(
    database: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    await before_months(postgres, monkeypatch)
    partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent IN ('conversation_log'::regclass, 'run'::regclass)"
    async with process_at_work(urlsplit(database)._replace(path=await path_of(postgres)).geturl(), "older"):
        await migrated(postgres)
        assert await ask(postgres, partitions) == 2
    await migrated(postgres)
    assert await ask(postgres, partitions) == 6


async def path_of(postgres: Postgres) -> str:
    return f"/{await ask(postgres, 'SELECT current_database()::text')}"
