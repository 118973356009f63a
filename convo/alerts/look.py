"""The figures that alerts are computed from: counters and log records of this process, and the database's figures.

``keeper`` collects them once a second as a ``Look``, and ``causes`` makes conditions of it. Add a figure here, when the
cause of a new alert needs one that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from convo.store.ledger import Gap


class SeenRecord(Struct, frozen=True):
    """One log record that may be the cause of an alert: its name and fields."""

    name: str
    fields: Mapping[str, Any]


class Vitals(Struct, frozen=True, kw_only=True):
    """The database's figures of all processes together.

    ``at`` is its clock in seconds; ``ended`` and ``accepted`` are the ledger's sums. ``unserved`` are the dependencies
    that jobs wait for and that no process has. ``untold`` are deletions that a memory service has not confirmed.
    """

    at: float
    oldest_seconds: float = 0.0
    ready: int = 0
    oldest_ids: tuple[str, ...] = ()
    dead: int = 0
    dead_ids: tuple[str, ...] = ()
    unserved: tuple[str, ...] = ()
    unserved_ids: tuple[str, ...] = ()
    ended: int = 0
    accepted: int = 0
    silent_seconds: float = 0.0
    untold: int = 0
    untold_seconds: float = 0.0


class Look(Struct, frozen=True, kw_only=True):
    """One look at this process.

    ``counted`` holds figures that only grow, by type and component; ``failed_looks`` how many questions to the database
    in a row had no answer; ``vitals`` and ``gaps`` the last answer, None where another process asks or none is known.
    """

    counted: Mapping[tuple[str, str], float] = {}
    requests: float = 0
    on_deadline: float = 0
    records: tuple[SeenRecord, ...] = ()
    pool_used: int = 0
    pool_max: int = 1
    disk_free_bytes: int | None = None
    failed_looks: int = 0
    vitals: Vitals | None = None
    gaps: tuple[Gap, ...] = ()
