from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from convo.observe import metrics
from convo.otel import keeper as keepers
from convo.otel.keeper import BATCH_SPANS, SpanKeeper, traces_url
from convo.outbound import RemoteAnswer
from convo.settings import OtelSettings, Secret

SETTINGS = OtelSettings(
    endpoint="http://collector:4318/", sample=1.0, spans_max=1000, attempt_seconds=5.0, breaker_failures=3
)


class FakeCollector:
    """Answers in the place of the HTTP client, by ``answer``; keeps when it was asked, and with how many spans."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b""
        self.mute = False
        self.asked: list[tuple[float, int]] = []
        self.headers: dict[str, str] = {}

    async def post(self, url: str, body: bytes, headers: dict[str, str], **_: Any) -> RemoteAnswer:
        assert url == "http://collector:4318/v1/traces"
        self.headers = headers
        self.asked.append((trio.current_time(), int(body)))
        await trio.sleep_forever() if self.mute else await trio.lowlevel.checkpoint()
        return RemoteAnswer(status=self.status, code="", retry_after_seconds=None, body=self.body)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> FakeCollector:
    # What is written is not of interest here, and the library for it may not be installed; a thread is not on the
    # virtual clock.
    monkeypatch.setattr(keepers, "load_encoder", lambda _: lambda spans: b"%d" % len(spans))
    monkeypatch.setattr(keepers, "rejected_spans", lambda body: int(body or b"0"))
    monkeypatch.setattr(keepers, "_ENCODING", _AtOnce())
    return FakeCollector()


class _AtOnce:
    async def call_behind(self, function: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)


def made(collector: FakeCollector, settings: OtelSettings = SETTINGS) -> SpanKeeper:
    return SpanKeeper(settings, "one", collector)  # type: ignore[arg-type]


def record(keeper: SpanKeeper, count: int) -> None:
    for _ in range(count):
        span = keeper.recorder.begin("request", "server", "", "")
        assert span is not None
        span.end()


def counted() -> dict[str, float]:
    dropped = {reason: metrics.spans_dropped_total.labels(reason).value for reason in metrics.SPANS_DROPPED}
    return {"sent": metrics.spans_sent_total.value, **dropped}


def since(before: dict[str, float]) -> dict[str, float]:
    return {name: count - before[name] for name, count in counted().items() if count != before[name]}


async def test_spans_are_sent_in_batches_at_once_when_there_are_many(
    collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper, before = made(collector), counted()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        await trio.sleep(0.1)
        record(keeper, BATCH_SPANS + 10)
        await trio.sleep(0.1)
        assert [count for _, count in collector.asked] == [BATCH_SPANS, 10]
        record(keeper, 5)
        await trio.sleep(0.5)
        assert len(collector.asked) == 2
        await trio.sleep(1.0)
        assert collector.asked[2][1] == 5
        nursery.cancel_scope.cancel()
    assert since(before) == {"sent": BATCH_SPANS + 15}


async def test_while_the_collector_fails_spans_wait_and_a_batch_is_dropped_after_three_tries(
    collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper, before = made(collector), counted()
    collector.status = 503
    record(keeper, 1)
    for _ in range(2):
        await keeper.send_waiting()
    assert "answered 503" in keeper.warning
    assert since(before) == {}
    await keeper.send_waiting()
    assert since(before) == {"failed": 1}
    # The breaker is open: nothing is asked, and nothing is lost.
    record(keeper, 3)
    await keeper.send_waiting()
    assert (len(collector.asked), keeper.waiting) == (3, 3)
    collector.status = 200
    await trio.sleep(10.0)
    await keeper.send_waiting()
    assert since(before) == {"failed": 1, "sent": 3}
    assert keeper.warning == ""


async def test_a_mute_collector_is_left_at_the_deadline_of_an_attempt(
    collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper = made(collector)
    collector.mute = True
    record(keeper, 1)
    began = trio.current_time()
    await keeper.send_waiting()
    assert trio.current_time() - began == 5.0
    assert keeper.waiting == 1


async def test_what_the_collector_refuses_is_dropped_and_named(
    collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper, before = made(collector), counted()
    collector.status = 404
    record(keeper, 2)
    await keeper.send_waiting()
    assert since(before) == {"refused": 2}
    assert "404" in keeper.dependency.misconfigured
    assert "404" in keeper.warning


async def test_spans_that_a_collector_refuses_among_others_are_counted(
    collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper, before = made(collector), counted()
    collector.body = b"2"
    record(keeper, 5)
    await keeper.send_waiting()
    assert since(before) == {"sent": 3, "refused": 2}


async def test_a_stop_sends_what_is_left(collector: FakeCollector, autojump_clock: trio.testing.MockClock) -> None:
    keeper, before = made(collector), counted()
    record(keeper, 7)
    await keeper.leave()
    assert since(before) == {"sent": 7}


async def test_a_stop_waits_a_second_for_a_mute_collector(
    collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper, before = made(collector), counted()
    collector.mute = True
    record(keeper, BATCH_SPANS + 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await keeper.leave()
        assert trio.current_time() - began == 1.0
        nursery.cancel_scope.cancel()
    assert since(before) == {"stopped": BATCH_SPANS + 1}
    assert keeper.waiting == 0


def test_the_headers_are_those_of_the_setting(collector: FakeCollector) -> None:
    keeper = made(collector, OtelSettings(endpoint="http://c", headers=Secret("authorization=Basic%20x=,team=a")))
    assert keeper._headers == {
        "authorization": "Basic x=",
        "team": "a",
        "content-type": "application/x-protobuf",
    }


@pytest.mark.parametrize("endpoint", ["http://c:4318", "http://c:4318/", "https://c/otlp/"])
def test_the_path_is_added_to_the_base_address(endpoint: str) -> None:
    url = traces_url(OtelSettings(endpoint=endpoint))
    assert url == f"{endpoint.rstrip('/')}/v1/traces"


def test_a_resource_names_the_service_as_the_standard_has_it() -> None:
    named = keepers._resource(OtelSettings(resource_attributes="service.name=a,team=b%20c"), "one")
    assert (named["service.name"], named["team"], named["service.instance.id"]) == ("a", "b c", "one")
    both = keepers._resource(OtelSettings(service_name="x", resource_attributes="service.name=a"), "one")
    assert both["service.name"] == "x"
