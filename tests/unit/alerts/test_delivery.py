from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from convo.alerts import formats
from convo.alerts.delivery import SinkQueue
from convo.alerts.formats import Notification
from convo.alerts.rules import Alert, condition
from convo.errors import ConvoError, RemoteDenied, RemoteRefused, RemoteUnavailable
from convo.observe import metrics
from convo.settings import AlertsSettings
from tests.support.making import AT

SETTINGS = AlertsSettings(buffer_max=3, attempts=3, backoff_seconds=1.0, deliver_seconds=5.0)


def message(number: int) -> Notification:
    alert = Alert(condition=condition("DEAD_LETTER", "jobs", "why"), since=0.0)
    return Notification(
        id=f"msg_{number}", change="raised", at=AT, alert=formats.view(alert, raised_at=AT, ended_at=None, process="p")
    )


class FailingSink:
    """Fails with these, then takes what comes."""

    name = "failing"

    def __init__(self, *errors: ConvoError) -> None:
        self.errors = list(errors)
        self.tried: list[tuple[str, float]] = []
        self.took: list[str] = []

    async def send(self, message: Notification) -> None:
        await trio.lowlevel.checkpoint()
        self.tried.append((message.id, trio.current_time()))
        if self.errors:
            raise self.errors.pop(0)
        self.took.append(message.id)


class StuckSink(FailingSink):
    name = "stuck"

    async def send(self, message: Notification) -> None:
        self.tried.append((message.id, trio.current_time()))
        await trio.sleep_forever()


def dropped(sink: str, reason: str) -> float:
    return metrics.alerts_dropped_total.labels(sink, reason).value


@asynccontextmanager
async def delivering(sink: FailingSink) -> AsyncIterator[SinkQueue]:
    queue = SinkQueue(sink, SETTINGS)
    async with trio.open_nursery() as nursery:
        await nursery.start(queue.run)
        yield queue
        nursery.cancel_scope.cancel()


async def test_a_message_that_failed_is_tried_again_under_its_id(autojump_clock: MockClock) -> None:
    sink = FailingSink(RemoteUnavailable("x", "down"), RemoteUnavailable("x", "down"))
    async with delivering(sink) as queue:
        queue.put(message(1))
        await trio.sleep(100)
    assert sink.took == ["msg_1"]
    assert [name for name, _ in sink.tried] == ["msg_1"] * 3


async def test_a_message_is_dropped_and_counted_after_its_last_attempt(autojump_clock: MockClock) -> None:
    before = dropped("failing", "failed")
    sink = FailingSink(*(RemoteUnavailable("x", "down") for _ in range(3)))
    async with delivering(sink) as queue:
        queue.put(message(1))
        queue.put(message(2))
        await trio.sleep(100)
    assert sink.took == ["msg_2"]
    assert dropped("failing", "failed") == before + 1


@pytest.mark.parametrize("error", [RemoteRefused("x", "400"), RemoteDenied("x", "401")])
async def test_a_message_that_is_refused_is_not_sent_again(error: ConvoError, autojump_clock: MockClock) -> None:
    before = dropped("failing", "refused")
    sink = FailingSink(error)
    async with delivering(sink) as queue:
        queue.put(message(1))
        await trio.sleep(100)
    assert [name for name, _ in sink.tried] == ["msg_1"]
    assert dropped("failing", "refused") == before + 1


async def test_what_a_full_box_cannot_hold_is_dropped_and_counted_and_nothing_waits(autojump_clock: MockClock) -> None:
    before, sink = dropped("stuck", "buffer_full"), StuckSink()
    async with delivering(sink) as queue:
        started = trio.current_time()
        queue.put(message(0))
        await trio.testing.wait_all_tasks_blocked()
        for number in range(1, 6):
            queue.put(message(number))
        assert trio.current_time() == started
    assert dropped("stuck", "buffer_full") == before + 2


async def test_a_message_has_its_time_whatever_its_sink_asks_for(autojump_clock: MockClock) -> None:
    before, sink = dropped("failing", "failed"), FailingSink()
    sink.errors = [RemoteUnavailable("x", "later", retry_after_seconds=86_400.0)]
    async with delivering(sink) as queue:
        queue.put(message(1))
        queue.put(message(2))
        await trio.sleep(1.0)
        assert sink.took == ["msg_2"]
    assert dropped("failing", "failed") == before + 1


@pytest.mark.parametrize(("error", "said"), [(None, None), (RemoteRefused("x", "answered 410"), "x: answered 410")])
async def test_a_test_is_sent_once_and_says_why_it_failed(error: ConvoError | None, said: str | None) -> None:
    sink = FailingSink(*([error] if error else []))
    assert await SinkQueue(sink, SETTINGS).test(message(1)) == said
    assert len(sink.tried) == 1
