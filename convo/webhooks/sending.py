"""Makes one attempt to deliver: writes the event, signs it, posts it, and reads what came of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import trio
from msgspec import Struct

from convo.cloud_events import EVENT_CONTENT_TYPE, PING, encode_event, encode_ping
from convo.errors import DeadlineExceeded, RemoteError
from convo.observe import metrics, tracing
from convo.outbound_checked import CheckedClient
from convo.runtime.deadline import deadline
from convo.standard_webhooks import signed, signing_key
from convo.store.deliveries import Delivery
from convo.store.event_rows import StoredEvent


class Sent(Struct, frozen=True, kw_only=True):
    """What came of an attempt, and the pause that the endpoint asked for."""

    outcome: Delivery
    pause_seconds: float | None = None


class _Message(Struct, frozen=True, kw_only=True):
    id: str
    body: bytes
    number: int | None = None
    aside_since: datetime | None = None
    type: str = PING
    trace: str | None = None


class Sender:
    """Makes attempts that take at most ``attempt_seconds`` each."""

    def __init__(self, client: CheckedClient, attempt_seconds: float) -> None:
        self._client = client
        self._attempt_seconds = attempt_seconds

    async def deliver(
        self, url: str, keys: Sequence[str], event: StoredEvent, *, aside_since: datetime | None = None
    ) -> Sent:
        """Deliver an event once."""
        message = _Message(
            id=event.id,
            body=encode_event(event),
            number=event.number,
            aside_since=aside_since,
            type=event.type,
            trace=event.trace,
        )
        return await self._post(url, keys, message)

    async def ping(self, url: str, keys: Sequence[str]) -> Sent:
        """Find out whether an endpoint answers."""
        ping_id = f"ping_{secrets.token_hex(8)}"
        return await self._post(url, keys, _Message(id=ping_id, body=encode_ping(ping_id, datetime.now(UTC))))

    async def _post(self, url: str, keys: Sequence[str], message: _Message) -> Sent:
        span = tracing.continued(message.trace, f"deliver {message.type}", "client", wait="webhook.attempt")
        with tracing.within_span(span):
            sent = await self._attempt(url, keys, message)
            if span is not None:
                span.error = sent.outcome.error or ""
                span.attributes |= {"http.request.method": "POST", "convo.event_id": message.id}
                if sent.outcome.status is not None:
                    span.attributes["http.response.status_code"] = sent.outcome.status
            return sent

    async def _attempt(self, url: str, keys: Sequence[str], message: _Message) -> Sent:
        started = trio.current_time()
        status, error, answered, pause = None, None, b"", None
        # The receiver compares it with its own wall clock: the time of this attempt, not that of the event.
        signature = signed(message.id, int(time.time()), message.body, [signing_key(key) for key in keys])
        try:
            with deadline("webhook.attempt", self._attempt_seconds):
                headers = {"content-type": EVENT_CONTENT_TYPE, **signature}
                answer = await self._client.post(url, message.body, headers)
        except (DeadlineExceeded, RemoteError) as failed:
            error = failed.detail
        else:
            status, answered, pause = answer.status, answer.body, answer.retry_after_seconds
            if not answer.good:
                error = f"answered {status}"
        metrics.webhook_attempts_total.labels("failed" if error else "confirmed").inc()
        outcome = Delivery(
            number=message.number,
            event_id=message.id,
            good=error is None,
            status=status,
            error=error,
            answer=answered,
            seconds=trio.current_time() - started,
            aside_since=message.aside_since,
        )
        return Sent(outcome=outcome, pause_seconds=pause)
