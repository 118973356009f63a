"""The loops of the alerts: look at the process and the database again and again, and notify what changed.

Two loops, so that neither waits for the other: one looks at this process, the other asks the database for what all
processes share. Only the process that leads (``shared``) raises alerts on that; the others do not look. What is looked
at stands in ``look``, what causes an alert in ``causes``, when it is notified in ``rules``.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import trio
from msgspec import Struct

from convo.alerts import formats
from convo.alerts.causes import CAUSE_RECORDS, Causes
from convo.alerts.formats import AlertView, Notification
from convo.alerts.look import Look, SeenRecord, Vitals
from convo.alerts.oncall import OnCall
from convo.alerts.open_alerts import HeldAlert, OpenAlerts
from convo.alerts.rules import KINDS, LEVELS, Alert, AlertKey, Board, Change, Condition, Notice, is_shared
from convo.alerts.shared import SharedState
from convo.alerts.sinks import OpenSinks
from convo.dependencies import DEPENDENCIES, alert_prefix, row_name
from convo.errors import ConvoError
from convo.observe import log_records, metrics
from convo.settings import AlertsSettings, OncallSettings
from convo.store.ledger import Gap
from convo.store.postgres import Postgres

# Far more than one look's worth: causes are rare, and what floods is counted by metrics.
_RECORDS_MAX = 10_000
_GAPS_SECONDS = 60.0


class Here(Struct, frozen=True, kw_only=True):
    """What the process is: its name, where its files are, and how much of its pool is in use, of how much.

    ``folder_id`` is the same at every start on the same folder; ``public_url`` is what people call it by.
    """

    process: Callable[[], str]
    folder: Path
    pool: Callable[[], tuple[int, int]]
    folder_id: Callable[[], str] = lambda: ""
    public_url: str = ""


class Shown(Struct, frozen=True, kw_only=True):
    """What is shown of the alerts of this process."""

    active: tuple[AlertView, ...]
    recent: tuple[AlertView, ...]
    leads: bool
    sinks: tuple[str, ...]


class Alerts:
    """The alerts of one process; ``publish`` gets each message besides the sinks, ``utc_now`` is for the rotation."""

    def __init__(  # noqa: PLR0913  (what it is made of, by name)
        self,
        *,
        settings: AlertsSettings,
        oncall: OncallSettings,
        here: Here,
        postgres: Postgres,
        shared: SharedState,
        prepared: trio.Event,
        sinks: OpenSinks,
        publish: Callable[[Notification], None] = lambda _message: None,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._here = here
        self._shared = shared
        self._prepared = prepared
        self.sinks = sinks
        self._publish = publish
        self.open = OpenAlerts(postgres, here.folder_id, settings.look_seconds, self._database_answers)
        self.open.acknowledged = self._acknowledged
        self._oncall = OnCall(oncall, sinks.people, utc_now)
        self._board = Board(settings.repeat_seconds)
        self._counted_kinds: Counter[str] | None = None
        self._records: deque[SeenRecord] = deque(maxlen=_RECORDS_MAX)
        self._failed_looks = 0
        self._leads: bool | None = None
        self._vitals: Vitals | None = None
        self._gaps: tuple[Gap, ...] = ()
        self._gap_days: set[date] = set()
        self._gaps_at = 0.0

    def note_record(self, name: str, fields: Mapping[str, Any]) -> None:
        """Note a log record if it can be a cause (``log_records.RecordObserver``); any thread may call it."""
        if name in CAUSE_RECORDS:
            self._records.append(SeenRecord(name, fields))

    # --- the process

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look and notify every ``alerts.evaluate_seconds`` until cancelled."""
        causes = Causes(self._settings, trio.current_time(), self._look())
        task_status.started()
        while True:
            await trio.sleep(self._settings.evaluate_seconds)
            self._notify(causes.conditions(trio.current_time(), self._look()))

    def _look(self) -> Look:
        records = tuple(self._records.popleft() for _ in range(len(self._records)))
        self._note_gaps(records)
        used, most = self._here.pool()
        return Look(
            counted=_counted(),
            requests=sum(cell.value for cell in list(metrics.requests_total.cells.values())),
            on_deadline=metrics.requests_on_deadline_total.value,
            records=records,
            pool_used=used,
            pool_max=most,
            disk_free_bytes=_free_bytes(self._here.folder),
            failed_looks=self._failed_looks,
            vitals=self._vitals,
            gaps=self._gaps,
        )

    def _notify(self, conditions: Sequence[Condition]) -> None:
        if self._leads is False:
            self._board.forget(is_shared)
        now = trio.current_time()
        for notice in self._board.update(now, conditions):
            self._send(notice)
        self._follow(now)
        levels = [alert.condition.level for alert in self._board.active]
        for level in LEVELS:
            metrics.alerts_active.labels(level).set(levels.count(level))
        kinds = Counter(alert.condition.type for alert in self._board.active)
        if kinds != self._counted_kinds:
            self._counted_kinds = kinds
            for kind in KINDS:
                metrics.alert_conditions.labels(kind).set(kinds[kind])

    def _send(self, notice: Notice) -> None:
        message = self._message(notice)
        for queue in self.sinks.shared:
            queue.put(message)
        self._publish(message)
        key = notice.alert.condition.key
        self._oncall.changed(key, self.open.held(key), message)
        if notice.change == "resolved":
            self.open.end(key)

    def _follow(self, now: float) -> None:
        """Keep what was notified and lasts, and notify whoever is on call."""
        notified = {alert.condition.key: alert for alert in self._board.active if alert.notified}
        self.open.keep_only(notified)
        self._oncall.keep_only(notified)
        for key, alert in notified.items():
            self.open.hold(key, alert.since)
            held = self.open.held(key)
            if held is not None:

                def make(change: Change, alert: Alert = alert) -> Notification:
                    return self._message(Notice(change=change, alert=alert))

                self._oncall.step(key, alert.condition.level, held, now, make)

    def _acknowledged(self, key: AlertKey) -> None:
        alert = self._board.find(key)
        if alert is not None:
            self._send(Notice(change="acknowledged", alert=alert))

    def _database_answers(self) -> bool | None:
        return not self._failed_looks if self._prepared.is_set() else None

    def _message(self, notice: Notice) -> Notification:
        view = self._view(notice.alert, self.open.held(notice.alert.condition.key))
        return Notification(id=f"msg_{uuid.uuid4().hex}", change=notice.change, at=datetime.now(UTC), alert=view)

    def _view(self, alert: Alert, held: HeldAlert | None) -> AlertView:
        return formats.view(
            alert,
            raised_at=_wall(alert.since),
            ended_at=None if alert.until is None else _wall(alert.until),
            process=self._here.process(),
            public_url=self._here.public_url,
            acknowledged=None if held is None else held.acknowledged,
        )

    # --- what all processes share

    async def ask(self) -> None:
        """Look at the database every ``alerts.look_seconds`` until cancelled, more often while it does not answer."""
        while True:
            await self._ask()
            s = self._settings
            await trio.sleep(min(s.look_seconds, s.evaluate_seconds) if self._failed_looks else s.look_seconds)

    async def _ask(self) -> None:
        try:
            self._leads = await self._shared.lead()
        except ConvoError as error:
            # What is known of all processes stays as it was until there is another answer.
            self._failed_looks += 1
            log_records.look_failed(reason=error.detail)
            return
        self._failed_looks = 0
        if not self._leads:
            self.forget_shared()
        if not self._leads or not self._prepared.is_set():
            return
        try:
            self._vitals = await self._shared.vitals()
            await self._compare_again()
        except ConvoError as error:
            # It answers, but not this: what was known stays.
            log_records.look_failed(reason=error.detail)

    def forget_shared(self) -> None:
        """Drop what the database said of all processes: it went back."""
        self._vitals, self._gaps = None, ()
        self._gap_days.clear()

    def _note_gaps(self, records: Sequence[SeenRecord]) -> None:
        for one in records:
            if one.name == "ledger_gap":
                figures = {name: one.fields[name] for name in ("what", "booked", "found")}
                gap = Gap(day=date.fromisoformat(one.fields["day"]), **figures)
                self._gap_days.add(gap.day)
                if (gap.day, gap.what) not in {(known.day, known.what) for known in self._gaps}:
                    self._gaps = (*self._gaps, gap)
                    self._gaps_at = trio.current_time()

    async def _compare_again(self) -> None:
        """See whether the days that did not balance do now: the ledger compares an older day only once in a while."""
        seconds = min(_GAPS_SECONDS, 12 * self._settings.look_seconds)
        if not self._gap_days or trio.current_time() < self._gaps_at + seconds:
            return
        self._gaps = await self._shared.gaps(sorted(self._gap_days))
        self._gap_days = {gap.day for gap in self._gaps}
        self._gaps_at = trio.current_time()

    @property
    def leads(self) -> bool:
        """Whether this process raises the alerts that all share."""
        return bool(self._leads)

    # --- what is shown

    def show(self) -> Shown:
        """Show those that last and those that ended lately."""
        return Shown(
            active=tuple(self._view(alert, self.open.held(alert.condition.key)) for alert in self._board.active),
            recent=tuple(self._view(alert, None) for alert in self._board.recent),
            leads=self.leads,
            sinks=tuple(queue.sink.name for queue in self.sinks.every),
        )

    def test_message(self) -> Notification:
        """Make a message that is no alert's."""
        now = trio.current_time()
        found = Condition(type="TEST", component="alerts", level="LOW", trigger="a test was asked for")
        return self._message(Notice(change="test", alert=Alert(condition=found, since=now, until=now)))


def _wall(at: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=trio.current_time() - at)


def _free_bytes(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


_CALLS = {"remote_timeout": "TIMEOUT", "remote_busy": "RATE_LIMIT"}


def _counted() -> dict[tuple[str, str], float]:
    """Read the counters whose growth is a cause."""
    failures = metrics.database_failures_total
    calls = metrics.remote_calls_total
    return {
        ("POSTGRES_POOL_EXHAUSTED", "acquire"): failures.labels("pool_exhausted").value,
        ("POSTGRES_QUERY_TIMEOUT", "database"): failures.labels("deadline_exceeded").value,
        **{
            (f"{alert_prefix(name)}_{_CALLS[code]}", name): cell.value
            for (name, code), cell in list(calls.cells.items())
            if code in _CALLS and row_name(name) in DEPENDENCIES
        },
    }
