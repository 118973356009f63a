"""The parts of an analysis and the memories they bring; it knows no leases: its callers hold the job."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from convo.conversation.model import Finding, Memories, MemoryFact, Mood, PartName, Questions
from convo.store.postgres import Connection

_SHAPES: dict[PartName, type[Finding]] = {"questions": Questions, "emotion": Mood, "memories": Memories}
# A B-tree entry holds at most 2,704 bytes, the user's id among them.
_KEY_CHARS_MAX = 200


class Owner(Protocol):
    """Whose part it is: the job's ``seq`` and the user it speaks of."""

    @property
    def seq(self) -> int: ...  # noqa: D102
    @property
    def user_id(self) -> str: ...  # noqa: D102


def finding(name: PartName, result: str) -> Finding:
    """Read a stored result back."""
    return msgspec.json.decode(result, type=_SHAPES[name])


async def found(connection: Connection, seqs: Sequence[int]) -> dict[int, dict[PartName, Finding]]:
    """Read the findings that these jobs have already, by ``seq`` and part."""
    stored: dict[int, dict[PartName, Finding]] = {}
    for row in await connection.fetch(_FOUND, seqs):
        stored.setdefault(row["seq"], {})[row["name"]] = finding(row["name"], row["result"])
    return stored


async def store(connection: Connection, owner: Owner, name: PartName, by: str, result: Finding) -> None:
    """Store one part's finding; a memories part also stores its memories and how many of them were new."""
    new = await _remember(connection, owner, result.facts) if isinstance(result, Memories) else 0
    await connection.execute(_STORE, owner.seq, name, by, msgspec.json.encode(result).decode(), new)


async def store_failures(connection: Connection, seq: int, failed: Mapping[PartName, tuple[str, str]]) -> None:
    """Store of each failed part who tried and why it failed; a part that is done stays done."""
    for name, (by, reason) in failed.items():
        await connection.execute(_STORE_FAILURE, seq, name, by, reason)


async def _remember(connection: Connection, owner: Owner, facts: Sequence[MemoryFact]) -> int:
    """Apply the facts to what is known of the user; return how many rows were inserted.

    One conversation of a user at a time: two of them may touch the same rows in different orders.
    """
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", owner.user_id)
    by_operation: dict[str, dict[str, MemoryFact]] = {"ADD": {}, "UPDATE": {}, "DELETE": {}, "NONE": {}}
    for fact in sorted(facts, key=lambda fact: fact.key):
        by_operation[fact.operation][_key(fact.key)] = fact
    added, changed, gone = by_operation["ADD"], by_operation["UPDATE"], by_operation["DELETE"]
    if changed:
        texts = [fact.text for fact in changed.values()]
        await connection.execute(_CHANGE, owner.user_id, list(changed), texts)
    if gone:
        await connection.execute("DELETE FROM memory WHERE user_id = $1 AND key = ANY($2)", owner.user_id, list(gone))
    if not added:
        return 0
    kinds, texts = [fact.kind for fact in added.values()], [fact.text for fact in added.values()]
    return len(await connection.fetch(_REMEMBER, owner.user_id, owner.seq, list(added), kinds, texts))


def _key(key: str) -> str:
    return key if len(key) <= _KEY_CHARS_MAX else "sha256:" + hashlib.sha256(key.encode()).hexdigest()


_FOUND = "SELECT seq, name, result FROM part WHERE seq = ANY($1::bigint[]) AND state = 'done'"
_STORE = """
INSERT INTO part (seq, name, state, made_by, result, new_memories) VALUES ($1, $2, 'done', $3, $4, $5)
ON CONFLICT (seq, name) DO UPDATE SET state = 'done', made_by = $3, result = $4, new_memories = $5, error = NULL,
                                      updated_at = convo_now()
WHERE part.state <> 'done'
"""
_STORE_FAILURE = """
INSERT INTO part (seq, name, state, made_by, error) VALUES ($1, $2, 'failed', $3, $4)
ON CONFLICT (seq, name) DO UPDATE SET made_by = $3, error = $4, updated_at = convo_now()
WHERE part.state <> 'done'
"""
_CHANGE = """
UPDATE memory SET text = changed.text
FROM unnest($2::text[], $3::text[]) AS changed (key, text)
WHERE memory.user_id = $1 AND memory.key = changed.key
"""
_REMEMBER = """
INSERT INTO memory (user_id, key, kind, text, seq)
SELECT $1, new.key, new.kind, new.text, $2 FROM unnest($3::text[], $4::text[], $5::text[]) AS new (key, kind, text)
ON CONFLICT (user_id, key) DO NOTHING
RETURNING memory_seq
"""
