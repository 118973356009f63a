"""Delivery: messages wait in bounded boxes, one for each sink, and go out under deadlines; it knows no condition.

Whatever a sink does, nobody else waits for it: a full box drops, an attempt has its deadline, a message its attempts.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

import httpx
import trio
from msgspec import Struct

from convo.alerts import formats
from convo.alerts.formats import Message
from convo.config import AlertsSettings, Secret
from convo.deadline import deadline
from convo.errors import ConvoError, DeadlineExceeded, RemoteBusy, RemoteError, RemoteRefused, RemoteUnavailable
from convo.observe import events, metrics
from convo.resilience.retry import retry_after_seconds, retrying

# The transport's own limit only backs the deadline up.
_BACKSTOP = 2.0
_BACKOFF_MAX_SECONDS = 60.0
_PASSING = frozenset({408, 425})


class Sink(Protocol):
    """Where alerts go."""

    @property
    def name(self) -> str:
        """Its name, in metrics and in what is shown."""

    async def send(self, message: Message) -> None:
        """Send one message, once.

        Raises:
            RemoteError: it did not get there.
        """


class LogSink:
    """Tells alerts as log events."""

    name = "log"

    async def send(self, message: Message) -> None:
        """Tell it."""
        alert = message.alert
        events.alert(
            change=message.change,
            type_=alert.type,
            component=alert.component,
            severity=alert.level,
            trigger=alert.trigger,
            count=alert.count,
            figures=alert.evidence.figures,
            ids=list(alert.evidence.ids),
        )


class HttpSink(Struct, frozen=True, kw_only=True):
    """Posts alerts to one address, which nobody is shown."""

    name: str
    client: httpx.AsyncClient
    url: Secret
    seconds: float
    body: Callable[[Message], bytes]
    headers: Callable[[Message, bytes], Mapping[str, str]]

    async def send(self, message: Message) -> None:
        """Post it once, under the deadline ``alerts.deliver``.

        Raises:
            RemoteError: it is not taken; retryable where it may be a moment later.
        """
        try:
            with deadline("alerts.deliver", self.seconds):
                response = await self._post(message)
        except DeadlineExceeded as error:
            raise RemoteUnavailable(self.name, error.detail) from error
        if response.is_success:
            return
        said = f"it answered {response.status_code}"
        asked = retry_after_seconds(response.headers, datetime.now(UTC))
        if response.status_code == 429:
            raise RemoteBusy(self.name, said, retry_after_seconds=asked)
        if response.status_code in _PASSING or response.status_code >= 500:
            raise RemoteUnavailable(self.name, said, retry_after_seconds=asked)
        raise RemoteRefused(self.name, said)

    async def _post(self, message: Message) -> httpx.Response:
        body = self.body(message)
        headers = {"content-type": "application/json", **self.headers(message, body)}
        try:
            # Only the status is of interest: what else is answered is not read, however long it is.
            async with self.client.stream("POST", self.url.reveal(), content=body, headers=headers) as response:
                return response
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            # Its text can quote the address.
            raise RemoteRefused(self.name, f"the request cannot be sent ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            raise RemoteUnavailable(self.name, f"the connection failed ({type(error).__name__})") from None


class Outbox:
    """The messages that wait for one sink, at most ``alerts.buffer_max``, and their delivery one after the other."""

    def __init__(self, sink: Sink, settings: AlertsSettings) -> None:
        self.sink = sink
        self._settings = settings
        # Buffered, so that whoever tells never waits for who is told.
        self._send, self._receive = trio.open_memory_channel[Message](settings.buffer_max)

    def put(self, message: Message) -> None:
        """Queue a message, or drop and count it; never wait."""
        try:
            self._send.send_nowait(message)
        except trio.WouldBlock:
            self._drop(message, "buffer_full", "too many wait for it")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver message after message until cancelled."""
        task_status.started()
        async for message in self._receive:
            await self._deliver(message)

    async def _deliver(self, message: Message) -> None:
        s = self._settings
        try:
            with deadline("alerts.message", s.attempts * (s.deliver_seconds + _BACKOFF_MAX_SECONDS)):
                await retrying(
                    partial(self.sink.send, message),
                    attempts=s.attempts,
                    backoff_seconds=s.backoff_seconds,
                    backoff_max_seconds=_BACKOFF_MAX_SECONDS,
                    attempt_seconds=s.deliver_seconds,
                )
        except RemoteRefused as error:
            self._drop(message, "refused", error.detail)
        except (RemoteError, DeadlineExceeded) as error:
            self._drop(message, "failed", error.detail)
        else:
            metrics.alerts_delivered_total.labels(self.sink.name).inc()

    async def test(self, message: Message) -> str | None:
        """Send a message now and once, past all that wait; return why it failed, None where it did not."""
        try:
            await self.sink.send(message)
        except ConvoError as error:
            return error.detail
        return None

    def _drop(self, message: Message, reason: str, detail: str) -> None:
        metrics.alerts_dropped_total.labels(self.sink.name, reason).inc()
        events.alert_dropped(sink=self.sink.name, type_=message.alert.type, change=message.change, reason=detail)


@asynccontextmanager
async def open_outboxes(settings: AlertsSettings) -> AsyncIterator[tuple[Outbox, ...]]:
    """Open a box for the log and for each address that is set."""
    addresses = [one for one in _addresses(settings) if one[1]]
    if not addresses:
        # A client reads the trusted authorities, which takes longer than all else at a start.
        yield (Outbox(LogSink(), settings),)
        return
    seconds = settings.deliver_seconds
    async with httpx.AsyncClient(timeout=seconds * _BACKSTOP, limits=httpx.Limits(max_connections=16)) as client:
        sinks: list[Sink] = [
            LogSink(),
            *(
                HttpSink(name=name, client=client, url=url, seconds=seconds, body=body, headers=headers)
                for name, url, body, headers in addresses
            ),
        ]
        yield tuple(Outbox(sink, settings) for sink in sinks)


_Body = Callable[[Message], bytes]
_Headers = Callable[[Message, bytes], Mapping[str, str]]


def _addresses(settings: AlertsSettings) -> tuple[tuple[str, Secret, _Body, _Headers], ...]:
    return (
        ("webhook", settings.webhook_url, formats.webhook_body, partial(_signed, settings.webhook_secret)),
        ("slack", settings.slack_url, formats.slack_body, _unsigned),
        ("google_chat", settings.google_chat_url, formats.google_chat_body, _unsigned),
    )


def _signed(secret: Secret, message: Message, body: bytes) -> Mapping[str, str]:
    # The receiver compares it with its own wall clock: the time of this attempt, not that of the alert.
    return formats.signed(message.id, int(time.time()), body, formats.signing_key(secret.reveal()))


def _unsigned(_message: Message, _body: bytes) -> Mapping[str, str]:
    return {}
