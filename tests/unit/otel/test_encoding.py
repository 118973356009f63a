from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from convo.errors import Refused
from convo.observe.log_buffer import LogRecord
from convo.observe.trace_context import read_context
from convo.observe.tracing import Recorder, Span
from convo.otel import encoding
from convo.otel.encoding import load_encoder, load_record_encoder, rejected_records, rejected_spans
from tests.support.collectors import needs_otel, read_records, read_spans, rejecting, rejecting_records

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def made() -> Span:
    parent = read_context(f"00-{TRACE}-{SPAN}-01", "vendor=x")
    span = Span(Recorder(sample=1.0, spans_max=10), "job", "consumer", parent=parent)
    span.began_seconds_ago(1.5)
    return span


@needs_otel
def test_a_span_is_read_back_as_it_was_by_the_official_protobufs() -> None:
    span = made()
    span.attributes |= {"text": "hé", "count": 7, "share": 0.5, "good": True, "parts": ["a", "b"]}
    span.error = "answered 503"
    span.end()
    (found,) = read_spans(load_encoder({"service.name": "convo"})([span]))
    assert (found.name, found.kind, found.trace_id, found.parent_id) == ("job", "consumer", TRACE, SPAN)
    assert (found.span_id, found.state, found.error) == (span.span_id, "vendor=x", "answered 503")
    assert found.attributes == {"text": "hé", "count": 7, "share": 0.5, "good": True, "parts": ["a", "b"]}
    assert found.attributes["good"] is True
    assert found.resource == {"service.name": "convo"}
    assert found.ended_ns - found.began_ns >= 1_500_000_000


@needs_otel
def test_a_span_without_a_parent_or_an_error_has_none() -> None:
    span = Span(Recorder(sample=1.0, spans_max=10), "request", "server", parent=None)
    span.end()
    (found,) = read_spans(load_encoder({})([span]))
    assert (found.parent_id, found.error, found.kind) == ("", "", "server")
    assert len(found.trace_id) == 32


@needs_otel
def test_what_a_collector_refuses_of_a_batch_is_read_from_its_answer() -> None:
    assert rejected_spans(rejecting(3)) == 3
    assert rejected_spans(b"") == 0
    assert rejected_spans(b'{"partialSuccess":{}}') == 0
    assert rejected_records(rejecting_records(4)) == 4
    assert rejected_records(b"taken") == 0


def logged(level: str = "info", trace_id: str = "", fields: dict[str, Any] | None = None) -> LogRecord:
    span_id = SPAN if trace_id else ""
    return LogRecord(at_ns=5, level=level, name="it_ended", fields=fields or {}, trace_id=trace_id, span_id=span_id)


@needs_otel
def test_a_log_record_is_read_back_as_it_was_by_the_official_protobufs() -> None:
    fields = {"text": "hé", "count": 7, "share": 0.5, "good": True, "ids": ["a", "b"], "rows": [1, 2]}
    record = logged(trace_id=TRACE, fields=fields)
    (found,) = read_records(load_record_encoder({"service.name": "convo"})([record]))
    assert (found.name, found.body, found.at_ns) == ("it_ended", "it_ended", 5)
    assert (found.trace_id, found.span_id, found.sampled) == (TRACE, SPAN, True)
    assert found.attributes == {**fields, "rows": ["1", "2"]}
    assert found.attributes["good"] is True
    assert found.resource == {"service.name": "convo"}
    (alone,) = read_records(load_record_encoder({})([logged()]))
    assert (alone.trace_id, alone.span_id, alone.sampled) == ("", "", False)


@needs_otel
@pytest.mark.parametrize(
    ("level", "severity"), [("debug", 5), ("info", 9), ("warning", 13), ("error", 17), ("critical", 21)]
)
def test_a_level_is_the_severity_of_the_standard(level: str, severity: int) -> None:
    (found,) = read_records(load_record_encoder({})([logged(level)]))
    assert (found.severity, found.level) == (severity, level.upper())


@needs_otel
def test_a_field_that_protobuf_cannot_have_is_no_reason_to_lose_a_batch() -> None:
    odd = {"long": "x" * 20_000, "half": "\ud800", "huge": 1 << 70, "table": {"a": 1}, "none": None}
    (found,) = read_records(load_record_encoder({})([logged(fields=odd)]))
    assert (len(found.attributes["long"]), found.attributes["half"]) == (16_384, "\\ud800")
    assert (found.attributes["huge"], found.attributes["table"]) == (str(1 << 70), "{'a': 1}")


def test_a_process_without_traces_loads_no_library_for_them() -> None:
    program = "import sys, convo.service, convo.commands.cli; assert not {'opentelemetry', 'google'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_where_the_library_is_missing_a_start_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(encoding, "import_module", missing)
    with pytest.raises(Refused, match=r"pip install 'convo\[otel\]'"):
        load_encoder({})
