"""Crashes: which processes are known to be dead, and which jobs they died with.

Open it to change whom a death is blamed on. The rules stand in ``store/jobs/table.py``, Poison. A count of crashes
changes here only, but for a retry, which sets it to 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct

from convo.store import processes
from convo.store.job_sql import FREE
from convo.store.jobs.runs import CRASHED
from convo.store.jobs.suspects import RELEASE_CLAIM
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.processes import ProcessEntry

DEAD_AFTER_LEASES = 3.0
"""A process that was not seen for so many of its leases counts as dead."""


class ComeBack(Struct, frozen=True, kw_only=True):
    """What a process that counted as dead finds: the crashes it gave back, and who has claimed its folder's id."""

    crashes: int
    claimed_by: str | None


async def claim_folder(postgres: Postgres, folder: str, name: str) -> int:
    """Take back what earlier starts on this folder left leased; return how many jobs.

    The caller holds the folder's lock, and no living process has a copy: so every earlier start is dead.
    """

    async def body(connection: Connection) -> int:
        dead: dict[str, datetime | None] = dict.fromkeys(
            [row["leased_by"] for row in await connection.fetch(_HOLDERS, folder, name)]
        )
        dead |= {row["name"]: row["seen_at"] for row in await connection.fetch(_FORGET_EARLIER, folder, name)}
        return await _blame(connection, dead)

    return await postgres.run("db.release", body, begin=RELAXED)


async def declare_dead(postgres: Postgres, name: str) -> list[str]:
    """Count as dead whoever was not seen for ``DEAD_AFTER_LEASES``, in the eyes of the process ``name``; return them.

    A process that starts on a fresh folder each time never claims the folder of the one before it.
    """

    async def body(connection: Connection) -> list[str]:
        rows = await connection.fetch(_FORGET_UNSEEN, name, DEAD_AFTER_LEASES)
        if rows:
            await _blame(connection, {row["name"]: row["seen_at"] for row in rows})
        return [row["name"] for row in rows]

    return await postgres.run("db.rescue", body, begin=RELAXED)


async def come_back(connection: Connection, entry: ProcessEntry) -> ComeBack:
    """Register a process again that counted as dead, and give back the crashes that were counted because of it."""
    await processes.write_entry(connection, entry)
    rows = await connection.fetch(_GIVE_BACK, entry.name)
    others = await processes.namesakes(connection, entry.folder, entry.name)
    claimed_by = next((other.name for other in others if other.connected), None)
    return ComeBack(crashes=sum(row["n"] for row in rows), claimed_by=claimed_by)


async def _blame(connection: Connection, dead: Mapping[str, datetime | None]) -> int:
    """Count a crash on each job that these processes died with; return how many leases were freed.

    That is what they still have leased, and what was rescued from them since each was last seen (None: not known).
    """
    if not dead:
        return 0
    await connection.execute(RELEASE_CLAIM, list(dead))
    freed = await connection.fetch(_BLAME_LEASED, list(dead))
    seen = {name: at for name, at in dead.items() if at is not None}
    await connection.execute(_BLAME_RESCUED, list(seen), list(seen.values()))
    return len(freed)


# Leases of programs before 0.2 are named HOST/FOLDER. Of job_apart the few leased rows are read.
_HOLDERS = """
SELECT DISTINCT leased_by FROM job
WHERE state = 'leased' AND leased_by <> $2 AND (starts_with(leased_by, $1 || '.') OR split_part(leased_by, '/', 2) = $1)
"""
_FORGET_EARLIER = "DELETE FROM process WHERE folder = $1 AND name <> $2 RETURNING name, seen_at"
# Nobody is seen while the database is away, and all come back at once. So the server must have been up for all that
# time, and whoever declares must itself have been seen for one lease without a gap, or have started when the other had
# been silent for long. The latter is for a process that is killed within a lease of its start, again and again.
_FORGET_UNSEEN = """
WITH unseen AS (
    SELECT it.name
    FROM process AS it, process AS me, make_interval(secs => it.lease_seconds) AS lease,
         make_interval(secs => it.lease_seconds * $2::float8) AS long
    WHERE me.name = $1 AND it.name <> $1
      AND me.seen_at > convo_now() - make_interval(secs => me.lease_seconds)
      AND it.seen_at < convo_now() - long AND pg_postmaster_start_time() < now() - long
      AND (me.steady_since < convo_now() - lease OR me.started_at > it.seen_at + long)
    ORDER BY it.name LIMIT 100 FOR UPDATE OF it SKIP LOCKED
)
DELETE FROM process USING unseen WHERE process.name = unseen.name RETURNING process.name, process.seen_at
"""
# A process has few jobs at a time, so these statements touch few rows.
_BLAME_LEASED = f"""
WITH held AS MATERIALIZED (
    SELECT seq, leased_at, leased_by FROM job
    WHERE state = 'leased' AND leased_by = ANY($1::text[]) ORDER BY seq FOR UPDATE
), noted AS (
    INSERT INTO run (seq, began_at, ending, made_by, reason)
    SELECT seq, leased_at, 'crash', leased_by, '{CRASHED}' FROM held
)
UPDATE job SET {FREE}, crashes = job.crashes + 1 FROM held WHERE job.seq = held.seq RETURNING job.seq
"""
# A process dies once: however often it lost a job since it was last seen, the job counts one crash, in one run. Its
# place is one row's only within a month (store/months.py), and seq says which.
_BLAME_RESCUED = f"""
WITH last AS (
    SELECT DISTINCT ON (run.seq, run.made_by) run.seq, run.ctid AS place
    FROM run JOIN unnest($1::text[], $2::timestamptz[]) AS dead (name, seen_at) ON run.made_by = dead.name
    WHERE run.ending = 'rescue' AND run.ended_at >= dead.seen_at AND NOT EXISTS (
        SELECT FROM run AS known
        WHERE known.seq = run.seq AND known.made_by = run.made_by AND known.ending = 'crash')
    ORDER BY run.seq, run.made_by, run.ended_at DESC
), late AS (
    UPDATE run SET ending = 'crash', reason = '{CRASHED}' FROM last
    WHERE run.seq = last.seq AND run.ctid = last.place RETURNING run.seq
), blamed AS MATERIALIZED (
    SELECT seq, n FROM job JOIN (SELECT seq, count(*) AS n FROM late GROUP BY seq) AS counted USING (seq)
    WHERE state IN ('ready', 'leased') ORDER BY seq FOR UPDATE OF job
)
UPDATE job SET crashes = job.crashes + blamed.n FROM blamed WHERE job.seq = blamed.seq
"""
_GIVE_BACK = """
WITH wrong AS (
    UPDATE run SET ending = 'rescue', reason = 'its process was cut off, and came back'
    WHERE made_by = $1 AND ending = 'crash' RETURNING seq
), blamed AS MATERIALIZED (
    SELECT seq, n FROM job JOIN (SELECT seq, count(*) AS n FROM wrong GROUP BY seq) AS counted USING (seq)
    WHERE state IN ('ready', 'leased') ORDER BY seq FOR UPDATE OF job
)
UPDATE job SET crashes = greatest(job.crashes - blamed.n, 0) FROM blamed WHERE job.seq = blamed.seq RETURNING blamed.n
"""
