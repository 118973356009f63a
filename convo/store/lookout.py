"""What the database says of all processes together, for the alerts; it changes nothing and knows no rule.

One process tells of it: the one whose session holds the lock. It is a session's lock and no transaction's, so that the
lead does not change hands between two looks, and is gone with the process that had it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from msgspec import structs

from convo.alerts.causes import Gap, Vitals
from convo.config import AlertsSettings
from convo.conversation.model import CANARY_USER
from convo.store import ledger
from convo.store.postgres import RELAXED, Connection, Postgres

_HUNG_LOOKS = 12
_LOCK = 0x636F6E766F_03


class Lookout:
    """Looks at the database on a line of its own.

    A process that hangs must not keep the lead: the server ends a session that nobody used for a dozen looks.
    """

    def __init__(self, postgres: Postgres, settings: AlertsSettings) -> None:
        idle_milliseconds = int(settings.look_seconds * _HUNG_LOOKS * 1000)
        self._line = postgres.line(idle_session_timeout=str(idle_milliseconds))
        self._settings = settings
        # The server's process behind the session that holds the lock: after a lost connection it is another one.
        self._leading: int | None = None

    async def lead(self) -> bool:
        """Tell whether this process tells of what all share, and so whether the database answers.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: it does not answer.
        """

        async def body(connection: Connection) -> bool:
            session = await connection.fetchval("SELECT pg_backend_pid()")
            if session != self._leading and await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
                self._leading = session
            return bool(session == self._leading)

        return await self._line.run("db.alerts", body, begin=RELAXED)

    async def vitals(self) -> Vitals:
        """Read what the conditions of all processes are made of."""

        async def body(connection: Connection) -> Vitals:
            row = await connection.fetchrow(_VITALS, CANARY_USER)
            dead = [one["conversation_id"] for one in await connection.fetch(_DEAD_IDS, CANARY_USER)]
            found = Vitals(**dict(row or {}), dead_ids=tuple(dead))
            if found.oldest_seconds <= self._settings.backlog_seconds:
                return found
            ids = tuple(one["conversation_id"] for one in await connection.fetch(_OLDEST_IDS))
            return structs.replace(found, ready=await connection.fetchval(_READY), oldest_ids=ids)

        return await self._line.run("db.vitals", body, begin=RELAXED)

    async def gaps(self, days: Sequence[str]) -> tuple[Gap, ...]:
        """Compare these days with the books, on this line: while it lasts nothing else is looked at."""
        found = await ledger.gaps(self._line, [date.fromisoformat(day) for day in days])
        return tuple(Gap(day=gap.day.isoformat(), what=gap.what, booked=gap.booked, found=gap.found) for gap in found)

    async def close(self) -> None:
        """Close the line, and give up the lead with it."""
        await self._line.close()


# The jobs that could be leased now: in job_due, all in the line of those that wait for no dependency.
_DUE = "job.state = 'ready' AND NOT job.delayed AND job.crashes < 2 AND job.waits_for = ''"
# job_due; job_unreviewed; the few rows of the ledger; the newest conversation by the primary key, past canaries.
_VITALS = f"""
SELECT extract(epoch FROM convo_now())::float8 AS at,
       (SELECT coalesce(extract(epoch FROM convo_now() - min(available_at)), 0)::float8
        FROM job WHERE {_DUE}) AS oldest_seconds,
       (SELECT count(*) FROM job JOIN conversation USING (seq)
        WHERE state = 'dead' AND reviewed_at IS NULL AND user_id <> $1) AS dead,
       books.*,
       extract(epoch FROM convo_now() - coalesce(
           (SELECT received_at FROM conversation WHERE user_id <> $1 ORDER BY seq DESC LIMIT 1),
           (SELECT max(applied_at) FROM schema_version)))::float8 AS silent_seconds
FROM (SELECT coalesce(sum(n) FILTER (WHERE kind <> 'accepted'), 0)::bigint AS ended,
             coalesce(sum(n) FILTER (WHERE kind = 'accepted'), 0)::bigint AS accepted FROM ledger) AS books
"""
_DEAD_IDS = """
SELECT conversation_id FROM job JOIN conversation USING (seq)
WHERE state = 'dead' AND reviewed_at IS NULL AND user_id <> $1 ORDER BY seq DESC LIMIT 10
"""
_READY = f"SELECT count(*) FROM job WHERE {_DUE}"
_OLDEST_IDS = f"""
SELECT conversation_id FROM (SELECT seq, available_at FROM job WHERE {_DUE} ORDER BY available_at, seq LIMIT 10) AS old
JOIN conversation USING (seq) ORDER BY available_at, seq
"""
