"""The parts of an analysis and the memories they bring; it knows no leases: its callers hold the job."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from convo.conversation.model import Finding, Memories, MemoryFact, Mood, PartName, Questions
from convo.store.postgres import Connection

_SHAPES: dict[PartName, type[Finding]] = {"questions": Questions, "emotion": Mood, "memories": Memories}
# A B-tree entry holds at most 2,704 bytes, the user's id among them.
_KEY_CHARS_MAX = 200


class Found(Struct, frozen=True, kw_only=True):
    """One part that was found: of which job, of which user it speaks, and who found it."""

    seq: int
    user_id: str
    name: PartName
    by: str
    finding: Finding


def finding(name: PartName, result: str) -> Finding:
    """Read a stored result back."""
    return msgspec.json.decode(result, type=_SHAPES[name])


async def found(connection: Connection, seqs: Sequence[int]) -> dict[int, dict[PartName, Finding]]:
    """Read the findings that these jobs have already, by ``seq`` and part."""
    stored: dict[int, dict[PartName, Finding]] = {}
    for row in await connection.fetch(_FOUND, seqs):
        stored.setdefault(row["seq"], {})[row["name"]] = finding(row["name"], row["result"])
    return stored


async def store(connection: Connection, found: Sequence[Found]) -> None:
    """Store these parts; a memories part also stores its memories and how many of them were new."""
    unique = list({(one.seq, one.name): one for one in reversed(found)}.values())[::-1]
    new = await _remember(connection, unique)
    await connection.execute(
        _STORE,
        [one.seq for one in unique],
        [one.name for one in unique],
        [one.by for one in unique],
        [msgspec.json.encode(one.finding).decode() for one in unique],
        [new[one.seq] if one.name == "memories" else 0 for one in unique],
    )


async def store_failures(connection: Connection, seq: int, failed: Mapping[PartName, tuple[str, str]]) -> None:
    """Store of each failed part who tried and why it failed; a part that is done stays done."""
    for name, (by, reason) in failed.items():
        await connection.execute(_STORE_FAILURE, seq, name, by, reason)


async def _remember(connection: Connection, found: Sequence[Found]) -> Counter[int]:
    """Apply the facts to what is known of the users; return how many rows were inserted for each ``seq``.

    One conversation of a user at a time, also among processes: two of them may touch the same rows in different orders.
    """
    new: Counter[int] = Counter()
    remembering = sorted((one for one in found if isinstance(one.finding, Memories)), key=lambda one: one.user_id)
    if remembering:
        await connection.execute(_LOCK_USERS, [one.user_id for one in remembering])
    for turn in _turns(remembering):
        if changed := _facts(turn, "UPDATE"):
            await connection.execute(_CHANGE, *_columns(changed, "text"))
        if gone := _facts(turn, "DELETE"):
            await connection.execute(_FORGET, *_columns(gone))
        if added := _facts(turn, "ADD"):
            seqs = [one.seq for one, _, _ in added]
            rows = await connection.fetch(_REMEMBER, *_columns(added, "kind", "text"), seqs)
            new.update(row["seq"] for row in rows)
    return new


def _turns(found: Sequence[Found]) -> Iterator[list[Found]]:
    """Divide them so that each user is there once a turn, mostly in one."""
    while found:
        first = list({one.user_id: one for one in reversed(found)}.values())[::-1]
        yield first
        found = [one for one in found if one not in first]


_Fact = tuple[Found, str, MemoryFact]


def _facts(found: Sequence[Found], operation: Literal["ADD", "UPDATE", "DELETE"]) -> list[_Fact]:
    """List the facts of one operation, each with whose it is and its key: in the order in which rows are locked."""
    facts: list[_Fact] = []
    for one in found:
        if isinstance(one.finding, Memories):
            of_key = {_key(fact.key): fact for fact in one.finding.facts if fact.operation == operation}
            facts += [(one, key, fact) for key, fact in sorted(of_key.items())]
    return facts


def _columns(facts: Sequence[_Fact], *fields: str) -> list[list[str]]:
    users, keys = [one.user_id for one, _, _ in facts], [key for _, key, _ in facts]
    return [users, keys, *([getattr(fact, field) for _, _, fact in facts] for field in fields)]


def _key(key: str) -> str:
    return key if len(key) <= _KEY_CHARS_MAX else "sha256:" + hashlib.sha256(key.encode()).hexdigest()


_FOUND = "SELECT seq, name, result FROM part WHERE seq = ANY($1::bigint[]) AND state = 'done'"
_STORE = """
INSERT INTO part (seq, name, state, made_by, result, new_memories)
SELECT seq, name, 'done', made_by, result, new_memories
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::jsonb[], $5::integer[])
    AS found (seq, name, made_by, result, new_memories)
ON CONFLICT (seq, name) DO UPDATE SET state = 'done', made_by = excluded.made_by, result = excluded.result,
                                      new_memories = excluded.new_memories, error = NULL, updated_at = convo_now()
WHERE part.state <> 'done'
"""
_STORE_FAILURE = """
INSERT INTO part (seq, name, state, made_by, error) VALUES ($1, $2, 'failed', $3, $4)
ON CONFLICT (seq, name) DO UPDATE SET made_by = $3, error = $4, updated_at = convo_now()
WHERE part.state <> 'done'
"""
_LOCK_USERS = """
SELECT pg_advisory_xact_lock(key)
FROM (SELECT DISTINCT hashtextextended(user_id, 0) AS key FROM unnest($1::text[]) AS user_id ORDER BY key) AS sorted
"""
_CHANGE = """
UPDATE memory SET text = changed.text
FROM unnest($1::text[], $2::text[], $3::text[]) AS changed (user_id, key, text)
WHERE memory.user_id = changed.user_id AND memory.key = changed.key
"""
_FORGET = """
DELETE FROM memory USING unnest($1::text[], $2::text[]) AS gone (user_id, key)
WHERE memory.user_id = gone.user_id AND memory.key = gone.key
"""
_REMEMBER = """
INSERT INTO memory (user_id, key, kind, text, seq)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])
ON CONFLICT (user_id, key) DO NOTHING
RETURNING seq
"""
