"""The figures behind the gauges of the job table: how many jobs are in each state, and how long the oldest is due."""

from __future__ import annotations

from convo.store.job_sql import COUNTED_MAX, PARKED_SINCE, QUEUED
from convo.store.ledger import BOOKED
from convo.store.postgres import Connection, Postgres

_STATES = ("ready", "parked", "leased", "dead")


async def count(postgres: Postgres) -> tuple[dict[str, int], float]:
    """Count the jobs that are not done by state, and the age in seconds of the one that is due longest.

    Parked jobs are ready ones too, and are counted a second time as ``parked``; from ``COUNTED_MAX`` on that is an
    estimate.
    """

    async def body(connection: Connection) -> tuple[dict[str, int], float]:
        row = await connection.fetchrow(_COUNT, COUNTED_MAX) or {}
        counts = {state: row[state] for state in _STATES}
        return counts, float(await connection.fetchval(_OLDEST))

    return await postgres.run("db.sample", body)


# Never by counting the rows: of 200,000 ready ones each process would read them all, every few seconds. What is ready
# or dead follows from the ledger, which is written in the transactions that make it so. Where rows were deleted by
# hand (LEDGER_GAP), it differs by these. So many parked jobs are counted ($1); of more, the index has an estimate.
_COUNT = f"""
WITH books AS MATERIALIZED ({BOOKED}), at_work AS MATERIALIZED (
    SELECT count(*) AS leased FROM job WHERE state = 'leased'
), waiting AS MATERIALIZED (
    SELECT count(*) AS parked FROM (SELECT FROM job WHERE {PARKED_SINCE} ORDER BY parked_since LIMIT $1) AS counted
)
SELECT greatest(accepted - done - dead - leased, 0) AS ready, leased, dead,
       CASE WHEN parked < $1 THEN parked
            ELSE greatest(parked, (SELECT reltuples FROM pg_class WHERE oid = to_regclass('job_parked_since')))::bigint
            END AS parked
FROM books, at_work, waiting
"""
# job_queued: its first row.
_OLDEST = f"SELECT coalesce(extract(epoch FROM convo_now() - min(available_at)), 0)::float8 FROM job WHERE {QUEUED}"
