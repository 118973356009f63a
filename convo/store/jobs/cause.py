"""Why a conversation's job is in its state: one cause and one sentence, from the job's row.

Open it to change what ``explain`` answers. It is pure: every process reads the same row and finds the same cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from msgspec import Struct

from convo.conversation.model import JobState
from convo.dependencies import DEPENDENCIES, PART_PREFIX
from convo.plural import plural

CauseKind = Literal["done", "dead", "working", "overdue", "parked", "backoff", "suspect", "queued", "superseded"]


class Standing(Struct, frozen=True, kw_only=True):
    """A job's row; all times are the database's, ``now`` too.

    ``served`` is whether a living process that takes jobs has what the job waits for, or it waits for nothing.
    """

    state: JobState
    now: datetime
    attempts: int
    crashes: int
    delayed: bool
    available_at: datetime
    waits_for: str
    served: bool
    parked_since: datetime | None
    leased_at: datetime | None
    leased_until: datetime | None
    leased_by: str | None
    last_error: str | None
    ended_at: datetime | None
    suspect_at: int


class Cause(Struct, frozen=True, kw_only=True):
    """Why a job is in its state, in one sentence; where known, since when, and the earliest time of a change.

    ``by`` is the name of the process that works on it, None where none does.
    """

    kind: CauseKind
    sentence: str
    since: datetime | None = None
    until: datetime | None = None
    by: str | None = None


def cause(row: Standing, left: Sequence[tuple[str, str]] = ()) -> Cause:
    """Find the one cause of a state.

    ``left`` are the parts of a done job that are still to be found, each with what no process has that it needs; empty
    where one has it.
    """
    match row.state:
        case "done" if left:
            parts = ", ".join(name + (f" (no process has {needs})" if needs else "") for name, needs in left)
            sentence = f"done: its score is counted; still to be found, behind live work: {parts}"
            return Cause(kind="done", sentence=sentence, since=row.ended_at)
        case "done":
            return Cause(kind="done", sentence="done: every part is found and its score counted", since=row.ended_at)
        case "dead":
            return Cause(
                kind="dead", sentence=f"dead letter since {_at(row.ended_at)}: {_reason(row)}", since=row.ended_at
            )
        case "leased":
            return _leased(row)
        case "ready":
            return _ready(row)
        case "superseded":
            return Cause(kind="superseded", sentence="superseded: a newer revision of its conversation is stored")


def _leased(row: Standing) -> Cause:
    holder = f"{row.leased_by} works on it since {_at(row.leased_at)}"
    if row.leased_until is not None and row.leased_until < row.now:
        return Cause(
            kind="overdue",
            sentence=f"overdue: {holder}, its lease ended at {_at(row.leased_until)}; the next rescue takes it back",
            since=row.leased_until,
            until=row.now,
        )
    sentence = f"working: {holder}; it is good until {_at(row.leased_until)} and renewed meanwhile"
    return Cause(kind="working", sentence=sentence, since=row.leased_at)


def _ready(row: Standing) -> Cause:
    until = row.available_at if row.delayed else None
    if row.waits_for and not row.served:
        known = row.waits_for in DEPENDENCIES or row.waits_for.startswith(PART_PREFIX)
        unknown = "" if known else " (this version does not know it)"
        since = f" since {_at(row.parked_since)}" if row.parked_since else ""
        sentence = (
            f"parked: it waits for {row.waits_for}{unknown}{since}, and no process that takes"
            f" jobs has it: start one that has ({_reason(row)})"
        )
        return Cause(kind="parked", sentence=sentence, since=row.parked_since, until=until)
    if "@" in row.waits_for:
        # No service that is out, but what the process must have that takes it.
        sentence = f"queued: it waits for a worker of a process that has {row.waits_for}"
        return Cause(kind="queued", sentence=sentence, since=row.available_at)
    if row.waits_for:
        sentence = (
            f"parked: it waits for {row.waits_for} since {_at(row.parked_since)} ({_reason(row)}); no attempt is spent"
        )
        return Cause(kind="parked", sentence=sentence, since=row.parked_since, until=until)
    if row.delayed:
        tries = f"after {row.attempts} {plural(row.attempts, 'attempt')}"
        sentence = f"backoff: {tries} it is due again at {_at(row.available_at)} ({_reason(row)})"
        return Cause(kind="backoff", sentence=sentence, until=until)
    if row.crashes >= row.suspect_at:
        died = f"its process died {row.crashes} {plural(row.crashes, 'time')} with it"
        sentence = f"suspect: {died}; it waits until one process has no other work"
        return Cause(kind="suspect", sentence=sentence, since=row.available_at)
    return Cause(kind="queued", sentence="queued: it waits for a worker to become free", since=row.available_at)


def _reason(row: Standing) -> str:
    return row.last_error or "no reason was noted"


def _at(at: datetime | None) -> str:
    return "a time that is not known" if at is None else f"{at + timedelta(milliseconds=500):%Y-%m-%d %H:%M:%S}"
