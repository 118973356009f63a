"""The courier: has events of every leased endpoint sent, side by side, and stores how far each has confirmed them.

Open it to change how endpoints share this process's workers. What is sent next to an endpoint is decided in ``course``.

One loop holds the state of all endpoints. Workers take what may be sent, and give back what came of it. Each endpoint
may have one attempt under way at any time, because that many workers are left alone for it: so one that hangs holds no
other up. It may have more as far as there are workers besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import trio

from convo.errors import ConvoError
from convo.observe import log_records
from convo.runtime.bell import Bell
from convo.settings import EventsSettings, WebhooksSettings
from convo.store import deliveries
from convo.store.courier_leases import LEASE_SECONDS
from convo.store.deliveries import Delivery, LeasedWebhook, Noted
from convo.store.event_numbers import Numberer
from convo.store.postgres import Postgres
from convo.store.webhooks import WEBHOOKS_IN_ALL
from convo.webhooks.course import Course, WaitingEvent
from convo.webhooks.sending import Sender, Sent

WORKERS = WEBHOOKS_IN_ALL + 78
"""One for each endpoint, and the others for those that are quick."""

_RENEW_SECONDS = 2.0
# While attempts end, what came of them is stored this often.
_NOTE_SECONDS = 0.1
_ASIDE_ROWS = 100
_ASIDE_LOOK_SECONDS = 1.0
_AGAIN_SECONDS = 1.0


class Courier:
    """Delivers to the endpoints that the process ``owner`` has leased; ``run`` once, and ``work`` ``WORKERS`` times."""

    def __init__(  # noqa: PLR0913, PLR0917  (where events come from, where they go, and by which rules)
        self,
        postgres: Postgres,
        numberer: Numberer,
        sender: Sender,
        events: EventsSettings,
        webhooks: WebhooksSettings,
        owner: Callable[[], str],
    ) -> None:
        self._postgres = postgres
        self._numberer = numberer
        self._sender = sender
        self._events = events
        self._webhooks = webhooks
        self._owner = owner
        self._courses: dict[str, Course] = {}
        # Capacity zero: what was handed over is under way.
        self._send, self._receive = trio.open_memory_channel[tuple[Course, WaitingEvent]](0)
        self._bell = Bell()
        self._leased_at = -math.inf
        self._renew_at = -math.inf
        self._aside_at = -math.inf
        self._busy = 0
        self._leaving = False

    def wake(self) -> None:
        """Look now: there are new events, or an endpoint was changed."""
        self._bell.ring()

    def changed(self) -> None:
        """Look for endpoints now: one was made or changed."""
        self._renew_at = -math.inf
        self._aside_at = -math.inf
        self._bell.ring()

    def start_over(self) -> None:
        """Forget every endpoint: the database went back."""
        self._courses.clear()
        self._leased_at = self._renew_at = -math.inf

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            try:
                await self._look()
            except ConvoError as error:
                log_records.events_waiting(what="delivery", reason=error.detail)
                await trio.sleep(_AGAIN_SECONDS)
            self._hand_over()
            with trio.move_on_at(self._next_look()):
                await self._bell.rung()
            # Others end in the same moment.
            await trio.sleep(_NOTE_SECONDS)

    async def work(self) -> None:
        """Make attempt after attempt until cancelled."""
        async for course, waiting in self._receive.clone():  # no deadline: attempts come or do not
            sent = await self._attempt(course.endpoint, waiting)
            self._busy -= 1
            course.ended(waiting, sent.outcome, trio.current_time(), sent.pause_seconds)
            if sent.outcome.error is not None:
                log_records.webhook_failing(webhook_id=course.endpoint.webhook_id, reason=sent.outcome.error)
            self._bell.ring()
            # Now, and not when the loop has stored the rest: the endpoint would wait for the database.
            self._hand_over()

    async def leave(self) -> None:
        """Begin no attempt any more, store what came of the others, and give the endpoints back."""
        self._leaving = True
        for course in list(self._courses.values()):
            await self._note(course)
        if self._courses:
            await deliveries.release_webhooks(self._postgres, self._owner())

    async def _attempt(self, endpoint: LeasedWebhook, waiting: WaitingEvent) -> Sent:
        if waiting.event is None:
            return await self._sender.ping(endpoint.url, endpoint.secrets)
        event, since = waiting.event, waiting.aside_since
        return await self._sender.deliver(endpoint.url, endpoint.secrets, event, aside_since=since)

    # --- what may be sent

    def _hand_over(self) -> None:
        now = trio.current_time()
        # A process that slept for longer than its lease may not know yet that another one has taken over.
        if self._leaving or now >= self._leased_at + LEASE_SECONDS:
            return
        more = True
        while more:
            more = False
            for course in self._courses.values():
                # A worker that has just ended an attempt does not wait for the next one yet.
                if not self._send.statistics().tasks_waiting_receive:
                    return
                waiting = course.take(now, alone=self._busy >= WORKERS - WEBHOOKS_IN_ALL)
                if waiting is not None:
                    self._send.send_nowait((course, waiting))
                    self._busy += 1
                    more = True

    # --- what is known of endpoints

    async def _look(self) -> None:
        now = trio.current_time()
        for course in list(self._courses.values()):
            await self._note(course)
        if not self._leaving and now >= self._renew_at:
            await self._renew()
        for course in list(self._courses.values()):
            await self._fill(course)
        if now >= self._aside_at:
            self._aside_at = now + _ASIDE_LOOK_SECONDS
            await self._find_erased()
            for course in list(self._courses.values()):
                await self._fill_aside(course)

    async def _renew(self) -> None:
        asked = trio.current_time()
        self._renew_at = asked + _RENEW_SECONDS
        leased = {one.webhook_id: one for one in await deliveries.lease_webhooks(self._postgres, self._owner())}
        self._leased_at = asked
        for webhook_id, endpoint in leased.items():
            known = self._courses.get(webhook_id)
            same = known is not None and _marks(known.endpoint) == _marks(endpoint)
            if not same:
                self._courses[webhook_id] = Course(
                    endpoint, hold_seconds=self._events.hold_seconds, concurrency=self._webhooks.concurrency
                )
        for webhook_id in self._courses.keys() - leased.keys():
            del self._courses[webhook_id]

    async def _fill(self, course: Course) -> None:
        now = trio.current_time()
        if course.room > 0 and course.looked_to < self._numberer.last and not course.is_paused(now):
            course.add(await deliveries.read_page(self._postgres, course.endpoint, course.looked_to, course.room))

    async def _fill_aside(self, course: Course) -> None:
        if course.endpoint.active and not course.is_paused(trio.current_time()):
            known = course.aside_numbers
            if len(known) < _ASIDE_ROWS:
                course.add_aside(
                    await deliveries.read_aside(self._postgres, course.endpoint.webhook_id, known, _ASIDE_ROWS)
                )

    async def _find_erased(self) -> None:
        """Empty what has been erased since it was read: nothing of it may be sent any more."""
        held = {number for course in self._courses.values() for number in course.waiting_numbers()}
        if not held:
            return
        erased = await deliveries.read_erased(self._postgres, sorted(held))
        for course in self._courses.values():
            course.empty(erased)

    async def _note(self, course: Course) -> None:
        outcomes, cursor = list(course.outcomes), course.cursor
        if not outcomes and cursor == course.stored_cursor:
            return
        noted = await deliveries.note_deliveries(self._postgres, course.endpoint, cursor, outcomes)
        course.noted(outcomes)
        course.stored_cursor = cursor
        webhook_id = course.endpoint.webhook_id
        if noted is None or noted.off is not None or noted.became_active:
            if self._courses.get(webhook_id) is course:
                del self._courses[webhook_id]
            self._renew_at = -math.inf
            self._bell.ring()
        if noted is not None:
            _report(webhook_id, noted, outcomes)

    def _next_look(self) -> float:
        now = trio.current_time()
        due = [at for course in self._courses.values() if (at := course.next_at()) is not None and at > now]
        return min([now + _RENEW_SECONDS, *due])


def _report(webhook_id: str, noted: Noted, outcomes: Sequence[Delivery]) -> None:
    if noted.became_active:
        log_records.webhook_active(webhook_id=webhook_id)
    if noted.off is not None:
        log_records.webhook_off(webhook_id=webhook_id, reason=noted.off)
    for one in outcomes:
        if one.steps_aside:
            log_records.event_set_aside(webhook_id=webhook_id, event_id=one.event_id, reason=one.error or "")
        if one.number in noted.given_up:
            log_records.event_given_up(webhook_id=webhook_id, event_id=one.event_id)


def _marks(endpoint: LeasedWebhook) -> tuple[object, ...]:
    return endpoint.token, endpoint.version, endpoint.active, endpoint.secrets
