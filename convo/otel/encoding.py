"""Writes spans and log records as OTLP has them, with the official protobufs; they are loaded where they are sent.

Open it to change what of a span or a record is sent, or what is sent of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from convo import __version__
from convo.errors import Refused
from convo.observe.log import FIELD_CHARACTERS_MAX
from convo.observe.log_buffer import LogRecord
from convo.observe.tracing import AttributeValue, Span, SpanKind
from convo.runtime import threads

_KINDS: Mapping[SpanKind, int] = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}
_ERROR = 2
_TRACES = "opentelemetry.proto.collector.trace.v1.trace_service_pb2"
_LOGS = "opentelemetry.proto.collector.logs.v1.logs_service_pb2"
_SEVERITIES: Mapping[str, int] = {"debug": 5, "info": 9, "warning": 13, "error": 17, "critical": 21}
# Of the flags of a trace this one says that it is recorded.
_SAMPLED = 1

EncodeSpans = Callable[[Sequence[Span]], bytes]
"""Writes spans as the body of one request; it gives way to the loop where it runs in a thread."""
EncodeRecords = Callable[[Sequence[LogRecord]], bytes]
"""As ``EncodeSpans``, for log records."""


def load_encoder(resource: Mapping[str, str]) -> EncodeSpans:
    """Return what encodes spans of this process, which ``resource`` describes.

    Raises:
        Refused: the library is not installed.
    """
    messages = _messages(_TRACES)

    def encode_spans(spans: Sequence[Span]) -> bytes:
        request = messages.ExportTraceServiceRequest()
        group = request.resource_spans.add()
        scope = group.scope_spans.add()
        _describe(group.resource, scope.scope, resource)
        for span in spans:
            _fill(scope.spans.add(), span)
            threads.give_way(to_accepts=True)
        return bytes(request.SerializeToString())

    return encode_spans


def load_record_encoder(resource: Mapping[str, str]) -> EncodeRecords:
    """Return what encodes log records of this process, which ``resource`` describes.

    Raises:
        Refused: the library is not installed.
    """
    messages = _messages(_LOGS)

    def encode_records(records: Sequence[LogRecord]) -> bytes:
        request = messages.ExportLogsServiceRequest()
        group = request.resource_logs.add()
        scope = group.scope_logs.add()
        _describe(group.resource, scope.scope, resource)
        for record in records:
            _fill_record(scope.log_records.add(), record)
            threads.give_way(to_accepts=True)
        return bytes(request.SerializeToString())

    return encode_records


def rejected_spans(answer: bytes) -> int:
    """Return how many spans the collector has refused of a request that it answered with 200."""
    return int(_partial(answer, _messages(_TRACES).ExportTraceServiceResponse()).rejected_spans)


def rejected_records(answer: bytes) -> int:
    """Return how many log records the collector has refused of a request that it answered with 200."""
    return int(_partial(answer, _messages(_LOGS).ExportLogsServiceResponse()).rejected_log_records)


def _partial(answer: bytes, response: Any) -> Any:
    try:
        response.ParseFromString(answer)
    except import_module("google.protobuf.message").DecodeError:
        # Some answer with JSON, or with words: they have taken all.
        response.Clear()
    return response.partial_success


def _messages(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise Refused(
            "otel.endpoint (or OTEL_EXPORTER_OTLP_ENDPOINT) is set, and opentelemetry-proto, which traces are written"
            " with, is not installed: run `pip install 'convo[otel]'` (scripts/serve installs it), or unset it"
        ) from None


def _describe(resource: Any, scope: Any, attributes: Mapping[str, str]) -> None:
    for name, value in attributes.items():
        _add(resource.attributes, name, value)
    scope.name, scope.version = "convo", __version__


def _fill(one: Any, span: Span) -> None:
    one.trace_id = bytes.fromhex(span.trace_id)
    one.span_id = bytes.fromhex(span.span_id)
    one.parent_span_id = bytes.fromhex(span.parent_id)
    one.trace_state = span.state
    one.name = span.name
    one.kind = _KINDS[span.kind]
    one.start_time_unix_nano = span.began_ns
    one.end_time_unix_nano = max(span.began_ns, span.ended_ns)
    for name, value in span.attributes.items():
        _add(one.attributes, name, value)
    if span.error:
        one.status.code, one.status.message = _ERROR, span.error


def _fill_record(one: Any, record: LogRecord) -> None:
    one.time_unix_nano = one.observed_time_unix_nano = record.at_ns
    one.severity_number, one.severity_text = _SEVERITIES.get(record.level, 0), record.level.upper()
    one.event_name = one.body.string_value = record.name
    if record.trace_id:
        one.trace_id, one.span_id = bytes.fromhex(record.trace_id), bytes.fromhex(record.span_id)
        one.flags = _SAMPLED
    for name, value in record.fields.items():
        _add(one.attributes, name, _plain(value))


def _plain(value: object) -> AttributeValue:
    """Return a field of a record as an attribute can be; a text as long as it may be in the log."""
    if isinstance(value, str):
        # Protobuf refuses half of a surrogate pair.
        return value[:FIELD_CHARACTERS_MAX].encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int) and not isinstance(value, bool) and not -_INT_BOUND <= value < _INT_BOUND:
        return str(value)
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [str(_plain(one)) for one in value]
    return str(_plain(repr(value)))


_INT_BOUND = 1 << 63


def _add(attributes: Any, name: str, value: AttributeValue) -> None:
    attribute = attributes.add()
    attribute.key = name
    _set(attribute.value, value)


def _set(field: Any, value: AttributeValue) -> None:
    if isinstance(value, bool):
        field.bool_value = value
    elif isinstance(value, int):
        field.int_value = value
    elif isinstance(value, float):
        field.double_value = value
    elif isinstance(value, str):
        field.string_value = value
    else:
        for one in value:
            _set(field.array_value.values.add(), one)
