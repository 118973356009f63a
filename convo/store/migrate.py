"""Migrations: they bring the database's schema to this program's version, at every start, beside programs at work.

Open it to change how a step is run. What a migration states is read in ``store/migrations.py``, what was applied in
``store/schema_state.py``.

One process migrates at a time: each unit of work takes a lock of its session first. It never waits for that lock on the
server, because ``CREATE INDEX CONCURRENTLY`` waits for every transaction, also for one that would wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio
from msgspec import Struct

from convo import __version__
from convo.errors import ConvoError, DatabaseUnavailable, Refused
from convo.observe import log_records
from convo.store.migrations import Migration, MigrationStep, migrations
from convo.store.outcomes import store_moved
from convo.store.postgres import LOCAL, SINGLE, Connection, DedicatedConnection, Unit
from convo.store.postgres_errors import is_held_up
from convo.store.process_programs import OlderProcess, announce, is_alone, older_processes
from convo.store.schema_state import SchemaState, fetch_schema, is_applied, make_tables, note_step

# Any numbers that no other program on this database uses. Programs of 0.1 wait for the first one in a transaction.
_LOCK = 7_266_386_220
_SESSION_LOCK = 0x636F6E766F_08
_SECONDS = 600.0
_INDEX_SECONDS = 24 * 3600.0
# Who waits for a table's lock holds up all that come after it: the accepts. Both together stay below a second.
_LOCK_MILLISECONDS = 400
_STEP_MILLISECONDS = 500
_AGAIN_SECONDS = 1.0
_BUSY_SECONDS = 0.1
_BATCH_PAUSE_MAX_SECONDS = 1.0
# SQLSTATE class 42: a missing privilege, or a table that belongs to another role. Waiting mends neither.
_NOT_ALLOWED = "42"


class ContractWait(Struct, frozen=True, kw_only=True):
    """A contract step that waits for older processes; ``needed``: this program cannot serve before it."""

    number: int
    needed: bool
    older: tuple[OlderProcess, ...]

    def __str__(self) -> str:
        held = "; ".join(map(str, self.older)) or "nobody any more: it is applied at the next try"
        does = "this process serves when it is applied" if self.needed else "this process serves meanwhile"
        return f"migration {self.number} waits until no older process is left ({does}). Held back by {held}"


class _Busy(Exception):
    pass


class _HeldBack(Exception):
    pass


async def migrate(dedicated: DedicatedConnection, process: str = "") -> tuple[int, int]:
    """Apply what is missing, one process at a time; return the versions before and after.

    It leaves out a contract step that older processes hold back, and ends before one that is needed: ``contract_wait``
    says who holds it. What was applied stays applied when the process dies, and the next start goes on. ``process`` is
    the incarnation of a process that goes on to serve.

    Raises:
        Refused: the database is for newer programs only, or does not let us make our tables.
        DatabaseUnavailable: it cannot be reached now.
    """
    try:
        before = await read_schema(dedicated)
        if before.has_tables and before.missing(migrations()) is None:
            if process:
                await _announce(dedicated, process)
            return before.version, before.version
        try:
            return before.version, await _apply_all(dedicated, process)
        finally:
            # The session's lock and settings go with it.
            await dedicated.close()  # noqa: ASYNC102  (shields itself, with a bound)
    except DatabaseUnavailable as error:
        sqlstate = _sqlstate(error)
        if not sqlstate.startswith(_NOT_ALLOWED):
            raise
        raise Refused(
            f"the database does not let us make our tables (SQLSTATE {sqlstate}: {error.__cause__}); make the role of"
            " database.url the owner of its database, or GRANT CREATE, USAGE ON SCHEMA public to it"
        ) from error


async def contract_wait(dedicated: DedicatedConnection) -> ContractWait | None:
    """Return which contract step waits, and for whom; None where none does. It changes nothing.

    Of several it is the first that this program cannot serve without.
    """
    state = await read_schema(dedicated)
    missing = [one for one in migrations() if one.number not in state.applied]
    if not missing or missing[0].kind != "contract" or not state.has_tables:
        return None
    step = next((one for one in missing if one.needed), missing[0])

    async def body(connection: Connection) -> Sequence[OlderProcess]:
        return await older_processes(connection, step.number)

    older = await dedicated.run("db.schema", body)
    return ContractWait(number=step.number, needed=step.needed, older=tuple(older))


async def read_schema(dedicated: DedicatedConnection) -> SchemaState:
    """Read which migrations the database has, changing nothing.

    Raises:
        Refused: the database is for newer programs only.
        DatabaseUnavailable: it cannot be reached now.
    """
    state = await dedicated.run("db.schema", fetch_schema)
    newest = migrations()[-1].number
    if state.oldest > newest:
        raise Refused(
            f"the database has schema version {state.oldest}, this program knows {newest}: start the newer convo that"
            " made it, or restore a backup from before it"
        )
    return state


# --- applying


async def _apply_all(dedicated: DedicatedConnection, process: str) -> int:
    known = migrations()
    await _under_lock(dedicated, MigrationStep(run="transaction", locks=(), sql=""), make_tables)
    if process:
        await _announce(dedicated, process)
    while True:
        state = await read_schema(dedicated)
        migration = state.missing(known)
        if migration is None:
            return state.version
        try:
            for number, step in enumerate(migration.steps):
                if (migration.number, number) not in state.steps:
                    await _apply_step(dedicated, migration, number, step)
        except _HeldBack:
            if migration.needed:
                return state.version
            # What comes after it does not rely on it: this program serves without it.
            known = tuple(one for one in known if one is not migration)


async def _apply_step(dedicated: DedicatedConnection, migration: Migration, number: int, step: MigrationStep) -> None:
    """Apply one step, and note it in its own last transaction."""

    async def unit(connection: Connection) -> bool:
        if await is_applied(connection, migration.number, number):
            return True
        if migration.kind == "contract" and await older_processes(connection, migration.number):
            raise _HeldBack
        # Whoever knows a contract that is needed does not serve before it, and whoever does not know it has gone.
        unwaited = migration.kind == "contract" and migration.needed
        done = await run_step(connection, step, limited=not unwaited)
        if done:
            await note_step(connection, migration, number)
        return done

    while True:
        began = trio.current_time()
        if await _under_lock(dedicated, step, unit):
            return
        await trio.sleep(min((trio.current_time() - began) / 2, _BATCH_PAUSE_MAX_SECONDS))


async def run_step(connection: Connection, step: MigrationStep, *, limited: bool = True) -> bool:
    """Take the locks of a step and run it, or one batch of it; return whether it is done.

    ``limited``: where other processes are at work, it ends when it takes too long under its locks.
    """
    if step.run == "concurrently":
        await _make_indexes(connection, step)
        return True
    await connection.execute(f"SET LOCAL statement_timeout = {_LOCK_MILLISECONDS}")
    for lock in step.locks:
        await connection.execute(f"LOCK TABLE {', '.join(lock.tables)} IN {lock.mode} MODE")
    # Nobody waits for a process that is alone.
    limit = _STEP_MILLISECONDS if limited and step.is_waited_for and not await is_alone(connection) else 0
    await connection.execute(f"SET LOCAL statement_timeout = {limit}")
    if step.run == "outcomes":
        done = not await store_moved(connection, await connection.fetch(step.sql))
    else:
        tag = await connection.execute(step.sql)
        done = step.run == "transaction" or tag.split()[-1] == "0"
    await connection.execute("SET LOCAL statement_timeout = 0")
    return done


async def make_indexes(dedicated: DedicatedConnection, step: MigrationStep) -> None:
    """Make the indexes of a step of no migration, as one of a migration would be; no process migrates meanwhile.

    Raises:
        DatabaseUnavailable: it could not be done now.
    """

    async def unit(connection: Connection) -> bool:
        return await run_step(connection, step)

    await _under_lock(dedicated, step, unit)


async def _make_indexes(connection: Connection, step: MigrationStep) -> None:
    await connection.execute("SET statement_timeout = 0")
    # It waits for transactions that began before it, however long, and no accept waits for it.
    await connection.execute("SET lock_timeout = 0")
    # As LOCAL does for the steps in a transaction: a standby that is away holds no start up.
    await connection.execute("SET synchronous_commit = local")
    statements = [text for text in step.sql.split(";") if "CREATE " in text]
    for name, statement in zip(step.index_names, statements, strict=True):
        # What an interrupted one has left is kept up to date by every write, and answers no read.
        if await connection.fetchval(_IS_INVALID, name):
            await connection.execute(f"DROP INDEX CONCURRENTLY {name}")
        await connection.execute(statement)


async def _announce(dedicated: DedicatedConnection, process: str) -> None:
    newest = migrations()[-1].number

    async def body(connection: Connection) -> None:
        await announce(connection, process, __version__, newest)

    # No wait for standbys, here and below: no receipt depends on the schema alone, and what has one comes after it.
    await dedicated.run("db.migrate", body, begin=LOCAL)


async def _under_lock(dedicated: DedicatedConnection, step: MigrationStep, unit: Unit[bool]) -> bool:
    """Run one unit of work for a step under the lock of migrations, again while locks are taken; return its result."""
    outside = step.run == "concurrently"

    async def body(connection: Connection) -> bool:
        # A session that was lost has lost it, too, so each unit asks; who has it gets it again.
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _SESSION_LOCK):
            raise _Busy
        if not outside:
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            await connection.execute(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}")
            # A program of 0.1 that starts now reads the version before this unit or after it.
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        return await unit(connection)

    # What reads a whole table while all others write to it takes as long as the table is large.
    seconds = _INDEX_SECONDS if outside or not step.is_waited_for else _SECONDS
    begin = SINGLE if outside else LOCAL
    while True:
        try:
            return await dedicated.run("db.migrate", body, begin=begin, seconds=seconds)
        except _Busy:
            await trio.sleep(_BUSY_SECONDS)
        except DatabaseUnavailable as error:
            if not is_held_up(error):
                raise
            await _log_wait(dedicated, step, str(error.__cause__))
            await trio.sleep(_AGAIN_SECONDS)


async def _log_wait(dedicated: DedicatedConnection, step: MigrationStep, reason: str) -> None:
    tables = [table for lock in step.locks for table in lock.tables]

    async def body(connection: Connection) -> list[str]:
        return [row["holder"] for row in await connection.fetch(_LOCK_HOLDERS, tables)]

    held_by = await dedicated.run("db.schema", body)
    log_records.migration_waits(tables=tables, held_by=held_by, reason=reason, again_every_seconds=_AGAIN_SECONDS)


def _sqlstate(error: ConvoError) -> str:
    return getattr(error.__cause__, "sqlstate", None) or ""


_IS_INVALID = "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass($1) AND NOT indisvalid)"
_LOCK_HOLDERS = """
SELECT format('%s (pid %s, in a transaction since %s)', coalesce(nullif(application_name, ''), 'a session'), pid,
              to_char(min(xact_start) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC')) AS holder
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE pg_locks.granted AND pid <> pg_backend_pid()
  AND relation IN (SELECT to_regclass(name) FROM unnest($1::text[]) AS name)
GROUP BY application_name, pid ORDER BY min(xact_start) LIMIT 5
"""
