"""What one endpoint is yet to get, and in which order: decides which event may be sent now.

Open it to change the order, the waits between attempts, or when an event steps aside. It is pure: its callers say what
time it is, send, and store what came of it.

Events of one user go one after the other. The next one waits until the one before it is confirmed, or was tried in vain
for ``events.hold_seconds``: then that one steps aside. Events of different users wait for each other only where the
endpoint fails again and again: then it gets one attempt at a time, after a growing pause.

Of what may be sent the oldest goes first: after a crash all that was confirmed behind the first open event is repeated.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime

from msgspec import structs

from convo.store.deliveries import AsideEvent, Delivery, LeasedWebhook
from convo.store.event_rows import EventPage, StoredEvent

WINDOW_ROWS = 500
"""So many events wait in memory at most, behind the cursor of one endpoint."""

_PAUSE_AFTER = 3
_AGAIN_SECONDS_MAX = 60.0
_PING_SECONDS_MAX = 60.0

_numbers = itertools.count()


class WaitingEvent:
    """An event that is to be sent; None stands for a ping."""

    __slots__ = ("aside_since", "attempts", "event", "first_at", "key")

    def __init__(self, event: StoredEvent | None, key: str, *, aside_since: datetime | None = None) -> None:
        self.event = event
        self.key = key
        self.aside_since = aside_since
        self.attempts = 0
        self.first_at: float | None = None


class Course:
    """The events of one endpoint; times are points of any clock that only goes forward."""

    def __init__(self, endpoint: LeasedWebhook, *, hold_seconds: float, concurrency: int) -> None:
        self.endpoint = endpoint
        self.outcomes: list[Delivery] = []
        """What is not noted yet."""
        self.looked_to = endpoint.cursor
        self.stored_cursor = endpoint.cursor
        self.in_flight = 0
        self._hold_seconds = hold_seconds
        self._concurrency = concurrency
        self._open: dict[int, WaitingEvent] = {}
        self._queues: dict[str, deque[WaitingEvent]] = {}
        # A heap, by age.
        self._ready: list[tuple[int, int, WaitingEvent]] = []
        self._later: list[tuple[float, int, WaitingEvent]] = []
        self._aside: dict[int, WaitingEvent] = {}
        self._failures = 0
        self._paused_until = 0.0
        if not endpoint.active:
            self._make_ready(WaitingEvent(None, ""))

    @property
    def cursor(self) -> int:
        """Up to which number nothing waits any more."""
        return next(iter(self._open)) - 1 if self._open else self.looked_to

    @property
    def room(self) -> int:
        """How many more events it can hold."""
        return WINDOW_ROWS - len(self._open) if self.endpoint.active else 0

    @property
    def aside_numbers(self) -> Sequence[int]:
        """The events apart from the order that it has already."""
        return list(self._aside)

    def is_paused(self, now: float) -> bool:
        """Return whether nothing may be sent."""
        return now < self._paused_until

    def add(self, page: EventPage) -> None:
        """Take the next events."""
        for event in page.events:
            waiting = WaitingEvent(event, event.order_key)
            self._open[event.sequence] = waiting
            self._enqueue(waiting)
        self.looked_to = max(self.looked_to, page.looked_to)

    def add_aside(self, found: Iterable[AsideEvent]) -> None:
        """Take events apart from the order: those of one user go in turn, until one has failed."""
        for one in found:
            key = f"aside {one.event.order_key}" if one.attempts == 0 else f"aside {one.event.number}"
            waiting = WaitingEvent(one.event, key, aside_since=one.due_at)
            self._aside[one.event.number] = waiting
            self._enqueue(waiting)

    def waiting_numbers(self) -> list[int]:
        """Return the events that it holds."""
        held = (*self._open.values(), *self._aside.values())
        return [one.event.number for one in held if one.event is not None and one.event.data is not None]

    def empty(self, numbers: set[int]) -> None:
        """Put stubs in the place of events that were erased."""
        for one in (*self._open.values(), *self._aside.values()):
            if one.event is not None and one.event.number in numbers:
                one.event = structs.replace(one.event, conversation_id=None, user_id=None, bot_id=None, data=None)

    def take(self, now: float, *, alone: bool) -> WaitingEvent | None:
        """Return what is to be sent now, if anything; ``alone``: only where nothing of it is under way."""
        most = 1 if alone or self._failures >= _PAUSE_AFTER else self._concurrency
        if self.in_flight >= most or self.is_paused(now):
            return None
        while self._later and self._later[0][0] <= now:
            self._make_ready(heapq.heappop(self._later)[2])
        if not self._ready:
            return None
        waiting = heapq.heappop(self._ready)[2]
        self.in_flight += 1
        if waiting.first_at is None:
            waiting.first_at = now
        return waiting

    def ended(self, waiting: WaitingEvent, outcome: Delivery, now: float, pause_seconds: float | None) -> None:
        """Note what came of an attempt; ``pause_seconds`` is what the endpoint asked for."""
        self.in_flight -= 1
        waiting.attempts += 1
        self._failures = 0 if outcome.good else self._failures + 1
        if not outcome.good:
            over = self._failures - _PAUSE_AFTER
            pause = min(_AGAIN_SECONDS_MAX, 2.0 ** (over + 1)) if over >= 0 else 0.0
            self._paused_until = max(self._paused_until, now + max(pause, pause_seconds or 0.0))
        if waiting.event is None:
            self._after_ping(waiting, outcome, now)
        elif waiting.aside_since is not None:
            self._leave(waiting)
        elif outcome.good:
            del self._open[waiting.event.sequence]
            self._leave(waiting)
        else:
            outcome = self._after_failure(waiting, waiting.event.sequence, outcome, now)
        self.outcomes.append(outcome)

    def noted(self, outcomes: Sequence[Delivery]) -> None:
        """Forget what is stored now."""
        del self.outcomes[: len(outcomes)]
        for one in outcomes:
            if one.aside_since is not None and one.number is not None:
                self._aside.pop(one.number, None)

    def next_at(self) -> float | None:
        """Return when something becomes due by itself."""
        due = self._later[0][0] if self._later else None
        if self._ready or due is not None:
            return max(self._paused_until, due or 0.0)
        return None

    def _after_ping(self, waiting: WaitingEvent, outcome: Delivery, now: float) -> None:
        if not outcome.good:
            self._failures = 0
            self._retry(waiting, now + min(_PING_SECONDS_MAX, 2.0**waiting.attempts))

    def _after_failure(self, waiting: WaitingEvent, sequence: int, outcome: Delivery, now: float) -> Delivery:
        tried = now - (now if waiting.first_at is None else waiting.first_at)
        if tried < self._hold_seconds:
            last = now + self._hold_seconds - tried
            self._retry(waiting, min(last, now + min(_AGAIN_SECONDS_MAX, 2.0 ** (waiting.attempts - 1))))
            return outcome
        del self._open[sequence]
        self._leave(waiting)
        return structs.replace(outcome, steps_aside=True, tried_seconds=tried)

    def _retry(self, waiting: WaitingEvent, at: float) -> None:
        heapq.heappush(self._later, (at, next(_numbers), waiting))

    def _make_ready(self, waiting: WaitingEvent) -> None:
        # What stands apart from the order comes behind all that is known now: it must not hold up what is in order.
        in_order = waiting.event is not None and waiting.aside_since is None
        place = waiting.event.sequence if waiting.event is not None and in_order else self.looked_to + 1
        heapq.heappush(self._ready, (place, next(_numbers), waiting))

    def _enqueue(self, waiting: WaitingEvent) -> None:
        queue = self._queues.setdefault(waiting.key, deque())
        queue.append(waiting)
        if len(queue) == 1:
            self._make_ready(waiting)

    def _leave(self, waiting: WaitingEvent) -> None:
        queue = self._queues[waiting.key]
        queue.popleft()
        if queue:
            self._make_ready(queue[0])
        else:
            del self._queues[waiting.key]
