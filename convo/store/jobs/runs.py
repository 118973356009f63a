"""The history of a job: one row for each lease that ended, with who had it, how it ended and what it waited for.

Open it when an ending needs other facts in ``explain``. It changes no job. The lease under which a job is done has
none: it stands in the job's outcome (``store/outcomes.py``), so most jobs leave no run at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from convo.store.postgres import Connection

Ending = Literal["settle", "fail", "bury", "park", "release", "rescue", "crash"]
Waits = Mapping[str, float]
"""Seconds spent in each named wait."""

NO_WAITS: Waits = {}

NOTE_RESCUED = """
    INSERT INTO run (seq, began_at, ending, made_by, reason)
    SELECT seq, leased_at, 'rescue', leased_by, 'its process was silent' FROM silent
"""
"""For a statement that takes leases back: ``silent`` are their rows."""

CRASHED = "its process is gone"
"""The reason in a run whose process is known to be dead."""

# A scalar sub-select and no EXISTS: the planner may hash an EXISTS, and would read the whole table for it.
ASKED_BEFORE = """
    (job.attempts > 0 OR coalesce((
        SELECT true FROM run WHERE run.seq = job.seq AND (run.ending <> 'park' OR run.waits ? 'memory.extract') LIMIT 1
    ), false))
"""
"""Whether an earlier lease of ``job`` may have asked the memory service. Only of a parked run is it known that it did
not: most jobs are parked because a breaker is open."""

# As LogStore.ERASE: each number opens its own partition.
ERASE_RUNS = "DELETE FROM run USING unnest($1::bigint[]) AS gone (seq) WHERE run.seq = gone.seq"


async def note(connection: Connection, ending: Ending, seq: int, reason: str | None, waits: Waits) -> None:
    """Note how a lease ends, while the job's row still holds who had it and since when."""
    await connection.execute(_NOTE, [seq], ending, reason, [_text(waits)])


async def note_settled(connection: Connection, runs: Sequence[tuple[int, Waits]]) -> None:
    """Note that these leases end with a settle; for as long as done jobs stay in ``job`` (migration 19)."""
    await connection.execute(_NOTE, [seq for seq, _ in runs], "settle", None, [_text(waits) for _, waits in runs])


def rounded(waits: Waits) -> dict[str, float]:
    """Return the waits to the millisecond, as they are stored."""
    return {name: round(seconds, 3) for name, seconds in waits.items()}


def _text(waits: Waits) -> str:
    return msgspec.json.encode(rounded(waits)).decode()


_NOTE = """
INSERT INTO run (seq, began_at, ending, made_by, reason, waits)
SELECT job.seq, job.leased_at, $2, job.leased_by, $3, mine.waits
FROM unnest($1::bigint[], $4::jsonb[]) AS mine (seq, waits) JOIN job USING (seq)
"""
