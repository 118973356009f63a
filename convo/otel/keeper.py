"""Sends spans and log records to the collector while convo serves, each of the two by a loop of its own.

Open it to change when they are sent, where to, or what is said of this process. ``sending`` knows what happens when the
collector does not take them.
"""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial

import trio

from convo import __version__
from convo.errors import DeadlineExceeded
from convo.observe import log_records, metrics, tracing
from convo.observe.log_buffer import LogBuffer, LogRecord, buffering
from convo.observe.traced_waits import record_wait
from convo.observe.tracing import Recorder, Span
from convo.otel.encoding import load_encoder, load_record_encoder, rejected_records, rejected_spans
from convo.otel.sending import BATCH, COLLECTOR_ANSWER_BYTES_MAX, Sending, Signal, T
from convo.otel_variables import read_pairs
from convo.outbound import OutboundClient, failure
from convo.resilience.dependency import Dependency
from convo.runtime.bell import Bell
from convo.runtime.deadline import deadline, wait_observers
from convo.settings import OtelSettings, Secret

SEND_SECONDS = 1.0
"""How often spans and records are sent; spans also as soon as there are ``BATCH`` of them."""

_LAST_SECONDS = 1.0
_SPANS, _RECORDS = "otel", "otel_logs"


class CollectorKeeper:
    """Sends what is recorded of one process, ``instance``, to the collector.

    Raises:
        Refused: the library for it is not installed.
        ConfigError: ``otel.ca_file`` cannot be read.
    """

    def __init__(self, settings: OtelSettings, instance: str, client: OutboundClient | None = None) -> None:
        self._bell = Bell()
        self.client = client or open_client(settings)
        self.recorder = Recorder(
            sample=settings.sample, spans_max=settings.spans_max, many=BATCH, arrived=self._bell.ring
        )
        self.records = LogBuffer(settings.records_max)
        self.spans_sending: Sending[Span] | None = None
        self.records_sending: Sending[LogRecord] | None = None
        resource = _resource(settings, instance)
        if settings.records:
            signal = _spans_signal(settings, resource)
            self.spans_sending = Sending(signal, self.recorder, self.client, settings)
        if settings.sends_logs:
            records_signal = _records_signal(settings, resource)
            self.records_sending = Sending(records_signal, self.records, self.client, settings)

    @property
    def _sendings(self) -> list[Sending[Span] | Sending[LogRecord]]:
        return [one for one in (self.spans_sending, self.records_sending) if one is not None]

    @property
    def dependencies(self) -> list[Dependency]:
        """What is called from here."""
        return [sending.dependency for sending in self._sendings]

    @property
    def warnings(self) -> list[str]:
        """What is to be shown while the collector does not take all; empty while it does."""
        named = (("TRACES_WAITING", self.spans_sending), ("OTEL_LOGS_WAITING", self.records_sending))
        return [
            f"{name}: the collector at otel.endpoint {sending.warning}"
            for name, sending in named
            if sending is not None and sending.warning
        ]

    @property
    def loops(self) -> list[Callable[[], Awaitable[None]]]:
        """What sends until it is cancelled, each for itself: a collector may be slow with one alone."""
        spans = [] if self.spans_sending is None else [partial(_send, self.spans_sending, self._bell)]
        # Records come from other threads, too, which can ring no bell.
        records = [] if self.records_sending is None else [partial(_send, self.records_sending, Bell())]
        return [*spans, *records]

    async def leave(self) -> None:
        """Send what is left, for a moment; the process stops."""
        sendings = self._sendings
        for sending in sendings:
            try:
                with deadline("otel.last", _LAST_SECONDS / len(sendings)):
                    await sending.send_waiting()
            except DeadlineExceeded:
                pass
            sending.drop_left()


async def _send(sending: Sending[Span] | Sending[LogRecord], bell: Bell) -> None:
    while True:
        with trio.move_on_after(SEND_SECONDS):
            await bell.rung()
        await sending.send_waiting()


@asynccontextmanager
async def open_collector(settings: OtelSettings, instance: str) -> AsyncIterator[CollectorKeeper | None]:
    """Record inside the block, and yield what sends it; None where nothing is to be sent.

    Raises:
        Refused, ConfigError: as ``CollectorKeeper``.
    """
    if not settings.enabled:
        yield None
        return
    keeper = CollectorKeeper(settings, instance)
    async with keeper.client:
        with ExitStack() as stack:
            if settings.records:
                stack.enter_context(tracing.recording(keeper.recorder))
                stack.enter_context(wait_observers.adding(record_wait))
            if settings.sends_logs:
                stack.enter_context(buffering(keeper.records))
            yield keeper


async def check_collector(settings: OtelSettings) -> str:
    """Send a request without a span, and one without a record where they are sent; return what is to be shown.

    Raises:
        Refused: the library is not installed.
        RemoteError: it cannot be reached, or refuses it.
        DeadlineExceeded: it did not answer in time.
    """
    load_encoder({})
    wanted = [(traces_url(settings), settings.traces_headers)] if settings.records else []
    wanted += [(logs_url(settings), settings.logs_headers)] if settings.sends_logs else []
    async with open_client(settings) as client:
        for url, own in wanted:
            headers = _headers(settings, own, compressed=False)
            with deadline("otel.check", settings.attempt_seconds):
                answer = await client.post(url, b"", headers, answer_bytes_max=COLLECTOR_ANSWER_BYTES_MAX)
            if not answer.good:
                raise failure(_SPANS, answer)
    share = f"takes spans; {settings.sample:.4g} of the requests that come without a traceparent are recorded"
    found = [share] if settings.records else []
    return "; ".join([*found, "takes log records"] if settings.sends_logs else found)


def traces_url(settings: OtelSettings) -> str:
    """Return where spans are posted: the standard's path behind the base address, or an address of their own."""
    return settings.traces_endpoint or f"{settings.endpoint.rstrip('/')}/v1/traces"


def logs_url(settings: OtelSettings) -> str:
    """Return where log records are posted, as ``traces_url``."""
    return settings.logs_endpoint or f"{settings.endpoint.rstrip('/')}/v1/logs"


def open_client(settings: OtelSettings) -> OutboundClient:
    """Return the HTTP client for the collector, an async context manager."""
    return OutboundClient(_SPANS, seconds=settings.attempt_seconds, ca_file=settings.ca_file, verify=settings.verify)


def _spans_signal(settings: OtelSettings, resource: Mapping[str, str]) -> Signal[Span]:
    return Signal(
        name=_SPANS,
        what="spans",
        url=traces_url(settings),
        headers=_headers(settings, settings.traces_headers),
        encode=_compressing(load_encoder(resource), settings),
        rejected=rejected_spans,
        sent=metrics.spans_sent_total,
        dropped=metrics.spans_dropped_total,
        log_waiting=lambda count, reason: log_records.spans_waiting(spans=count, reason=reason),
        log_dropped=lambda count, reason: log_records.spans_dropped(spans=count, reason=reason),
    )


def _records_signal(settings: OtelSettings, resource: Mapping[str, str]) -> Signal[LogRecord]:
    return Signal(
        name=_RECORDS,
        what="log records",
        url=logs_url(settings),
        headers=_headers(settings, settings.logs_headers),
        encode=_compressing(load_record_encoder(resource), settings),
        rejected=rejected_records,
        sent=metrics.otel_records_sent_total,
        dropped=metrics.otel_records_dropped_total,
        log_waiting=lambda count, reason: log_records.otel_records_waiting(records=count, reason=reason),
        log_dropped=lambda count, reason: log_records.otel_records_dropped(records=count, reason=reason),
    )


Encode = Callable[[Sequence[T]], bytes]


def _compressing(encode: Encode[T], settings: OtelSettings) -> Encode[T]:
    if settings.compression == "none":
        return encode
    return lambda items: gzip.compress(encode(items), _GZIP_LEVEL)


_GZIP_LEVEL = 1


def _headers(settings: OtelSettings, own: Secret, *, compressed: bool = True) -> Mapping[str, str]:
    # As the standard has it, the headers of a signal come in the place of those for all.
    given = read_pairs(own.reveal() or settings.headers.reveal()) or {}
    packed = {"content-encoding": "gzip"} if compressed and settings.compression == "gzip" else {}
    return {**given, **packed, "content-type": "application/x-protobuf"}


def _resource(settings: OtelSettings, instance: str) -> Mapping[str, str]:
    given = read_pairs(settings.resource_attributes) or {}
    # As the standard has it, a name that was set comes before one among the attributes.
    named = {"service.name": settings.service_name} if settings.service_name != OtelSettings().service_name else {}
    return {
        "service.name": settings.service_name,
        "service.version": __version__,
        "service.instance.id": instance,
        "telemetry.sdk.name": "convo",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": __version__,
        **given,
        **named,
    }
