"""Whom an alert reaches, on virtual time: the whole of ``Alerts`` with a database of its own that is a dictionary."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from convo.alerts import open_alerts
from convo.alerts.delivery import SinkQueue
from convo.alerts.formats import Notification
from convo.alerts.keeper import Alerts, Here
from convo.alerts.look import Vitals
from convo.alerts.sinks import OpenSinks
from convo.errors import DatabaseUnavailable, NotFound
from convo.settings import AlertsSettings, OncallOverride, OncallSettings, PersonSettings
from convo.store.audit_log import NO_CALLER
from convo.store.open_alerts import Acknowledgement, OpenAlert, OpenKey
from tests.unit.alerts.test_keeper import FakeShared

SETTINGS = AlertsSettings(evaluate_seconds=5.0, look_seconds=5.0, disk_free_bytes=0, repeat_seconds=3600.0)
PEOPLE = {name: PersonSettings(email=f"{name}@example.com") for name in ("anna", "ben", "chris")}
ONCALL = OncallSettings(people=PEOPLE, start=date(2027, 3, 22), timezone="Europe/Berlin", escalate_seconds=900.0)
MONDAY = datetime(2027, 3, 22, 12, 0, tzinfo=UTC)
Reached = tuple[str, str, int]


class Table:
    """What the database holds of open alerts; it may be away."""

    def __init__(self) -> None:
        self.rows: dict[OpenKey, OpenAlert] = {}
        self.raised: dict[OpenKey, float] = {}
        self.seen: dict[OpenKey, float] = {}
        self.away = False

    def check(self) -> None:
        if self.away:
            raise DatabaseUnavailable("away")

    async def open_alert(self, _: object, key: OpenKey) -> OpenAlert:
        await trio.lowlevel.checkpoint()
        self.check()
        if key not in self.rows or trio.current_time() > self.seen[key] + 300:
            self.raised[key] = trio.current_time()
            self.rows[key] = OpenAlert(
                type=key[0], component=key[1], folder=key[2], age_seconds=0.0, step=-1, acknowledged=None
            )
        self.seen[key] = trio.current_time()
        return self.row(key)

    def row(self, key: OpenKey) -> OpenAlert:
        one = self.rows[key]
        fields = {name: getattr(one, name) for name in one.__struct_fields__}
        return OpenAlert(**{**fields, "age_seconds": trio.current_time() - self.raised[key]})

    async def mark_open(self, _: object, steps: dict[OpenKey, int]) -> list[OpenAlert]:
        await trio.lowlevel.checkpoint()
        self.check()
        for key, step in steps.items():
            if key in self.rows:
                self.seen[key] = trio.current_time()
                fields = {name: getattr(self.rows[key], name) for name in OpenAlert.__struct_fields__}
                self.rows[key] = OpenAlert(**{**fields, "step": step})
        return [self.row(key) for key in steps if key in self.rows]

    async def close_alerts(self, _: object, keys: list[OpenKey]) -> None:
        await trio.lowlevel.checkpoint()
        self.check()
        for key in keys:
            self.rows.pop(key, None)

    async def list_open(self, _: object) -> list[OpenAlert]:
        await trio.lowlevel.checkpoint()
        self.check()
        return [self.row(key) for key in self.rows]

    async def acknowledge_alert(
        self, _: object, kind: str, component: str | None, by: str, __: object
    ) -> list[OpenAlert]:
        await trio.lowlevel.checkpoint()
        self.check()
        found = [key for key in self.rows if key[0] == kind and component in (None, key[1])]
        for key in found:
            fields = {name: getattr(self.rows[key], name) for name in OpenAlert.__struct_fields__}
            given = fields["acknowledged"] or Acknowledgement(by=by, at=MONDAY)
            self.rows[key] = OpenAlert(**{**fields, "acknowledged": given})
        return [self.row(key) for key in found]


class NotingSink:
    """Takes everything, and notes whom it reached, with what, after how many seconds."""

    def __init__(self, name: str, began: float, reached: list[Reached]) -> None:
        self.name = name
        self._began = began
        self._reached = reached

    async def send(self, message: Notification) -> None:
        await trio.lowlevel.checkpoint()
        self._reached.append((self.name, message.change, round(trio.current_time() - self._began)))


class Running:
    """One process: its alerts, what its database says, and whom it has reached."""

    def __init__(self, alerts: Alerts, shared: FakeShared, reached: list[Reached]) -> None:
        self.alerts = alerts
        self.shared = shared
        self.reached = reached

    def dead(self, count: int = 1) -> None:
        self.shared.found = Vitals(at=0.0, dead=count)

    def people(self) -> list[Reached]:
        """Whom of the rotation it has reached, in the order of time, those of one second by their names."""
        return sorted((one for one in self.reached if one[0] != "shared"), key=lambda one: (one[2], one[0]))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    found = Table()
    for name in ("open_alert", "mark_open", "close_alerts", "acknowledge_alert", "list_open"):
        monkeypatch.setattr(open_alerts, name, getattr(found, name))
    return found


@asynccontextmanager
async def process(
    oncall: OncallSettings = ONCALL, at: datetime = MONDAY, *, prepared: trio.Event | None = None
) -> AsyncIterator[Running]:
    began, reached, shared = trio.current_time(), list[Reached](), FakeShared()
    people = {name: (SinkQueue(NotingSink(name, began, reached), SETTINGS),) for name in oncall.people}
    sinks = OpenSinks(shared=(SinkQueue(NotingSink("shared", began, reached), SETTINGS),), people=people)
    if prepared is None:
        prepared = trio.Event()
        prepared.set()
    alerts = Alerts(
        settings=SETTINGS,
        oncall=oncall,
        here=Here(process=lambda: "here/1", folder=Path("/"), pool=lambda: (0, 8), folder_id=lambda: "1"),
        postgres=cast("Any", None),
        shared=shared,
        prepared=prepared,
        sinks=sinks,
        utc_now=lambda: at + timedelta(seconds=trio.current_time() - began),
    )
    with capture_logs():
        async with trio.open_nursery() as nursery:
            await nursery.start(alerts.run)
            for queue in sinks.every:
                await nursery.start(queue.run)
            nursery.start_soon(alerts.ask)
            nursery.start_soon(alerts.open.run)
            yield Running(alerts, shared, reached)
            nursery.cancel_scope.cancel()


async def test_an_alert_goes_to_who_is_on_call_then_to_the_next_then_to_all(
    table: Table, autojump_clock: MockClock
) -> None:
    async with process() as running:
        running.dead()
        await trio.sleep(2500)
        # Noticed and notified within a look and two evaluations of 5 s each.
        (first, *more) = running.people()
        assert first[:2] == ("anna", "raised")
        assert first[2] <= 15
        noticed = next(at for name, _, at in running.reached if name == "shared")
        assert more == [
            ("ben", "escalated", noticed + 900),
            *[(name, "escalated", noticed + 1800) for name in ("anna", "ben", "chris")],
        ]


async def test_an_acknowledgement_stops_the_escalation_and_everyone_reached_gets_it_and_the_end(
    table: Table, autojump_clock: MockClock
) -> None:
    async with process() as running:
        running.dead()
        await trio.sleep(1000)
        assert [one[0] for one in running.people()] == ["anna", "ben"]
        await running.alerts.open.acknowledge("DEAD_LETTER", "jobs", "ben", NO_CALLER)
        await trio.sleep(2500)
        assert [one[:2] for one in running.people()[2:]] == [("anna", "acknowledged"), ("ben", "acknowledged")]
        (shown,) = running.alerts.show().active
        assert shown.acknowledged_by == "ben"
        running.dead(0)
        await trio.sleep(20)
        assert [one[:2] for one in running.people()[4:]] == [("anna", "resolved"), ("ben", "resolved")]
        assert table.rows == {}


async def test_an_acknowledgement_at_another_process_is_seen_at_the_next_look(
    table: Table, autojump_clock: MockClock
) -> None:
    async with process() as running:
        running.dead()
        await trio.sleep(100)
        await table.acknowledge_alert(None, "DEAD_LETTER", None, "chris", None)
        await trio.sleep(12)
        assert running.people()[1][:2] == ("anna", "acknowledged")
        assert ("shared", "acknowledged") in [one[:2] for one in running.reached]
        await trio.sleep(2500)
        assert len(running.people()) == 2


async def test_a_new_raise_needs_a_new_acknowledgement(table: Table, autojump_clock: MockClock) -> None:
    async with process() as running:
        running.dead()
        await trio.sleep(100)
        await running.alerts.open.acknowledge("DEAD_LETTER", None, "anna", NO_CALLER)
        running.dead(0)
        await trio.sleep(100)
        running.dead()
        await trio.sleep(1000)
        changes = [one[:2] for one in running.people()]
        assert changes[-2:] == [("anna", "raised"), ("ben", "escalated")]
        (shown,) = running.alerts.show().active
        assert shown.acknowledged_by is None


async def test_a_restart_keeps_the_acknowledgement(table: Table, autojump_clock: MockClock) -> None:
    async with process() as running:
        running.dead()
        await trio.sleep(100)
        await running.alerts.open.acknowledge("DEAD_LETTER", "jobs", "anna", NO_CALLER)
    async with process() as again:
        again.dead()
        await trio.sleep(2500)
        assert again.people() == []
        # Nothing has changed by the restart, so nobody is told a second time that it is acknowledged.
        assert ("shared", "acknowledged") not in [one[:2] for one in again.reached]
        (shown,) = again.alerts.show().active
        assert shown.acknowledged_by == "anna"


async def test_a_restart_goes_on_with_the_escalation_and_notifies_nobody_a_second_time(
    table: Table, autojump_clock: MockClock
) -> None:
    async with process() as running:
        running.dead()
        await trio.sleep(600)
        assert [one[0] for one in running.people()] == ["anna"]
    async with process() as again:
        again.dead()
        await trio.sleep(600)
        ((name, change, at),) = again.people()
        assert (name, change) == ("ben", "escalated")
        assert 295 <= at <= 305
        again.dead(0)
        await trio.sleep(20)
        assert [one[:2] for one in again.people()[1:]] == [("anna", "resolved"), ("ben", "resolved")]


async def test_at_a_start_people_are_notified_when_the_database_has_said_what_was_acknowledged(
    table: Table, autojump_clock: MockClock
) -> None:
    async with process() as running:
        running.shared.error = DatabaseUnavailable("away")
        await trio.sleep(25)
        running.shared.error = None
        table.away = False
        await trio.sleep(12)
    reached = [one[:2] for one in running.people()]
    assert reached == [("anna", "raised"), ("anna", "resolved")]
    prepared = trio.Event()
    async with process(prepared=prepared) as starting:
        starting.shared.error = DatabaseUnavailable("away")
        await trio.sleep(25)
        assert starting.people() == []
        # It has said nothing for half a minute.
        await trio.sleep(25)
        assert [one[:2] for one in starting.people()] == [("anna", "raised")]


async def test_a_process_that_was_away_for_long_raises_anew(table: Table, autojump_clock: MockClock) -> None:
    async with process() as running:
        running.dead()
        await trio.sleep(100)
        await running.alerts.open.acknowledge("DEAD_LETTER", "jobs", "anna", NO_CALLER)
    await trio.sleep(301)
    async with process() as again:
        again.dead()
        await trio.sleep(100)
        assert [one[:2] for one in again.people()] == [("anna", "raised")]


async def test_who_loses_the_lead_escalates_no_more_and_the_other_goes_on(
    table: Table, autojump_clock: MockClock
) -> None:
    async with process() as one:
        one.dead()
        await trio.sleep(600)
        one.shared.leads = False
        async with process() as other:
            other.dead()
            await trio.sleep(600)
            assert [name for name, _, _ in one.people()] == ["anna"]
            assert [(name, change) for name, change, _ in other.people()] == [("ben", "escalated")]


async def test_while_the_database_is_away_people_are_notified_and_an_acknowledgement_counts_here(
    table: Table, autojump_clock: MockClock
) -> None:
    async with process() as running:
        await trio.sleep(20)
        running.shared.error = DatabaseUnavailable("away")
        table.away = True
        await trio.sleep(25)
        assert [one[:2] for one in running.people()] == [("anna", "raised")]
        (given,) = await running.alerts.open.acknowledge("POSTGRES_UNAVAILABLE", "database", "anna", NO_CALLER)
        assert given.acknowledged is not None
        assert given.acknowledged.by == "anna"
        await trio.sleep(2000)
        assert [one[:2] for one in running.people()[1:]] == [("anna", "acknowledged")]
        with pytest.raises(DatabaseUnavailable):
            await running.alerts.open.acknowledge("DEAD_LETTER", None, "anna", NO_CALLER)


async def test_what_was_acknowledged_while_the_database_was_away_is_stored_later(
    table: Table, autojump_clock: MockClock
) -> None:
    async with process() as running:
        running.dead()
        table.away = True
        await trio.sleep(25)
        await running.alerts.open.acknowledge("DEAD_LETTER", "jobs", "anna", NO_CALLER)
        table.away = False
        await trio.sleep(25)
        (row,) = table.rows.values()
        assert row.acknowledged is not None
        assert row.acknowledged.by == "anna"


async def test_nobody_can_acknowledge_what_does_not_last(table: Table, autojump_clock: MockClock) -> None:
    async with process() as running:
        running.dead()
        await trio.sleep(25)
        with pytest.raises(NotFound, match=r"no alert DEAD_LETTER of 'job' lasts.* these do: DEAD_LETTER of 'jobs'"):
            await running.alerts.open.acknowledge("DEAD_LETTER", "job", "anna", NO_CALLER)
        with pytest.raises(NotFound, match="no alert LEDGER_GAP lasts"):
            await running.alerts.open.acknowledge("LEDGER_GAP", None, "anna", NO_CALLER)


@pytest.mark.parametrize(
    ("paging", "reached"),
    [
        ("nobody", []),
        ("person", ["anna"]),
        ("all", ["anna", "ben", "chris"]),
        ("escalate", ["anna", "ben", "anna", "ben", "chris"]),
    ],
)
async def test_a_level_decides_who_is_notified(
    paging: Any, reached: list[str], table: Table, autojump_clock: MockClock
) -> None:
    async with process(OncallSettings(**{**fields(ONCALL), "levels": {"CRITICAL": paging}})) as running:
        running.dead()
        await trio.sleep(2500)
        assert [one[0] for one in running.people()] == reached


async def test_with_no_time_for_a_step_there_is_no_next_step(table: Table, autojump_clock: MockClock) -> None:
    async with process(OncallSettings(**{**fields(ONCALL), "escalate_seconds": 0.0})) as running:
        running.dead()
        await trio.sleep(2500)
        assert [one[0] for one in running.people()] == ["anna"]


async def test_a_repeat_also_goes_to_who_is_on_call_by_then(table: Table, autojump_clock: MockClock) -> None:
    # Twenty minutes before the hand-over after the change of clocks, at 09:00 in Berlin.
    only = OncallSettings(**{**fields(ONCALL), "levels": {"CRITICAL": "person"}})
    async with process(only, at=datetime(2027, 3, 29, 6, 40, tzinfo=UTC)) as running:
        running.dead()
        await trio.sleep(3700)
        assert [one[:2] for one in running.people()] == [
            ("anna", "raised"),
            ("anna", "lasting"),
            ("ben", "lasting"),
        ]


async def test_an_override_is_notified_in_the_place_of_whose_week_it_is(
    table: Table, autojump_clock: MockClock
) -> None:
    covered = OncallOverride(
        from_=datetime(2027, 3, 22, 8, tzinfo=UTC), until=datetime(2027, 3, 22, 17, tzinfo=UTC), person="chris"
    )
    async with process(OncallSettings(**{**fields(ONCALL), "overrides": (covered,)})) as running:
        running.dead()
        await trio.sleep(1000)
        assert [one[0] for one in running.people()] == ["chris", "ben"]


def fields(settings: OncallSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__struct_fields__}
