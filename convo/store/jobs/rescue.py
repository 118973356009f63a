"""What becomes of jobs that nobody works on any more: they are made ready again, or buried.

Open it to change when a lease is taken back or a job is given up. The rules stand in ``store/jobs/table.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio
from msgspec import Struct

from convo.settings import JobsSettings
from convo.store import ledger
from convo.store.job_sql import DEAD, DELAYED, FREE, PARKED_SINCE, POISON_AT, SUSPECT
from convo.store.jobs.runs import NOTE_RESCUED
from convo.store.jobs.suspects import RELEASE_CLAIM
from convo.store.outbox import NO_EVENTS, Outbox
from convo.store.postgres import RELAXED, Connection, Postgres

BATCH_ROWS = 1000
"""So many rows are changed in one transaction at most."""

# After so long a pass starts no further batch: the publisher leases between two passes.
_PASS_SECONDS = 0.25

# A delay is written in another transaction than this one, and its clock may be a little ahead of ours.
_AHEAD_SECONDS = 60.0


class Rescue(Struct, frozen=True, kw_only=True):
    """What a rescue did: how many jobs are ready again, and which were buried (``seq``), each with its reason.

    ``more`` is true when its time was over before everything was done: the next pass can begin at once.
    """

    rescued: int = 0
    buried: dict[int, str] = {}
    more: bool = False


class _Batch(Struct, frozen=True, kw_only=True):
    """What one transaction did: how many rows it changed, and of these which jobs it rescued or buried."""

    rows: int
    rescued: int = 0
    buried: dict[int, str] = {}


_Step = Callable[[Connection], Awaitable[_Batch]]


async def rescue(
    postgres: Postgres,
    settings: JobsSettings,
    *,
    gives_up: bool = True,
    pass_seconds: float = _PASS_SECONDS,
    outbox: Outbox = NO_EVENTS,
) -> Rescue:
    """Make ready what is leased past its end, whoever has it; bury what is poison or was parked for too long.

    The end of a lease is no crash: its process may be stopped, or cut off from the database.

    A delayed job whose delay began later than now becomes due too: the database's clock was set back. Only with
    ``gives_up`` are jobs buried that were parked for too long: how long that is, processes that take jobs agree on.

    Each batch is committed by itself, the oldest first. So however much there is, a pass ends within ``pass_seconds``
    and one more batch, and what it did is done. In one transaction 300,000 burials timed out at every heartbeat, and
    no lease was rescued any more.
    """
    until = trio.current_time() + pass_seconds
    rescued = 0
    buried: dict[int, str] = {}
    for step in _steps(settings, outbox, gives_up=gives_up):
        while True:
            batch = await postgres.run("db.rescue", step, begin=RELAXED)
            rescued += batch.rescued
            buried |= batch.buried
            if batch.rows < BATCH_ROWS:
                break
            if trio.current_time() >= until:
                return Rescue(rescued=rescued, buried=buried, more=True)
    return Rescue(rescued=rescued, buried=buried)


def _steps(settings: JobsSettings, outbox: Outbox, *, gives_up: bool) -> Sequence[_Step]:
    """List what a rescue does, the urgent first: a conversation waits for each lease, and for no burial."""

    async def take_back(connection: Connection) -> _Batch:
        rows = await connection.fetch(_RESCUE, settings.lease_seconds, BATCH_ROWS)
        return _Batch(rows=len(rows), rescued=len(rows))

    async def make_due(connection: Connection) -> _Batch:
        return _Batch(rows=len(await connection.fetch(_DUE_AGAIN, _AHEAD_SECONDS, BATCH_ROWS)))

    async def bury_poison(connection: Connection) -> _Batch:
        return await _bury(connection, outbox, _BURY_POISON, POISON_AT)

    async def give_up(connection: Connection) -> _Batch:
        return await _bury(connection, outbox, _GIVE_UP, settings.give_up_seconds)

    steps = (take_back, make_due, bury_poison)
    return (*steps, give_up) if gives_up else steps


async def _bury(connection: Connection, outbox: Outbox, statement: str, limit: float) -> _Batch:
    rows = await connection.fetch(statement, limit, BATCH_ROWS)
    if rows:
        await ledger.book(connection, "dead", [row["seq"] for row in rows])
    reasons = {row["seq"]: row["last_error"] for row in rows}
    await outbox.append_dead(connection, reasons)
    return _Batch(rows=len(rows), buried=reasons)


async def release_owned(postgres: Postgres, owner: str) -> int:
    """Give back every job that is leased under this name; return how many."""

    async def body(connection: Connection) -> int:
        await connection.execute(RELEASE_CLAIM, [owner])
        return len(await connection.fetch(_RELEASE_OWNED, owner))

    return await postgres.run("db.release", body, begin=RELAXED)


_RESCUE = f"""
WITH silent AS MATERIALIZED (
    SELECT seq, leased_at, leased_by FROM job
    WHERE state = 'leased'
      AND (leased_until < convo_now()
           OR leased_until > convo_now() + make_interval(secs => coalesce(lease_seconds, $1::float8) * 2))
    ORDER BY leased_until LIMIT $2 FOR UPDATE SKIP LOCKED
), noted AS ({NOTE_RESCUED})
UPDATE job SET {FREE} FROM silent WHERE job.seq = silent.seq
RETURNING job.seq
"""
_RELEASE_OWNED = f"""
WITH silent AS MATERIALIZED (
    SELECT seq, leased_at, leased_by FROM job
    WHERE state = 'leased' AND leased_by = $1 ORDER BY seq FOR UPDATE
), noted AS ({NOTE_RESCUED})
UPDATE job SET {FREE} FROM silent WHERE job.seq = silent.seq
RETURNING job.seq
"""


def _oldest(condition: str, order: str) -> str:
    """Return the choice of the next batch; what another process has locked is left to that process."""
    return f"seq = ANY(ARRAY(SELECT seq FROM job WHERE {condition} ORDER BY {order} LIMIT $2 FOR UPDATE SKIP LOCKED))"


_DUE_AGAIN = f"""
UPDATE job SET available_at = convo_now(), delayed = false
WHERE {_oldest(f"{DELAYED} AND delayed_at > convo_now() + make_interval(secs => $1)", "delayed_at")}
RETURNING seq
"""
_BURY_POISON = f"""
UPDATE job SET {DEAD}, last_error = 'poison: ' || crashes || ' times the process that worked on it died'
WHERE {_oldest(f"{SUSPECT} AND crashes >= $1", "available_at, seq")}
RETURNING seq, last_error
"""
_GIVE_UP = f"""
UPDATE job SET {DEAD}, last_error = waits_for || ' was out since ' || to_char(parked_since, 'YYYY-MM-DD HH24:MI')
                                    || '; its last word: ' || coalesce(last_error, 'none')
WHERE {_oldest(f"{PARKED_SINCE} AND parked_since < convo_now() - make_interval(secs => $1)", "parked_since")}
RETURNING seq, last_error
"""
