"""Reads from the database the figures behind the shared alerts, and decides which process raises those alerts.

That process leads: its session holds the lock. It is a session's lock and no transaction's. So the lead does not change
hands between two looks, and is gone with the process that had it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from msgspec import structs

from convo.alerts.look import Vitals
from convo.conversation.model import CANARY_USER
from convo.settings import AlertsSettings
from convo.store import ledger, process_settings
from convo.store.job_sql import COUNTED_MAX, DUE, QUEUED, THEIRS
from convo.store.ledger import BOOKED, Gap
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.processes import LEAD_LOCK

_HUNG_LOOKS = 12


class SharedState:
    """Looks at the database on a connection of its own.

    A process that hangs must not keep the lead: the server ends a session that nobody used for a dozen looks.
    """

    def __init__(self, postgres: Postgres, settings: AlertsSettings) -> None:
        idle_milliseconds = int(settings.look_seconds * _HUNG_LOOKS * 1000)
        self._connection = postgres.dedicated(idle_session_timeout=str(idle_milliseconds))
        self._settings = settings

    async def lead(self) -> bool:
        """Return whether this process leads, and so whether the database answers.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: it does not answer.
        """

        async def body(connection: Connection) -> bool:
            # The lock itself is asked, at every look. A session that has it gets it again, and no other one does. To
            # remember the session by its pid was wrong: after a restart of a container small pids come again.
            leads: bool = await connection.fetchval("SELECT pg_try_advisory_lock($1)", LEAD_LOCK)
            return leads

        return await self._connection.run("db.alerts", body, begin=RELAXED)

    async def vitals(self) -> Vitals:
        """Read what the conditions of all processes are made of."""

        async def body(connection: Connection) -> Vitals:
            row = await connection.fetchrow(_VITALS, CANARY_USER, COUNTED_MAX)
            dead = [one["conversation_id"] for one in await connection.fetch(_DEAD_IDS, CANARY_USER)]
            unserved, ids = await _read_unserved(connection)
            found = Vitals(**dict(row or {}), dead_ids=tuple(dead), unserved=unserved, unserved_ids=ids)
            if found.oldest_seconds <= self._settings.backlog_seconds:
                return found
            ids = tuple(one["conversation_id"] for one in await connection.fetch(_OLDEST_IDS))
            return structs.replace(found, oldest_ids=ids)

        return await self._connection.run("db.vitals", body, begin=RELAXED)

    async def gaps(self, days: Sequence[date]) -> tuple[Gap, ...]:
        """Compare these days with the ledger, on this connection: while it lasts nothing else is looked at."""
        return tuple(await ledger.gaps(self._connection, days))

    async def close(self) -> None:
        """Close the connection, and give up the lead with it."""
        await self._connection.close()


async def _read_unserved(connection: Connection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read which dependencies jobs wait for that no process has, and some of these jobs."""
    waits = [row["waits_for"] for row in await connection.fetch(_WAITS_FOR)]
    names = await process_settings.unserved(connection, waits) if waits else []
    ids = [row["conversation_id"] for row in await connection.fetch(_WAITING_IDS, names)] if names else []
    return tuple(names), tuple(ids)


# job_queued; job_unreviewed, at most $2 of it; job_apart, for the few that are leased; the few rows of the ledger;
# the newest conversation by the primary key, past canaries; what is untold, mostly nothing, and the first of it.
_VITALS = f"""
SELECT extract(epoch FROM convo_now())::float8 AS at,
       (SELECT coalesce(extract(epoch FROM convo_now() - min(available_at)), 0)::float8
        FROM job WHERE {QUEUED}) AS oldest_seconds,
       (SELECT count(*) FROM (
           SELECT FROM job {THEIRS} WHERE state = 'dead' AND reviewed_at IS NULL AND c.user_id <> $1
           ORDER BY seq DESC LIMIT $2) AS counted) AS dead,
       accepted, done + books.dead AS ended,
       greatest(accepted - done - books.dead - (SELECT count(*) FROM job WHERE state = 'leased'), 0) AS ready,
       extract(epoch FROM convo_now() - coalesce(
           (SELECT received_at FROM conversation WHERE user_id <> $1 ORDER BY seq DESC LIMIT 1),
           (SELECT max(applied_at) FROM schema_version)))::float8 AS silent_seconds,
       (SELECT count(*) FROM (SELECT FROM untold LIMIT $2) AS counted) AS untold,
       coalesce(extract(epoch FROM convo_now() - (SELECT made_at FROM untold ORDER BY number LIMIT 1)), 0)::float8
           AS untold_seconds
FROM ({BOOKED}) AS books
"""
_DEAD_IDS = f"""
SELECT c.conversation_id FROM job {THEIRS}
WHERE state = 'dead' AND reviewed_at IS NULL AND c.user_id <> $1 ORDER BY seq DESC LIMIT 10
"""
# One probe of job_due for each name, however many jobs wait for it, and of part_job_due.
_WAITS_FOR = f"""
WITH RECURSIVE needed (needs) AS (
    (SELECT needs FROM part_job WHERE state = 'waiting' AND needs > '' ORDER BY needs LIMIT 1)
    UNION ALL
    SELECT (SELECT part_job.needs FROM part_job WHERE state = 'waiting' AND part_job.needs > needed.needs
            ORDER BY part_job.needs LIMIT 1)
    FROM needed WHERE needed.needs IS NOT NULL
), names (waits_for) AS (
    (SELECT waits_for FROM job WHERE {DUE} AND waits_for > '' ORDER BY waits_for LIMIT 1)
    UNION ALL
    SELECT (SELECT job.waits_for FROM job WHERE {DUE} AND job.waits_for > names.waits_for
            ORDER BY job.waits_for LIMIT 1)
    FROM names WHERE names.waits_for IS NOT NULL
)
SELECT waits_for FROM names WHERE waits_for IS NOT NULL
UNION SELECT needs FROM needed WHERE needs IS NOT NULL
"""
_WAITING_IDS = f"""
SELECT c.conversation_id
FROM unnest($1::text[]) AS names (name), LATERAL (
    (SELECT seq FROM job WHERE {DUE} AND job.waits_for = names.name ORDER BY fair_key LIMIT 10)
    UNION ALL
    (SELECT seq FROM part_job WHERE state = 'waiting' AND part_job.needs = names.name ORDER BY available_at LIMIT 10)
) AS job
{THEIRS} LIMIT 10
"""
_OLDEST_IDS = f"""
SELECT conversation_id
FROM (SELECT seq, available_at FROM job WHERE {QUEUED} ORDER BY available_at, seq LIMIT 10) AS old
JOIN conversation USING (seq) ORDER BY available_at, seq
"""
