"""Limits the accepts under way: beyond a number of requests or bytes, a request is refused before its body is read.

Open this file when 503 ``overloaded`` comes too early or too late, or its ``Retry-After`` is wrong.
"""

from __future__ import annotations

import math
import random as dice
from collections.abc import Callable
from typing import Self

import trio

from convo.errors import Overloaded
from convo.observe import metrics
from convo.runtime.pace import Accepts
from convo.settings import IntakeSettings

# The rate of the last few seconds predicts when there is room again; an older rate belongs to another load.
_RATE_WINDOW_SECONDS = 5.0
_REFUSES_SECONDS = 1.0
# While requests are refused: the time between two admitted ones, as a share of the time between two that end.
_SPACE, _SPACE_SECONDS_MAX = 0.7, 0.002


class Admitted:
    """One request: the bytes that it holds, and whether it is under way, until the block ends.

    While its body is read, it holds only the bytes that have arrived: a client that announces much and sends little
    takes no room from others.
    """

    __slots__ = ("_admission", "_bytes", "under_way")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0
        self.under_way = False

    def __enter__(self) -> Self:
        return self

    def grow(self, bytes_: int) -> None:
        """Hold ``bytes_`` more.

        Raises:
            Overloaded: there is no room for them. A request that is alone has room for any size: otherwise it would be
                refused for ever.
        """
        admission = self._admission
        if admission.bytes > self._bytes and admission.bytes + bytes_ > admission.bytes_max:
            raise admission.no_bytes()
        admission.bytes += bytes_
        self._bytes += bytes_

    def keep(self, bytes_: int) -> None:
        """Hold ``bytes_`` from now on, however many were held: less than was granted, or what there is already."""
        self._admission.bytes += bytes_ - self._bytes
        self._bytes = bytes_

    def hold(self, bytes_: int) -> None:
        """Hold ``bytes_`` from now on, if there is room for them or they are fewer than before.

        Raises:
            Overloaded: as ``grow``.
        """
        if bytes_ > self._bytes:
            self.grow(bytes_ - self._bytes)
        else:
            self.keep(bytes_)

    def enter(self) -> None:
        """Count as under way from now on.

        Raises:
            Overloaded: too many requests are under way.
        """
        admission = self._admission
        if admission.requests >= admission.requests_max:
            raise admission.no_place()
        admission.begin()
        self.under_way = True

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Hold nothing any more, and be under way no longer."""
        admission = self._admission
        admission.bytes -= self._bytes
        self._bytes = 0
        if self.under_way:
            self.under_way = False
            admission.end()


class Admission:
    """Counts the requests under way and the bytes that they hold in memory.

    ``request_seconds`` is the longest time that a request under way can take.
    """

    def __init__(
        self, settings: IntakeSettings, request_seconds: float, *, random: Callable[[], float] = dice.random
    ) -> None:
        self.requests_max = settings.in_flight_max
        self.bytes_max = settings.bytes_in_flight_max
        self._request_seconds = request_seconds
        self._random = random
        self._rate = 0.0
        self._rated_at = trio.current_time()
        self._refused_at = -math.inf
        self._next_at = -math.inf  # while requests are refused: when the next one may be admitted
        self.requests = 0
        self.bytes = 0
        self.ended = 0  # since the rate was last updated
        self._ended_all = 0
        self._busy_seconds = 0.0  # until the last moment when nothing was under way
        self._busy_since = 0.0
        metrics.intake_in_flight.set_function(lambda: self.requests)
        metrics.intake_in_flight_bytes.set_function(lambda: self.bytes)

    def begin(self) -> None:
        """Count one request more as under way."""
        if not self.requests:
            self._busy_since = trio.current_time()
        self.requests += 1

    def end(self) -> None:
        """Count one request less as under way."""
        self.requests -= 1
        self.ended += 1
        self._ended_all += 1
        if not self.requests:
            self._busy_seconds += trio.current_time() - self._busy_since

    def accepts(self) -> Accepts:
        """Return what was under way so far."""
        busy = self._busy_seconds + (trio.current_time() - self._busy_since if self.requests else 0.0)
        return Accepts(self._ended_all, busy)

    def check(self, bytes_: int) -> None:
        """Check that there is room for a request of ``bytes_``, before any of them is read.

        Raises:
            Overloaded: there is no room; ``Retry-After`` follows from the rate at which requests end.
        """
        if self.requests >= self.requests_max:
            raise self.no_place()
        if self.bytes and self.bytes + bytes_ > self.bytes_max:
            raise self.no_bytes()
        now = trio.current_time()
        rate = self.update_rate(now)
        if now < self._refused_at + _REFUSES_SECONDS:  # as in `refuses`, without reading the clock again
            self._space_out(now, rate)

    def takes(self, bytes_: int) -> bool:
        """Tell whether there is room for one more request of ``bytes_``."""
        return self.requests < self.requests_max and self.bytes + bytes_ <= self.bytes_max

    def fill(self) -> float:
        """Return how full it is, from 0 to 1: by requests or by bytes, whichever is more."""
        return min(1.0, max(self.requests / self.requests_max, self.bytes / self.bytes_max))

    def place(self) -> Admitted:
        """Return the record of one request, which is not under way yet."""
        return Admitted(self)

    def no_place(self) -> Overloaded:
        """Note that there are too many requests, and return the error."""
        return self._full(f"{self.requests} requests are under way, intake.in_flight_max")

    def no_bytes(self) -> Overloaded:
        """Note that there are too many bytes, and return the error."""
        return self._full(f"{self.bytes} bytes are under way, and this request would exceed intake.bytes_in_flight_max")

    def _space_out(self, now: float, rate: float) -> None:
        """Shortly after a refusal, admit only slightly more requests a second than end.

        A batch that commits frees many places at once. If all were taken at once, the next client would wait for its
        refusal until the loop has read all of their bodies. Slightly more are admitted than end, so that a flood fills
        the room again. If it does not, the flood is over, and requests are no longer spaced.
        """
        if now < self._next_at:
            raise self._overloaded("more requests arrive than end")
        self._next_at = now + (min(_SPACE_SECONDS_MAX, _SPACE / rate) if rate > 0 else _SPACE_SECONDS_MAX)

    def refuses(self) -> bool:
        """Tell whether a request was refused for lack of room within the last second."""
        return trio.current_time() < self._refused_at + _REFUSES_SECONDS

    def update_rate(self, now: float) -> float:
        """Update and return how many requests end in a second, as a mean in which older ones count less.

        It is updated with each arrival. Requests that ended since the last arrival count as if they ended now: after a
        burst and a pause, the first rate is too high, by at most the number that may be under way.
        """
        faded = self._rate * math.exp((self._rated_at - now) / _RATE_WINDOW_SECONDS)
        self._rate = faded + self.ended / _RATE_WINDOW_SECONDS
        self._rated_at, self.ended = now, 0
        return self._rate

    def _full(self, why: str) -> Overloaded:
        self._refused_at = trio.current_time()
        return self._overloaded(why)

    def _overloaded(self, why: str) -> Overloaded:
        rate = self.update_rate(trio.current_time())
        drained = min(self.requests / rate if rate > 0 else math.inf, self._request_seconds)
        # Spread over the same time again, at least a second: clients refused together must not return together.
        return Overloaded(why, retry_after_seconds=drained + self._random() * max(1.0, drained))
