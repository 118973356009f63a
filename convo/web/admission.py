"""How much is let in at a time: beyond it a request is refused at once, before its body is read; it knows no route."""

from __future__ import annotations

import math
import random as dice
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from convo.config import IntakeSettings
from convo.errors import Overloaded
from convo.observe import metrics

# The rate of the last few seconds says when there is room again; an older one belongs to another load.
_RATE_WINDOW_SECONDS = 5.0
_REFUSES_SECONDS = 1.0
_SPACE_SECONDS_MAX = 0.002


class Admission:
    """Counts the requests under way and the bytes that they may hold in memory.

    ``request_seconds`` is when the last of those under way is gone in any case.
    """

    def __init__(
        self, settings: IntakeSettings, request_seconds: float, *, random: Callable[[], float] = dice.random
    ) -> None:
        self._settings = settings
        self._request_seconds = request_seconds
        self._random = random
        self._rate = 0.0
        self._rated_at = trio.current_time()
        self._refused_at = -math.inf
        self._next_at = -math.inf  # while it refuses: when the next one may come in
        self.requests = 0
        self.bytes = 0
        metrics.intake_in_flight.set_function(lambda: self.requests)
        metrics.intake_in_flight_bytes.set_function(lambda: self.bytes)

    @contextmanager
    def admitted(self, bytes_: int) -> Iterator[None]:
        """Hold a place, and ``bytes_`` of memory, for as long as the block runs.

        Raises:
            Overloaded: there is no room; it says when there will be, by the rate at which requests end.
        """
        if self.requests >= self._settings.in_flight_max:
            raise self._overloaded(f"{self.requests} requests are under way, intake.in_flight_max")
        # The first one is let in whatever its size: one alone must not be refused for ever.
        if self.requests and self.bytes + bytes_ > self._settings.bytes_in_flight_max:
            raise self._overloaded(f"{self.bytes} bytes are under way, and intake.bytes_in_flight_max would be passed")
        self._space_out(trio.current_time())
        self.requests += 1
        self.bytes += bytes_
        try:
            yield
        finally:
            self.requests -= 1
            self.bytes -= bytes_
            self._note_end(trio.current_time())

    def _space_out(self, now: float) -> None:
        """While others are refused, let in no more than twice as many a second as end.

        The places that a batch leaves all at once would otherwise be taken all at once, and whoever comes next would
        wait, to be refused, until the loop is through with all of their bodies.
        """
        if not self.refuses():
            return
        if now < self._next_at:
            raise self._overloaded("more come than end")
        rate = self.rate(now)
        self._next_at = now + (min(_SPACE_SECONDS_MAX, 0.5 / rate) if rate > 0 else _SPACE_SECONDS_MAX)

    def refuses(self) -> bool:
        """Tell whether anybody was refused within the last second."""
        return trio.current_time() < self._refused_at + _REFUSES_SECONDS

    def _note_end(self, now: float) -> None:
        self._rate = self.rate(now) + 1 / _RATE_WINDOW_SECONDS
        self._rated_at = now

    def rate(self, now: float) -> float:
        """Return how many requests a second end, a mean in which older ones fade."""
        return self._rate * math.exp((self._rated_at - now) / _RATE_WINDOW_SECONDS)

    def _overloaded(self, why: str) -> Overloaded:
        self._refused_at = trio.current_time()
        rate = self.rate(self._refused_at)
        drained = min(self.requests / rate if rate > 0 else math.inf, self._request_seconds)
        # Spread over as long again and at least a second: those refused together must not come back together.
        return Overloaded(why, retry_after_seconds=drained + self._random() * max(1.0, drained))
