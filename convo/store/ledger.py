"""The books: what was accepted and how it ended, counted beside the job table and compared with it; it knows no job.

Each transaction that accepts, settles or buries appends one row a day of receipt: an update of a shared row would cost
three times as much (stack notes, fact 27). A row that vanishes from the tables without having been booked is a gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Literal

from msgspec import Struct

from convo.store.postgres import RELAXED, Connection, Line, Postgres

Kind = Literal["accepted", "done", "dead"]

DAY = "(received_at AT TIME ZONE 'UTC')::date"
"""The day that a conversation is booked under: that of its receipt, by UTC."""

# One process at a time keeps the books of a database.
_LOCK = 0x636F6E766F_02
# Counting a day's rows takes longer than any other unit of work; it has a connection of its own.
COMPARE_SECONDS = 60.0


class Gap(Struct, frozen=True, kw_only=True):
    """A figure of one day that is not what the books say."""

    day: date
    what: str
    booked: int
    found: int


class Anomaly(Struct, frozen=True, kw_only=True):
    """Rows that should not be there, or are missing; ``examples`` are at most ten of their ids or numbers."""

    what: str
    count: int
    examples: tuple[str, ...]


async def book(connection: Connection, kind: Kind, seqs: Sequence[int], sign: int = 1) -> None:
    """Append what happened to these jobs; ``sign`` -1 takes it back."""
    await connection.execute(_BOOK, kind, list(seqs), sign)


async def keep(line: Line) -> list[Gap] | None:
    """Sum rows up, and compare today, yesterday and one older day; None when another process does it at this moment."""

    async def body(connection: Connection) -> list[Gap] | None:
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _LOCK):
            return None
        await connection.execute(_UNBOUND)
        await connection.execute(_FOLD)
        return await _gaps(connection, f"{_COMPARE} AND booked.day IN ({_IN_TURN})")

    return await line.run("db.books", body, begin=RELAXED, seconds=COMPARE_SECONDS)


async def gaps(line: Line, days: Sequence[date] | None = None) -> list[Gap]:
    """Compare these days, or every day."""

    async def body(connection: Connection) -> list[Gap]:
        await connection.execute(_UNBOUND)
        return await _gaps(connection, _COMPARE + " AND ($1::date[] IS NULL OR booked.day = ANY($1))", days)

    return await line.run("db.audit", body, begin=RELAXED, seconds=COMPARE_SECONDS)


async def anomalies(line: Line) -> list[Anomaly]:
    """Look for missing logs, orphans, and relationships that are not the sum of their scores."""
    found = []
    for what, query in _ANOMALIES.items():

        async def body(connection: Connection, query: str = query) -> Mapping[str, Any] | None:
            await connection.execute(_UNBOUND)
            return await connection.fetchrow(_EXAMPLES.format(query))

        row = await line.run("db.audit", body, begin=RELAXED, seconds=COMPARE_SECONDS)
        if row is not None and row["n"]:
            found.append(Anomaly(what=what, count=row["n"], examples=tuple(row["examples"])))
    return found


async def totals(postgres: Postgres) -> dict[str, int]:
    """Read what the books say of all days together."""

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


_EXAMPLES = "SELECT count(*) AS n, (array_agg(name))[1:10] AS examples FROM ({}) AS odd"
_UNBOUND = "SET LOCAL statement_timeout = 0"
_BOOK = f"""
INSERT INTO ledger (day, kind, n)
SELECT {DAY}, $1, count(*) * $3 FROM conversation WHERE seq = ANY($2::bigint[]) GROUP BY 1
"""
_FOLD = """
WITH old AS (
    DELETE FROM ledger WHERE at < convo_now() - interval '1 minute' AND (day, kind) IN (
        SELECT day, kind FROM ledger WHERE at < convo_now() - interval '1 minute'
        GROUP BY day, kind HAVING count(*) > 1)
    RETURNING day, kind, n, at
)
INSERT INTO ledger (day, kind, n, at) SELECT day, kind, sum(n), max(at) FROM old GROUP BY day, kind
"""
# Booked and found in one statement: one view of the database, in which every transaction is whole or absent.
_COMPARE = """
SELECT booked.*, found.* FROM (
    SELECT day,
           coalesce(sum(n) FILTER (WHERE kind = 'accepted'), 0)::bigint AS booked_accepted,
           coalesce(sum(n) FILTER (WHERE kind = 'done'), 0)::bigint AS booked_done,
           coalesce(sum(n) FILTER (WHERE kind = 'dead'), 0)::bigint AS booked_dead
    FROM ledger GROUP BY day
) AS booked, LATERAL (
    SELECT count(*) AS conversations, count(job.seq) AS jobs,
           count(*) FILTER (WHERE job.state = 'done') AS done, count(*) FILTER (WHERE job.state = 'dead') AS dead
    FROM conversation LEFT JOIN job USING (seq)
    WHERE received_at >= booked.day::timestamp AT TIME ZONE 'UTC'
      AND received_at < (booked.day + 1)::timestamp AT TIME ZONE 'UTC'
) AS found
WHERE (found.conversations, found.jobs, found.done, found.dead)
      IS DISTINCT FROM (booked_accepted, booked_accepted, booked_done, booked_dead)
"""
_TODAY = "(convo_now() AT TIME ZONE 'UTC')::date"
# Today, yesterday, and of the older days the one whose turn this minute is.
_IN_TURN = f"""
    SELECT {_TODAY} UNION SELECT {_TODAY} - 1 UNION (
        SELECT day FROM (SELECT day, row_number() OVER (ORDER BY day) - 1 AS n, count(*) OVER () AS days
                         FROM ledger WHERE day < {_TODAY} - 1 GROUP BY day) AS older
        WHERE n = (extract(epoch FROM convo_now())::bigint / 60) % days)
"""
_ANOMALIES = {
    "conversations without a log": """
        SELECT conversation_id AS name FROM conversation
        WHERE NOT EXISTS (SELECT FROM conversation_log l WHERE l.seq = conversation.seq)""",
    "conversations without a job": """
        SELECT conversation_id AS name FROM conversation
        WHERE NOT EXISTS (SELECT FROM job WHERE job.seq = conversation.seq)""",
    "logs without a conversation": """
        SELECT seq::text AS name FROM conversation_log l
        WHERE NOT EXISTS (SELECT FROM conversation c WHERE c.seq = l.seq)""",
    "jobs without a conversation": """
        SELECT seq::text AS name FROM job WHERE NOT EXISTS (SELECT FROM conversation c WHERE c.seq = job.seq)""",
    "parts without a conversation": """
        SELECT seq::text || ' ' || name AS name FROM part
        WHERE NOT EXISTS (SELECT FROM conversation c WHERE c.seq = part.seq)""",
    "days with conversations that were never booked": f"""
        SELECT DISTINCT {DAY}::text AS name FROM conversation
        WHERE NOT EXISTS (SELECT FROM ledger WHERE ledger.day = {DAY})""",
    "relationships that are not the sum of their scores": """
        SELECT coalesce(r.user_id, s.user_id) || ' ' || coalesce(r.bot_id, s.bot_id) AS name
        FROM relationship r FULL JOIN (
            SELECT user_id, bot_id, sum(score) AS score, count(*) AS conversations
            FROM conversation JOIN job USING (seq) WHERE state = 'done' GROUP BY user_id, bot_id
        ) AS s USING (user_id, bot_id)
        WHERE (r.score, r.conversations) IS DISTINCT FROM (s.score, s.conversations)""",
    "leases that ended over five minutes ago": """
        SELECT seq::text AS name FROM job
        WHERE state = 'leased' AND leased_until < convo_now() - interval '5 minutes'""",
}
