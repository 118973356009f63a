"""What became of each lease of a job: when, by whom, how it ended and what it waited for; it changes no job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from convo.store.postgres import Connection

Ending = Literal["settle", "fail", "bury", "park", "release", "rescue", "crash"]
Waits = Mapping[str, float]
"""Seconds spent in each named wait."""

NOTE_RESCUED = """
    INSERT INTO run (seq, began_at, ending, made_by, reason)
    SELECT seq, leased_at, CASE WHEN gone THEN 'crash' ELSE 'rescue' END, leased_by,
           CASE WHEN gone THEN 'its process is gone' ELSE 'its process was silent' END
    FROM silent
"""
"""For a statement that takes leases back: ``silent`` are their rows, with whether their process is ``gone``."""


async def note(connection: Connection, ending: Ending, seq: int, reason: str | None, waits: Waits) -> None:
    """Note how a lease ends, while the job's row still says who had it and since when."""
    await connection.execute(_NOTE, [seq], ending, reason, [_rounded(waits)])


async def note_settled(connection: Connection, runs: Sequence[tuple[int, Waits]]) -> None:
    """Note that these leases end well, each with what it waited for."""
    await connection.execute(_NOTE, [seq for seq, _ in runs], "settle", None, [_rounded(waits) for _, waits in runs])


def _rounded(waits: Waits) -> str:
    return msgspec.json.encode({name: round(seconds, 3) for name, seconds in waits.items()}).decode()


_NOTE = """
INSERT INTO run (seq, began_at, ending, made_by, reason, waits)
SELECT job.seq, job.leased_at, $2, job.leased_by, $3, mine.waits
FROM unnest($1::bigint[], $4::jsonb[]) AS mine (seq, waits) JOIN job USING (seq)
"""
