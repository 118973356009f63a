"""What a reader is told of one job's standing: its row, its place in the line, its runs; it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from convo.errors import NotFound
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.states import SUSPECT_AT

# The rate at which jobs are done is that of the last minute, all processes together: the books say it.
_RATE_SECONDS = 60.0


class Explained(Struct, frozen=True, kw_only=True):
    """One job's ``row``, its ``runs`` oldest first, how many jobs have their turn before it, and the rate of all.

    ``ahead`` is None unless the job is queued; ``rate`` is in jobs a second.
    """

    row: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    ahead: int | None
    rate: float


async def explain(postgres: Postgres, conversation_id: str) -> Explained:
    """Read how one conversation stands.

    Raises:
        NotFound: there is none of this id.
    """

    async def body(connection: Connection) -> Explained | None:
        row = await connection.fetchrow(_ROW, conversation_id)
        if row is None:
            return None
        queued = row["state"] == "ready" and not row["delayed"] and not row["waits_for"] and row["crashes"] < SUSPECT_AT
        return Explained(
            row=row,
            runs=await connection.fetch(_RUNS, row["seq"]),
            ahead=await connection.fetchval(_AHEAD, row["seq"]) if queued else None,
            rate=float(await connection.fetchval(_RATE, _RATE_SECONDS)),
        )

    found = await postgres.run("db.explain", body, begin=RELAXED)
    if found is None:
        raise NotFound(f"there is no conversation {conversation_id!r}")
    return found


_ROW = """
SELECT job.*, convo_now() AS now FROM job JOIN conversation USING (seq) WHERE conversation_id = $1
"""
_RUNS = "SELECT began_at, ended_at, ending, made_by, reason, waits FROM run WHERE seq = $1 ORDER BY ended_at LIMIT 100"
# By turns: before the third job of one key, every other key has up to three turns.
_AHEAD = f"""
WITH due AS (
    SELECT fair_key, available_at, seq FROM job
    WHERE state = 'ready' AND NOT delayed AND crashes < {SUSPECT_AT} AND waits_for = ''
), mine AS (
    SELECT me.fair_key, (SELECT count(*) FROM due WHERE due.fair_key = me.fair_key
                         AND (due.available_at, due.seq) < (me.available_at, me.seq)) AS before
    FROM job AS me WHERE me.seq = $1
)
SELECT coalesce(sum(CASE WHEN line.fair_key = mine.fair_key THEN mine.before
                         ELSE least(line.jobs, mine.before + 1) END), 0)::bigint
FROM (SELECT fair_key, count(*) AS jobs FROM due GROUP BY fair_key) AS line, mine
"""
_RATE = """
SELECT coalesce(sum(n), 0)::float8 / $1 FROM ledger WHERE kind = 'done' AND at > convo_now() - make_interval(secs => $1)
"""
