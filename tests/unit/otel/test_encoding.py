from __future__ import annotations

import subprocess
import sys

import pytest

from convo.errors import Refused
from convo.observe.trace_context import read_context
from convo.observe.tracing import Recorder, Span
from convo.otel import encoding
from convo.otel.encoding import load_encoder, rejected_spans
from tests.support.collectors import needs_otel, read_spans, rejecting

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


def test_a_process_without_traces_loads_no_library_for_them() -> None:
    program = "import sys, convo.service, convo.commands.cli; assert not {'opentelemetry', 'google'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_where_the_library_is_missing_a_start_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(encoding, "import_module", missing)
    with pytest.raises(Refused, match=r"pip install 'convo\[otel\]'"):
        load_encoder({})
