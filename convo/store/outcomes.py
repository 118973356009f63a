"""The outcomes of done jobs: how their details are packed into one column, and how the rows of any job are locked.

Open it to store something else of a done job. ``outcome`` has one row for each, which is appended when the job is
settled. Only a promotion changes it (``store/jobs/promotion.py``). Readers of open and of done jobs look at the view
``every_job``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
import zstandard
from msgspec import Raw, Struct

from convo.analysis.scoring import Breakdown
from convo.conversation.model import PartName
from convo.store.postgres import Connection


class PartRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored part: who made it and when, and what was found; of one that failed ``error`` and no ``result``.

    Its ``version`` is None where ``owed.result_version`` tells it by ``made_by``.
    """

    name: PartName
    state: Literal["done", "failed", "waiting"] = "done"
    made_by: str
    updated_at: datetime
    result: Raw = Raw(b"null")
    new_memories: int = 0
    error: str | None = None
    version: str | None = None


class OutcomeDetails(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is only shown of a done job: ``by`` whom its last lease was held, and what that one waited for, in seconds.

    ``timeline`` says when its longer waits were, as ``jobs/runs.py`` describes; an older program stored none.
    ``by`` is empty where it is not known any more. ``owed`` is the number of its set of parts (``store/owed_sets.py``).
    """

    by: str
    waits: Mapping[str, float] = {}
    timeline: tuple[tuple[str, float, float], ...] = ()
    breakdown: Breakdown
    weights_version: str
    parts: tuple[PartRecord, ...] = ()
    owed: int = 0


# What all details have in common, so that only what is their own takes room. Of 733 bytes (scripts/samples.jsonl, mean)
# 171 are left, and 369 where zstd is not given this. It never changes, or what is stored could not be read: another one
# needs another mark.
_COMMON = (
    b"2026-11-30T00:00:00.000000Z"
    b'{"llm.questions":0.0,"llm.emotion":0.0,"llm.analysis":0.0,"memory.extract":0.0,"analysis.local":0.0,"db.take":0.0}'
    b'"neutral","happy","sad","angry","curious","interesting","scared","excited","surprised","refused":"","judged":false'
    b'{"facts":[{"key":"","text":"Likes ","kind":"like","operation":"ADD"},{"key":"","text":"","kind":"fact"}]}'
    b',"cap":{"max":500,"points":0}},"weights_version":"w1:","parts":[{"name":"questions","made_by":"local/2",'
    b'"updated_at":"2026-11-30T00:00:00.000000Z","result":{"questions":["What is the ","Why do ","How "]}},'
    b'{"name":"emotion","made_by":"local/2","updated_at":"2026-11-30T00:00:00.000000Z","result":{"emotion":"neutral"}},'
    b'{"name":"memories","made_by":"local/2","updated_at":"2026-11-30T00:00:00.000000Z","result":{"facts":[]}}]}'
    b'{"by":"","waits":{"db.log":0.001,"db.part":0.001},"breakdown":{"exchanges":{"count":1,"weight":1,"points":1},'
    b'"questions":{"count":1,"weight":3,"points":3},"memories":{"count":0,"weight":5,"points":0},'
    b'"emotion":{"name":"neutral","points":0},"cap":{"max":500,"points":0}},"weights_version":"w1:"'
)
_LEVEL = 3  # 11 µs; levels 6 and above take 20, and leave 168 bytes
# Details that begin with this byte were packed with _COMMON. Plain JSON begins with "{".
_MARK = b"\x01"
_dictionary = zstandard.ZstdCompressionDict(_COMMON, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
_dictionary.precompute_compress(level=_LEVEL)
# Kept, as their working memory is what costs most. Details are packed and opened by the loop's own thread only.
_compressor = zstandard.ZstdCompressor(level=_LEVEL, dict_data=_dictionary, write_dict_id=False)
_decompressor = zstandard.ZstdDecompressor(dict_data=_dictionary)


def pack_details(details: OutcomeDetails) -> bytes:
    """Pack the details of an outcome."""
    return _MARK + _compressor.compress(msgspec.json.encode(details))


def unpack_details(packed: bytes) -> OutcomeDetails:
    """Return the details that ``pack_details`` packed, or plain ones, as migration 19 makes them."""
    text = _decompressor.decompress(packed[1:]) if packed.startswith(_MARK) else packed
    return msgspec.json.decode(text, type=OutcomeDetails)


def read_parts(text: str | None) -> tuple[PartRecord, ...]:
    """Read the parts of an open job, as ``PARTS_OF_JOB`` selects them."""
    return msgspec.json.decode(text, type=tuple[PartRecord, ...]) if text else ()


PARTS_OF_JOB = "(SELECT json_agg(part) FROM part WHERE part.seq = job.seq)"
"""The rows of ``part`` of a ``job`` as one value, so that a statement sees them at the moment at which it sees the job.

Of a done job there are none: they stand in its details.
"""


async def store_moved(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> int:
    """Store outcomes of done jobs that leave the table of jobs, and pack their plain details; return how many."""
    columns = [[row[name] for row in rows] for name in _COLUMNS]
    await connection.execute(_STORE_MOVED, *columns, [_repacked(row["details"]) for row in rows])
    return len(rows)


def _repacked(plain: bytes) -> bytes:
    # The database writes JSON with spaces, which _COMMON does not have.
    return pack_details(unpack_details(msgspec.json.format(plain, indent=-1)))


async def lock_jobs(connection: Connection, seqs: Sequence[int]) -> None:
    """Keep all others from these jobs, open or done, until the end of this transaction.

    A job that is settled at this moment is waited for. What is read after this finds it where it stands then.
    """
    await connection.fetch(_LOCK_OPEN, list(seqs))
    await connection.fetch(_LOCK_DONE, list(seqs))


async def hold_ended(connection: Connection, seqs: Sequence[int]) -> Sequence[Mapping[str, Any]]:
    """Lock those of these jobs that have ended, but for those that others have locked; return state and end of each."""
    return [row for query in _HOLD_ENDED for row in await connection.fetch(query, list(seqs))]


_COLUMNS = ("seq", "began_at", "ended_at", "score", "attempts", "crashes", "emotion")
_STORE_MOVED = """
INSERT INTO outcome (seq, began_at, ended_at, score, attempts, crashes, emotion, details)
SELECT * FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[], $4::integer[], $5::integer[], $6::integer[],
                     $7::text[], $8::bytea[])
"""
_LOCK_OPEN = "SELECT seq FROM job WHERE seq = ANY($1::bigint[]) ORDER BY seq FOR UPDATE"
_LOCK_DONE = "SELECT seq FROM outcome WHERE seq = ANY($1::bigint[]) ORDER BY seq FOR UPDATE"
_HOLD_ENDED = (
    """
    SELECT seq, state, ended_at FROM job
    WHERE seq = ANY($1::bigint[]) AND state IN ('done', 'dead', 'superseded') ORDER BY seq FOR UPDATE SKIP LOCKED
    """,
    """
    SELECT seq, 'done' AS state, ended_at FROM outcome
    WHERE seq = ANY($1::bigint[]) ORDER BY seq FOR UPDATE SKIP LOCKED
    """,
)
ERASE_OUTCOMES = "DELETE FROM outcome WHERE seq = ANY($1::bigint[])"
