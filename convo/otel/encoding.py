"""Writes spans as OTLP has them, with the official protobufs; they are loaded where an endpoint is set.

Open it to change what of a span is sent, or what is sent of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from convo import __version__
from convo.errors import Refused
from convo.observe.tracing import AttributeValue, Span, SpanKind
from convo.runtime import threads

_KINDS: Mapping[SpanKind, int] = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}
_ERROR = 2

EncodeSpans = Callable[[Sequence[Span]], bytes]
"""Writes spans as the body of one request; it gives way to the loop where it runs in a thread."""


def load_encoder(resource: Mapping[str, str]) -> EncodeSpans:
    """Return what encodes spans of this process, which ``resource`` describes.

    Raises:
        Refused: the library is not installed.
    """
    messages = _messages()

    def encode_spans(spans: Sequence[Span]) -> bytes:
        request = messages.ExportTraceServiceRequest()
        group = request.resource_spans.add()
        for name, value in resource.items():
            _add(group.resource.attributes, name, value)
        scope = group.scope_spans.add()
        scope.scope.name, scope.scope.version = "convo", __version__
        for span in spans:
            _fill(scope.spans.add(), span)
            threads.give_way(to_accepts=True)
        return bytes(request.SerializeToString())

    return encode_spans


def rejected_spans(answer: bytes) -> int:
    """Return how many spans the collector has refused of a request that it answered with 200."""
    messages = _messages()
    response = messages.ExportTraceServiceResponse()
    try:
        response.ParseFromString(answer)
    except import_module("google.protobuf.message").DecodeError:
        # Some answer with JSON, or with words: they have taken all.
        return 0
    return int(response.partial_success.rejected_spans)


def _messages() -> Any:
    try:
        return import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    except ModuleNotFoundError:
        raise Refused(
            "otel.endpoint (or OTEL_EXPORTER_OTLP_ENDPOINT) is set, and opentelemetry-proto, which traces are written"
            " with, is not installed: run `pip install 'convo[otel]'` (scripts/serve installs it), or unset it"
        ) from None


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
