"""The relay: publishes events to RabbitMQ in their order, and stores how far the broker has confirmed them.

Open it to change what is published when, or what happens when the broker does not confirm.

One process at a time relays, by a lease. It publishes a page of events side by side, but for those of one user: each
of them waits until the one before it is confirmed. The cursor moves behind what is confirmed without a gap. A page that
was not confirmed as a whole is read again, so that nothing is sent that has been erased meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import trio

from convo.cloud_events import EVENT_CONTENT_TYPE, encode_event
from convo.errors import ConvoError, RemoteError
from convo.observe import log_records, metrics, tracing
from convo.observe.trace_context import read_stored_context
from convo.rabbitmq.broker import Broker, Outgoing
from convo.resilience.dependency import Dependency
from convo.runtime.bell import Bell
from convo.runtime.bridge import Bridge
from convo.settings import RabbitmqSettings
from convo.store import couriers
from convo.store.courier_leases import LEASE_SECONDS
from convo.store.couriers import LeasedCourier
from convo.store.event_numbers import Numberer
from convo.store.event_rows import EventPage, StoredEvent
from convo.store.postgres import Postgres

COURIER = "rabbitmq"
"""What its row in the table of couriers is called."""

_PAGE_ROWS = 250
_RENEW_SECONDS = 2.0
_LOOK_SECONDS = 1.0
_LEAST_SECONDS = 0.1


class Relay:
    """Publishes events as long as it runs, while its process, ``owner``, has the lease."""

    def __init__(  # noqa: PLR0913, PLR0917  (where events come from, where they go, and by which rules)
        self,
        bridge: Bridge,
        postgres: Postgres,
        numberer: Numberer,
        dependency: Dependency,
        settings: RabbitmqSettings,
        owner: Callable[[], str],
    ) -> None:
        self._postgres = postgres
        self._numberer = numberer
        self._dependency = dependency
        self._settings = settings
        self._owner = owner
        self._broker = Broker(bridge, settings, "events", self._declare)
        self._bell = Bell()
        self._leased: LeasedCourier | None = None
        self._leased_at = self._renew_at = -math.inf
        self._cursor = 0
        self._confirmed: set[int] = set()  # behind the cursor, with gaps before them
        self._leaving = False

    def wake(self) -> None:
        """Look now: there are new events."""
        self._bell.ring()

    def start_over(self) -> None:
        """Forget how far it was: the database went back."""
        self._leased = None
        self._renew_at = -math.inf

    async def run(self) -> None:
        """Publish until cancelled."""
        try:
            while not self._leaving:
                with trio.move_on_after(await self._step()):
                    await self._bell.rung()
        finally:
            await self._broker.close()  # noqa: ASYNC102  (shields itself, with a bound)

    async def leave(self) -> None:
        """Begin nothing any more, and give the lease back."""
        self._leaving = True
        self._bell.ring()
        if self._leased is not None:
            await couriers.release_courier(self._postgres, COURIER, self._owner())

    async def _step(self) -> float:
        """Publish a page; return after how many seconds to look again, even where no bell rings."""
        try:
            await self._renew()
            leased = self._leased
            if leased is None or self._cursor >= self._numberer.last:
                return _LOOK_SECONDS
            page = await couriers.read_events(self._postgres, self._cursor, _PAGE_ROWS, self._settings.types)
            failed = await self._publish([one for one in page.events if one.sequence not in self._confirmed])
            await self._note(leased, page)
        except ConvoError as error:
            log_records.events_waiting(what="publishing", reason=error.detail)
            failed = True
        if failed:
            # Not until a bell rings: new events must not make the tries follow each other faster.
            await trio.sleep(self._pause_seconds())
        return 0.0

    async def _renew(self) -> None:
        now = trio.current_time()
        if now < self._renew_at:
            return
        self._renew_at = now + _RENEW_SECONDS
        before = self._leased
        self._leased = await couriers.lease_courier(self._postgres, COURIER, self._owner())
        self._leased_at = now
        if self._leased is not None and (before is None or before.token != self._leased.token):
            self._cursor = self._leased.cursor
            self._confirmed.clear()

    async def _publish(self, events: Sequence[StoredEvent]) -> bool:
        """Make one attempt to publish, which the loop repeats after it has read the page again; true if it failed."""
        # An attempt that might outlast the lease would publish beside the process that has taken over.
        if trio.current_time() + self._settings.attempt_seconds > self._leased_at + LEASE_SECONDS:
            self._renew_at = -math.inf
            return False
        try:
            if events:
                await self._dependency.call("rabbitmq.publish", lambda: self._attempt(events))
        except RemoteError as error:
            log_records.events_waiting(what="publishing", reason=error.detail)
            await self._broker.close()
            return True
        return False

    async def _attempt(self, events: Sequence[StoredEvent]) -> None:
        chains: dict[str, list[Outgoing]] = {}
        for one in events:
            chains.setdefault(one.order_key, []).append(outgoing(one))
        before, began = len(self._confirmed), trio.current_time()
        try:
            await self._broker.open()
            await self._broker.publish(self._settings.exchange, list(chains.values()), self._confirmed)
        finally:
            metrics.events_published_total.inc(len(self._confirmed) - before)
            self._record(events, trio.current_time() - began)

    def _record(self, events: Sequence[StoredEvent], seconds: float) -> None:
        """Record the publishing of those whose conversations are recorded."""
        name = f"publish {self._settings.exchange}"
        for one in events if tracing.records() else ():
            span = tracing.continued(one.trace, name, "producer")
            if span is not None:
                span.began_seconds_ago(seconds)
                span.attributes |= {
                    "messaging.system": "rabbitmq",
                    "messaging.destination.name": self._settings.exchange,
                    "messaging.message.id": one.id,
                }
                span.error = "" if one.sequence in self._confirmed else "the broker has not confirmed it"
                span.end()

    async def _note(self, leased: LeasedCourier, page: EventPage) -> None:
        """Move the cursor behind what is confirmed without a gap."""
        first = next((one.sequence for one in page.events if one.sequence not in self._confirmed), None)
        cursor = page.looked_to if first is None else first - 1
        if cursor <= self._cursor:
            return
        if await couriers.move_cursor(self._postgres, leased, cursor):
            self._cursor = cursor
            self._confirmed = {number for number in self._confirmed if number > cursor}
        else:
            self.start_over()

    def _pause_seconds(self) -> float:
        """Return how long to wait after a failure: the same time after each, but never beyond the breaker's probe."""
        # Not longer either way: the lease has to be renewed.
        left = self._dependency.seconds_until_probe()
        return min(_RENEW_SECONDS, self._settings.backoff_seconds if left is None else max(left, _LEAST_SECONDS))

    async def _declare(self, channel: Any) -> None:
        await channel.declare_exchange(self._settings.exchange, "topic", durable=True)


def outgoing(event: StoredEvent) -> Outgoing:
    """Return an event as the message that it is published as."""
    context = None if event.trace is None else read_stored_context(event.trace)
    return Outgoing(
        number=event.sequence,
        id=event.id,
        routing_key=event.type,
        body=encode_event(event),
        content_type=EVENT_CONTENT_TYPE,
        at=event.at,
        headers={"tenant": event.tenant, **({} if context is None else context.headers)},
    )
