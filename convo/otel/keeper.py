"""Sends spans to the collector while convo serves: in batches, one after the other, each under a deadline.

Open it to change when spans are sent, or what happens when the collector does not take them. Nobody waits for it: spans
wait in the recorder, at most ``otel.spans_max`` of them, and what comes beyond is dropped and counted. A batch that
fails is sent again a few times and then dropped; while the breaker is open, none is sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import trio

from convo import __version__
from convo.errors import DeadlineExceeded, RemoteDenied, RemoteDown, RemoteError, RemoteRefused
from convo.observe import log_records, metrics, tracing
from convo.observe.tracing import Recorder, Span
from convo.otel.encoding import load_encoder, rejected_spans
from convo.otel_variables import read_pairs
from convo.outbound import OutboundClient, RemoteAnswer, failure
from convo.resilience.dependency import Dependency
from convo.runtime import threads
from convo.runtime.bell import Bell
from convo.runtime.deadline import deadline, wait_observers
from convo.settings import CallSettings, OtelSettings

BATCH_SPANS = 256
"""So many spans at most are sent in one request."""

SEND_SECONDS = 1.0
"""How often spans are sent where there are fewer than ``BATCH_SPANS``."""

_NAME = "otel"
_TRIES = 3
_ENCODE_SECONDS = 5.0
_LAST_SECONDS = 1.0
_ANSWER_BYTES_MAX = 64 << 10
# One batch after the other, each while no accept is under way, or after a moment of waiting for that.
_ENCODING = threads.ThreadBehindAccepts()


class SpanKeeper:
    """Sends the spans of one process, ``instance``, to the collector at ``otel.endpoint``.

    Raises:
        Refused: the library for it is not installed.
        ConfigError: ``otel.ca_file`` cannot be read.
    """

    def __init__(self, settings: OtelSettings, instance: str, client: OutboundClient | None = None) -> None:
        self._encode = load_encoder(_resource(settings, instance))
        self._url = traces_url(settings)
        self._headers = _headers(settings)
        self._bell = Bell()
        self.client = client or open_client(settings)
        self.recorder = Recorder(
            sample=settings.sample, spans_max=settings.spans_max, many=BATCH_SPANS, arrived=self._bell.ring
        )
        self.dependency = Dependency(
            _NAME,
            CallSettings(
                attempt_seconds=settings.attempt_seconds,
                attempts=1,
                concurrency=1,
                breaker_failures=settings.breaker_failures,
                breaker_open_seconds=settings.breaker_open_seconds,
            ),
        )
        # The batch that is being sent, as it is written, and how often that has failed.
        self._batch: list[Span] = []
        self._body = b""
        self._failures = 0
        self._turn = trio.Lock()
        self._dropped = 0.0
        self._reason = ""

    @property
    def waiting(self) -> int:
        """How many spans wait to be sent."""
        return len(self._batch) + len(self.recorder)

    @property
    def warning(self) -> str:
        """What is to be shown while the collector takes no spans; empty while it does."""
        if not self._reason:
            return ""
        return f"TRACES_WAITING: the collector at otel.endpoint takes no spans ({self._reason}); {self.waiting} wait"

    async def run(self) -> None:
        """Send spans until cancelled."""
        while True:
            with trio.move_on_after(SEND_SECONDS):
                await self._bell.rung()
            await self.send_waiting()

    async def send_waiting(self) -> None:
        """Send all that wait, until an attempt fails."""
        while self.waiting and await self._send_batch():
            pass
        dropped = metrics.spans_dropped_total.labels("queue_full").value
        if dropped > self._dropped:
            log_records.spans_dropped(spans=int(dropped - self._dropped), reason="more than otel.spans_max waited")
        self._dropped = dropped

    async def leave(self) -> None:
        """Send what is left, for a moment; the process stops."""
        try:
            with deadline("otel.last", _LAST_SECONDS):
                await self.send_waiting()
        except DeadlineExceeded:
            pass
        if self.waiting:
            self._drop([*self._batch, *self.recorder.take(self.waiting)], "stopped", "the process stops")

    async def _send_batch(self) -> bool:
        """Send the batch under way, or the next one; return whether to go on at once."""
        async with self._turn:
            try:
                if not self._batch:
                    self._batch = self.recorder.take(BATCH_SPANS)
                    self._body = b""
                if not self._body:
                    with deadline("otel.encode", _ENCODE_SECONDS):
                        self._body = await _ENCODING.call_behind(self._encode, self._batch)
                answer = await self.dependency.call("otel.export", partial(self._attempt, self._body))
            except DeadlineExceeded as error:
                self._failed(error.detail)
                return False
            except RemoteError as error:
                return self._refused(error)
            self._reason = ""
            rejected = min(rejected_spans(answer.body), len(self._batch))
            metrics.spans_sent_total.inc(len(self._batch) - rejected)
            self._drop(self._batch[:rejected], "refused", "the collector has refused some of a batch")
            return True

    # no deadline: the dependency sets one around each attempt
    async def _attempt(self, body: bytes) -> RemoteAnswer:
        answer = await self.client.post(self._url, body, self._headers, answer_bytes_max=_ANSWER_BYTES_MAX)
        if not answer.good:
            raise failure(_NAME, answer)
        return answer

    def _refused(self, error: RemoteError) -> bool:
        if isinstance(error, RemoteRefused | RemoteDenied):
            self._reason = error.detail
            self._drop(self._batch, "refused", error.detail)
        elif not isinstance(error, RemoteDown):
            self._failed(error.detail)
        return False

    def _failed(self, reason: str) -> None:
        self._reason = reason
        self._failures += 1
        log_records.spans_waiting(spans=self.waiting, reason=reason)
        if self._failures >= _TRIES:
            self._drop(self._batch, "failed", reason)

    def _drop(self, spans: list[Span], counted_as: str, reason: str) -> None:
        """End the batch under way; what of it was not sent is counted."""
        if spans:
            metrics.spans_dropped_total.labels(counted_as).inc(len(spans))
            log_records.spans_dropped(spans=len(spans), reason=reason)
        self._batch, self._body, self._failures = [], b"", 0


@asynccontextmanager
async def open_spans(settings: OtelSettings, instance: str) -> AsyncIterator[SpanKeeper | None]:
    """Record inside the block, and yield what sends the spans; None where nothing is recorded.

    Raises:
        Refused, ConfigError: as ``SpanKeeper``.
    """
    if not settings.enabled:
        yield None
        return
    keeper = SpanKeeper(settings, instance)
    async with keeper.client:
        with tracing.recording(keeper.recorder), wait_observers.adding(tracing.record_wait):
            yield keeper


async def check_collector(settings: OtelSettings) -> str:
    """Send a request without a span; return what is to be shown of a collector that takes it.

    Raises:
        Refused: the library is not installed.
        RemoteError: it cannot be reached, or refuses it.
        DeadlineExceeded: it did not answer in time.
    """
    load_encoder({})
    async with open_client(settings) as client:
        with deadline("otel.check", settings.attempt_seconds):
            answer = await client.post(
                traces_url(settings), b"", _headers(settings), answer_bytes_max=_ANSWER_BYTES_MAX
            )
        if not answer.good:
            raise failure(_NAME, answer)
    return f"takes spans; {settings.sample:.4g} of the requests that come without a traceparent are recorded"


def traces_url(settings: OtelSettings) -> str:
    """Return where spans are posted: the standard's path behind the base address."""
    return f"{settings.endpoint.rstrip('/')}/v1/traces"


def open_client(settings: OtelSettings) -> OutboundClient:
    """Return the HTTP client for the collector, an async context manager."""
    return OutboundClient(_NAME, seconds=settings.attempt_seconds, ca_file=settings.ca_file, verify=settings.verify)


def _headers(settings: OtelSettings) -> Mapping[str, str]:
    return {**(read_pairs(settings.headers.reveal()) or {}), "content-type": "application/x-protobuf"}


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
