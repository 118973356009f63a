"""Takes conversations from a queue: each is stored as if it had been posted, and acknowledged after its commit.

Open it to change what becomes of a message. What would be answered 4xx goes to the exchange of refused messages, with
the problem in its headers. What comes at a bad time (503, 429) is kept here and tried again; the broker sends no more
than ``rabbitmq.prefetch`` messages meanwhile. Where the connection breaks, it sends again what was not acknowledged,
and what was stored before is a replay then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

import trio
from msgspec import Struct

from convo.conversation.tenant import Reach, Tenant
from convo.errors import ConvoError, DeadlineExceeded, RemoteError
from convo.http.request_body import too_large
from convo.observe import log_records, metrics, tracing
from convo.observe.tracing import Span
from convo.rabbitmq.broker import Broker, Incoming, Outgoing
from convo.rabbitmq.queues import dead_name, take_from
from convo.resilience.dependency import Dependency
from convo.runtime.bell import Bell
from convo.runtime.bridge import Bridge
from convo.runtime.deadline import deadline
from convo.settings import RabbitmqSettings
from convo.store.group import Submitted
from convo.store.intake import Accept, Stored
from convo.store.postgres import Postgres
from convo.store.tenants import find_tenant
from convo.web.accept import AcceptRoute, check_user, log_conflict, owned, receipt_of, traced
from convo.web.admission import Admitted
from convo.web.clients import Clients

# While messages are decoded one after the other, so often others run between two of them.
_STEP_SECONDS = 0.002
_LOOK_SECONDS = 0.25
_LATER_SECONDS, _LATER_SECONDS_MAX = 1.0, 5.0
_LEAST_SECONDS = 0.1
_DETAIL_MAX = 1000


class _UnderWay(Struct, frozen=True, gc=False):
    """A message whose conversation is handed to the committer."""

    message: Incoming
    conversation_id: str
    submitted: Submitted[Accept, Stored]
    place: Admitted
    span: Span | None = None


class QueueIntake:
    """The messages of one queue, for one tenant, as long as it runs."""

    def __init__(  # noqa: PLR0913, PLR0917  (where messages come from, where they go, and by which rules)
        self,
        bridge: Bridge,
        postgres: Postgres,
        dependency: Dependency,
        settings: RabbitmqSettings,
        intake: AcceptRoute,
        clients: Clients,
    ) -> None:
        self._postgres = postgres
        self._dependency = dependency
        self._settings = settings
        self._intake = intake
        self._clients = clients
        self._broker = Broker(bridge, settings, "intake", self._declare)
        self._bell = Bell()
        self._arrived: deque[Incoming] = deque()
        self._under_way: deque[_UnderWay] = deque()
        self._done: list[int] = []
        self._later_seconds = 0.0
        self._paused_at = trio.current_time()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Take messages until the process stops."""
        try:
            reach = await self._reach()
            while reach is not None and not self._stopping:
                if await self._opened():
                    await self._take_all(reach)
                    await self._broker.close()
        finally:
            self._ended.set()
            await self._broker.close()  # noqa: ASYNC102  (shields itself, with a bound)

    async def leave(self) -> None:
        """Wait until what is under way is acknowledged; it takes nothing new while the process stops."""
        self._bell.ring()
        await self._ended.wait()

    @property
    def _stopping(self) -> bool:
        return self._intake.readiness.phase == "draining"

    async def _reach(self) -> Reach | None:
        """Return whose the conversations are; wait where there is no such tenant. None at a stop."""
        name = self._settings.intake_tenant
        while not self._stopping:
            try:
                tenant: Tenant | None = await find_tenant(self._postgres, name)
            except ConvoError as error:
                log_records.intake_waiting(queue=self._settings.intake_queue, reason=error.detail)
            else:
                if tenant is not None:
                    return Reach(tenant=tenant)
                self._dependency.note_misconfigured(
                    f"rabbitmq.intake_tenant = {name!r}: there is no such tenant; `convo key new NAME --tenant {name}`"
                    " makes one"
                )
            await self._pause(_LATER_SECONDS)
        return None

    async def _opened(self) -> bool:
        try:
            await self._dependency.call("rabbitmq_intake.open", self._broker.open)
        except RemoteError as error:
            log_records.intake_waiting(queue=self._settings.intake_queue, reason=error.detail)
            await self._broker.close()
            left = self._dependency.seconds_until_probe()
            await self._pause(self._settings.backoff_seconds if left is None else max(left, _LEAST_SECONDS))
            return False
        return True

    async def _declare(self, channel: Any) -> None:
        # What an earlier connection brought is brought again by this one.
        self._arrived.clear()
        await take_from(channel, self._settings.intake_queue, self._settings.prefetch, self._take)

    def _take(self, message: Incoming) -> None:
        self._arrived.append(message)
        self._bell.ring()

    async def _take_all(self, reach: Reach) -> None:
        """Store what comes, until the connection breaks or the process stops."""
        try:
            while self._broker.is_open and not self._stopping:
                await self._begin_some(reach)
                await self._end_some()
                await self._acknowledge()
                await self._wait()
            await self._end_all()
            await self._acknowledge()
        except (RemoteError, DeadlineExceeded) as error:
            log_records.intake_waiting(queue=self._settings.intake_queue, reason=error.detail)
        # Of what is still under way the broker sends all again, and what is stored by then is a replay.
        self._under_way.clear()
        self._done.clear()

    async def _wait(self) -> None:
        if self._later_seconds:
            later, self._later_seconds = self._later_seconds, 0.0
            await self._pause(later, lambda: self._broker.is_open)
            # Those that were tried come first again.
            self._arrived = deque(sorted(self._arrived, key=attrgetter("tag")))
        elif not (self._arrived or self._under_way):
            with trio.move_on_after(_LOOK_SECONDS):
                await self._bell.rung()

    async def _pause(self, seconds: float, lasts: Callable[[], bool] = lambda: True) -> None:
        """Wait as long as ``lasts`` returns true, but not for a stop."""
        with trio.move_on_after(seconds):
            while lasts() and not self._stopping:  # noqa: ASYNC110  (neither rings a bell)
                await trio.sleep(_LOOK_SECONDS)

    async def _begin_some(self, reach: Reach) -> None:
        """Hand to the committer what has come, as far as there is room for it."""
        while self._arrived and not self._later_seconds:
            message = self._arrived[0]
            if self._under_way and not self._intake.admission.takes(len(message.body)):
                return
            self._arrived.popleft()
            await self._begin(message, reach)
            if trio.current_time() >= self._paused_at + _STEP_SECONDS:
                await trio.lowlevel.checkpoint()
                self._paused_at = trio.current_time()

    async def _begin(self, message: Incoming, reach: Reach) -> None:
        intake = self._intake
        until = trio.current_time() + intake.settings.request_seconds
        place = intake.admission.place()
        span = self._begun_span(message)
        with tracing.resumed_span(span), ExitStack() as stack:
            stack.enter_context(place)
            try:
                accept = await self._prepared(message, reach, place)
                if span is not None:
                    accept = traced(accept, span)
                    span.attributes["convo.conversation_id"] = accept.ended.conversation_id
                submitted = intake.committer.enqueue(accept, until, place.end)
            except ConvoError as error:
                await self._end_refused(span, message, error, None)
                return
            except Exception as error:  # noqa: BLE001  (a bug ends one message and no other)
                log_records.request_failed(route=f"queue {self._settings.intake_queue}", method="other", error=error)
                unexpected = ConvoError("an unexpected error; the log has the details")
                await self._end_refused(span, message, unexpected, None)
                return
            # It ends with the outcome from now on.
            stack.pop_all()
        self._under_way.append(_UnderWay(message, accept.ended.conversation_id, submitted, place, span))

    def _begun_span(self, message: Incoming) -> Span | None:
        """Begin the span of a message, if it is to be recorded: its headers are those of a request."""
        if not tracing.records():
            return None
        headers: Mapping[str, Any] = message.properties.headers or {}
        traceparent, tracestate = (_text(headers.get(name)) for name in ("traceparent", "tracestate"))
        queue = self._settings.intake_queue
        span = tracing.begin_span(f"process {queue}", "consumer", traceparent, tracestate)
        if span is not None:
            span.attributes |= {"messaging.system": "rabbitmq", "messaging.destination.name": queue}
        return span

    async def _prepared(self, message: Incoming, reach: Reach, place: Admitted) -> Accept:
        """Decode a message as the door does. Raises: ConvoError: it is wrong, or comes at a bad time."""
        intake, settings, bytes_ = self._intake, self._settings, len(message.body)
        if bytes_ > intake.settings.raw_bytes_max:
            raise too_large(intake.settings, bytes_)
        intake.readiness.check()
        intake.admission.check(bytes_)
        self._clients.spend(f"queue {settings.intake_queue}", bytes_, tenant=reach.tenant.name)
        place.grow(bytes_)
        place.enter()
        if message.content_encoding:
            accept = await intake.prepare_packed(message.body, message.content_encoding, place)
        else:
            accept = await intake.prepare(message.body)
        check_user(accept)
        return owned(accept, reach)

    async def _end_some(self) -> None:
        """Wait for the outcome of what is under way the longest, and take those that are known besides."""
        if self._under_way:
            await self._end_first()
        while self._under_way and self._under_way[0].submitted.known:
            await self._end_first()
        if self._later_seconds:
            await self._end_all()

    async def _end_all(self) -> None:
        while self._under_way:
            await self._end_first()

    async def _end_first(self) -> None:
        first = self._under_way[0]
        try:
            stored = await first.submitted.outcome()
        except ConvoError as error:
            log_conflict(first.conversation_id, error)
            self._under_way.popleft()
            with tracing.resumed_span(first.span):
                await self._end_refused(first.span, first.message, error, first.conversation_id)
        else:
            self._under_way.popleft()
            with log_records.bound(conversation_id=first.conversation_id), tracing.resumed_span(first.span):
                receipt_of(stored)
            _end_span(first.span, None)
            metrics.queue_messages_total.labels("replayed" if stored.replayed else "accepted").inc()
            self._done.append(first.message.tag)
        first.place.end()

    async def _end_refused(
        self, span: Span | None, message: Incoming, error: ConvoError, conversation_id: str | None
    ) -> None:
        try:
            await self._refused(message, error, conversation_id)
        finally:
            _end_span(span, error)

    async def _refused(self, message: Incoming, error: ConvoError, conversation_id: str | None) -> None:
        """Put a message that is wrong aside, at the broker; keep one that came at a bad time."""
        if error.status in (408, 429) or error.status == 503:
            metrics.queue_messages_total.labels("again").inc()
            self._arrived.append(message)
            self._later_seconds = min(_LATER_SECONDS_MAX, max(error.retry_after_seconds or 0.0, _LATER_SECONDS))
            log_records.intake_waiting(queue=self._settings.intake_queue, reason=error.detail)
            return
        metrics.queue_messages_total.labels("dead").inc()
        queue, confirmed = self._settings.intake_queue, set[int]()
        log_records.message_refused(
            queue=queue, code=error.code, conversation_id=conversation_id or error.conversation_id
        )
        outgoing = _dead(message, error, conversation_id or error.conversation_id, queue)
        with deadline("rabbitmq_intake.refuse", self._settings.attempt_seconds):
            await self._broker.publish(dead_name(queue), [[outgoing]], confirmed)
        self._done.append(message.tag)

    async def _acknowledge(self) -> None:
        if self._done:
            done, self._done = self._done, []
            with deadline("rabbitmq_intake.acknowledge", self._settings.attempt_seconds):
                await self._broker.acknowledge(done)


def _end_span(span: Span | None, error: ConvoError | None) -> None:
    if span is not None:
        if error is not None:
            # Its detail may quote the message.
            span.attributes["error.type"] = span.error = error.code
        span.end()


def _text(value: object) -> str:
    # A library may give what is no text of ASCII as bytes.
    return value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _dead(message: Incoming, error: ConvoError, conversation_id: str | None, queue: str) -> Outgoing:
    """Return a refused message: its own body and headers, and the problem in headers besides."""
    found = {
        "convo-status": str(error.status),
        "convo-code": error.code,
        "convo-detail": error.detail[:_DETAIL_MAX],
        "convo-path": error.path or "",
        "convo-conversation-id": conversation_id or "",
    }
    own: Mapping[str, Any] = message.properties.headers or {}
    return Outgoing(
        number=message.tag,
        id=message.properties.message_id or "",
        routing_key=queue,
        body=message.body,
        content_type=message.properties.content_type or "",
        content_encoding=message.properties.content_encoding or "",
        headers={**own, **{name: text for name, text in found.items() if text}},
    )
