"""What ``GET …/explain`` reads of one job: its row, how many jobs come before it, and its newest runs.

It changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from convo.conversation.tenant import Reach, turn_bounds
from convo.store import process_settings
from convo.store.job_sql import COUNTED_MAX, QUEUED
from convo.store.ledger import BOOKED
from convo.store.lookup import SEQ, absent
from convo.store.outcomes import unpack_details
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.reaching import reached

RUNS_MAX = 100
"""So many of the newest runs are read: a job that is parked and released for days has thousands."""

# The rate of done jobs is that of the last minute, of all processes together: the books hold it.
_RATE_SECONDS = 60.0


class Explained(Struct, frozen=True, kw_only=True):
    """One job's ``row``, its newest ``runs`` oldest first, how many jobs are leased before it, and the rate of all.

    ``served`` says whether a living process that takes jobs has what it waits for, if it waits for something.
    ``left`` are parts of a done job that are still to be found. ``ahead`` is None unless the job is queued, and an
    estimate where more than ``COUNTED_MAX`` are. ``rate`` is in jobs a second. Both are of its tenant alone, whatever
    others have waiting or done; whoever reaches some bots only is told neither.
    """

    row: Mapping[str, Any]
    served: bool
    runs: Sequence[Mapping[str, Any]]
    ahead: int | None
    rate: float
    left: Sequence[LeftPart] = ()


class LeftPart(Struct, frozen=True, kw_only=True):
    """A part of a done job that is still to be found: what that needs, and whether a living process has it."""

    name: str
    needs: str
    served: bool


async def read_explanation(postgres: Postgres, reach: Reach, conversation_id: str) -> Explained:
    """Read the row and the runs of one conversation's job.

    Raises:
        NotFound: there is none of this id.
        Expired: its content is no longer stored.
    """

    async def body(connection: Connection) -> Explained:
        number = reach.tenant.number
        row = await connection.fetchrow(_ROW, reach.tenant.id_hash(conversation_id), *reach.values)
        if row is None:
            raise await absent(connection, reach, conversation_id)
        details = None if row["details"] is None else unpack_details(row["details"])
        bounds, whole = turn_bounds(row["fair_key"] or ""), reach.bots is None
        return Explained(
            row=row,
            served=not await process_settings.unserved(connection, [row["waits_for"]]),
            runs=[*await connection.fetch(_RUNS, row["seq"], RUNS_MAX), *_last_run(row)][-RUNS_MAX:],
            ahead=await connection.fetchval(_AHEAD, row["seq"], COUNTED_MAX, *bounds, number)
            if row["queued"] and whole
            else None,
            left=await _left(connection, row["seq"]) if details is not None and details.owed else (),
            rate=float(await connection.fetchval(_RATE, _RATE_SECONDS, number)) if whole else 0.0,
        )

    return await postgres.run("db.explain", body, begin=RELAXED)


async def _left(connection: Connection, seq: int) -> Sequence[LeftPart]:
    rows = await connection.fetch(_LEFT, seq)
    unserved = await process_settings.unserved(connection, [row["needs"] for row in rows])
    return [LeftPart(name=row["name"], needs=row["needs"], served=row["needs"] not in unserved) for row in rows]


def _last_run(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the run that ended with the settle, as far as it is known; it stands in the outcome."""
    if row["began_at"] is None:
        return []
    details = unpack_details(row["details"])
    waits, line = (msgspec.json.encode(one).decode() for one in (details.waits, details.timeline))
    ended = {"ended_at": row["ended_at"], "ending": "settle", "made_by": details.by, "reason": None}
    return [{"began_at": row["began_at"], **ended, "waits": waits, "timeline": line}]


_ROW = f"""
SELECT job.*, {QUEUED} AS queued, convo_now() AS now,
       CASE WHEN {QUEUED} THEN (SELECT fair_key FROM job AS open WHERE open.seq = job.seq) END AS fair_key,
       (SELECT host || '/' || pid FROM process WHERE name = leased_by) AS holder
FROM every_job AS job JOIN conversation c USING (seq) WHERE seq = {SEQ} AND {reached("c", 2)}
"""
_LEFT = "SELECT name, needs FROM part_job WHERE seq = $1 AND state = 'waiting' ORDER BY name"
_RUNS = """
SELECT * FROM (
    SELECT began_at, ended_at, ending, made_by, reason, waits, timeline FROM run
    WHERE seq = $1 AND ending <> 'settle' ORDER BY ended_at DESC LIMIT $2
) AS newest ORDER BY ended_at
"""
# Jobs are leased in rounds: before the third job of one key, every other key has up to three leased. So many due jobs
# ($2) are looked at. Of more, the first ones by their keys stand for all, and the ledger knows how many that is. A job
# with more than these before it under its own key comes about where its age is between the oldest and the newest
# of that key. Keys are of one tenant each, and those of this one lie between $3 and $4.
_AHEAD = f"""
WITH me AS MATERIALIZED (
    SELECT fair_key, available_at, seq FROM job WHERE seq = $1
), mine AS MATERIALIZED (
    SELECT count(*) AS before FROM (
        SELECT FROM job, me WHERE {QUEUED} AND job.fair_key = me.fair_key
            AND (job.available_at, job.seq) < (me.available_at, me.seq) LIMIT $2) AS counted
), looked AS MATERIALIZED (
    SELECT fair_key FROM job WHERE {QUEUED} AND fair_key >= $3 AND fair_key < $4 ORDER BY fair_key LIMIT $2
), by_key AS MATERIALIZED (
    SELECT fair_key, count(*) AS jobs FROM looked GROUP BY fair_key
), ends AS (
    SELECT extract(epoch FROM me.available_at - min(job.available_at)) AS older,
           nullif(extract(epoch FROM max(job.available_at) - min(job.available_at)), 0) AS span
    FROM me, LATERAL ((SELECT available_at FROM job WHERE {QUEUED} AND fair_key = me.fair_key
                       ORDER BY available_at LIMIT 1) UNION ALL
                      (SELECT available_at FROM job WHERE {QUEUED} AND fair_key = me.fair_key
                       ORDER BY available_at DESC LIMIT 1)) AS job
    GROUP BY me.available_at
), sums AS (
    SELECT sum(jobs) AS looked, coalesce(sum(least(jobs, before + 1))
                                         FILTER (WHERE by_key.fair_key <> me.fair_key), 0) AS others
    FROM by_key, mine, me
)
SELECT CASE WHEN before = $2 THEN greatest(before, (accepted - done - dead) * coalesce(older / span, 1))
            WHEN looked = $2 THEN before + others * greatest(accepted - done - dead, looked) / looked
            ELSE before + others END::bigint
FROM sums, mine, ends, ({BOOKED} WHERE tenant = $5) AS books
"""
_RATE = """
SELECT coalesce(sum(n), 0)::float8 / $1 FROM ledger
WHERE kind = 'done' AND tenant = $2 AND at > convo_now() - make_interval(secs => $1)
"""
