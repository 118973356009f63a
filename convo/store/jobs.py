"""The jobs and their leases: who works on what, until when, and how each piece of work ends.

A job is one row: one conversation to analyse. It knows nothing of what an analysis is.

**States.** ``ready`` (due at ``available_at``), ``leased`` (somebody's until ``leased_until``), ``done``, ``dead``.

    ready --lease--> leased --settle--> done
      ^                |------bury----> dead --retry--> ready
      |                |
      +---- fail (attempt spent, later), release (we stop), rescue (the holder is silent) ----+

**Fencing.** Every lease carries a token that no other lease ever had. Every write of a lease's holder names the token,
and finds no row when the lease is no longer his: a late worker can store nothing. He learns it as ``LeaseLost``.

**Attempts** count what was spent: an ending that is the job's own doing (settle, fail, bury) adds one. Release and
rescue add none, so that there is nothing to give back and a crash cannot forget to.

**Clocks.** ``available_at`` and ``leased_until`` are the database's clock and compared with nothing else. When that
clock was stepped back, a time further away than it could legally be counts as come: ``rescue`` sees to it.

Lease, renewal, release and rescue commit without waiting for the disk: losing one means that work is done again, under
another token. Settle, fail and bury wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from convo.config import JobsSettings
from convo.conversation.model import Finding, PartName
from convo.errors import LeaseLost, NotDead, NotFound
from convo.store import parts
from convo.store.postgres import RELAXED, Connection, Postgres


class Lease(Struct, frozen=True, kw_only=True):
    """The right to work on one job until the lease ends; ``parts`` are the findings that are stored already."""

    seq: int
    token: int
    attempts: int
    conversation_id: str
    user_id: str
    bot_id: str
    digest: str
    started_at: datetime
    ended_at: datetime
    exchanges: int
    parts: dict[PartName, Finding]


class Jobs:
    """The job table, as the process called ``owner`` works on it."""

    def __init__(self, postgres: Postgres, settings: JobsSettings, owner: str) -> None:
        self._postgres = postgres
        self._settings = settings
        self.owner = owner

    async def lease(self, count: int) -> list[Lease]:
        """Take up to ``count`` due jobs, oldest first, that nobody else is taking."""

        async def body(connection: Connection) -> list[Lease]:
            rows = await connection.fetch(_LEASE, count, self.owner, self._settings.lease_seconds)
            stored = await parts.found(connection, [row["seq"] for row in rows])
            return [_lease(row, stored.get(row["seq"], {})) for row in rows]

        return await self._postgres.run("db.lease", body, begin=RELAXED)

    async def renew(self, leases: Sequence[Lease]) -> set[int]:
        """Renew these leases in one statement, and say that this process lives; return the tokens still good."""

        async def body(connection: Connection) -> set[int]:
            await connection.execute(_SEEN, self.owner)
            rows = await connection.fetch(
                _RENEW, [lease.seq for lease in leases], [lease.token for lease in leases], self._settings.lease_seconds
            )
            return {row["lease_token"] for row in rows}

        return await self._postgres.run("db.renew", body, begin=RELAXED)

    async def store_part(self, lease: Lease, name: PartName, by: str, finding: Finding) -> None:
        """Store what one part found, and its memories as far as they are new.

        Raises:
            LeaseLost: the job is no longer ours.
        """

        async def body(connection: Connection) -> None:
            await _hold(connection, lease)
            await parts.store(connection, lease, name, by, finding)

        await self._postgres.run("db.part", body, begin=RELAXED)

    async def fail(
        self, lease: Lease, reason: str, failed: Mapping[PartName, tuple[str, str]], *, later: float
    ) -> bool:
        """Spend an attempt: try again in ``later`` seconds, or bury the job when that was the last attempt.

        ``failed`` holds the parts that failed, each with who tried and why. Return whether the job is dead.

        Raises:
            LeaseLost: the job is no longer ours.
        """
        last = lease.attempts + 1 >= self._settings.attempts_max

        async def body(connection: Connection) -> None:
            await _hold(connection, lease)
            await parts.store_failures(connection, lease.seq, failed)
            await connection.execute(_BURY if last else _FAIL, lease.seq, reason, *([] if last else [later]))

        await self._postgres.run("db.fail", body)
        return last

    async def release(self, lease: Lease, *, later: float = 0.0) -> None:
        """Give a job back, to be taken again at once or in ``later`` seconds; no attempt spent.

        Raises:
            LeaseLost: the job is no longer ours.
        """

        async def body(connection: Connection) -> None:
            await _hold(connection, lease)
            await connection.execute(_RELEASE, lease.seq, later)

        await self._postgres.run("db.release", body, begin=RELAXED)

    async def release_all(self) -> int:
        """Give back every job that this process, or the dead one whose name it bears, still has leased."""

        async def body(connection: Connection) -> int:
            return len(await connection.fetch(_RELEASE_OWNED, self.owner))

        return await self._postgres.run("db.release", body, begin=RELAXED)

    async def rescue(self) -> int:
        """Make ready what is leased past its end, whoever has it; return how many.

        Also makes due what waits longer than any backoff could have told it to: the database's clock was set back.
        """
        longest = max(self._settings.backoff_max_seconds, self._settings.backoff_seconds)

        async def body(connection: Connection) -> int:
            await connection.execute(_DUE, longest * 2)
            return len(await connection.fetch(_RESCUE, self._settings.lease_seconds))

        return await self._postgres.run("db.rescue", body, begin=RELAXED)

    async def retry(self, conversation_id: str) -> None:
        """Make a dead letter ready again, with all its attempts; its stored parts stay.

        Raises:
            NotFound: there is no such conversation.
            NotDead: it is not a dead letter.
        """

        async def body(connection: Connection) -> str | None:
            row = await connection.fetchrow(_RETRY, conversation_id)
            if row is not None:
                return None
            state: str | None = await connection.fetchval(_STATE, conversation_id)
            if state is None:
                raise NotFound(f"there is no conversation {conversation_id!r}")
            return state

        state = await self._postgres.run("db.retry", body)
        if state is not None:
            raise NotDead(f"conversation {conversation_id!r} is {state}; only a dead letter can be retried")

    async def enter(self, pid: int, host: str, connections_max: int) -> int:
        """Sign this process in; return the connections that all living processes together may open."""

        async def body(connection: Connection) -> int:
            await connection.execute(_ENTER, self.owner, pid, host, connections_max)
            total: int = await connection.fetchval(_CONNECTIONS)
            return total

        return await self._postgres.run("db.enter", body)

    async def leave(self) -> None:
        """Sign this process out."""

        async def body(connection: Connection) -> None:
            await connection.execute("DELETE FROM process WHERE name = $1", self.owner)

        await self._postgres.run("db.leave", body, begin=RELAXED)

    async def count(self) -> tuple[dict[str, int], float]:
        """Count the jobs that are not done by state, and the age in seconds of the one that is due longest."""

        async def body(connection: Connection) -> tuple[dict[str, int], float]:
            counts = {row["state"]: row["n"] for row in await connection.fetch(_COUNT)}
            return counts, float(await connection.fetchval(_OLDEST))

        return await self._postgres.run("db.sample", body)


def _lease(row: Mapping[str, Any], stored: dict[PartName, Finding]) -> Lease:
    return Lease(
        seq=row["seq"],
        token=row["lease_token"],
        attempts=row["attempts"],
        conversation_id=row["conversation_id"],
        user_id=row["user_id"],
        bot_id=row["bot_id"],
        digest=row["digest"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        exchanges=row["exchanges"],
        parts=stored,
    )


async def _hold(connection: Connection, lease: Lease) -> None:
    """Lock the job's row for as long as this transaction lasts, if the lease is still good."""
    if await connection.fetchval(_HOLD, lease.seq, lease.token) is None:
        raise LeaseLost(f"the lease on conversation {lease.conversation_id!r} is lost")


# The lease ends by the row's token, not by its time: past its time it is good until somebody rescues it, and a rescue
# takes the token away.
_HOLD = "SELECT 1 FROM job WHERE seq = $1 AND lease_token = $2 FOR UPDATE"
# By chance, not by counting: a crash of the database that forgets a lease would forget the count, too, and give the
# same number again. 53 bits are what random() has.
_CHANCE = "1 + floor(random() * 9007199254740991)::bigint"
_LEASE = f"""
WITH due AS (
    SELECT seq FROM job
    WHERE state = 'ready' AND available_at <= convo_now()
    ORDER BY available_at, seq LIMIT $1 FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE job SET state = 'leased', lease_token = {_CHANCE}, leased_by = $2,
                   leased_until = convo_now() + make_interval(secs => $3)
    FROM due WHERE job.seq = due.seq
    RETURNING job.seq, job.lease_token, job.attempts
)
SELECT taken.*, c.conversation_id, c.user_id, c.bot_id, c.digest, c.started_at, c.ended_at, c.exchanges
FROM taken JOIN conversation c USING (seq) ORDER BY taken.seq
"""
_RENEW = """
UPDATE job SET leased_until = convo_now() + make_interval(secs => $3)
FROM (
    SELECT job.seq FROM job
    JOIN unnest($1::bigint[], $2::bigint[]) AS held (seq, token) ON job.seq = held.seq AND job.lease_token = held.token
    ORDER BY job.seq FOR UPDATE OF job -- in the order in which settles lock them
) AS mine
WHERE job.seq = mine.seq
RETURNING job.lease_token
"""
_FREE = "state = 'ready', lease_token = NULL, leased_until = NULL, leased_by = NULL"
_FAIL = f"""
UPDATE job SET {_FREE}, attempts = attempts + 1, last_error = $2,
               available_at = convo_now() + make_interval(secs => $3)
WHERE seq = $1
"""
_BURY = """
UPDATE job SET state = 'dead', lease_token = NULL, leased_until = NULL, leased_by = NULL, attempts = attempts + 1,
               last_error = $2, ended_at = convo_now()
WHERE seq = $1
"""
_RELEASE = f"""
UPDATE job SET {_FREE},
               available_at = CASE WHEN $2 > 0 THEN convo_now() + make_interval(secs => $2) ELSE available_at END
WHERE seq = $1
"""
_RELEASE_OWNED = f"UPDATE job SET {_FREE} WHERE state = 'leased' AND leased_by = $1 RETURNING seq"
_RESCUE = f"""
UPDATE job SET {_FREE} WHERE seq IN (
    SELECT seq FROM job
    WHERE state = 'leased'
      AND (leased_until < convo_now() OR leased_until > convo_now() + make_interval(secs => $1::float8 * 2))
    ORDER BY seq FOR UPDATE SKIP LOCKED)
RETURNING seq
"""
_DUE = """
UPDATE job SET available_at = convo_now()
WHERE state = 'ready' AND available_at > convo_now() + make_interval(secs => $1)
"""
_RETRY = """
UPDATE job SET state = 'ready', attempts = 0, ended_at = NULL, available_at = convo_now()
FROM conversation c
WHERE c.conversation_id = $1 AND job.seq = c.seq AND job.state = 'dead'
RETURNING job.seq
"""
_STATE = "SELECT state FROM job JOIN conversation USING (seq) WHERE conversation_id = $1"
_ENTER = """
INSERT INTO process (name, pid, host, connections_max) VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE SET pid = $2, host = $3, connections_max = $4, started_at = convo_now(),
                                 seen_at = convo_now()
"""
_SEEN = "UPDATE process SET seen_at = convo_now() WHERE name = $1"
_CONNECTIONS = """
SELECT sum(connections_max)::integer FROM process WHERE seen_at > convo_now() - interval '1 minute'
"""
# Done ones are the whole history: they are told by the counter of settled jobs, not counted here.
_COUNT = """
SELECT 'ready' AS state, count(*) AS n FROM job WHERE state = 'ready'
UNION ALL SELECT 'leased', count(*) FROM job WHERE state = 'leased'
UNION ALL SELECT 'dead', count(*) FROM job WHERE state = 'dead'
"""
_OLDEST = """
SELECT coalesce(extract(epoch FROM convo_now() - min(available_at)), 0)::float8
FROM (SELECT available_at FROM job WHERE state = 'ready' AND available_at <= convo_now()
      ORDER BY available_at LIMIT 1) AS oldest
"""


async def signed_in(postgres: Postgres) -> list[str]:
    """Read which processes were at work on this database within the last minute; none where there is no schema yet."""

    async def body(connection: Connection) -> list[str]:
        if await connection.fetchval("SELECT to_regclass('process')") is None:
            return []
        rows = await connection.fetch("SELECT name FROM process WHERE seen_at > convo_now() - interval '1 minute'")
        return [row["name"] for row in rows]

    return await postgres.run("db.signed_in", body)
