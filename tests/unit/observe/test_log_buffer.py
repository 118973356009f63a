from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from convo.errors import RemoteRefused
from convo.observe import log_records, metrics, tracing
from convo.observe.log import open_log
from convo.observe.log_buffer import LogBuffer, LogRecord, buffering
from convo.observe.tracing import Recorder
from convo.resilience.dependency import _way
from convo.settings import ObserveSettings

SAID = "I had a dog called Rex"


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[LogBuffer]:
    buffer = LogBuffer(100)
    with (
        Path(tmp_path, "log").open("wb") as file,
        open_log(ObserveSettings(log_format="json"), file.fileno()),
        buffering(buffer),
    ):
        yield buffer


def only(buffer: LogBuffer) -> LogRecord:
    (record,) = buffer.take(100)
    return record


def test_what_is_logged_is_kept_with_its_level_fields_and_trace(buffer: LogBuffer) -> None:
    recorder = Recorder(sample=1.0, spans_max=10)
    with tracing.recording(recorder), tracing.within_span(tracing.begin_span("request", "server")) as span:
        log_records.job_buried(conversation_id="talk-1", attempts=3, reason="it failed")
    assert span is not None
    record = only(buffer)
    assert (record.name, record.level) == ("job_buried", "error")
    assert record.fields == {"conversation_id": "talk-1", "attempts": 3, "reason": "it failed"}
    assert (record.trace_id, record.span_id) == (span.trace_id, span.span_id)
    assert span.began_ns - 1_000_000_000 < record.at_ns < span.began_ns + 60_000_000_000


def test_a_level_that_is_not_logged_is_not_kept_and_what_is_bound_is(buffer: LogBuffer) -> None:
    log_records.slow_query(name="db.read", seconds=2.0)
    with log_records.bound(conversation_id="talk-1"):
        log_records.batch_committed(rows=1, bytes_=1, seconds=1.0)
        log_records.log_dropped(lines=1)
    kept = {record.name: record.fields for record in buffer.take(10)}
    assert "batch_committed" not in kept
    assert kept["log_dropped"] == {"conversation_id": "talk-1", "lines": 1}


def test_an_exception_is_kept_without_what_it_says(buffer: LogBuffer) -> None:
    def failing() -> None:
        try:
            int(SAID)
        except ValueError as error:
            raise KeyError(SAID) from error

    try:
        failing()
    except KeyError as error:
        log_records.request_failed(route="/x", method="GET", error=error)
    record = only(buffer)
    assert record.fields["exception.type"] == "KeyError"
    assert record.fields["exception.stacktrace"].startswith("KeyError\n")
    assert "caused by ValueError\n" in record.fields["exception.stacktrace"]
    assert "in failing" in record.fields["exception.stacktrace"]
    assert SAID not in repr(record)


def test_the_first_words_of_an_answer_are_not_kept(buffer: LogBuffer) -> None:
    error = RemoteRefused("llm", "answered 400")
    error.answer_status, error.answer_words = 400, f"cannot parse: {SAID}"
    told = _way(error).told
    assert SAID in told
    log_records.breaker_opened(dependency="llm", reason=told, seconds=10.0)
    record = only(buffer)
    assert record.fields["reason"].endswith("answered 400; it answered 400")
    assert SAID not in repr(record)


def test_records_past_the_bound_are_dropped_and_counted_from_every_thread() -> None:
    buffer = LogBuffer(50)
    before = metrics.otel_records_dropped_total.labels("queue_full").value
    record = LogRecord(at_ns=1, level="info", name="it", fields={}, trace_id="", span_id="")

    def put() -> None:
        for _ in range(500):
            buffer.put(record)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 50 <= len(buffer) <= 53  # each thread may add one at the bound
    dropped = metrics.otel_records_dropped_total.labels("queue_full").value - before
    assert dropped == 2000 - len(buffer)


def test_behind_the_block_nothing_is_kept_and_the_log_goes_on(tmp_path: Path) -> None:
    buffer, path = LogBuffer(10), Path(tmp_path, "log")
    with path.open("wb") as file, open_log(ObserveSettings(log_format="json"), file.fileno()):
        with buffering(buffer):
            log_records.log_dropped(lines=1)
        log_records.log_dropped(lines=2)
    assert [record.fields for record in buffer.take(10)] == [{"lines": 1}]
    assert [line.count('"log_dropped"') for line in path.read_text("utf-8").splitlines()] == [1, 1]
