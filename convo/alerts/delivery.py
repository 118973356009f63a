"""Delivers notifications to one sink each: the log, an address, or what ``sinks`` opens besides.

Open it to change how often a message is tried, and what becomes of one that fails. Messages wait in bounded queues, one
for each sink, and go out under deadlines. Whatever a sink does, nothing else waits for it: a full queue drops, an
attempt has its deadline, a message its attempts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import trio
from msgspec import Struct

from convo.alerts.formats import Notification
from convo.errors import ConvoError, DeadlineExceeded, RemoteDenied, RemoteError, RemoteRefused, RemoteUnavailable
from convo.observe import log_records, metrics
from convo.outbound import OutboundClient, failure
from convo.resilience.retry import retrying
from convo.runtime.deadline import deadline
from convo.settings import AlertsSettings, Secret

_BACKOFF_MAX_SECONDS = 60.0
DROP_REASONS = ("buffer_full", "refused", "failed")
"""Why a message is dropped."""

SinkBody = Callable[[Notification], bytes]
"""Writes what is posted of a message."""
SinkHeaders = Callable[[Notification, bytes], Mapping[str, str]]
"""Makes the headers of a message, given its body."""


class Sink(Protocol):
    """Where alerts go."""

    @property
    def name(self) -> str:
        """Its name, in metrics and in what is shown."""

    async def send(self, message: Notification) -> None:
        """Send one message, once.

        Raises:
            RemoteError: it did not get there.
        """


class LogSink:
    """Logs alerts."""

    name = "log"

    async def send(self, message: Notification) -> None:
        """Log it."""
        alert = message.alert
        log_records.alert(
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
    """Posts alerts to one address, which is never shown: whoever knows it may post there."""

    name: str
    client: OutboundClient
    url: Secret
    seconds: float
    body: SinkBody
    headers: SinkHeaders

    async def send(self, message: Notification) -> None:
        """Post it once, under the deadline ``alerts.deliver``.

        Raises:
            RemoteError: it is not taken; retryable where it may be a moment later.
        """
        body = self.body(message)
        try:
            with deadline("alerts.deliver", self.seconds):
                # Only the status is of interest: what else is answered is not read, however long it is.
                answer = await self.client.post(
                    self.url.reveal(), body, self.headers(message, body), answer_bytes_max=0
                )
        except DeadlineExceeded as error:
            raise RemoteUnavailable(self.name, error.detail) from error
        if not answer.good:
            raise failure(self.name, answer)


class SinkQueue:
    """The messages that wait for one sink, at most ``alerts.buffer_max``, and their delivery one after the other."""

    def __init__(self, sink: Sink, settings: AlertsSettings) -> None:
        self.sink = sink
        self._settings = settings
        for reason in DROP_REASONS:
            # From the start, so that a rule over its growth sees the first one.
            metrics.alerts_dropped_total.labels(sink.name, reason)
        # Buffered, so that who notifies never waits for a sink.
        self._send, self._receive = trio.open_memory_channel[Notification](settings.buffer_max)

    def put(self, message: Notification) -> None:
        """Queue a message, or drop and count it; never wait."""
        try:
            self._send.send_nowait(message)
        except trio.WouldBlock:
            self._drop(message, "buffer_full", "too many wait for it")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver message after message until cancelled."""
        task_status.started()
        async for message in self._receive:  # no deadline: messages come or do not
            await self._deliver(message)

    async def _deliver(self, message: Notification) -> None:
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
        except (RemoteRefused, RemoteDenied) as error:
            self._drop(message, "refused", error.detail)
        except (RemoteError, DeadlineExceeded) as error:
            self._drop(message, "failed", error.detail)
        else:
            metrics.alerts_delivered_total.labels(self.sink.name).inc()

    async def test(self, message: Notification) -> str | None:
        """Send a message now and once, past all that wait; return why it failed, None where it did not."""
        try:
            await self.sink.send(message)  # no deadline: a sink sets its own
        except ConvoError as error:
            return error.detail
        return None

    def _drop(self, message: Notification, reason: str, detail: str) -> None:
        metrics.alerts_dropped_total.labels(self.sink.name, reason).inc()
        log_records.alert_dropped(sink=self.sink.name, type_=message.alert.type, change=message.change, reason=detail)
