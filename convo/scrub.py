"""Scrubbing: writes every table anew that an erasure touches, so that no file of the database holds what was erased.

Open it to change what is written anew, or what is said to remain. An erasure removes rows, and VACUUM makes their room
free; their bytes stand there until something is written over them. ``VACUUM FULL`` copies the living rows into new
files. It takes a table for itself meanwhile: requests that need the table wait, and are answered 503 at their deadline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from msgspec import Struct

from convo.erase import ERASURES
from convo.errors import Refused
from convo.store.postgres import Connection, DedicatedConnection

SCRUBBED_TABLES = (*ERASURES, "untold")
SCRUB_SETTINGS = {"statement_timeout": "0", "lock_timeout": "10000"}
"""What the session needs that scrubs: a large table takes long, and a lock is not waited for while all others wait."""

_SECONDS = 24 * 3600.0
# Measured on two shared cores; each table that is done corrects it.
_BYTES_PER_SECOND = 50e6
_OLD_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.2


class ScrubbedTable(Struct, frozen=True, kw_only=True):
    """One table, with the size of all its files before and after, and how long it was held."""

    name: str
    bytes_before: int
    bytes_after: int
    seconds: float


class Scrubbed(Struct, frozen=True, kw_only=True):
    """What was written anew, and what may remain where."""

    tables: tuple[ScrubbedTable, ...]
    remains: tuple[str, ...]


class Size(Struct, frozen=True, kw_only=True):
    """What a table takes on the disk, with its indexes."""

    name: str
    bytes: int


def expected_seconds(sizes: Sequence[Size], done: Sequence[ScrubbedTable] = ()) -> float:
    """Return how long so much is expected to take, by what is ``done``, or by a rate measured elsewhere."""
    left = sum(one.bytes for one in sizes)
    copied, seconds = sum(one.bytes_before for one in done), sum(one.seconds for one in done)
    return left / (copied / seconds if copied and seconds else _BYTES_PER_SECOND)


async def read_sizes(connection: DedicatedConnection) -> list[Size]:
    """Read which tables are to be written anew, the smallest first."""

    async def body(session: Connection) -> list[Size]:
        return [Size(**dict(row)) for row in await session.fetch(_SIZES, list(SCRUBBED_TABLES))]

    return await connection.run("db.scrub", body)


async def scrub(
    connection: DedicatedConnection,
    sizes: Sequence[Size],
    report: Callable[[ScrubbedTable, float], None],
    as_superuser: Callable[[str], Awaitable[None]] | None = None,
) -> Scrubbed:
    """Write these tables anew; ``report`` gets each that is done, and how many seconds the rest is expected to take.

    ``as_superuser`` runs the last steps where convo's own role may not.

    Raises:
        Refused: an older transaction is open, which may still see what was erased.
        DatabaseUnavailable: a table was in use for longer than the lock is waited for; those before it are done.
    """
    await _await_older(connection)
    done: list[ScrubbedTable] = []
    for position, size in enumerate(sizes, 1):
        started = trio.current_time()
        # What is sampled of rows that are gone goes with the next sample; of a table without rows, by hand.
        await _run(connection, f"VACUUM (FULL, ANALYZE) public.{size.name}")
        await _run(connection, _FORGET_SAMPLE.format(size.name))
        seconds = trio.current_time() - started
        (after,) = [one for one in await read_sizes(connection) if one.name == size.name]
        done.append(ScrubbedTable(name=size.name, bytes_before=size.bytes, bytes_after=after.bytes, seconds=seconds))
        report(done[-1], expected_seconds(sizes[position:], done))
    if as_superuser is None:
        return Scrubbed(tables=tuple(done), remains=tuple(await _finish(connection)))
    await as_superuser(_SUPERUSER_STEPS)
    return Scrubbed(tables=tuple(done), remains=(WAL_REMAINS,))


async def _await_older(connection: DedicatedConnection) -> None:
    """Wait until no transaction is open that began earlier: for it, VACUUM would keep what was erased.

    Raises:
        Refused: one of them does not end.
    """

    async def begin(session: Connection) -> str:
        found: str = await session.fetchval("SELECT pg_current_xact_id()::xid::text")
        return found

    start = await connection.run("db.scrub", begin)

    async def body(session: Connection) -> list[str]:
        return [row["who"] for row in await session.fetch(_OLDER, start)]

    until = trio.current_time() + _OLD_WAIT_SECONDS
    while older := await connection.run("db.scrub", body):
        if trio.current_time() > until:
            raise Refused(
                f"{'; '.join(older)}: open since before this scrub, and what was erased may be visible there; end it,"
                " then scrub again. Nothing was changed"
            )
        await trio.sleep(_POLL_SECONDS)


async def _run(connection: DedicatedConnection, statement: str) -> None:
    async def body(session: Connection) -> None:
        await session.execute(statement)

    # VACUUM refuses to run inside a transaction.
    await connection.run("db.scrub", body, begin="", seconds=_SECONDS)


async def _finish(connection: DedicatedConnection) -> list[str]:
    """Write the planner's statistics anew and end the log so far, as this role may; return what remains."""

    async def body(session: Connection) -> dict[str, Any]:
        return dict(await session.fetchrow(_MAY) or {})

    may = await connection.run("db.scrub", body)
    remains = []
    if may["vacuum"]:
        await _run(connection, "VACUUM (FULL) pg_catalog.pg_statistic")
    else:
        remains.append("the planner's statistics: ids of users, until VACUUM FULL pg_statistic by the database's owner")
    if may["switch"]:
        await _run(connection, "SELECT pg_switch_wal()")
    if may["checkpoint"]:
        await _run(connection, "CHECKPOINT")
    else:
        remains.append("the old files of the tables, until the next checkpoint")
    remains.append(WAL_REMAINS)
    return remains


WAL_REMAINS = (
    "the write-ahead log (pg_wal): its files are kept for reuse, with what they hold, until they are written over;"
    " archived ones until you delete them"
)
# The smallest first: so the rest is foreseen by what was measured.
_SIZES = """
SELECT relname::text AS name, pg_total_relation_size(oid) + coalesce((
    SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree(oid) WHERE relid <> oid), 0) AS bytes
FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relname = ANY($1::text[])
ORDER BY bytes, name
"""
_OLDER = """
SELECT format('a session of %s (pid %s, %s)', coalesce(usename, '?'), pid, application_name) AS who
FROM pg_stat_activity
WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND age(backend_xmin) >= age($1::text::xid)
  AND datname = current_database()
UNION ALL SELECT format('a prepared transaction (%s)', gid) FROM pg_prepared_xacts
UNION ALL SELECT format('a replication slot (%s)', slot_name) FROM pg_replication_slots
WHERE age(xmin) >= age($1::text::xid)
"""
_FORGET_SAMPLE = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM public.{0}) AND to_regprocedure('pg_clear_attribute_stats(text,text,text,boolean)')
        IS NOT NULL
    THEN
        PERFORM pg_clear_attribute_stats('public', '{0}', attname::text, false)
        FROM pg_attribute WHERE attrelid = 'public.{0}'::regclass AND attnum > 0 AND NOT attisdropped;
    END IF;
END
$$
"""
_MAY = """
SELECT rolsuper OR (SELECT pg_has_role(datdba, 'MEMBER') FROM pg_database WHERE datname = current_database()) AS vacuum,
       rolsuper OR has_function_privilege('pg_switch_wal()', 'EXECUTE') AS switch,
       rolsuper OR coalesce(pg_has_role(to_regrole('pg_checkpoint')::oid, 'MEMBER'), false) AS checkpoint
FROM pg_roles WHERE rolname = current_user
"""
_SUPERUSER_STEPS = "VACUUM (FULL) pg_catalog.pg_statistic; SELECT pg_switch_wal(); CHECKPOINT;"
