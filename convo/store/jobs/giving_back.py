"""Giving back attempts that jobs spent on a fault of a dependency. The rules stand in ``store/jobs/table.py``."""

from __future__ import annotations

from collections.abc import Mapping

from convo.observe import log_records
from convo.store import ledger
from convo.store.postgres import Connection, Postgres


async def give_back(postgres: Postgres, attempts: Mapping[int, int], dependency: str, attempts_max: int) -> int:
    """Take these attempts, by ``seq``, off the jobs' counts and park the jobs; return how many jobs there were.

    A job at work keeps its lease. A dead letter is ready again if it died of its attempts and nobody reviewed it.
    """

    async def body(connection: Connection) -> tuple[int, list[int]]:
        rows = await connection.fetch(_GIVE_BACK, list(attempts), list(attempts.values()), dependency, attempts_max)
        revived = [row["seq"] for row in rows if row["before"] == "dead"]
        if revived:
            await ledger.book(connection, "dead", revived, -1)
        return len(rows), revived

    jobs, revived = await postgres.run("db.give_back", body)
    log_records.attempts_given_back(dependency=dependency, jobs=jobs, revived=len(revived))
    return jobs


_GIVE_BACK = """
WITH mine AS MATERIALIZED (
    SELECT job.seq, job.state AS before, back.n
    FROM unnest($1::bigint[], $2::integer[]) AS back (seq, n) JOIN job USING (seq)
    WHERE job.state IN ('ready', 'leased')
       OR (job.state = 'dead' AND job.reviewed_at IS NULL AND job.attempts >= $4 AND job.attempts - back.n < $4)
    ORDER BY job.seq FOR UPDATE OF job
)
UPDATE job SET attempts = greatest(attempts - mine.n, 0), ended_at = NULL,
               state = CASE WHEN state = 'dead' THEN 'ready' ELSE state END,
               waits_for = CASE WHEN state = 'leased' THEN waits_for ELSE $3 END,
               parked_since = CASE WHEN state = 'leased' THEN parked_since
                                   ELSE coalesce(parked_since, convo_now()) END,
               delayed = delayed AND state = 'leased'
FROM mine WHERE job.seq = mine.seq RETURNING job.seq, mine.before
"""
