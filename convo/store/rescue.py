"""What becomes of jobs that nobody works on any more: taken back, or buried; it knows no worker.

The rules of poison and of parking stand in ``store/jobs.py``.
"""

from __future__ import annotations

from msgspec import Struct

from convo.config import JobsSettings
from convo.store import ledger
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.runs import NOTE_RESCUED
from convo.store.states import DEAD, FREE, POISON_AT, SUSPECT_AT


class Rescue(Struct, frozen=True, kw_only=True):
    """What a rescue did: how many jobs are ready again, and which were buried (``seq``), each with its reason."""

    rescued: int = 0
    buried: dict[int, str] = {}


async def rescue(postgres: Postgres, settings: JobsSettings) -> Rescue:
    """Make ready what is leased past its end, whoever has it; bury what is poison or was parked for too long.

    Also makes due what waits longer than any backoff could have told it to: the database's clock was set back.
    """
    longest = max(settings.backoff_max_seconds, settings.backoff_seconds)

    async def body(connection: Connection) -> Rescue:
        await connection.execute(_DUE_AGAIN, longest * 2)
        rescued = await connection.fetch(_RESCUE, settings.lease_seconds)
        buried = [*await connection.fetch(_BURY_POISON, POISON_AT)]
        buried += await connection.fetch(_GIVE_UP, settings.give_up_seconds)
        if buried:
            await ledger.book(connection, "dead", [row["seq"] for row in buried])
        return Rescue(rescued=len(rescued), buried={row["seq"]: row["last_error"] for row in buried})

    return await postgres.run("db.rescue", body, begin=RELAXED)


async def release_owned(postgres: Postgres, owner: str, *, crashed: bool) -> int:
    """Give back every job that is leased under this name; return how many.

    ``crashed``: the process that bore the name before is dead, which counts against what it worked on.
    """

    async def body(connection: Connection) -> int:
        return len(await connection.fetch(_RELEASE_OWNED, owner, int(crashed)))

    return await postgres.run("db.release", body, begin=RELAXED)


# A process is gone when it has no session here any more; right after a restart of the server nobody has one yet.
_GONE = """
    pg_postmaster_start_time() < now() - make_interval(secs => $1) AND NOT EXISTS (
        SELECT FROM pg_stat_activity
        WHERE datname = current_database()
          AND starts_with(application_name, 'convo ' || split_part(job.leased_by, '/', 2)))
"""
_RESCUE = f"""
WITH silent AS MATERIALIZED (
    SELECT seq, leased_at, leased_by, {_GONE} AS gone FROM job
    WHERE state = 'leased'
      AND (leased_until < convo_now() OR leased_until > convo_now() + make_interval(secs => $1::float8 * 2))
    ORDER BY seq FOR UPDATE SKIP LOCKED
), noted AS ({NOTE_RESCUED})
UPDATE job SET {FREE}, crashes = job.crashes + silent.gone::integer FROM silent WHERE job.seq = silent.seq
RETURNING job.seq
"""
_RELEASE_OWNED = f"""
WITH silent AS MATERIALIZED (
    SELECT seq, leased_at, leased_by, $2::integer > 0 AS gone FROM job
    WHERE state = 'leased' AND leased_by = $1 ORDER BY seq FOR UPDATE
), noted AS ({NOTE_RESCUED})
UPDATE job SET {FREE}, crashes = job.crashes + silent.gone::integer FROM silent WHERE job.seq = silent.seq
RETURNING job.seq
"""
_DUE_AGAIN = """
UPDATE job SET available_at = convo_now(), delayed = false
WHERE state = 'ready' AND delayed AND available_at > convo_now() + make_interval(secs => $1)
"""
_BURY_POISON = f"""
UPDATE job SET {DEAD}, last_error = 'poison: ' || crashes || ' times the process that worked on it died'
WHERE state = 'ready' AND NOT delayed AND crashes >= {SUSPECT_AT} AND crashes >= $1
RETURNING seq, last_error
"""
_GIVE_UP = f"""
UPDATE job SET {DEAD}, last_error = waits_for || ' was out since ' || to_char(parked_since, 'YYYY-MM-DD HH24:MI')
                                    || '; its last word: ' || coalesce(last_error, 'none')
WHERE state = 'ready' AND waits_for <> '' AND parked_since < convo_now() - make_interval(secs => $1)
RETURNING seq, last_error
"""
