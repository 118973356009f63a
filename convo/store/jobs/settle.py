"""Settling: move a finished job to its outcome, with its score, and add that to the user's relationship, once.

Open it to change what happens when every part is found. Jobs of several workers are settled in one transaction, which
deletes the rows of the job and of its parts. So ``job`` and ``part`` hold what is open, and stay small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import trio
from msgspec import Struct

from convo.analysis.part import StoredFinding, emotion_of
from convo.analysis.scoring import Score, score
from convo.conversation.model import Finding, PartName
from convo.conversation.score import Weights
from convo.errors import ConvoError, DatabaseUnavailable
from convo.runtime.pace import SETTLE_GATHER_SECONDS, SETTLED_ROWS_MAX
from convo.store import ledger
from convo.store.group import Group
from convo.store.job_sql import NOT_PARKED, UNLEASED
from convo.store.jobs import part_jobs, parts, runs, tickets
from convo.store.jobs.lease import Holder, Lease, hold, lost
from convo.store.jobs.part_jobs import NewPartJob
from convo.store.jobs.parts import PartRow, Resolved, part_row
from convo.store.jobs.runs import NO_WAITS, Waits
from convo.store.jobs.tickets import ERASE_TICKETS
from convo.store.outbox import NO_EVENTS, NewPart, Outbox, UserKey
from convo.store.outcomes import OutcomeDetails, PartRecord, pack_details
from convo.store.postgres import Connection, Postgres

FoundParts = Mapping[PartName, tuple[str, Finding]]
NO_PARTS: FoundParts = {}
LeftParts = Mapping[PartName, tuple[str, str]]
"""Parts that no score waits for and that failed: by whom each was tried, and why it failed."""
NO_LEFT: LeftParts = {}
_Item = tuple[Lease, Waits, FoundParts, LeftParts]
# What a user felt about a conversation of which no part says it.
_NO_EMOTION = "neutral"


class Settler:
    """Settles the jobs of several workers in one transaction."""

    def __init__(self, postgres: Postgres, weights: Weights, outbox: Outbox = NO_EVENTS) -> None:
        self._postgres = postgres
        self._weights = weights
        self._outbox = outbox
        self._group: Group[_Item, Score] = Group(
            self._commit,
            rows_max=SETTLED_ROWS_MAX,
            bytes_max=SETTLED_ROWS_MAX,
            unit_seconds=postgres.unit_seconds,
            item_bytes=lambda _: 1,
            # Each settle is six round trips to the server, whatever it holds, and no worker waits for it.
            gather_seconds=SETTLE_GATHER_SECONDS,
        )
        self._moves = False

    async def settle(
        self, lease: Lease, waits: Waits = NO_WAITS, found: FoundParts = NO_PARTS, left: LeftParts = NO_LEFT
    ) -> Score:
        """End a job whose required parts are found: store its score, and add it to the user's relationship, once.

        ``waits`` are the seconds that its work spent in each named wait, noted with its run. ``found`` are the parts
        that are not stored yet, each with who found it. Parts that are owed and neither found nor required are left to
        jobs of their own; ``left`` says why.

        Raises:
            LeaseLost: the job is no longer ours; nothing was stored.
            DatabaseUnavailable, DeadlineExceeded, Draining: nothing is known to be stored; or a crash of the database
                lost one of the parts, which has to be found again.
        """
        return await self._group.submit((lease, waits, found, left))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Settle batch after batch until cancelled."""
        await self._group.run(task_status=task_status)

    async def _commit(self, items: Sequence[_Item]) -> list[Score | ConvoError]:
        batch = [lease for lease, _, _, _ in items]
        waited = {lease.token: waits for lease, waits, _, _ in items}
        left = {lease.token: parts for lease, _, _, parts in items}

        async def body(connection: Connection) -> dict[int, Score]:
            holders = await hold(connection, batch)
            held = {lease.seq: lease for lease in batch if lease.token in holders}
            leaves = await self._leaves_jobs(connection)
            fresh = await parts.resolve(
                connection,
                [row for lease, _, found, _ in items if lease.token in holders for row in _rows(lease, found)],
            )
            new = await self._new_parts(connection, fresh)
            if leaves:
                await parts.insert(connection, fresh)
            records = await _records(connection, held, holders, fresh)
            done = [
                self._done(lease, holders[lease.token].by, waited[lease.token], records[seq])
                for seq, lease in sorted(held.items())
            ]
            final = [one for one in done if one.score.final]
            if leaves:
                await _keep(connection, final)
            else:
                await _move(connection, final)
            replaced = await _take_places(connection, final)
            await _relate(connection, final, replaced)
            await part_jobs.add(connection, [row for one in final for row in _part_jobs(one, left[one.lease.token])])
            await self._outbox.append_parts(connection, new)
            await self._append(connection, final, replaced)
            return {one.lease.token: one.score for one in done}

        scores = await self._postgres.run("db.settle", body)
        return [_answer(lease, scores.get(lease.token)) for lease in batch]

    def _done(self, lease: Lease, by: str, waits: Waits, records: Mapping[PartName, PartRecord]) -> _Done:
        stored = {name: parts.stored_finding(one) for name, one in records.items()}
        found = score(lease.exchanges, stored, self._weights, lease.owed)
        emotion = next(filter(None, map(emotion_of, stored.values())), None)
        details = OutcomeDetails(
            by=by,
            waits=runs.rounded(waits),
            timeline=runs.timeline_of(waits),
            breakdown=found.breakdown,
            weights_version=found.weights_version,
            parts=tuple(records.values()),
            owed=lease.owed.number,
        )
        return _Done(lease=lease, score=found, emotion=emotion, stored=stored, details=details)

    async def _new_parts(self, connection: Connection, fresh: Resolved) -> list[NewPart]:
        """Leave out what is stored already, where it matters: an earlier answer of the database may have been lost."""
        if not self._outbox.wants("part.done"):
            return []
        before = await parts.found(connection, sorted({row.seq for row, _ in fresh}))
        return [
            NewPart(seq=row.seq, name=row.name, by=row.by, stored=one)
            for row, one in fresh
            if row.name not in before.get(row.seq, {})
        ]

    async def _append(self, connection: Connection, done: Sequence[_Done], replaced: Mapping[int, int]) -> None:
        """Append the events of what this transaction has made true."""
        scores = {one.lease.seq: one.score for one in done}
        await self._outbox.append_analysed(connection, scores, {one.lease.seq: one.stored for one in done})
        added: Counter[UserKey] = Counter()
        for one in done:
            added[one.lease.tenant.number, one.lease.user_id] += one.score.value - replaced.get(one.lease.seq, 0)
        await self._outbox.append_levels(connection, added)

    async def _leaves_jobs(self, connection: Connection) -> bool:
        """Return whether done jobs stay in ``job``: a program may be at work that looks for them there.

        It is asked while rows of ``job`` are locked, so until the end of this transaction the answer stays what it is.
        Once they move, they do for ever.
        """
        self._moves = self._moves or bool(await connection.fetchval(_MOVES))
        return not self._moves


class _Done(Struct, frozen=True, kw_only=True):
    """A job of which all is known that its outcome says; not done yet where its score is not final."""

    lease: Lease
    score: Score
    emotion: str | None
    stored: Mapping[PartName, StoredFinding]
    details: OutcomeDetails


def _answer(lease: Lease, found: Score | None) -> Score | ConvoError:
    if found is None:
        return lost(lease)
    if not found.final:
        # Parts commit without waiting for the disk: a crash of the database can lose a part and keep the lease.
        return DatabaseUnavailable(f"the database lost a part of conversation {lease.conversation_id!r}")
    return found


def _part_jobs(one: _Done, left: LeftParts) -> list[NewPartJob]:
    owed, nobody = one.lease.owed, (None, None)
    if len(one.stored) == len(owed.asked):
        return []
    missing = {name: left.get(name, nobody) for name in owed.asked if name not in one.stored}
    return [
        NewPartJob(seq=one.lease.seq, name=name, owed=owed, by=by, error=error) for name, (by, error) in missing.items()
    ]


def _rows(lease: Lease, found: FoundParts) -> list[PartRow]:
    return [part_row(lease, name, by, finding) for name, (by, finding) in found.items()]


async def _records(
    connection: Connection,
    held: Mapping[int, Lease],
    holders: Mapping[int, Holder],
    fresh: Sequence[tuple[PartRow, StoredFinding]],
) -> dict[int, dict[PartName, PartRecord]]:
    """Put together what was found just now and, where that is not all, what is stored."""
    records: dict[int, dict[PartName, PartRecord]] = {seq: {} for seq in held}
    for row, one in fresh:
        records[row.seq][row.name] = PartRecord(
            name=row.name,
            made_by=row.by,
            updated_at=holders[held[row.seq].token].now,
            result=msgspec.Raw(msgspec.json.encode(one.finding)),
            new_memories=one.new_memories,
            version=row.version,
        )
    some = [seq for seq in sorted(held) if len(records[seq]) < len(held[seq].owed.asked)]
    stored = await parts.found_records(connection, some) if some else {}
    return {seq: {**stored.get(seq, {}), **found} for seq, found in records.items()}


async def _move(connection: Connection, done: Sequence[_Done]) -> None:
    """Delete the jobs with their parts, append their outcomes, and book them."""
    seqs, values = [one.lease.seq for one in done], [one.score.value for one in done]
    packed = [pack_details(one.details) for one in done]
    await connection.execute(_MOVE, seqs, values, [one.emotion for one in done], packed)


async def _keep(connection: Connection, done: Sequence[_Done]) -> None:
    """Mark the jobs as done, note their runs, and book them: for as long as done jobs stay in ``job``."""
    seqs = [one.lease.seq for one in done]
    await runs.note_settled(connection, [(one.lease.seq, one.details.waits, one.details.timeline) for one in done])
    await tickets.remove(connection, [(one.lease.seq, name) for one in done for name in one.lease.tickets])
    breakdowns = [msgspec.json.encode(one.score.breakdown).decode() for one in done]
    versions = [one.score.weights_version for one in done]
    await connection.execute(_KEEP, seqs, [one.score.value for one in done], breakdowns, versions)
    await ledger.book(connection, "done", seqs)


async def _take_places(connection: Connection, done: Sequence[_Done]) -> dict[int, int]:
    """Mark the revisions that counted until now as replaced; return their scores by the ``seq`` that replaces them."""
    by_earlier = {one.lease.replaces: one.lease.seq for one in done if one.lease.replaces}
    if not by_earlier:
        return {}
    rows = await connection.fetch(_TAKE_PLACES, sorted(by_earlier))
    return {by_earlier[row["seq"]]: row["score"] for row in rows}


async def _relate(connection: Connection, done: Sequence[_Done], replaced: Mapping[int, int]) -> None:
    """Add the scores to the relationships: one row for each user and bot, sorted, or two settlers would deadlock.

    A revision adds the difference to the score that it takes the place of (``replaced``).
    """
    sums: dict[tuple[str, str, int], dict[str, Any]] = {}
    for one in done:
        lease = one.lease
        row = sums.setdefault((lease.user_id, lease.bot_id, lease.tenant.number), {"score": 0, "conversations": 0})
        row["score"] += one.score.value - replaced.get(lease.seq, 0)
        row["conversations"] += lease.seq not in replaced
        row["last_seq"] = one.lease.seq
        row["last_emotion"] = one.emotion or _NO_EMOTION
    keys = sorted(sums)
    columns = [[sums[key][name] for key in keys] for name in ("score", "conversations", "last_emotion", "last_seq")]
    users, bots, tenants = ([key[at] for key in keys] for at in range(3))
    await connection.execute(_RELATE, users, bots, *columns, tenants)


# Since migration 19 a job that is done cannot stay in its table: its check says so, and the trigger after it (0040).
_MOVES = """
SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'job'::regclass AND conname = 'job_open')
       OR EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'job'::regclass AND tgname = 'job_rules')
"""
_MOVE = f"""
WITH done AS (
    SELECT * FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::bytea[]) AS t (seq, score, emotion, details)
), jobs AS (
    DELETE FROM job WHERE seq = ANY($1::bigint[]) RETURNING seq, leased_at, attempts, crashes
), parts AS ({parts.ERASE_PARTS}), tickets AS ({ERASE_TICKETS}), books AS ({ledger.BOOK_DONE})
INSERT INTO outcome (seq, began_at, ended_at, score, attempts, crashes, emotion, details)
SELECT seq, leased_at, convo_now(), score, attempts + 1, crashes, emotion, details FROM jobs JOIN done USING (seq)
ORDER BY seq
"""
_KEEP = f"""
UPDATE job SET state = 'done', {UNLEASED}, attempts = attempts + 1,
               last_error = NULL, {NOT_PARKED}, ended_at = convo_now(), score = done.score,
               breakdown = done.breakdown, weights_version = done.version
FROM unnest($1::bigint[], $2::integer[], $3::jsonb[], $4::text[]) AS done (seq, score, breakdown, version)
WHERE job.seq = done.seq
"""
# Whoever changes such a score at this moment (promotion) is waited for.
_TAKE_PLACES = """
WITH counted AS MATERIALIZED (
    SELECT seq, score FROM outcome WHERE seq = ANY($1::bigint[]) ORDER BY seq FOR UPDATE
)
UPDATE conversation SET replaced = true FROM counted
WHERE conversation.seq = counted.seq AND conversation.replaced IS NOT TRUE
RETURNING conversation.seq, counted.score
"""
_RELATE = """
INSERT INTO relationship AS r (user_id, bot_id, score, conversations, last_emotion, last_seq, tenant)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::integer[], $5::text[], $6::bigint[], $7::smallint[])
ON CONFLICT (user_id, bot_id, tenant) DO UPDATE SET
    score = r.score + excluded.score,
    conversations = r.conversations + excluded.conversations,
    last_emotion = CASE WHEN excluded.last_seq > r.last_seq THEN excluded.last_emotion ELSE r.last_emotion END,
    last_seq = greatest(r.last_seq, excluded.last_seq),
    updated_at = convo_now()
"""
# Their scores are taken off again, and a relationship that then counts no conversation goes. Where one of them was its
# newest, the newest of those that are left takes its place, with the emotion that settling took from its part.
ERASE_RELATIONSHIPS = (
    """
    UPDATE relationship AS r SET score = r.score - gone.score, conversations = r.conversations - gone.conversations
    FROM (
        SELECT user_id, bot_id, tenant, sum(job.score) AS score, count(*) AS conversations
        FROM conversation JOIN every_job AS job USING (seq)
        WHERE seq = ANY($1::bigint[]) AND state = 'done' AND replaced IS NOT TRUE
        GROUP BY user_id, bot_id, tenant
    ) AS gone
    WHERE r.user_id = gone.user_id AND r.bot_id = gone.bot_id AND r.tenant = gone.tenant
    """,
    """
    DELETE FROM relationship r USING conversation c
    WHERE c.seq = ANY($1::bigint[]) AND r.user_id = c.user_id AND r.bot_id = c.bot_id AND r.tenant = c.tenant
      AND r.conversations = 0
    """,
    f"""
    UPDATE relationship AS r SET last_seq = coalesce(newest.seq, r.last_seq),
                                 last_emotion = coalesce(newest.emotion, '{_NO_EMOTION}')
    FROM (SELECT DISTINCT user_id, bot_id, tenant FROM conversation WHERE seq = ANY($1::bigint[])) AS gone
    LEFT JOIN LATERAL (
        SELECT seq, job.emotion
        FROM conversation c CROSS JOIN LATERAL (
            SELECT state, emotion FROM every_job AS job WHERE job.seq = c.seq OFFSET 0) AS job
        WHERE c.user_id = gone.user_id AND c.bot_id = gone.bot_id AND c.tenant = gone.tenant
          AND job.state = 'done' AND seq <> ALL($1::bigint[])
        ORDER BY seq DESC LIMIT 1
    ) AS newest ON true -- none where the others have been retired
    WHERE r.user_id = gone.user_id AND r.bot_id = gone.bot_id AND r.tenant = gone.tenant
      AND r.last_seq = ANY($1::bigint[])
    """,
)
# What a user has after that is the sum of the conversations that are left: those that ended after the erasure began.
ERASE_USER_RELATIONSHIPS = (
    """
    DELETE FROM relationship r WHERE r.user_id = $1 AND r.tenant = $2 AND NOT EXISTS (
        SELECT FROM conversation c JOIN every_job USING (seq)
        WHERE c.user_id = r.user_id AND c.bot_id = r.bot_id AND c.tenant = r.tenant AND state = 'done')
    """,
    """
    UPDATE relationship r SET score = kept.score, conversations = kept.conversations,
                              retired_score = NULL, retired_conversations = NULL
    FROM (
        SELECT user_id, bot_id, tenant, sum(job.score) AS score, count(*) AS conversations
        FROM conversation JOIN every_job AS job USING (seq)
        WHERE user_id = $1 AND tenant = $2 AND state = 'done' AND replaced IS NOT TRUE
        GROUP BY user_id, bot_id, tenant
    ) AS kept
    WHERE r.user_id = kept.user_id AND r.bot_id = kept.bot_id AND r.tenant = kept.tenant
      AND (r.score, r.conversations, r.retired_conversations) IS DISTINCT FROM (kept.score, kept.conversations, NULL)
    """,
)
