"""The job table in memory, on Trio's own clock, for tests of hours: it passes the contract tests of the real one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from convo.config import JobsSettings
from convo.conversation.model import Finding, Memories, Mood, PartName, Questions
from convo.conversation.score import Score, Weights, score
from convo.errors import DatabaseUnavailable, LeaseLost
from convo.store.jobs import DEPENDENCIES, FoundPart, Lease
from convo.store.rescue import Rescue
from convo.store.states import POISON_AT, SUSPECT_AT
from convo.store.turns import in_turns
from tests.making import lease as make_lease


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
    """The rows that several ``FakeJobs`` share, and which of their processes are gone."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        # What the indexes of the real table are: waits_for, user, then the rows in the order they came.
        self.due: dict[str, dict[str, dict[int, Row]]] = {}
        self.delayed: dict[int, Row] = {}
        self.suspects: dict[int, Row] = {}
        self.leased: dict[int, Row] = {}
        self.ended: dict[int, Row] = {}
        self.gone: set[str] = set()
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
        self._served = ""

    # --- leasing

    async def lease(self, count: int, *, out: Collection[str] = ()) -> list[Lease]:
        lines = [line for line in (*DEPENDENCIES, "") if line not in out]
        leases = await self._lease(count, lines)
        if leases:
            self._served = leases[-1].fair_key
        return leases

    async def lease_probe(self, dependency: str) -> list[Lease]:
        return await self._lease(1, [dependency])

    async def lease_suspect(self, *, out: Collection[str] = ()) -> list[Lease]:
        await trio.lowlevel.checkpoint()
        return self._take([row for row in self.table.suspects.values() if row.waits_for not in out][:1])

    async def has_suspects(self, *, out: Collection[str] = ()) -> bool:
        await trio.lowlevel.checkpoint()
        return any(row.waits_for not in out for row in self.table.suspects.values())

    async def _lease(self, count: int, lines: list[str]) -> list[Lease]:
        await trio.lowlevel.checkpoint()
        for row in [row for row in self.table.delayed.values() if row.available_at <= self.table.now()]:
            row.write(delayed=False)
        of_key: dict[str, list[Row]] = {}
        for line in lines:
            for key, rows in self.table.due.get(line, {}).items():
                if rows:
                    of_key.setdefault(key, []).extend(rows.values())
        keys = sorted(of_key, key=lambda key: (key <= self._served, key))[:count]
        share = math.ceil(count / max(1, len(keys)))
        taken: list[Row] = []
        for key in keys:
            of_key[key].sort(key=lambda row: (lines.index(row.waits_for), row.available_at, row.seq))
            taken += of_key[key][:share]
        return self._take(taken[:count])

    def _take(self, taken: list[Row]) -> list[Lease]:
        until = self.table.now() + self.settings.lease_seconds
        for row in taken:
            row.write(state="leased", token=next(self.table.tokens), leased_by=self.owner, leased_until=until)
        order = in_turns([_as_record(row) for row in taken], self._served)
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
            suspect=row.crashes >= SUSPECT_AT,
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

    async def store_part(self, lease: Lease, name: PartName, by: str, finding: Finding) -> None:
        await trio.lowlevel.checkpoint()
        self._held(lease).parts.setdefault(name, finding)

    async def store_parts(self, found: Sequence[FoundPart]) -> list[LeaseLost | None]:
        outcomes: list[LeaseLost | None] = []
        for one in found:
            try:
                await self.store_part(*one)
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

    def _later(self, row: Row, later: float) -> dict[str, Any]:
        return {"delayed": later > 0, "available_at": self.table.now() + later if later > 0 else row.available_at}

    async def settle(self, lease: Lease, waits: object = None) -> Score:
        await trio.lowlevel.checkpoint()
        row = self._held(lease)
        questions, mood, memories = (row.parts.get(name) for name in ("questions", "emotion", "memories"))
        if not (isinstance(questions, Questions) and isinstance(mood, Mood) and isinstance(memories, Memories)):
            raise DatabaseUnavailable(f"the database lost a part of conversation {lease.conversation_id!r}")
        row.score = score(
            exchanges=lease.exchanges,
            questions=len(questions.questions),
            new_memories=len(memories.facts),
            emotion=mood.emotion,
            weights=Weights(),
        )
        row.free(state="done", attempts=row.attempts + 1, last_error=None, waits_for="", parked_since=None)
        known = self.table.relationships
        known[row.user_id] = known.get(row.user_id, 0) + row.score.value
        return row.score

    # --- what becomes of the others

    async def release_all(self, *, crashed: bool) -> int:
        await trio.lowlevel.checkpoint()
        mine = [row for row in self.table.leased.values() if row.leased_by == self.owner]
        for row in mine:
            row.free(crashes=row.crashes + int(crashed))
        return len(mine)

    async def rescue(self) -> Rescue:
        await trio.lowlevel.checkpoint()
        now = self.table.now()
        silent = [row for row in self.table.leased.values() if row.leased_until < now]
        for row in silent:
            row.free(crashes=row.crashes + int(row.leased_by in self.table.gone))
        buried = {
            row.seq: f"poison: {row.crashes} times the process that worked on it died"
            for row in self.table.suspects.values()
            if row.crashes >= POISON_AT
        }
        for row in self._first_parked():
            if (row.parked_since or 0.0) < now - self.settings.give_up_seconds:
                buried[row.seq] = f"{row.waits_for} was out; its last word: {row.last_error}"
        for seq, reason in buried.items():
            self.table.rows[seq].write(state="dead", last_error=reason, waits_for="", parked_since=None)
        return Rescue(rescued=len(silent), buried=buried)

    def _first_parked(self) -> Iterator[Row]:
        """Find of each user the row that was parked first: another one is not parked for longer."""
        for line in DEPENDENCIES:
            for rows in self.table.due.get(line, {}).values():
                yield from list(rows.values())[:1]

    async def retry(self, conversation_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.table.named(conversation_id).write(
            state="ready", attempts=0, crashes=0, waits_for="", parked_since=None, available_at=self.table.now()
        )


def _as_record(row: Row) -> dict[str, Any]:
    return {"fair_key": row.user_id, "seq": row.seq, "available_at": row.available_at}
