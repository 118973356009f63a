from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from typing import Any, cast

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from convo.alerts.delivery import SinkQueue
from convo.alerts.formats import Notification
from convo.alerts.keeper import Alerts, Here
from convo.alerts.look import Vitals
from convo.alerts.shared import SharedState
from convo.alerts.sinks import OpenSinks
from convo.errors import ConvoError, DatabaseUnavailable
from convo.settings import AlertsSettings, OncallSettings
from convo.store.ledger import Gap

SETTINGS = AlertsSettings(evaluate_seconds=1.0, look_seconds=5.0, disk_free_bytes=0)
DAY = date(2026, 11, 24)
GAP = {"day": DAY.isoformat(), "what": "jobs", "booked": 2, "found": 1}


class FakeShared(SharedState):
    """Answers from memory, or fails."""

    def __init__(self) -> None:
        self.leads = True
        self.found = Vitals(at=0.0)
        self.gap: tuple[Gap, ...] = ()
        self.error: ConvoError | None = None
        self.asked = 0
        self.compared: list[Sequence[date]] = []

    async def lead(self) -> bool:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.error:
            raise self.error
        return self.leads

    async def vitals(self) -> Vitals:
        await trio.lowlevel.checkpoint()
        return self.found

    async def gaps(self, days: Sequence[date]) -> tuple[Gap, ...]:
        await trio.lowlevel.checkpoint()
        self.compared.append(days)
        return self.gap


class TakingSink:
    """Takes everything."""

    name = "taking"

    def __init__(self) -> None:
        self.took: list[tuple[str, str]] = []

    async def send(self, message: Notification) -> None:
        await trio.lowlevel.checkpoint()
        self.took.append((message.change, message.alert.type))


@asynccontextmanager
async def keeping(
    shared: FakeShared, *, prepared: bool = True, settings: AlertsSettings = SETTINGS
) -> AsyncIterator[tuple[Alerts, TakingSink]]:
    sink, event = TakingSink(), trio.Event()
    if prepared:
        event.set()
    alerts = Alerts(
        settings=settings,
        oncall=OncallSettings(),
        here=Here(process=lambda: "here/1", folder=Path("/"), pool=lambda: (0, 8)),
        postgres=cast("Any", None),
        shared=shared,
        prepared=event,
        sinks=OpenSinks(shared=(SinkQueue(sink, settings),)),
    )
    with capture_logs():
        async with trio.open_nursery() as nursery:
            await nursery.start(alerts.run)
            await nursery.start(alerts.sinks.shared[0].run)
            nursery.start_soon(alerts.ask)
            yield alerts, sink
            nursery.cancel_scope.cancel()


async def test_a_dead_letter_is_notified_within_one_look_and_one_evaluation(autojump_clock: MockClock) -> None:
    shared = FakeShared()
    async with keeping(shared) as (alerts, sink):
        await trio.sleep(1.5)
        assert sink.took == []
        shared.found = Vitals(at=5.0, dead=1, dead_ids=("c-1",))
        await trio.sleep(6)
        assert sink.took == [("raised", "DEAD_LETTER")]
        (shown,) = alerts.show().active
        assert (shown.evidence.explain, shown.process) == (("/v1/conversations/c-1/explain",), "here/1")
        shared.found = Vitals(at=15.0)
        await trio.sleep(6)
        assert sink.took[1:] == [("resolved", "DEAD_LETTER")]


async def test_who_does_not_lead_raises_nothing_that_all_share(autojump_clock: MockClock) -> None:
    shared = FakeShared()
    shared.leads, shared.found = False, Vitals(at=0.0, dead=1)
    async with keeping(shared) as (alerts, sink):
        alerts.note_record("ledger_gap", GAP)
        await trio.sleep(100)
        assert (sink.took, alerts.show().leads) == ([], False)
        assert shared.compared == []


async def test_who_loses_the_lead_leaves_the_alerts_to_the_other(autojump_clock: MockClock) -> None:
    shared = FakeShared()
    shared.found = Vitals(at=0.0, dead=1)
    async with keeping(shared) as (alerts, sink):
        await trio.sleep(10)
        shared.leads = False
        await trio.sleep(10)
        assert sink.took == [("raised", "DEAD_LETTER")]
        assert alerts.show().active == ()


async def test_while_the_database_is_away_what_all_share_stays_and_its_absence_is_notified(
    autojump_clock: MockClock,
) -> None:
    shared = FakeShared()
    shared.found = Vitals(at=0.0, dead=1)
    async with keeping(shared) as (alerts, sink):
        await trio.sleep(6.5)
        shared.error = DatabaseUnavailable("away")
        await trio.sleep(8)
        assert sink.took == [("raised", "DEAD_LETTER"), ("raised", "POSTGRES_UNAVAILABLE")]
        assert [one.type for one in alerts.show().active] == ["DEAD_LETTER", "POSTGRES_UNAVAILABLE"]
        shared.error = None
        await trio.sleep(8)
        assert sink.took[2:] == [("resolved", "POSTGRES_UNAVAILABLE")]


async def test_a_database_that_does_not_answer_is_asked_again_sooner(autojump_clock: MockClock) -> None:
    shared = FakeShared()
    shared.error = DatabaseUnavailable("away")
    async with keeping(shared):
        await trio.sleep(10.5)
    assert shared.asked == 11


async def test_before_the_schema_is_there_only_the_answer_counts(autojump_clock: MockClock) -> None:
    shared = FakeShared()
    shared.found = Vitals(at=0.0, dead=1)
    async with keeping(shared, prepared=False) as (_, sink):
        await trio.sleep(100)
        assert sink.took == []
        assert shared.asked > 10


async def test_days_that_did_not_balance_are_compared_again_until_they_do(autojump_clock: MockClock) -> None:
    shared = FakeShared()
    shared.gap = (Gap(day=DAY, what="jobs", booked=2, found=1),)
    async with keeping(shared) as (alerts, sink):
        await trio.sleep(5.5)
        alerts.note_record("ledger_gap", GAP)
        await trio.sleep(70)
        assert sink.took == [("raised", "LEDGER_GAP")]
        assert shared.compared == [[DAY]]
        shared.gap = ()
        await trio.sleep(70)
        assert sink.took[1:] == [("resolved", "LEDGER_GAP")]
        compared = len(shared.compared)
        await trio.sleep(200)
        assert len(shared.compared) == compared


async def test_an_alert_lasts_notified_no_more_often_than_its_pace(autojump_clock: MockClock) -> None:
    shared = FakeShared()
    shared.found = Vitals(at=0.0, dead=1)
    async with keeping(shared) as (_, sink):
        await trio.sleep(1805)
    assert sink.took == [("raised", "DEAD_LETTER"), *[("lasting", "DEAD_LETTER")] * 2]
