from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from convo.observe import log_records, metrics
from convo.observe.log_buffer import LogRecord, buffering
from convo.otel import keeper as keepers
from convo.otel import sending
from convo.otel.keeper import CollectorKeeper, logs_url, traces_url
from convo.otel.sending import BATCH, Sending
from convo.outbound import RemoteAnswer
from convo.settings import OtelSettings, Secret

SETTINGS = OtelSettings(
    endpoint="http://collector:4318/",
    sample=1.0,
    logs=True,
    spans_max=1000,
    records_max=1000,
    attempt_seconds=5.0,
    breaker_failures=3,
)
SIGNALS = ("traces", "logs")


class FakeCollector:
    """Answers in the place of the HTTP client; keeps when it was asked, and with how many spans or records.

    ``mute_at`` are the signals that are not answered.
    """

    def __init__(self) -> None:
        self.status = 200
        self.body = b""
        self.mute_at: tuple[str, ...] = ()
        self.sent: list[tuple[str, int]] = []
        self.asked: list[tuple[float, int]] = []
        self.headers: dict[str, str] = {}

    async def post(self, url: str, body: bytes, headers: dict[str, str], **_others: Any) -> RemoteAnswer:
        address, _, signal = url.rpartition("/")
        assert address == "http://collector:4318/v1"
        self.headers = headers
        self.asked.append((trio.current_time(), int(body)))
        self.sent.append((signal, int(body)))
        await trio.sleep_forever() if signal in self.mute_at else await trio.lowlevel.checkpoint()
        return RemoteAnswer(status=self.status, code="", retry_after_seconds=None, body=self.body)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> FakeCollector:
    # What is written is not of interest here, and the library for it may not be installed; a thread is not on the
    # virtual clock.
    for load, rejected in (("load_encoder", "rejected_spans"), ("load_record_encoder", "rejected_records")):
        monkeypatch.setattr(keepers, load, lambda _: lambda spans: b"%d" % len(spans))
        monkeypatch.setattr(keepers, rejected, lambda body: int(body or b"0"))
    monkeypatch.setattr(sending, "_ENCODING", _AtOnce())
    return FakeCollector()


class _AtOnce:
    async def call_behind(self, function: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)


def made(collector: FakeCollector, settings: OtelSettings = SETTINGS) -> CollectorKeeper:
    return CollectorKeeper(settings, "one", collector)  # type: ignore[arg-type]


def run(keeper: CollectorKeeper, nursery: trio.Nursery) -> None:
    for loop in keeper.loops:
        nursery.start_soon(loop)


def record(keeper: CollectorKeeper, count: int, signal: str = "traces") -> None:
    for _ in range(count):
        if signal == "logs":
            keeper.records.put(LogRecord(at_ns=1, level="info", name="it", fields={}, trace_id="", span_id=""))
            continue
        span = keeper.recorder.begin("request", "server", "", "")
        assert span is not None
        span.end()


def sender(keeper: CollectorKeeper, signal: str) -> Sending[Any]:
    found = keeper.spans_sending if signal == "traces" else keeper.records_sending
    assert found is not None
    return found


def counted(signal: str) -> dict[str, float]:
    sent, dropped = (
        (metrics.spans_sent_total, metrics.spans_dropped_total)
        if signal == "traces"
        else (metrics.otel_records_sent_total, metrics.otel_records_dropped_total)
    )
    return {"sent": sent.value, **{reason: dropped.labels(reason).value for reason in metrics.SPANS_DROPPED}}


def since(before: dict[str, float], signal: str = "traces") -> dict[str, float]:
    return {name: count - before[name] for name, count in counted(signal).items() if count != before[name]}


async def test_spans_are_sent_in_batches_at_once_when_there_are_many(
    collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper, before = made(collector), counted("traces")
    async with trio.open_nursery() as nursery:
        run(keeper, nursery)
        await trio.sleep(0.1)
        record(keeper, BATCH + 10)
        await trio.sleep(0.1)
        assert [count for _, count in collector.asked] == [BATCH, 10]
        record(keeper, 5)
        await trio.sleep(0.5)
        assert len(collector.asked) == 2
        await trio.sleep(1.0)
        assert collector.asked[2][1] == 5
        nursery.cancel_scope.cancel()
    assert since(before) == {"sent": BATCH + 15}


async def test_log_records_are_sent_once_a_second_in_batches(
    collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper, before = made(collector), counted("logs")
    async with trio.open_nursery() as nursery:
        run(keeper, nursery)
        await trio.sleep(0.1)
        record(keeper, BATCH + 10, "logs")
        await trio.sleep(0.5)
        assert collector.sent == []
        await trio.sleep(0.5)
        assert collector.sent == [("logs", BATCH), ("logs", 10)]
        nursery.cancel_scope.cancel()
    assert since(before, "logs") == {"sent": BATCH + 10}


@pytest.mark.parametrize("signal", SIGNALS)
async def test_while_the_collector_fails_all_wait_and_a_batch_is_dropped_after_three_tries(
    signal: str, collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper, before = made(collector), counted(signal)
    one = sender(keeper, signal)
    collector.status = 503
    record(keeper, 1, signal)
    for _ in range(2):
        await one.send_waiting()
    (warning,) = keeper.warnings
    assert "answered 503" in warning
    assert since(before, signal) == {}
    await one.send_waiting()
    assert since(before, signal) == {"failed": 1}
    # The breaker is open: nothing is asked, and nothing is lost.
    record(keeper, 3, signal)
    await one.send_waiting()
    assert (len(collector.asked), one.waiting) == (3, 3)
    collector.status = 200
    await trio.sleep(10.0)
    await one.send_waiting()
    assert since(before, signal) == {"failed": 1, "sent": 3}
    assert keeper.warnings == []


@pytest.mark.parametrize("signal", SIGNALS)
async def test_a_mute_collector_is_left_at_the_deadline_of_an_attempt(
    signal: str, collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    one = sender(keeper := made(collector), signal)
    collector.mute_at = SIGNALS
    record(keeper, 1, signal)
    began = trio.current_time()
    await one.send_waiting()
    assert trio.current_time() - began == 5.0
    assert one.waiting == 1


async def test_a_collector_that_is_mute_with_spans_still_gets_log_records(
    collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper = made(collector)
    collector.mute_at = ("traces",)
    async with trio.open_nursery() as nursery:
        run(keeper, nursery)
        record(keeper, 3, "traces")
        record(keeper, 4, "logs")
        await trio.sleep(1.5)
        assert set(collector.sent) == {("traces", 3), ("logs", 4)}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("signal", SIGNALS)
async def test_what_the_collector_refuses_is_dropped_and_named(
    signal: str, collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper, before = made(collector), counted(signal)
    one = sender(keeper, signal)
    collector.status = 404
    record(keeper, 2, signal)
    await one.send_waiting()
    assert since(before, signal) == {"refused": 2}
    assert "404" in one.dependency.misconfigured
    (warning,) = keeper.warnings
    assert "404" in warning
    # The other signal has a breaker and a standing of its own.
    (other,) = [found for found in keeper.dependencies if found is not one.dependency]
    assert other.misconfigured == ""


@pytest.mark.parametrize("signal", SIGNALS)
async def test_what_a_collector_refuses_among_others_is_counted(
    signal: str, collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper, before = made(collector), counted(signal)
    collector.body = b"2"
    record(keeper, 5, signal)
    await sender(keeper, signal).send_waiting()
    assert since(before, signal) == {"sent": 3, "refused": 2}


async def test_log_records_past_the_bound_are_dropped_and_counted(collector: FakeCollector) -> None:
    keeper, before = (
        made(collector, OtelSettings(endpoint="http://collector:4318", logs=True, records_max=3)),
        counted("logs"),
    )
    record(keeper, 5, "logs")
    assert len(keeper.records) == 3
    assert since(before, "logs") == {"queue_full": 2}


@pytest.mark.parametrize("signal", SIGNALS)
async def test_a_stop_sends_what_is_left(
    signal: str, collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper, before = made(collector), counted(signal)
    record(keeper, 7, signal)
    await keeper.leave()
    assert since(before, signal) == {"sent": 7}


async def test_a_stop_waits_a_second_for_a_mute_collector(
    collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper, before, records_before = made(collector), counted("traces"), counted("logs")
    collector.mute_at = SIGNALS
    record(keeper, BATCH + 1)
    record(keeper, 2, "logs")
    async with trio.open_nursery() as nursery:
        run(keeper, nursery)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await keeper.leave()
        assert trio.current_time() - began == 1.0
        nursery.cancel_scope.cancel()
    assert (since(before), since(records_before, "logs")) == ({"stopped": BATCH + 1}, {"stopped": 2})
    assert [sender(keeper, signal).waiting for signal in SIGNALS] == [0, 0]


async def test_what_is_not_asked_for_is_not_sent(
    collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    assert made(collector, OtelSettings(endpoint="http://collector:4318")).records_sending is None
    assert (
        made(collector, OtelSettings(endpoint="http://collector:4318", traces=False, logs=True)).spans_sending is None
    )


async def test_failing_to_send_records_logs_no_record_for_each_try(
    collector: FakeCollector, autojump_clock: trio.testing.MockClock
) -> None:
    keeper = made(collector)
    collector.status = 404
    with buffering(keeper.records):
        log_records.log_dropped(lines=1)
        for _ in range(20):
            await sender(keeper, "logs").send_waiting()
            await trio.sleep(0.01)
    assert len(collector.asked) < 6


def test_the_headers_are_those_of_the_setting(collector: FakeCollector) -> None:
    keeper = made(collector, OtelSettings(endpoint="http://c", headers=Secret("authorization=Basic%20x=,team=a")))
    assert sender(keeper, "traces")._signal.headers == {
        "authorization": "Basic x=",
        "team": "a",
        "content-type": "application/x-protobuf",
    }


def test_the_headers_of_a_signal_come_in_the_place_of_those_for_all(collector: FakeCollector) -> None:
    settings = OtelSettings(endpoint="http://c", logs=True, headers=Secret("a=b"), logs_headers=Secret("c=d"))
    keeper = made(collector, settings)
    assert sender(keeper, "traces")._signal.headers == {"a": "b", "content-type": "application/x-protobuf"}
    assert sender(keeper, "logs")._signal.headers == {"c": "d", "content-type": "application/x-protobuf"}


def test_what_is_sent_is_compressed_where_that_is_set(collector: FakeCollector) -> None:
    signal = sender(made(collector, OtelSettings(endpoint="http://c", compression="gzip")), "traces")._signal
    assert signal.headers["content-encoding"] == "gzip"
    assert gzip.decompress(signal.encode([None] * 12)) == b"12"


@pytest.mark.parametrize("endpoint", ["http://c:4318", "http://c:4318/", "https://c/otlp/"])
def test_the_path_is_added_to_the_base_address(endpoint: str) -> None:
    settings = OtelSettings(endpoint=endpoint)
    assert traces_url(settings) == f"{endpoint.rstrip('/')}/v1/traces"
    assert logs_url(settings) == f"{endpoint.rstrip('/')}/v1/logs"


def test_the_address_of_a_signal_is_used_as_it_is() -> None:
    settings = OtelSettings(endpoint="http://c", traces_endpoint="http://t/x/", logs_endpoint="http://l")
    assert (traces_url(settings), logs_url(settings)) == ("http://t/x/", "http://l")


def test_a_resource_names_the_service_as_the_standard_has_it() -> None:
    named = keepers._resource(OtelSettings(resource_attributes="service.name=a,team=b%20c"), "one")
    assert (named["service.name"], named["team"], named["service.instance.id"]) == ("a", "b c", "one")
    both = keepers._resource(OtelSettings(service_name="x", resource_attributes="service.name=a"), "one")
    assert both["service.name"] == "x"
