"""The history of a job: one row for each lease that ended, with who had it, how it ended and what it waited for.

Open it when an ending needs other facts in ``explain``. It changes no job. The lease under which a job is done has
none: it stands in the job's outcome (``store/outcomes.py``), so most jobs leave no run at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from convo.runtime.deadline import CollectedWaits
from convo.store.postgres import Connection

Ending = Literal["settle", "fail", "bury", "park", "release", "rescue", "crash"]
Waits = Mapping[str, float]
"""Seconds spent in each named wait; ``CollectedWaits`` say of the longer ones when they were, too."""
Timeline = Sequence[tuple[str, float, float]]
"""Waits in the order of their ends: the name, and beginning and end in seconds since the run began."""

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
    await connection.execute(_NOTE, [seq], ending, reason, [_text(rounded(waits))], [_text(timeline_of(waits) or None)])


async def note_settled(connection: Connection, runs: Sequence[tuple[int, Waits, Timeline]]) -> None:
    """Note that these leases end with a settle; for as long as done jobs stay in ``job`` (migration 19)."""
    waits, lines = [_text(one) for _, one, _ in runs], [_text(one or None) for _, _, one in runs]
    await connection.execute(_NOTE, [seq for seq, _, _ in runs], "settle", None, waits, lines)


def rounded(waits: Waits) -> dict[str, float]:
    """Return the waits to the millisecond, as they are stored."""
    return {name: round(seconds, 3) for name, seconds in waits.items()}


def timeline_of(waits: Waits) -> tuple[tuple[str, float, float], ...]:
    """Return when the longer waits were, to the millisecond, as it is stored; nothing where that was not collected."""
    spans = waits.spans if isinstance(waits, CollectedWaits) else ()
    return tuple((name, round(began, 3), round(ended, 3)) for name, began, ended in spans)


def _text(value: object) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


_NOTE = """
INSERT INTO run (seq, began_at, ending, made_by, reason, waits, timeline)
SELECT job.seq, job.leased_at, $2, job.leased_by, $3, mine.waits, mine.timeline
FROM unnest($1::bigint[], $4::jsonb[], $5::jsonb[]) AS mine (seq, waits, timeline) JOIN job USING (seq)
"""
