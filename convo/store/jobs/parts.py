"""Storing what an analysis found: the rows of its parts.

Open it to change how a part is stored; what a part brings for its user's memories stands in ``store/jobs/memories.py``.
Its callers hold the job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from convo.analysis.part import FINDINGS, StoredFinding
from convo.conversation.model import Answered, Finding, Memories, PartName
from convo.conversation.tenant import Tenant
from convo.errors import BadRow
from convo.store.jobs import memories
from convo.store.jobs.lease import Lease
from convo.store.jobs.memories import MemoriesRow
from convo.store.outcomes import PartRecord
from convo.store.postgres import Connection


class PartRow(Struct, frozen=True, kw_only=True):
    """One part that was found: of which job and user, by whom, and what it is; ``again`` as in ``MemoriesRow``.

    ``version`` is None for a default part.
    """

    seq: int
    tenant: Tenant
    user_id: str
    name: PartName
    by: str
    finding: Finding
    again: bool = False
    version: str | None = None


def part_row(lease: Lease, name: PartName, by: str, found: Finding) -> PartRow:
    """Return what one part found as it is stored for the job of ``lease``."""
    return PartRow(
        seq=lease.seq,
        tenant=lease.tenant,
        user_id=lease.user_id,
        name=name,
        by=by,
        finding=found,
        again=lease.replaces is not None,
        version=lease.owed.version(name),
    )


def finding(name: PartName, result: str | bytes) -> Finding:
    """Read a stored result back."""
    return msgspec.json.decode(result, type=FINDINGS.get(name, Answered))


async def found(connection: Connection, seqs: Sequence[int]) -> dict[int, dict[PartName, StoredFinding]]:
    """Read what these jobs have found already, by ``seq`` and part."""
    records = await found_records(connection, seqs)
    return {seq: {name: stored_finding(one) for name, one in of_job.items()} for seq, of_job in records.items()}


async def found_records(connection: Connection, seqs: Sequence[int]) -> dict[int, dict[PartName, PartRecord]]:
    """Read what these jobs have found already, and who found it when, by ``seq`` and part."""
    records: dict[int, dict[PartName, PartRecord]] = {}
    for row in await connection.fetch(_FOUND, seqs):
        result = msgspec.Raw(row["result"].encode())
        one = PartRecord(**{name: row[name] for name in _RECORD}, result=result)
        records.setdefault(row["seq"], {})[one.name] = one
    return records


def stored_finding(part: PartRecord) -> StoredFinding:
    """Return what a part found that is done."""
    return StoredFinding(finding(part.name, part.result), part.new_memories)


# As JSON, and not the six characters themselves.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")

Resolved = Sequence[tuple[PartRow, StoredFinding]]
"""Parts as they are to be stored: of memories it is known how many are new."""


async def store(connection: Connection, found: Sequence[PartRow]) -> None:
    """Store these parts; a memories part also stores its memories and how many of them were new."""
    await insert(connection, await resolve(connection, found))


async def resolve(connection: Connection, found: Sequence[PartRow]) -> Resolved:
    """Store the memories of these parts; return each part once, as it is to be stored.

    Raises:
        BadRow: one holds a NUL character. ``part`` takes none, and an outcome would: the same finding must not be good
            or bad by where it is stored.
    """
    unique = list({(one.seq, one.name): one for one in reversed(found)}.values())[::-1]
    remembered = await memories.remember(
        connection,
        [
            MemoriesRow(seq=one.seq, tenant=one.tenant, user_id=one.user_id, memories=one.finding, again=one.again)
            for one in unique
            if isinstance(one.finding, Memories)
        ],
    )
    if any(_NUL.search(msgspec.json.encode(one.finding)) for one in unique):
        raise BadRow("the database refuses the content: a NUL character (SQLSTATE 22P05)", sqlstate="22P05")
    return [
        (one, remembered[one.seq] if isinstance(one.finding, Memories) else StoredFinding(one.finding))
        for one in unique
    ]


async def insert(connection: Connection, found: Resolved) -> None:
    """Store parts of open jobs."""
    await connection.execute(
        _STORE,
        [row.seq for row, _ in found],
        [row.name for row, _ in found],
        [row.by for row, _ in found],
        [msgspec.json.encode(one.finding).decode() for _, one in found],
        [one.new_memories for _, one in found],
        [row.version for row, _ in found],
    )


async def store_failures(connection: Connection, seq: int, failed: Mapping[PartName, tuple[str, str]]) -> None:
    """Store for each failed part who tried it and why it failed; a part that is done stays done."""
    for name, (by, reason) in failed.items():
        await connection.execute(_STORE_FAILURE, seq, name, by, reason)


_RECORD = ("name", "made_by", "updated_at", "new_memories", "version")
_FOUND = """
SELECT seq, name, made_by, updated_at, result, new_memories, version
FROM part WHERE seq = ANY($1::bigint[]) AND state = 'done'
"""
_STORE = """
INSERT INTO part (seq, name, state, made_by, result, new_memories, version)
SELECT seq, name, 'done', made_by, result, new_memories, version
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::jsonb[], $5::integer[], $6::text[])
    AS found (seq, name, made_by, result, new_memories, version)
ON CONFLICT (seq, name) DO UPDATE SET state = 'done', made_by = excluded.made_by, result = excluded.result,
                                      new_memories = excluded.new_memories, version = excluded.version,
                                      error = NULL, updated_at = convo_now()
WHERE part.state <> 'done'
"""
_STORE_FAILURE = """
INSERT INTO part (seq, name, state, made_by, error) VALUES ($1, $2, 'failed', $3, $4)
ON CONFLICT (seq, name) DO UPDATE SET made_by = $3, error = $4, updated_at = convo_now()
WHERE part.state <> 'done'
"""
ERASE_PARTS = "DELETE FROM part WHERE seq = ANY($1::bigint[])"
