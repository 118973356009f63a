"""Part jobs: parts that no score waits for, and that were not found while their conversation was analysed.

Open it to change when such a part is tried again. A row stands for one part of one done conversation. It is taken for a
while, under a token that every write of its taker names: whoever is silent for longer has lost it. What it finds is
shown with the conversation and changes no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from convo.conversation.model import Finding, PartName
from convo.conversation.owed import Owed
from convo.conversation.tenant import Tenant, tenant_of
from convo.store.owed_sets import OwedSets
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.reaching import REMOTE_PREFIX, TENANT_NAME

GIVEN_UP_MAX = 500
"""So many part jobs are given up in one transaction."""


class NewPartJob(Struct, frozen=True, kw_only=True):
    """A part that is to be found by itself: of which job, what its taker needs, and why it was not found."""

    seq: int
    name: PartName
    owed: Owed
    by: str | None = None
    error: str | None = None


class StoredConversation(Struct, frozen=True, kw_only=True):
    """What an analyst is told of a conversation when one of its parts is found by itself, besides the log."""

    seq: int
    conversation_id: str
    user_id: str
    bot_id: str
    digest: bytes
    log_hash: bytes | None
    started_at: datetime
    ended_at: datetime
    tenant: Tenant
    remote_prefix: str


class PartJob(StoredConversation, frozen=True, kw_only=True):
    """A part job that was taken; ``waited_seconds`` is for how long its conversation has been done."""

    name: PartName
    token: int
    attempts: int
    owed: Owed
    waited_seconds: float


class PartJobs:
    """The table of part jobs, as one process works on it."""

    def __init__(self, postgres: Postgres, owed_sets: OwedSets) -> None:
        self._postgres = postgres
        self._owed_sets = owed_sets

    async def take(self, able: Sequence[str], count: int, seconds: float) -> list[PartJob]:
        """Take up to ``count`` due parts for ``seconds`` each, of those that need nothing but what is in ``able``."""

        async def body(connection: Connection) -> list[PartJob]:
            rows = await connection.fetch(_TAKE, list(able), count, seconds)
            await self._owed_sets.load(connection, {row["owed"] for row in rows})
            return [_taken(row, self._owed_sets.get(row["owed"])) for row in rows]

        return await self._postgres.run("db.part_jobs", body, begin=RELAXED)

    async def done(self, job: PartJob, by: str, finding: Finding) -> bool:
        """Store what was found; return false where the job is no longer ours."""
        result = msgspec.json.encode(finding).decode()
        return await self._write(_DONE, job, by, result)

    async def failed(self, job: PartJob, by: str, reason: str, *, later: float | None, spent: bool) -> bool:
        """Note why it was not found: to be tried again in ``later`` seconds, or not any more where that is None."""
        return await self._write(_FAILED, job, by, reason, later, int(spent))

    async def give_up(self, seconds: float) -> int:
        """Fail parts that nobody has taken for so long, at most ``GIVEN_UP_MAX`` of them; return how many.

        No process has what they need, or none was ever idle.
        """

        async def body(connection: Connection) -> int:
            reason = f"given up: no process has taken it for jobs.give_up_seconds = {seconds:g} s"
            return len(await connection.fetch(_GIVE_UP, seconds, reason, GIVEN_UP_MAX))

        return await self._postgres.run("db.part_jobs", body, begin=RELAXED)

    async def _write(self, statement: str, job: PartJob, *values: Any) -> bool:
        async def body(connection: Connection) -> bool:
            return bool(await connection.fetch(statement, job.seq, job.name, job.token, *values))

        return await self._postgres.run("db.part_jobs", body)


async def add(connection: Connection, new: Sequence[NewPartJob]) -> None:
    """Add parts that are to be found by themselves, in the transaction that makes their job done."""
    if new:
        await connection.execute(
            _ADD,
            [one.seq for one in new],
            [one.name for one in new],
            [one.owed.number for one in new],
            [one.owed.asked[one.name].needs for one in new],
            [one.by for one in new],
            [one.error for one in new],
        )


def _taken(row: Mapping[str, Any], owed: Owed) -> PartJob:
    same = {name: row[name] for name in PartJob.__struct_fields__ if name in row}
    return PartJob(**{**same, "owed": owed, "tenant": tenant_of(row["tenant"], row["tenant_name"])})


_ADD = """
INSERT INTO part_job (seq, name, owed, needs, made_by, error)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[])
ON CONFLICT DO NOTHING
"""
# part_job_due, for each of the few values that this process has.
_TAKE = f"""
WITH due AS (
    SELECT one.seq, one.name FROM unnest($1::text[]) AS able (needs), LATERAL (
        SELECT seq, name FROM part_job WHERE state = 'waiting' AND part_job.needs = able.needs
            AND available_at <= convo_now()
        ORDER BY available_at LIMIT $2 FOR UPDATE SKIP LOCKED) AS one
    LIMIT $2
), taken AS (
    UPDATE part_job SET token = token + 1, available_at = convo_now() + make_interval(secs => $3)
    FROM due WHERE part_job.seq = due.seq AND part_job.name = due.name
    RETURNING part_job.seq, part_job.name, part_job.token, part_job.attempts, part_job.owed
)
SELECT taken.*, c.conversation_id, c.user_id, c.bot_id, c.log_hash, c.started_at, c.ended_at, c.tenant,
       {TENANT_NAME.format("nullif(c.tenant, 0)")} AS tenant_name, {REMOTE_PREFIX} AS remote_prefix,
       (SELECT digest FROM receipt WHERE receipt.seq = c.seq) AS digest,
       coalesce((SELECT extract(epoch FROM convo_now() - ended_at) FROM every_job WHERE every_job.seq = c.seq),
                0)::float8 AS waited_seconds
FROM taken JOIN conversation c USING (seq)
"""
_DONE = """
UPDATE part_job SET state = 'done', attempts = attempts + 1, made_by = $4, result = $5::jsonb, error = NULL,
                    updated_at = convo_now()
WHERE seq = $1 AND name = $2 AND token = $3 AND state = 'waiting' RETURNING 1
"""
_FAILED = """
UPDATE part_job SET state = CASE WHEN $6::float8 IS NULL THEN 'failed' ELSE 'waiting' END, attempts = attempts + $7,
                    made_by = $4, error = $5, updated_at = convo_now(),
                    available_at = convo_now() + make_interval(secs => coalesce($6::float8, 0))
WHERE seq = $1 AND name = $2 AND token = $3 AND state = 'waiting' RETURNING 1
"""
# Those that are taken again and again become due later each time, so they are never so old here.
_GIVE_UP = """
UPDATE part_job SET state = 'failed', error = $2 || coalesce('; before: ' || error, ''), updated_at = convo_now()
WHERE (seq, name) IN (
    SELECT seq, name FROM part_job
    WHERE state = 'waiting' AND available_at < convo_now() - make_interval(secs => $1)
    LIMIT $3 FOR UPDATE SKIP LOCKED)
RETURNING seq
"""
ERASE_PART_JOB = "DELETE FROM part_job WHERE seq = ANY($1::bigint[]) AND name = $2"
ERASE_PART_JOBS = "DELETE FROM part_job WHERE seq = ANY($1::bigint[])"
