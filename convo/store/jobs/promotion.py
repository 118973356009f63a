"""Candidates: how they compare with the current results, and how one takes the place of its current result, once.

Open it to change what a promotion moves. A candidate is promoted in the transaction that changes the outcome, moves the
relationship by the difference, and books it in the audit log. A second promotion finds nothing to do.

The score is made anew of all parts, by the weights of now. Memories count as new that were first seen in this
conversation, in any of its runs: those of the run before, and what this one adds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct, structs

from convo.analysis.differing import differing_fields
from convo.analysis.part import StoredFinding, emotion_of
from convo.analysis.scoring import Score, score
from convo.conversation.model import Finding, Memories, PartName
from convo.conversation.owed import DeclaredPart, Owed, owed_of
from convo.conversation.score import Weights
from convo.conversation.tenant import Tenant, tenant_of
from convo.store import audit_log, outcomes
from convo.store.audit_log import AuditEntry
from convo.store.jobs import memories, parts
from convo.store.jobs.memories import MemoriesRow
from convo.store.jobs.part_jobs import ERASE_PART_JOB
from convo.store.jobs.reruns import Rerun, current_record
from convo.store.outbox import Outbox, UserKey
from convo.store.outcomes import OutcomeDetails, PartRecord, pack_details, unpack_details
from convo.store.owed_sets import OwedSets
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.reaching import TENANT_NAME

_PAGE_ROWS = 50
# What a user felt about a conversation of which no part says it, as in settle.
_NO_EMOTION = "neutral"


class Compared(Struct, frozen=True, kw_only=True):
    """A candidate beside the current result, which is None where there is none.

    ``differs`` names the fields by which they differ; ``moves`` is what a promotion would add to the score.
    """

    conversation_id: str
    current: Finding | None
    candidate: Finding
    differs: tuple[str, ...]
    moves: int
    made_by: str
    seconds: float


class Promoted(Struct, frozen=True, kw_only=True):
    """What a promotion did: how many results took the place of others, and by how much scores moved in all."""

    conversations: int = 0
    moved: int = 0
    points: int = 0

    def __add__(self, other: Promoted) -> Promoted:
        return Promoted(
            conversations=self.conversations + other.conversations,
            moved=self.moved + other.moved,
            points=self.points + other.points,
        )


class _Change(Struct, frozen=True, kw_only=True):
    """What a promotion makes of one conversation."""

    seq: int
    conversation_id: str
    user_id: str
    bot_id: str
    tenant: Tenant
    counts: bool
    before: int
    score: Score
    emotion: str | None
    details: OutcomeDetails
    owed: Owed
    stored: Mapping[PartName, StoredFinding]

    @property
    def difference(self) -> int:
        return self.score.value - self.before


class Promotion:
    """Compares and promotes the candidates of one re-run."""

    def __init__(self, postgres: Postgres, rerun: Rerun, weights: Weights, owed_sets: OwedSets, outbox: Outbox) -> None:
        self._postgres = postgres
        self._rerun = rerun
        self._weights = weights
        self._owed_sets = owed_sets
        self._outbox = outbox

    async def compared(self) -> AsyncIterator[Compared]:
        """Yield each candidate that is done beside its current result, page by page."""
        after = 0

        async def page(connection: Connection) -> list[tuple[Mapping[str, Any], _Change]]:
            rows = await connection.fetch(_DONE, self._rerun.number, after, _PAGE_ROWS)
            await self._load(connection, rows)
            return [(row, self._changed(row, self._finding(row), new=None)) for row in rows]

        while True:
            rows = await self._postgres.run("db.reruns", page, begin=RELAXED)
            for row, change in rows:
                yield self._compared(row, change)
            if len(rows) < _PAGE_ROWS:
                return
            after = rows[-1][0]["seq"]

    def _compared(self, row: Mapping[str, Any], change: _Change) -> Compared:
        record = current_record(row["details"], self._rerun.part)
        current = None if record is None else parts.stored_finding(record).finding
        candidate = self._finding(row)
        return Compared(
            conversation_id=row["conversation_id"],
            current=current,
            candidate=candidate,
            differs=() if current is None else differing_fields(current, candidate),
            moves=change.difference,
            made_by=row["made_by"],
            seconds=row["seconds"] or 0.0,
        )

    async def promote(self) -> Promoted:
        """Let each candidate that is done take the place of the current result; return what that did."""
        done, after = Promoted(), 0
        while True:
            page, last, rows = await self._promote_page(after)
            done += page
            if rows < _PAGE_ROWS:
                return done
            after = last

    async def _promote_page(self, after: int) -> tuple[Promoted, int, int]:
        async def body(connection: Connection) -> tuple[Promoted, int, int]:
            page = [row["seq"] for row in await connection.fetch(_SEQS, self._rerun.number, after, _PAGE_ROWS)]
            if not page:
                return Promoted(), after, 0
            # A revision that is settled at this moment, an erasure or retention is waited for.
            await outcomes.lock_jobs(connection, page)
            rows = await connection.fetch(_LOCKED, self._rerun.number, page, self._rerun.part)
            await self._load(connection, rows)
            new = await self._remembered(connection, rows)
            changes = [self._changed(row, self._finding(row), new=new.get(row["seq"])) for row in rows]
            await self._store(connection, changes)
            moved = [one for one in changes if one.difference]
            points = sum(one.difference for one in moved if one.counts)
            return Promoted(conversations=len(changes), moved=len(moved), points=points), page[-1], len(page)

        return await self._postgres.run("db.promote", body)

    async def _load(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        numbers = {unpack_details(row["details"]).owed for row in rows}
        await self._owed_sets.load(connection, {*numbers, self._rerun.owed})

    def _finding(self, row: Mapping[str, Any]) -> Finding:
        return parts.finding(self._rerun.part, row["result"])

    async def _remembered(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> dict[int, StoredFinding]:
        """Apply what memories say; return each with what is new by it: what the run before had, and what is added."""
        found = [
            MemoriesRow(seq=row["seq"], tenant=_tenant(row), user_id=row["user_id"], memories=finding, again=True)
            for row in rows
            if isinstance(finding := self._finding(row), Memories)
        ]
        if not found:
            return {}
        await memories.lock_users(connection, [one.own_user for one in found])
        before = await memories.first_seen_in(connection, found)
        stored = await memories.remember(connection, found)
        had = {row["seq"]: current_record(row["details"], self._rerun.part) for row in rows}
        return {
            seq: StoredFinding(
                one.finding,
                (record.new_memories if (record := had[seq]) is not None else before[seq])
                + one.new_memories
                - before[seq],
            )
            for seq, one in stored.items()
        }

    def _changed(self, row: Mapping[str, Any], finding: Finding, *, new: StoredFinding | None) -> _Change:
        """Return the conversation with the candidate in the place of its current result."""
        name, details = self._rerun.part, unpack_details(row["details"])
        had = current_record(row["details"], name)
        stored = new if new is not None else StoredFinding(finding, had.new_memories if had is not None else 0)
        owed = self._owed(self._owed_sets.get(details.owed))
        record = PartRecord(
            name=name,
            made_by=row["made_by"],
            updated_at=row["updated_at"],
            result=Raw(msgspec.json.encode(stored.finding)),
            new_memories=stored.new_memories,
            version=owed.version(name),
        )
        others = [one for one in details.parts if one.name != name]
        place = next((at for at, one in enumerate(details.parts) if one.name == name), len(others))
        records = (*others[:place], record, *others[place:])
        of_parts = {one.name: parts.stored_finding(one) for one in records if one.state == "done"}
        found = score(row["exchanges"], of_parts, self._weights, owed)
        return _Change(
            seq=row["seq"],
            conversation_id=row["conversation_id"],
            user_id=row["user_id"],
            bot_id=row["bot_id"],
            tenant=_tenant(row),
            counts=not row["replaced"],
            before=row["score"],
            score=found,
            emotion=next(filter(None, map(emotion_of, of_parts.values())), None),
            details=structs.replace(
                details,
                parts=records,
                breakdown=found.breakdown,
                weights_version=found.weights_version,
                owed=owed.number,
            ),
            owed=owed,
            stored=of_parts,
        )

    def _owed(self, before: Owed) -> Owed:
        """Return what the conversation is owed with the part as it was asked now."""
        declared = self._owed_sets.get(self._rerun.owed).asked[self._rerun.part]
        if not self._rerun.owed and not before.number:
            return before
        if declared in before.parts:
            return before
        every: list[DeclaredPart] = [declared if one.name == declared.name else one for one in before.parts]
        return owed_of(every if declared in every else [*every, declared])

    async def _store(self, connection: Connection, changes: Sequence[_Change]) -> None:
        seqs = [one.seq for one in changes]
        await self._owed_sets.store(connection, [one.owed for one in changes])
        await connection.execute(
            _CHANGE,
            seqs,
            [one.score.value for one in changes],
            [one.emotion for one in changes],
            [pack_details(one.details) for one in changes],
        )
        await connection.execute(_PROMOTED, seqs, self._rerun.part, [one.difference for one in changes])
        await connection.execute(ERASE_PART_JOB, seqs, self._rerun.part)
        await _move_relationships(connection, [one for one in changes if one.counts])
        await self._book(connection, changes)
        await self._outbox.append_analysed(
            connection, {one.seq: one.score for one in changes}, {one.seq: one.stored for one in changes}
        )
        added: Counter[UserKey] = Counter()
        for one in changes:
            if one.counts and one.difference:
                added[one.tenant.number, one.user_id] += one.difference
        await self._outbox.append_levels(connection, added)

    async def _book(self, connection: Connection, changes: Sequence[_Change]) -> None:
        tenants = {one.tenant.number: one.tenant for one in changes}
        for number, tenant in sorted(tenants.items()):
            own = [one for one in changes if one.tenant.number == number]
            detail = {
                "part": self._rerun.part,
                "version": self._rerun.version,
                "conversations": len(own),
                "points": sum(one.difference for one in own if one.counts),
            }
            await audit_log.append(connection, AuditEntry(action="promote", tenant=tenant, detail=detail))


def _tenant(row: Mapping[str, Any]) -> Tenant:
    return tenant_of(row["tenant"], row["tenant_name"])


async def _move_relationships(connection: Connection, changes: Sequence[_Change]) -> None:
    """Add the differences to the relationships: one row for each user and bot, in the order in which settles lock."""
    sums: Counter[tuple[str, str, int]] = Counter()
    for one in changes:
        sums[one.user_id, one.bot_id, one.tenant.number] += one.difference
    keys = sorted(sums)
    columns = [[key[at] for key in keys] for at in range(3)]
    await connection.execute(_LOCK_RELATIONSHIPS, *columns)
    await connection.execute(_RELATE, *columns, [sums[key] for key in keys])
    emotions = [one.emotion or _NO_EMOTION for one in changes]
    await connection.execute(_FEEL, [one.seq for one in changes], emotions)


_COLUMNS = f"""
candidate.seq, candidate.made_by, candidate.result::text AS result, candidate.seconds, candidate.updated_at,
o.score, o.details, c.conversation_id, c.user_id, c.bot_id, c.exchanges, c.replaced, c.tenant,
{TENANT_NAME.format("nullif(c.tenant, 0)")} AS tenant_name
"""
_SEQS = "SELECT seq FROM candidate WHERE rerun = $1 AND state = 'done' AND seq > $2 ORDER BY seq LIMIT $3"
# candidate_of, and one look-up for each.
_DONE = f"""
SELECT {_COLUMNS}
FROM (SELECT * FROM candidate WHERE rerun = $1 AND state = 'done' AND seq > $2 ORDER BY seq LIMIT $3) AS candidate
JOIN outcome AS o USING (seq) JOIN conversation AS c USING (seq) ORDER BY candidate.seq
"""
_LOCKED = f"""
SELECT {_COLUMNS}
FROM candidate JOIN outcome AS o USING (seq) JOIN conversation AS c USING (seq)
WHERE candidate.rerun = $1 AND candidate.seq = ANY($2::bigint[]) AND candidate.part = $3 AND candidate.state = 'done'
ORDER BY candidate.seq FOR UPDATE OF candidate
"""
_CHANGE = """
UPDATE outcome SET score = changed.score, emotion = changed.emotion, details = changed.details
FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::bytea[]) AS changed (seq, score, emotion, details)
WHERE outcome.seq = changed.seq
"""
_PROMOTED = """
UPDATE candidate SET state = 'promoted', points = moved.points, updated_at = convo_now()
FROM unnest($1::bigint[], $3::integer[]) AS moved (seq, points)
WHERE candidate.seq = moved.seq AND candidate.part = $2 AND candidate.state = 'done'
"""
_LOCK_RELATIONSHIPS = """
SELECT FROM relationship JOIN unnest($1::text[], $2::text[], $3::smallint[]) AS mine (user_id, bot_id, tenant)
    USING (user_id, bot_id, tenant)
ORDER BY user_id, bot_id, tenant FOR UPDATE OF relationship
"""
_RELATE = """
UPDATE relationship AS r SET score = r.score + moved.points, updated_at = convo_now()
FROM unnest($1::text[], $2::text[], $3::smallint[], $4::bigint[]) AS moved (user_id, bot_id, tenant, points)
WHERE r.user_id = moved.user_id AND r.bot_id = moved.bot_id AND r.tenant = moved.tenant AND moved.points <> 0
"""
_FEEL = """
UPDATE relationship AS r SET last_emotion = felt.emotion
FROM unnest($1::bigint[], $2::text[]) AS felt (seq, emotion) JOIN conversation AS c USING (seq)
WHERE r.user_id = c.user_id AND r.bot_id = c.bot_id AND r.tenant = c.tenant AND r.last_seq = felt.seq
  AND r.last_emotion <> felt.emotion
"""
