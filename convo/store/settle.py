"""Settling: score and relationship of finished jobs, once, several in one transaction; it knows no analyst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import trio
from msgspec import Struct

from convo.conversation.model import Finding, Mood, PartName, Questions
from convo.conversation.score import Score, Weights, score
from convo.errors import ConvoError, DatabaseUnavailable
from convo.store import ledger, parts, runs
from convo.store.group import Group
from convo.store.jobs import Lease, hold, lost
from convo.store.postgres import Connection, Postgres
from convo.store.runs import Waits
from convo.store.states import NOT_PARKED, UNLEASED

_ROWS_MAX = 64
_NO_WAITS: Waits = {}


class Settler:
    """Settles the jobs of several workers in one transaction."""

    def __init__(self, postgres: Postgres, weights: Weights) -> None:
        self._postgres = postgres
        self._weights = weights
        self._group: Group[tuple[Lease, Waits], Score] = Group(
            self._commit,
            rows_max=_ROWS_MAX,
            bytes_max=_ROWS_MAX,
            unit_seconds=postgres.unit_seconds,
            item_bytes=lambda _: 1,
        )

    async def settle(self, lease: Lease, waits: Waits = _NO_WAITS) -> Score:
        """End a job whose three parts are stored: store its score, and add it to the user's relationship, exactly once.

        ``waits`` are the seconds that its work spent in each named wait, noted with its run.

        Raises:
            LeaseLost: the job is no longer ours; nothing was stored.
            DatabaseUnavailable, DeadlineExceeded, Draining: nothing is known to be stored; or a crash of the database
                lost one of the parts, which has to be found again.
        """
        return await self._group.submit((lease, waits))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Settle batch after batch until cancelled."""
        await self._group.run(task_status=task_status)

    async def _commit(self, items: Sequence[tuple[Lease, Waits]]) -> list[Score | ConvoError]:
        batch = [lease for lease, _ in items]
        waited = {lease.token: waits for lease, waits in items}

        async def body(connection: Connection) -> dict[int, Score]:
            tokens = await hold(connection, batch)
            held = {lease.seq: lease for lease in batch if lease.token in tokens}
            stored = await _parts(connection, sorted(held))
            scores = {seq: self._score(held[seq], stored.get(seq, {})) for seq in sorted(held)}
            final = {seq: found for seq, found in scores.items() if found.final}
            await runs.note_settled(connection, [(seq, waited[held[seq].token]) for seq in final])
            await _store(connection, final)
            await _relate(connection, held, final, stored)
            await ledger.book(connection, "done", list(final))
            return {held[seq].token: found for seq, found in scores.items()}

        scores = await self._postgres.run("db.settle", body)
        return [_outcome(lease, scores.get(lease.token)) for lease in batch]

    def _score(self, lease: Lease, stored: Mapping[PartName, _Stored]) -> Score:
        questions, mood, memories = (stored.get(name) for name in ("questions", "emotion", "memories"))
        return score(
            exchanges=lease.exchanges,
            questions=len(questions.finding.questions)
            if questions and isinstance(questions.finding, Questions)
            else None,
            new_memories=memories.new_memories if memories else None,
            emotion=mood.finding.emotion if mood and isinstance(mood.finding, Mood) else None,
            weights=self._weights,
        )


class _Stored(Struct, frozen=True):
    finding: Finding
    new_memories: int


def _outcome(lease: Lease, found: Score | None) -> Score | ConvoError:
    if found is None:
        return lost(lease)
    if not found.final:
        # Parts commit without waiting for the disk: a crash of the database can forget one and still know its lease.
        return DatabaseUnavailable(f"the database lost a part of conversation {lease.conversation_id!r}")
    return found


async def _parts(connection: Connection, seqs: Sequence[int]) -> dict[int, dict[PartName, _Stored]]:
    stored: dict[int, dict[PartName, _Stored]] = {}
    for row in await connection.fetch(_PARTS, seqs):
        finding = parts.finding(row["name"], row["result"])
        stored.setdefault(row["seq"], {})[row["name"]] = _Stored(finding, row["new_memories"])
    return stored


async def _store(connection: Connection, scores: Mapping[int, Score]) -> None:
    breakdowns = [msgspec.json.encode(found.breakdown).decode() for found in scores.values()]
    values = [found.value for found in scores.values()]
    versions = [found.weights_version for found in scores.values()]
    await connection.execute(_SETTLE, list(scores), values, breakdowns, versions)


async def _relate(
    connection: Connection,
    held: Mapping[int, Lease],
    scores: Mapping[int, Score],
    stored: Mapping[int, Mapping[PartName, _Stored]],
) -> None:
    """Add the scores to the relationships: one row a user and bot, sorted, or two settlers would deadlock."""
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for seq in sorted(scores):
        lease, mood = held[seq], stored[seq]["emotion"].finding
        row = sums.setdefault((lease.user_id, lease.bot_id), {"score": 0, "conversations": 0})
        row["score"] += scores[seq].value
        row["conversations"] += 1
        row["last_seq"] = seq
        row["last_emotion"] = mood.emotion if isinstance(mood, Mood) else "neutral"
    keys = sorted(sums)
    columns = [[sums[key][name] for key in keys] for name in ("score", "conversations", "last_emotion", "last_seq")]
    await connection.execute(_RELATE, [user for user, _ in keys], [bot for _, bot in keys], *columns)


_PARTS = "SELECT seq, name, result, new_memories FROM part WHERE seq = ANY($1::bigint[]) AND state = 'done'"
_SETTLE = f"""
UPDATE job SET state = 'done', {UNLEASED}, attempts = attempts + 1,
               last_error = NULL, {NOT_PARKED}, ended_at = convo_now(), score = done.score,
               breakdown = done.breakdown, weights_version = done.version
FROM unnest($1::bigint[], $2::integer[], $3::jsonb[], $4::text[]) AS done (seq, score, breakdown, version)
WHERE job.seq = done.seq
"""
_RELATE = """
INSERT INTO relationship AS r (user_id, bot_id, score, conversations, last_emotion, last_seq)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::integer[], $5::text[], $6::bigint[])
ON CONFLICT (user_id, bot_id) DO UPDATE SET
    score = r.score + excluded.score,
    conversations = r.conversations + excluded.conversations,
    last_emotion = CASE WHEN excluded.last_seq > r.last_seq THEN excluded.last_emotion ELSE r.last_emotion END,
    last_seq = greatest(r.last_seq, excluded.last_seq),
    updated_at = convo_now()
"""
