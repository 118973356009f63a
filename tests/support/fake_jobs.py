"""The job table in memory, on Trio's own clock, for tests of hours: it passes the contract tests of the real one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from convo.analysis.part import StoredFinding
from convo.analysis.scoring import Score, score
from convo.conversation.model import Finding, Memories, PartName
from convo.conversation.score import Weights
from convo.conversation.tenant import Reach
from convo.dependencies import DEPENDENCIES
from convo.errors import DatabaseUnavailable, LeaseLost
from convo.settings import JobsSettings
from convo.store.job_sql import POISON_AT, SUSPECT_AT
from convo.store.jobs.fair_lease import in_rounds
from convo.store.jobs.lease import Lease
from convo.store.jobs.rescue import Rescue
from convo.store.jobs.settle import NO_PARTS
from convo.store.jobs.table import FoundPart
from tests.support.making import lease as make_lease


@dataclass
class Row:
    """One job; ``versions`` counts how often it was written."""

    seq: int
    conversation_id: str
    user_id: str
    available_at: float
    state: str = "ready"
    attempts: int = 0
    crashes: int = 0
    delayed: bool = False
    waits_for: str = ""
    parked_since: float | None = None
    token: int | None = None
    leased_until: float = 0.0
    leased_by: str = ""
    last_error: str | None = None
    parts: dict[PartName, Finding] = field(default_factory=dict)
    score: Score | None = None
    versions: int = 0
    place: dict[int, Row] = field(default_factory=dict)
    table: Table | None = None

    def write(self, **values: Any) -> None:
        self.versions += 1
        for name, value in values.items():
            setattr(self, name, value)
        self.place.pop(self.seq, None)
        assert self.table is not None
        self.place = self.table.place_of(self)
        self.place[self.seq] = self

    def free(self, **values: Any) -> None:
        self.write(**{"state": "ready", "token": None, "leased_by": "", **values})


class Table:
    """The rows that several ``FakeJobs`` share."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        # What the indexes of the real table are: waits_for, user, then the rows in the order they came.
        self.due: dict[str, dict[str, dict[int, Row]]] = {}
        self.delayed: dict[int, Row] = {}
        self.suspects: dict[int, Row] = {}
        self.leased: dict[int, Row] = {}
        self.ended: dict[int, Row] = {}
        # Who may work on suspects, until when.
        self.claim = ("", 0.0)
        self.offset = 0.0
        self.relationships: dict[str, int] = {}
        self._seqs = itertools.count(1)
        self.tokens = itertools.count(1)

    def place_of(self, row: Row) -> dict[int, Row]:
        """Find the index that a row belongs to as it stands."""
        if row.state == "leased":
            return self.leased
        if row.state != "ready":
            return self.ended
        if row.delayed:
            return self.delayed
        if row.crashes >= SUSPECT_AT:
            return self.suspects
        return self.due.setdefault(row.waits_for, {}).setdefault(row.user_id, {})

    def now(self) -> float:
        return trio.current_time() + self.offset

    def accept(self, conversation_id: str, user_id: str = "user-1") -> Row:
        seq = next(self._seqs)
        row = self.rows[seq] = Row(seq, conversation_id, user_id, self.now(), table=self)
        row.write()
        return row

    def named(self, conversation_id: str) -> Row:
        return next(row for row in self.rows.values() if row.conversation_id == conversation_id)


class FakeJobs:
    """What ``Jobs`` and ``Settler`` do, as the process called ``owner`` works on the table."""

    def __init__(self, table: Table, settings: JobsSettings, owner: str = "here/one") -> None:
        self.table = table
        self.settings = settings
        self.owner = owner
        self._last_key = ""
        self._last_probe_key = ""

    # --- leasing

    async def lease(self, count: int, *, out: Collection[str] = ()) -> list[Lease]:
        leases = await self._lease(count, [name for name in (*DEPENDENCIES, "") if name not in out], self._last_key)
        if leases:
            self._last_key = leases[-1].fair_key
        return leases

    async def lease_probe(self, dependency: str) -> list[Lease]:
        leases = await self._lease(1, [dependency], self._last_probe_key or self._last_key)
        if leases:
            self._last_probe_key = leases[-1].fair_key
        return leases

    async def lease_suspect(self, *, out: Collection[str] = ()) -> list[Lease]:
        await trio.lowlevel.checkpoint()
        if not self._claim() or any(row.leased_by == self.owner for row in self.table.leased.values()):
            return []
        return self._take([row for row in self.table.suspects.values() if row.waits_for not in out][:1])

    async def claim_suspects(self, *, out: Collection[str] = ()) -> bool:
        await trio.lowlevel.checkpoint()
        return any(row.waits_for not in out for row in self.table.suspects.values()) and self._claim()

    def _claim(self) -> bool:
        if any(row.crashes >= SUSPECT_AT for row in self.table.leased.values()):
            return False
        owner, until = self.table.claim
        if owner != self.owner and self.table.now() <= until:
            return False
        self.table.claim = (self.owner, self.table.now() + self.settings.lease_seconds)
        return True

    async def has_suspects(self, *, out: Collection[str] = ()) -> bool:
        await trio.lowlevel.checkpoint()
        return any(row.waits_for not in out for row in self.table.suspects.values())

    async def _lease(self, count: int, allowed: list[str], after: str) -> list[Lease]:
        await trio.lowlevel.checkpoint()
        for row in [row for row in self.table.delayed.values() if row.available_at <= self.table.now()]:
            row.write(delayed=False)
        of_key: dict[str, list[Row]] = {}
        for name in allowed:
            for key, rows in self.table.due.get(name, {}).items():
                if rows:
                    of_key.setdefault(key, []).extend(rows.values())
        keys = sorted(of_key, key=lambda key: (key <= after, key))[:count]
        share = math.ceil(count / max(1, len(keys)))
        taken: list[Row] = []
        for key in keys:
            of_key[key].sort(key=lambda row: (allowed.index(row.waits_for), row.available_at, row.seq))
            taken += of_key[key][:share]
        return self._take(taken[:count])

    def _take(self, taken: list[Row]) -> list[Lease]:
        until = self.table.now() + self.settings.lease_seconds
        for row in taken:
            row.write(state="leased", token=next(self.table.tokens), leased_by=self.owner, leased_until=until)
        order = in_rounds([_as_record(row) for row in taken], self._last_key)
        return [self._as_lease(self.table.rows[record["seq"]]) for record in order]

    def _as_lease(self, row: Row) -> Lease:
        return make_lease(
            row.seq,
            token=row.token,
            attempts=row.attempts,
            fair_key=row.user_id,
            conversation_id=row.conversation_id,
            user_id=row.user_id,
            parts=dict(row.parts),
        )

    async def renew(self, leases: list[Lease]) -> set[int]:
        await trio.lowlevel.checkpoint()
        kept = {one.token for one in leases if self.table.rows[one.seq].token == one.token}
        for one in leases:
            if one.token in kept:
                self.table.rows[one.seq].leased_until = self.table.now() + self.settings.lease_seconds
        return kept

    # --- what a holder writes

    def _held(self, lease: Lease) -> Row:
        row = self.table.rows.get(lease.seq)
        if row is None or row.token != lease.token:
            raise LeaseLost(f"the lease on conversation {lease.conversation_id!r} is lost")
        return row

    async def store_parts(self, found: Sequence[FoundPart]) -> list[LeaseLost | None]:
        await trio.lowlevel.checkpoint()
        outcomes: list[LeaseLost | None] = []
        for lease, name, _, finding in found:
            try:
                self._held(lease).parts.setdefault(name, finding)
                outcomes.append(None)
            except LeaseLost as error:
                outcomes.append(error)
        return outcomes

    async def fail(
        self, lease: Lease, reason: str, failed: Mapping[PartName, Any], *, later: float, waits: object = None
    ) -> bool:
        await trio.lowlevel.checkpoint()
        row = self._held(lease)
        spent = {"attempts": row.attempts + 1, "last_error": reason, "waits_for": "", "parked_since": None}
        if row.attempts + 1 >= self.settings.attempts_max:
            row.free(**{**spent, "state": "dead", "delayed": False})
            return True
        row.free(**spent, delayed=True, available_at=self.table.now() + later)
        return False

    async def park(
        self, lease: Lease, dependency: str, reason: str, *, later: float = 0.0, waits: object = None
    ) -> None:
        await trio.lowlevel.checkpoint()
        row = self._held(lease)
        since = row.parked_since if row.parked_since is not None else self.table.now()
        row.free(waits_for=dependency, parked_since=since, last_error=reason, **self._later(row, later))

    async def release(self, lease: Lease, *, later: float = 0.0, reason: object = None, waits: object = None) -> None:
        await trio.lowlevel.checkpoint()
        row = self._held(lease)
        row.free(**self._later(row, later))

    async def return_unbegun(self, leases: Sequence[Lease]) -> None:
        await trio.lowlevel.checkpoint()
        for lease in leases:
            row = self.table.rows[lease.seq]
            if row.token == lease.token:
                row.free()

    def _later(self, row: Row, later: float) -> dict[str, Any]:
        return {"delayed": later > 0, "available_at": self.table.now() + later if later > 0 else row.available_at}

    async def give_back(self, attempts: Mapping[int, int], dependency: str) -> int:
        await trio.lowlevel.checkpoint()
        most = self.settings.attempts_max
        found = [(self.table.rows[seq], count) for seq, count in attempts.items() if seq in self.table.rows]
        changed = 0
        for row, count in found:
            left = max(0, row.attempts - count)
            if row.state == "leased":
                row.write(attempts=left)
            elif row.state == "ready" or (row.state == "dead" and left < most <= row.attempts):
                since = row.parked_since if row.parked_since is not None else self.table.now()
                row.write(state="ready", attempts=left, waits_for=dependency, parked_since=since, delayed=False)
            else:
                continue
            changed += 1
        return changed

    async def settle(
        self, lease: Lease, waits: object = None, found: Mapping[PartName, Any] = NO_PARTS, _left: object = None
    ) -> Score:
        await trio.lowlevel.checkpoint()
        row = self._held(lease)
        row.parts |= {name: finding for name, (_, finding) in found.items()}
        stored = {
            name: StoredFinding(finding, len(finding.facts) if isinstance(finding, Memories) else 0)
            for name, finding in row.parts.items()
        }
        row.score = score(lease.exchanges, stored, Weights())
        if not row.score.final:
            raise DatabaseUnavailable(f"the database lost a part of conversation {lease.conversation_id!r}")
        row.free(state="done", attempts=row.attempts + 1, last_error=None, waits_for="", parked_since=None)
        known = self.table.relationships
        known[row.user_id] = known.get(row.user_id, 0) + row.score.value
        return row.score

    # --- what becomes of the others

    async def release_all(self) -> int:
        return await self._free_all(crashes=0)

    async def dies(self) -> int:
        """Let the next start on this process's folder claim it, as ``Jobs.claim_folder``."""
        return await self._free_all(crashes=1)

    async def _free_all(self, crashes: int) -> int:
        await trio.lowlevel.checkpoint()
        mine = [row for row in self.table.leased.values() if row.leased_by == self.owner]
        for row in mine:
            row.free(crashes=row.crashes + crashes)
        if self.table.claim[0] == self.owner:
            self.table.claim = ("", 0.0)
        return len(mine)

    async def rescue(self, *, gives_up: bool = True) -> Rescue:
        await trio.lowlevel.checkpoint()
        now = self.table.now()
        silent = [row for row in self.table.leased.values() if row.leased_until < now]
        for row in silent:
            row.free()
        buried = {
            row.seq: f"poison: {row.crashes} times the process that worked on it died"
            for row in self.table.suspects.values()
            if row.crashes >= POISON_AT
        }
        for row in self._first_parked() if gives_up else ():
            if (row.parked_since or 0.0) < now - self.settings.give_up_seconds:
                buried[row.seq] = f"{row.waits_for} was out; its last word: {row.last_error}"
        for seq, reason in buried.items():
            self.table.rows[seq].write(state="dead", last_error=reason, waits_for="", parked_since=None)
        return Rescue(rescued=len(silent), buried=buried)

    def _first_parked(self) -> Iterator[Row]:
        """Find of each user the row that was parked first: another one is not parked for longer."""
        for dependency in DEPENDENCIES:
            for rows in self.table.due.get(dependency, {}).values():
                yield from list(rows.values())[:1]

    async def retry(self, _reach: Reach, conversation_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.table.named(conversation_id).write(
            state="ready", attempts=0, crashes=0, waits_for="", parked_since=None, available_at=self.table.now()
        )


def _as_record(row: Row) -> dict[str, Any]:
    return {"fair_key": row.user_id, "seq": row.seq, "available_at": row.available_at}
