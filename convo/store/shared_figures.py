"""Reads what all processes share and one may want to see at a glance: the queue, its age, and who is at work.

Open it to show another figure of the whole installation. It is one statement, whatever it is asked for and however many
look: it runs every few seconds for as long as somebody looks (``web/figures.py``).
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from convo.store.job_sql import COUNTED_MAX, DELAYED, PARKED_SINCE, QUEUED
from convo.store.ledger import BOOKED
from convo.store.postgres import SINGLE, Connection, Postgres
from convo.store.processes import LEAD_LOCK

_PROCESSES_MAX = 200


class ProcessFigures(Struct, frozen=True, kw_only=True):
    """One process: when it was last seen, whether it leads, and how many of its workers are at work.

    ``version`` and ``workers`` are None of a program that does not state them.
    """

    name: str
    host: str
    version: str | None
    seen_seconds: float
    leads: bool
    workers: int | None
    working: int


class SharedFigures(Struct, frozen=True, kw_only=True):
    """The figures of all processes together.

    ``at`` is the database's clock in seconds. A job is in one state: ``ready`` ones wait for a worker alone. From
    ``COUNTED_MAX`` on ``parked`` and ``delayed`` are estimates. ``accepted`` and ``ended`` are the ledger's sums.
    """

    at: float
    ready: int
    delayed: int
    parked: int
    leased: int
    dead: int
    oldest_seconds: float
    accepted: int
    ended: int
    processes: tuple[ProcessFigures, ...]


async def read_shared_figures(postgres: Postgres) -> SharedFigures:
    """Read the figures of all processes.

    Raises:
        DatabaseUnavailable, DeadlineExceeded, PoolExhausted: they cannot be read now.
    """

    async def body(connection: Connection) -> SharedFigures:
        row = dict(await connection.fetchrow(_FIGURES, COUNTED_MAX, LEAD_LOCK) or {})
        processes = msgspec.json.decode(row.pop("processes") or "[]", type=tuple[ProcessFigures, ...])
        return SharedFigures(**row, processes=processes)

    return await postgres.run("db.figures", body, begin=SINGLE)


# Never by counting the rows that wait (as jobs/counts.py). job_leased: as many as there are workers. job_parked_since
# and job_not_due: so many rows ($1) at most; of more, the index has an estimate. job_queued: its first row.
_FIGURES = f"""
WITH books AS MATERIALIZED ({BOOKED}), at_work AS MATERIALIZED (
    SELECT leased_by, count(*) AS jobs FROM job WHERE state = 'leased' GROUP BY leased_by
), waiting AS MATERIALIZED (
    SELECT count(*) AS parked FROM (SELECT FROM job WHERE {PARKED_SINCE} ORDER BY parked_since LIMIT $1) AS counted
), later AS MATERIALIZED (
    SELECT count(*) FILTER (WHERE waits_for = '') AS delayed, count(*) AS looked_at
    FROM (SELECT waits_for FROM job WHERE {DELAYED} ORDER BY available_at LIMIT $1) AS counted
), sums AS MATERIALIZED (
    SELECT accepted, done + dead AS ended, dead, (SELECT coalesce(sum(jobs), 0)::bigint FROM at_work) AS leased,
           CASE WHEN parked < $1 THEN parked ELSE greatest(parked, (
               SELECT reltuples FROM pg_class WHERE oid = to_regclass('job_parked_since')))::bigint END AS parked,
           CASE WHEN looked_at < $1 THEN delayed ELSE greatest(delayed, delayed * (
               SELECT reltuples FROM pg_class WHERE oid = to_regclass('job_not_due')) / looked_at)::bigint
               END AS delayed
    FROM books, waiting, later
), leader AS MATERIALIZED (
    SELECT split_part(application_name, ' ', 2) AS session FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND datname = current_database()
      AND classid::bigint << 32 | objid::bigint = $2::bigint
)
SELECT extract(epoch FROM convo_now())::float8 AS at,
       greatest(accepted - ended - leased - parked - delayed, 0) AS ready, delayed, parked, leased, dead,
       (SELECT coalesce(extract(epoch FROM convo_now() - min(available_at)), 0)::float8
        FROM job WHERE {QUEUED}) AS oldest_seconds,
       accepted, ended,
       (SELECT json_agg(every_process) FROM (
           SELECT process.name, host, program.version,
                  extract(epoch FROM convo_now() - seen_at)::float8 AS seen_seconds,
                  split_part(process.name, '.', 2) IN (SELECT session FROM leader) AS leads, workers,
                  coalesce((SELECT jobs FROM at_work WHERE leased_by = process.name), 0) AS working
           FROM process LEFT JOIN process_program AS program ON program.name = split_part(process.name, '.', 2)
           ORDER BY host, process.name LIMIT {_PROCESSES_MAX}) AS every_process) AS processes
FROM sums
"""
