"""A collector of traces and log records for tests: a real HTTP server that reads OTLP with the official protobufs."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import trio
from msgspec import Struct

from tests.support.receivers import Answering, Got, Receiver, Reply, receiving

TAKEN = Reply(status=200, headers={"Content-Type": "application/x-protobuf"})
_KINDS = ("", "internal", "server", "client", "producer", "consumer")


def _has_protobufs() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.proto") is not None
    except ModuleNotFoundError:
        return False


needs_otel = pytest.mark.skipif(
    not _has_protobufs(), reason="opentelemetry-proto is not installed: scripts/setup dev, or pip install 'convo[otel]'"
)


class CollectedSpan(Struct, frozen=True, kw_only=True):
    """A span as the collector has it; ids are in hex, times in nanoseconds since 1970."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    error: str
    resource: dict[str, Any]


class CollectedRecord(Struct, frozen=True, kw_only=True):
    """A log record as the collector has it; ids are in hex, times in nanoseconds since 1970."""

    name: str
    body: str
    severity: int
    level: str
    at_ns: int
    trace_id: str
    span_id: str
    sampled: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector:
    """What a receiver was sent, read as OTLP."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.endpoint = receiver.url.rstrip("/")

    def spans(self) -> list[CollectedSpan]:
        """Every span that was posted, in its order."""
        return [span for got in list(self.receiver.got) if got.path == "/v1/traces" for span in read_spans(_body(got))]

    def named(self, name: str) -> list[CollectedSpan]:
        """The spans of a name."""
        return [span for span in self.spans() if span.name == name]

    def records(self) -> list[CollectedRecord]:
        """Every log record that was posted, in its order."""
        return [one for got in list(self.receiver.got) if got.path == "/v1/logs" for one in read_records(_body(got))]

    async def until(self, true: Callable[[list[CollectedSpan]], bool], seconds: float = 20) -> list[CollectedSpan]:
        """Wait until what was collected is so, and return it."""
        with trio.move_on_after(seconds):
            while not true(self.spans()):  # noqa: ASYNC110  (another thread collects)
                await trio.sleep(0.02)
            return self.spans()
        pytest.fail(f"it was not collected; these were: {[span.name for span in self.spans()]}")


def _body(got: Got) -> bytes:
    return gzip.decompress(got.body) if got.headers.get("content-encoding") == "gzip" else got.body


def read_spans(body: bytes) -> list[CollectedSpan]:
    """Read the body of an export."""
    request = import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2").ExportTraceServiceRequest()
    request.ParseFromString(body)
    return [
        CollectedSpan(
            name=span.name,
            kind=_KINDS[span.kind],
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            state=span.trace_state,
            began_ns=span.start_time_unix_nano,
            ended_ns=span.end_time_unix_nano,
            attributes=_attributes(span.attributes),
            error=span.status.message if span.status.code == 2 else "",
            resource=_attributes(group.resource.attributes),
        )
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def read_records(body: bytes) -> list[CollectedRecord]:
    """Read the body of an export of log records."""
    request = import_module("opentelemetry.proto.collector.logs.v1.logs_service_pb2").ExportLogsServiceRequest()
    request.ParseFromString(body)
    return [
        CollectedRecord(
            name=record.event_name,
            body=record.body.string_value,
            severity=record.severity_number,
            level=record.severity_text,
            at_ns=record.time_unix_nano,
            trace_id=record.trace_id.hex(),
            span_id=record.span_id.hex(),
            sampled=bool(record.flags & 1),
            attributes=_attributes(record.attributes),
            resource=_attributes(group.resource.attributes),
        )
        for group in request.resource_logs
        for scope in group.scope_logs
        for record in scope.log_records
    ]


def rejecting_records(records: int) -> bytes:
    """Write the answer of a collector that has refused so many log records of a request."""
    response = import_module("opentelemetry.proto.collector.logs.v1.logs_service_pb2").ExportLogsServiceResponse()
    response.partial_success.rejected_log_records = records
    return bytes(response.SerializeToString())


def rejecting(spans: int) -> bytes:
    """Write the answer of a collector that has refused so many spans of a request."""
    response = import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2").ExportTraceServiceResponse()
    response.partial_success.rejected_spans = spans
    return bytes(response.SerializeToString())


def _attributes(found: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in found}


def _value(field: Any) -> Any:
    kind = field.WhichOneof("value")
    return [_value(one) for one in field.array_value.values] if kind == "array_value" else getattr(field, kind)


@contextmanager
def collecting_spans(answer: Answering = lambda _: TAKEN) -> Iterator[Collector]:
    """Run a collector on a free port of 127.0.0.1."""
    with receiving(answer) as receiver:
        yield Collector(receiver)
