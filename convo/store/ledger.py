"""The books: a second count of what was accepted and how it ended, compared with the tables to find lost rows.

Each transaction that accepts, settles or buries appends one row for each day of receipt. An update of a shared row
would cost three times as much (stack notes, fact 27). A row that was booked and is missing from the tables is a gap.
What retention removes moves from ``done``, ``dead`` or ``superseded`` to ``retired``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import partial
from typing import Literal

from msgspec import Struct

from convo.store.postgres import RELAXED, Connection, DedicatedConnection, Postgres

EntryKind = Literal["accepted", "done", "dead", "retired", "superseded"]

DAY = "(received_at AT TIME ZONE 'UTC')::date"
"""The day under which a conversation is booked: the day of its receipt, in UTC."""

# One process at a time keeps the books of a database.
_LOCK = 0x636F6E766F_02
# To count a day's rows takes longer than any other unit of work, so it has a connection of its own.
COMPARE_SECONDS = 60.0

UNBOUND = "SET LOCAL statement_timeout = 0"
"""For a unit of work that is bounded by its own deadline only."""

FOLD_ROWS = 20_000
"""So many rows are summed up in one transaction at most: after a night without an audit there are millions."""


class Gap(Struct, frozen=True, kw_only=True):
    """A figure of one day that differs from the books."""

    day: date
    what: str
    booked: int
    found: int


async def book(connection: Connection, kind: EntryKind, seqs: Sequence[int], sign: int = 1) -> None:
    """Append what happened to these jobs; ``sign`` -1 takes it back."""
    await connection.execute(_BOOK, kind, list(seqs), sign)


async def compare_recent(dedicated: DedicatedConnection) -> list[Gap] | None:
    """Sum rows up, and compare today, yesterday and one older day; None while another process does it."""

    async def fold(connection: Connection) -> int:
        if not await connection.fetchval(TRY_LOCK, _LOCK):
            return 0
        await connection.execute(UNBOUND)
        folded: int = await connection.fetchval(_FOLD, FOLD_ROWS)
        return folded

    async def body(connection: Connection) -> list[Gap] | None:
        if not await connection.fetchval(TRY_LOCK, _LOCK):
            return None
        await connection.execute(UNBOUND)
        return await _gaps(connection, f"{_COMPARE} AND booked.day IN ({_COMPARED_NOW})")

    while await dedicated.run("db.books", fold, begin=RELAXED, seconds=COMPARE_SECONDS) == FOLD_ROWS:
        pass
    return await dedicated.run("db.books", body, begin=RELAXED, seconds=COMPARE_SECONDS)


async def gaps(dedicated: DedicatedConnection, days: Sequence[date] | None = None) -> list[Gap]:
    """Compare these days, or every day that was booked: each in a statement with a deadline of its own."""

    async def booked(connection: Connection) -> list[date]:
        return [row["day"] for row in await connection.fetch(_DAYS)]

    async def body(connection: Connection, day: date) -> list[Gap]:
        await connection.execute(UNBOUND)
        return await _gaps(connection, f"{_COMPARE} AND booked.day = $1", day)

    found: list[Gap] = []
    if days is None:
        days = await dedicated.run("db.audit", booked, begin=RELAXED, seconds=COMPARE_SECONDS)
    for day in days:
        found += await dedicated.run("db.audit", partial(body, day=day), begin=RELAXED, seconds=COMPARE_SECONDS)
    return found


async def totals(postgres: Postgres) -> dict[str, int]:
    """Read the sums of all days, by kind."""

    async def body(connection: Connection) -> dict[str, int]:
        rows = await connection.fetch("SELECT kind, sum(n)::bigint AS n FROM ledger GROUP BY kind")
        return {row["kind"]: row["n"] for row in rows}

    return await postgres.run("db.books", body, begin=RELAXED)


async def _gaps(connection: Connection, query: str, *values: object) -> list[Gap]:
    found = []
    for row in await connection.fetch(query, *values):
        for what, booked in (("conversations", "accepted"), ("jobs", "accepted"), ("done", "done"), ("dead", "dead")):
            if row[what] != row[f"booked_{booked}"]:
                found.append(Gap(day=row["day"], what=what, booked=row[f"booked_{booked}"], found=row[what]))
    return found


TRY_LOCK = "SELECT pg_try_advisory_xact_lock($1)"
_DAYS = "SELECT DISTINCT day FROM ledger ORDER BY day"
_BOOK = f"""
INSERT INTO ledger (day, kind, n, tenant)
SELECT {DAY}, $1, count(*) * $3, tenant FROM conversation WHERE seq = ANY($2::bigint[]) GROUP BY 1, 4
"""
BOOK_DONE = f"""
INSERT INTO ledger (day, kind, n, tenant)
SELECT {DAY}, 'done', count(*), tenant FROM conversation WHERE seq = ANY($1::bigint[]) GROUP BY 1, 4
"""
"""For the statement that makes them done, as a part of it."""
ERASE_BOOKED = f"""
INSERT INTO ledger (day, kind, n, tenant)
SELECT {DAY}, booked.kind, -count(*), tenant
FROM conversation JOIN every_job AS job USING (seq), LATERAL (VALUES ('accepted'), (job.state)) AS booked (kind)
WHERE seq = ANY($1::bigint[]) AND booked.kind IN ('accepted', 'done', 'dead', 'superseded') GROUP BY 1, 2, 4
"""
# At a time that has passed: else what is taken off would lower the number of those done in the last minute (explain).
BOOK_RETIRED = f"""
INSERT INTO ledger (day, kind, n, at, tenant)
SELECT {DAY}, booked.kind, sum(booked.n), convo_now() - interval '2 minutes', tenant
FROM conversation JOIN every_job AS job USING (seq),
     LATERAL (VALUES ('retired', 1), (job.state, -1)) AS booked (kind, n)
WHERE seq = ANY($1::bigint[]) GROUP BY 1, 2, 5
"""
# In the order of their sums: each batch makes one row of all that it takes of a sum, so each batch leaves fewer rows.
_FOLD = """
WITH old AS (
    DELETE FROM ledger WHERE ctid = ANY(ARRAY(
        SELECT entry.ctid FROM ledger AS entry JOIN (
            SELECT day, kind, tenant FROM ledger WHERE at < convo_now() - interval '1 minute'
            GROUP BY day, kind, tenant HAVING count(*) > 1) AS many USING (day, kind, tenant)
        WHERE at < convo_now() - interval '1 minute' ORDER BY day, kind, tenant LIMIT $1))
    RETURNING day, kind, n, at, tenant
), summed AS (
    INSERT INTO ledger (day, kind, n, at, tenant)
    SELECT day, kind, sum(n), max(at), tenant FROM old GROUP BY day, kind, tenant
)
SELECT count(*) FROM old
"""
BOOKED = """
    SELECT coalesce(sum(n) FILTER (WHERE kind = 'accepted'), 0)::bigint AS accepted,
           coalesce(sum(n) FILTER (WHERE kind IN ('done', 'retired', 'superseded')), 0)::bigint AS done,
           coalesce(sum(n) FILTER (WHERE kind = 'dead'), 0)::bigint AS dead
    FROM ledger
"""
"""The sums of all days in one row: a few rows a day are read, and those of the last minute. What was retired counts as
done, and no longer as dead; so does what was superseded."""

# Booked and found in one statement: one view of the database, in which every transaction is whole or absent. What was
# retired is in no table, so it is taken off what was accepted.
_COMPARE = """
SELECT booked.*, found.* FROM (
    SELECT day,
           coalesce(sum(CASE kind WHEN 'accepted' THEN n WHEN 'retired' THEN -n END), 0)::bigint AS booked_accepted,
           coalesce(sum(n) FILTER (WHERE kind = 'done'), 0)::bigint AS booked_done,
           coalesce(sum(n) FILTER (WHERE kind = 'dead'), 0)::bigint AS booked_dead
    FROM ledger GROUP BY day
) AS booked, LATERAL (
    SELECT count(*) AS conversations, count(coalesce(outcome.seq, job.seq)) AS jobs,
           count(*) FILTER (WHERE outcome.seq IS NOT NULL OR job.state = 'done') AS done,
           count(*) FILTER (WHERE job.state = 'dead') AS dead
    FROM conversation LEFT JOIN job USING (seq) LEFT JOIN outcome USING (seq)
    WHERE received_at >= booked.day::timestamp AT TIME ZONE 'UTC'
      AND received_at < (booked.day + 1)::timestamp AT TIME ZONE 'UTC'
) AS found
WHERE (found.conversations, found.jobs, found.done, found.dead)
      IS DISTINCT FROM (booked_accepted, booked_accepted, booked_done, booked_dead)
"""
_TODAY = "(convo_now() AT TIME ZONE 'UTC')::date"
# Today, yesterday, and one older day: each minute the next of them.
_COMPARED_NOW = f"""
    SELECT {_TODAY} UNION SELECT {_TODAY} - 1 UNION (
        SELECT day FROM (SELECT day, row_number() OVER (ORDER BY day) - 1 AS n, count(*) OVER () AS days
                         FROM ledger WHERE day < {_TODAY} - 1 GROUP BY day) AS older
        WHERE n = (extract(epoch FROM convo_now())::bigint / 60) % days)
"""
