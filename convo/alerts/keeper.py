"""Looks at the process and the database again and again, and tells what lasts; what a cause is stands in ``causes``.

Two loops, so that neither waits for the other: one looks at this process, the other asks the database for what all
processes share. Who holds the lead of the database tells of that; the others do not look.
"""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import trio
from msgspec import Struct

from convo.alerts import formats
from convo.alerts.causes import Causes, Gap, Look, Told, Vitals, is_shared
from convo.alerts.delivery import Outbox
from convo.alerts.formats import AlertView, Message
from convo.alerts.rules import LEVELS, Alert, Board, Condition, Notice
from convo.config import AlertsSettings
from convo.errors import ConvoError
from convo.observe import events, metrics

# Far more than one look's worth: causes are rare, and what floods is counted by metrics.
_HEARD_MAX = 10_000
_GAPS_SECONDS = 60.0


class Lookout(Protocol):
    """Asks the database what is so for all processes."""

    async def lead(self) -> bool:
        """Tell whether this process tells of what all share; at most one does."""

    async def vitals(self) -> Vitals:
        """Read what the conditions of all processes are made of."""

    async def gaps(self, days: Sequence[str]) -> tuple[Gap, ...]:
        """Compare these days with the books."""


class Here(Struct, frozen=True, kw_only=True):
    """What the process is: its name, where its files are, and how much of its pool is in use, of how much."""

    process: str
    folder: Path
    pool: Callable[[], tuple[int, int]]


class Shown(Struct, frozen=True, kw_only=True):
    """What is shown of the alerts of this process."""

    active: tuple[AlertView, ...]
    recent: tuple[AlertView, ...]
    leads: bool
    sinks: tuple[str, ...]


class Alerts:
    """The alerts of one process."""

    def __init__(
        self,
        *,
        settings: AlertsSettings,
        here: Here,
        lookout: Lookout,
        prepared: trio.Event,
        outboxes: Sequence[Outbox],
    ) -> None:
        self._settings = settings
        self._here = here
        self._lookout = lookout
        self._prepared = prepared
        self.outboxes = outboxes
        self._board = Board(settings.repeat_seconds)
        self._heard: deque[Told] = deque(maxlen=_HEARD_MAX)
        self._failed_looks = 0
        self._leads: bool | None = None
        self._vitals: Vitals | None = None
        self._gaps: tuple[Gap, ...] = ()
        self._gap_days: set[str] = set()
        self._gaps_at = 0.0

    def hear(self, name: str, fields: Mapping[str, Any]) -> None:
        """Note an event that may be a cause; any thread may call it."""
        self._heard.append(Told(name, fields))

    # --- the process

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look and tell every ``alerts.evaluate_seconds`` until cancelled."""
        causes = Causes(self._settings, trio.current_time(), self._look())
        task_status.started()
        while True:
            await trio.sleep(self._settings.evaluate_seconds)
            self._tell(causes.conditions(trio.current_time(), self._look()))

    def _look(self) -> Look:
        told = tuple(self._heard.popleft() for _ in range(len(self._heard)))
        self._hear_gaps(told)
        used, most = self._here.pool()
        return Look(
            counted=_counted(),
            requests=sum(cell.value for cell in list(metrics.requests_total.cells.values())),
            on_deadline=metrics.requests_on_deadline_total.value,
            told=told,
            pool_used=used,
            pool_max=most,
            disk_free_bytes=_free_bytes(self._here.folder),
            failed_looks=self._failed_looks,
            vitals=self._vitals,
            gaps=self._gaps,
        )

    def _tell(self, conditions: Sequence[Condition]) -> None:
        if self._leads is False:
            self._board.forget(is_shared)
        now = trio.current_time()
        for notice in self._board.update(now, conditions):
            self._send(notice)
        levels = [alert.condition.level for alert in self._board.active]
        for level in LEVELS:
            metrics.alerts_active.labels(level).set(levels.count(level))

    def _send(self, notice: Notice) -> None:
        message = self._message(notice)
        for outbox in self.outboxes:
            outbox.put(message)

    def _message(self, notice: Notice) -> Message:
        view = self._view(notice.alert)
        return Message(id=f"msg_{uuid.uuid4().hex}", change=notice.change, at=datetime.now(UTC), alert=view)

    def _view(self, alert: Alert) -> AlertView:
        ended_at = None if alert.until is None else _wall(alert.until)
        return formats.view(alert, raised_at=_wall(alert.since), ended_at=ended_at, process=self._here.process)

    # --- what all processes share

    async def ask(self) -> None:
        """Ask the database every ``alerts.look_seconds`` until cancelled, sooner again while it does not answer."""
        while True:
            await self._ask()
            s = self._settings
            await trio.sleep(min(s.look_seconds, s.evaluate_seconds) if self._failed_looks else s.look_seconds)

    async def _ask(self) -> None:
        try:
            self._leads = await self._lookout.lead()
        except ConvoError as error:
            # What is known of all processes stays as it was: nobody knows better now.
            self._failed_looks += 1
            events.look_failed(reason=error.detail)
            return
        self._failed_looks = 0
        if not self._leads:
            self._vitals, self._gaps = None, ()
            self._gap_days.clear()
        if not self._leads or not self._prepared.is_set():
            return
        try:
            self._vitals = await self._lookout.vitals()
            await self._compare_again()
        except ConvoError as error:
            # It answers, but not this: what was known stays.
            events.look_failed(reason=error.detail)

    def _hear_gaps(self, told: Sequence[Told]) -> None:
        for one in told:
            if one.name == "ledger_gap":
                gap = Gap(**{name: one.fields[name] for name in ("day", "what", "booked", "found")})
                self._gap_days.add(gap.day)
                if (gap.day, gap.what) not in {(known.day, known.what) for known in self._gaps}:
                    self._gaps = (*self._gaps, gap)
                    self._gaps_at = trio.current_time()

    async def _compare_again(self) -> None:
        """See whether the days that did not balance do now: the books compare an older day only in its turn."""
        seconds = min(_GAPS_SECONDS, 12 * self._settings.look_seconds)
        if not self._gap_days or trio.current_time() < self._gaps_at + seconds:
            return
        self._gaps = await self._lookout.gaps(sorted(self._gap_days))
        self._gap_days = {gap.day for gap in self._gaps}
        self._gaps_at = trio.current_time()

    @property
    def leads(self) -> bool:
        """Tell whether this process tells of what all share."""
        return bool(self._leads)

    # --- what is shown

    def show(self) -> Shown:
        """Show those that last and those that ended lately."""
        return Shown(
            active=tuple(map(self._view, self._board.active)),
            recent=tuple(map(self._view, self._board.recent)),
            leads=self.leads,
            sinks=tuple(outbox.sink.name for outbox in self.outboxes),
        )

    def test_message(self) -> Message:
        """Make a message that is no alert's."""
        now = trio.current_time()
        found = Condition(type="TEST", component="alerts", level="LOW", trigger="somebody asked for a test")
        return self._message(Notice(change="test", alert=Alert(condition=found, since=now, until=now)))


def _wall(at: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=trio.current_time() - at)


def _free_bytes(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _counted() -> dict[tuple[str, str], float]:
    """Read the counters whose growth is a cause."""
    failures = metrics.database_failures_total
    calls = metrics.remote_calls_total
    return {
        ("POSTGRES_POOL_EXHAUSTED", "acquire"): failures.labels("pool_exhausted").value,
        ("POSTGRES_QUERY_TIMEOUT", "database"): failures.labels("deadline_exceeded").value,
        ("LLM_TIMEOUT", "llm"): calls.labels("llm", "remote_timeout").value,
        ("LLM_RATE_LIMIT", "llm"): calls.labels("llm", "remote_busy").value,
        ("MEMORY_TIMEOUT", "memory"): calls.labels("memory", "remote_timeout").value,
        ("MEMORY_RATE_LIMIT", "memory"): calls.labels("memory", "remote_busy").value,
    }
