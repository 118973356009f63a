"""Dead letters: jobs that were buried, and what an operator can do: retry one or many, or note that one is reviewed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from convo.audit_actions import AuditAction
from convo.conversation.model import CANARY_USER
from convo.conversation.tenant import Reach
from convo.errors import NotDead
from convo.store import audit_log, ledger
from convo.store.audit_log import AuditEntry, AuditTarget, Caller
from convo.store.job_sql import NOT_PARKED, THEIRS
from convo.store.lookup import SEQ, absent
from convo.store.postgres import DURABLE, RELAXED, Connection, Postgres
from convo.store.reaching import reached


async def retry_dead_letter(postgres: Postgres, reach: Reach, conversation_id: str, caller: Caller) -> None:
    """Make a dead letter ready again, with all its attempts; its stored parts stay. Note who did it.

    Raises:
        NotFound: there is no such conversation.
        Expired: its content is no longer stored.
        NotDead: it is not a dead letter.
    """

    async def body(connection: Connection) -> str | None:
        row = await connection.fetchrow(_RETRY, reach.tenant.id_hash(conversation_id), *reach.values)
        if row is not None:
            await ledger.book(connection, "dead", [row["seq"]], -1)
            await audit_log.append(connection, *_noted("retry", [row], caller, reach))
            return None
        return await _state(connection, reach, conversation_id)

    state = await postgres.run("db.retry", body)
    if state is not None:
        raise NotDead(f"conversation {conversation_id!r} is {state}; only a dead letter can be retried")


async def acknowledge_dead_letter(postgres: Postgres, reach: Reach, conversation_id: str, caller: Caller) -> int:
    """Note that somebody has reviewed a dead letter, which stays dead; return the attempts spent on it.

    A second time changes nothing, but it is noted who did it. A retry counts as a review too.

    Raises:
        NotFound: there is no such conversation.
        Expired: its content is no longer stored.
        NotDead: it is not a dead letter.
    """

    async def body(connection: Connection) -> tuple[str, int]:
        row = await connection.fetchrow(_ACKNOWLEDGE, reach.tenant.id_hash(conversation_id), *reach.values)
        if row is not None:
            await audit_log.append(connection, *_noted("acknowledge", [row], caller, reach))
            return "dead", row["attempts"]
        return await _state(connection, reach, conversation_id), 0

    state, attempts = await postgres.run("db.acknowledge", body)
    if state != "dead":
        raise NotDead(f"conversation {conversation_id!r} is {state}; only a dead letter can be acknowledged")
    return attempts


# --- many at once


class DeadFilter(Struct, frozen=True, kw_only=True):
    """Which dead letters are meant; None is no filter.

    ``reason`` is a part of the last error, in upper or lower case, as ``DeadReason`` has it or as it stands with the
    job. ``since`` is when the job was buried.
    """

    reason: str | None = None
    since: datetime | None = None
    user_id: str | None = None
    bot_id: str | None = None


class DeadReason(Struct, frozen=True, kw_only=True):
    """How many dead letters have the same last error, but for its numbers, and when they were buried."""

    reason: str
    count: int
    oldest_at: datetime
    newest_at: datetime


class DeadReasons(Struct, frozen=True, kw_only=True):
    """The reasons of dead letters, the most frequent first; not ``complete`` where only the newest were counted."""

    total: int
    complete: bool
    reasons: tuple[DeadReason, ...]


class RetriedBatch(Struct, frozen=True, kw_only=True):
    """How many dead letters of one batch were meant, and the ``seq`` after which the next batch begins, if any."""

    count: int
    next_after: int | None


async def group_dead_letters(postgres: Postgres, reach: Reach, wanted: DeadFilter) -> DeadReasons:
    """Count dead letters by their reason, the newest 20,000 of all."""

    async def body(connection: Connection) -> tuple[Sequence[Mapping[str, Any]], int]:
        own = reach.tenant.number > 0
        rows = await connection.fetch(_GROUP[own], *_values(wanted), *reach.values, _COUNTED_MAX)
        return rows, await connection.fetchval(_BEYOND[own], reach.tenant.number, _COUNTED_MAX)

    rows, beyond = await postgres.run("db.dead", body, begin=RELAXED)
    reasons = tuple(DeadReason(**{name: row[name] for name in DeadReason.__struct_fields__}) for row in rows)
    return DeadReasons(total=sum(row["count"] for row in rows), complete=not beyond, reasons=reasons[:_REASONS_MAX])


async def retry_dead_letters(  # noqa: PLR0913  (which ones, how many, and who asks)
    postgres: Postgres, reach: Reach, wanted: DeadFilter, *, after: int, limit: int, dry_run: bool, caller: Caller
) -> RetriedBatch:
    """Make up to ``limit`` dead letters ready again, in the order of their receipt, those above the ``seq`` ``after``.

    One call looks at 2,000 at most. With ``dry_run`` they are only counted.
    """

    async def body(connection: Connection) -> RetriedBatch:
        values = (*_values(wanted), *reach.values, after, _LOOKED_AT_MAX, limit)
        found = await connection.fetchrow(_WANTED[reach.tenant.number > 0], *values) or {}
        seqs = list(found["seqs"] or ())
        next_after = seqs[-1] if len(seqs) == limit else found["last"] if found["n"] == _LOOKED_AT_MAX else None
        if dry_run or not seqs:
            return RetriedBatch(count=len(seqs), next_after=next_after)
        rows = await connection.fetch(_RETRY_MANY, seqs)
        if rows:
            await ledger.book(connection, "dead", [row["seq"] for row in rows], -1)
            await audit_log.append(connection, *_noted("retry", rows, caller, reach))
        return RetriedBatch(count=len(rows), next_after=next_after)

    return await postgres.run("db.retry", body, begin=RELAXED if dry_run else DURABLE)


def _values(wanted: DeadFilter) -> tuple[object, ...]:
    return wanted.reason, wanted.since, wanted.user_id, wanted.bot_id


def _noted(action: AuditAction, rows: Sequence[Mapping[str, Any]], caller: Caller, reach: Reach) -> list[AuditEntry]:
    targets = [AuditTarget(kind="conversation", id=row["conversation_id"], user_id=row["user_id"]) for row in rows]
    return [AuditEntry(action=action, tenant=reach.tenant, caller=caller, target=target) for target in targets]


async def _state(connection: Connection, reach: Reach, conversation_id: str) -> str:
    state: str | None = await connection.fetchval(_STATE, reach.tenant.id_hash(conversation_id), *reach.values)
    if state is None:
        raise await absent(connection, reach, conversation_id)
    return state


_RETRY = f"""
UPDATE job SET state = 'ready', attempts = 0, crashes = 0, {NOT_PARKED}, ended_at = NULL, reviewed_at = NULL,
               available_at = convo_now()
FROM conversation c
WHERE job.seq = {SEQ} AND c.seq = job.seq AND job.state = 'dead' AND {reached("c", 2)}
RETURNING job.seq, c.conversation_id, c.user_id
"""
_ACKNOWLEDGE = f"""
UPDATE job SET reviewed_at = coalesce(reviewed_at, convo_now())
FROM conversation c
WHERE job.seq = {SEQ} AND c.seq = job.seq AND job.state = 'dead' AND {reached("c", 2)}
RETURNING job.attempts, c.conversation_id, c.user_id
"""
_STATE = f"SELECT state FROM every_job JOIN conversation c USING (seq) WHERE seq = {SEQ} AND {reached('c', 2)}"

# A page of a list is read in milliseconds; so many rows are, too, and no filter makes a statement read more.
_LOOKED_AT_MAX = 2_000
_COUNTED_MAX = 20_000
_REASONS_MAX = 100
_REASON_CHARS = 300
# A time, a count or an id differs in each; a status (three digits alone) says what was wrong.
_NUMBERS = r"[0-9]{4,}[0-9:.-]*|\m[0-9]{1,2}\M[0-9:.-]*"
_REASON = f"left(regexp_replace(coalesce(job.last_error, ''), '{_NUMBERS}', '#', 'g'), {_REASON_CHARS})"
_IS_WANTED = f"""
    ($1::text IS NULL OR strpos(lower(coalesce(job.last_error, '')), lower($1)) > 0
                      OR strpos(lower({_REASON}), lower($1)) > 0)
    AND ($2::timestamptz IS NULL OR job.ended_at >= $2)
    AND ($3::text IS NULL OR c.user_id = $3) AND ($4::text IS NULL OR c.bot_id = $4)
    AND c.user_id <> '{CANARY_USER}' AND {reached("c", 5)}
"""
# Each twice: of the default tenant by job_apart, of the others by job_of_tenant.
_DEAD = ("state = 'dead' AND tenant = {}", "state = 'dead' AND tenant > 0 AND tenant = {}")
_GROUP = tuple(
    f"""
SELECT {_REASON} AS reason, count(*) AS count, min(job.ended_at) AS oldest_at, max(job.ended_at) AS newest_at
FROM (SELECT seq, last_error, ended_at FROM job WHERE {dead.format("$5")} ORDER BY seq DESC LIMIT $7) AS job
{THEIRS}
WHERE {_IS_WANTED}
GROUP BY 1 ORDER BY 2 DESC, 1
"""
    for dead in _DEAD
)
_BEYOND = tuple(
    f"SELECT EXISTS (SELECT FROM job WHERE {dead.format('$1')} ORDER BY seq DESC OFFSET $2)" for dead in _DEAD
)
_WANTED = tuple(
    f"""
WITH page AS (
    SELECT seq, last_error, ended_at FROM job WHERE {dead.format("$5")} AND seq > $7 ORDER BY seq LIMIT $8
), wanted AS (
    SELECT job.seq FROM page AS job {THEIRS} WHERE {_IS_WANTED} ORDER BY job.seq LIMIT $9
)
SELECT (SELECT array_agg(seq ORDER BY seq) FROM wanted) AS seqs, max(seq) AS last, count(*) AS n FROM page
"""
    for dead in _DEAD
)
# Locked in the order in which settles lock them: two operators at once do not wait for each other in a circle.
_RETRY_MANY = f"""
WITH mine AS (
    SELECT seq FROM job WHERE seq = ANY($1::bigint[]) AND state = 'dead' ORDER BY seq FOR UPDATE
)
UPDATE job SET state = 'ready', attempts = 0, crashes = 0, {NOT_PARKED}, ended_at = NULL, reviewed_at = NULL,
               available_at = convo_now()
FROM mine JOIN conversation c USING (seq) WHERE job.seq = mine.seq
RETURNING job.seq, c.conversation_id, c.user_id
"""
