"""Which migrations a database has: the tables that say so, reading them, and noting a step.

Three tables are made here and not by a migration. ``schema_step`` says which steps were applied. ``schema_version``
says what a program must know at least: its highest row is the last contract step, and 0.1 refuses a database where that
is above its own. ``process_program`` says which program each process runs (``store/process_programs.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from convo.store.history import BEAT
from convo.store.migrations import Migration
from convo.store.postgres import Connection
from convo.store.process_programs import MAKE_PROGRAMS


class SchemaState(Struct, frozen=True, kw_only=True):
    """Which migrations and steps a database has; ``oldest`` is what a program must know at least to run on it."""

    applied: frozenset[int]
    steps: frozenset[tuple[int, int]]
    oldest: int
    has_tables: bool

    @property
    def version(self) -> int:
        """The number of the newest migration, 0 where there is none yet."""
        return max(self.applied, default=0)

    def missing(self, known: Sequence[Migration]) -> Migration | None:
        """Return the next migration that is to be applied, None where there is none."""
        return next((one for one in known if one.number not in self.applied), None)


async def fetch_schema(connection: Connection) -> SchemaState:
    """Read which migrations the database has, changing nothing."""
    if await connection.fetchval("SELECT to_regclass('schema_version')") is None:
        return SchemaState(applied=frozenset(), steps=frozenset(), oldest=0, has_tables=False)
    oldest: int = await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_version")
    if await connection.fetchval(_HAS_TABLES) is None:
        # A program before this one migrated: what it applied is all that it knew.
        applied = frozenset(range(1, oldest + 1))
        return SchemaState(applied=applied, steps=frozenset(), oldest=oldest, has_tables=False)
    rows = await connection.fetch("SELECT number, step, is_last FROM schema_step")
    return SchemaState(
        applied=frozenset(row["number"] for row in rows if row["is_last"]),
        steps=frozenset((row["number"], row["step"]) for row in rows),
        oldest=oldest,
        has_tables=True,
    )


async def is_applied(connection: Connection, number: int, step: int) -> bool:
    """Return whether a step was applied, by whichever process."""
    applied: bool = await connection.fetchval(_IS_APPLIED, number, step)
    return applied


async def note_step(connection: Connection, migration: Migration, number: int) -> None:
    """Note that a step was applied, and of the last one of a migration what programs must know from now on."""
    is_last = number == len(migration.steps) - 1
    await connection.execute(_NOTE_STEP, migration.number, number, migration.kind, is_last)
    if not is_last:
        return
    # The first one is what makes it a database of convo at all.
    if migration.kind == "contract" or migration.number == 1:
        await connection.execute(_RAISE_OLDEST, migration.number)
    if await connection.fetchval("SELECT to_regclass('history')") is not None:
        await connection.execute(BEAT)


async def make_tables(connection: Connection) -> bool:
    """Make the tables where they are missing; return that it is done."""
    for statement in (MAKE_PROGRAMS, *_TABLES):
        await connection.execute(statement)
    return True


_HAS_TABLES = "SELECT to_regclass('schema_step')"
# As many rows as there are migrations and steps of them. Where a program before this one migrated, what it applied
# stands in schema_version alone.
_TABLES = (
    "CREATE TABLE IF NOT EXISTS schema_version (version integer PRIMARY KEY, applied_at timestamptz DEFAULT now())",
    """
    CREATE TABLE IF NOT EXISTS schema_step (
        number     integer NOT NULL,
        step       integer NOT NULL,
        kind       text NOT NULL,
        is_last    boolean NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (number, step)
    )
    """,
    """
    INSERT INTO schema_step (number, step, kind, is_last)
    SELECT version, 0, 'expand', true FROM schema_version WHERE NOT EXISTS (SELECT FROM schema_step)
    """,
)
_IS_APPLIED = "SELECT EXISTS (SELECT FROM schema_step WHERE number = $1 AND (step = $2 OR is_last))"
_NOTE_STEP = """
INSERT INTO schema_step (number, step, kind, is_last) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING
"""
_RAISE_OLDEST = """
INSERT INTO schema_version (version) SELECT generate_series(1, $1::integer) ON CONFLICT DO NOTHING
"""
