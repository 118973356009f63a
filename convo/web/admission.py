"""How much is let in at a time: beyond it a request is refused at once, before its body is read; it knows no route."""

from __future__ import annotations

import math
import random as dice
from collections.abc import Callable
from typing import Self

import trio

from convo.config import IntakeSettings
from convo.errors import Overloaded
from convo.observe import metrics

# The rate of the last few seconds says when there is room again; an older one belongs to another load.
_RATE_WINDOW_SECONDS = 5.0
_REFUSES_SECONDS = 1.0
# While it refuses: the space between two that are let in, as a part of that between two that end, and its longest.
_SPACE, _SPACE_SECONDS_MAX = 0.7, 0.002


class Place:
    """One request: the bytes it holds from its first one on, and whether it is under way, until the block ends.

    While its body is read it holds what has come and nothing more: whoever announces much and sends little, or nothing,
    keeps nobody out.
    """

    __slots__ = ("_admission", "_bytes", "_entered")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0
        self._entered = False

    def __enter__(self) -> Self:
        return self

    def grow(self, bytes_: int) -> None:
        """Hold so many bytes more.

        Raises:
            Overloaded: there is no room for them. One that is alone has room whatever its size, or it would be
                refused for ever.
        """
        admission = self._admission
        if admission.bytes > self._bytes and admission.bytes + bytes_ > admission.bytes_max:
            raise admission.no_bytes()
        admission.bytes += bytes_
        self._bytes += bytes_

    def enter(self) -> None:
        """Be under way from now on.

        Raises:
            Overloaded: too many are, by now.
        """
        admission = self._admission
        if admission.requests >= admission.requests_max:
            raise admission.no_place()
        admission.requests += 1
        self._entered = True

    def __exit__(self, *_: object) -> None:
        admission = self._admission
        admission.bytes -= self._bytes
        if self._entered:
            admission.requests -= 1
            admission.ended += 1


class Admission:
    """Counts the requests under way and the bytes that they may hold in memory.

    ``request_seconds`` is when the last of those under way is gone in any case.
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
        self._next_at = -math.inf  # while it refuses: when the next one may come in
        self.requests = 0
        self.bytes = 0
        self.ended = 0  # since the rate was reckoned last
        metrics.intake_in_flight.set_function(lambda: self.requests)
        metrics.intake_in_flight_bytes.set_function(lambda: self.bytes)

    def check(self, bytes_: int) -> None:
        """Pass a request that would bring so many bytes, before any of them is read.

        Raises:
            Overloaded: there is no room; it says when there will be, by the rate at which requests end.
        """
        if self.requests >= self.requests_max:
            raise self.no_place()
        if self.bytes and self.bytes + bytes_ > self.bytes_max:
            raise self.no_bytes()
        now = trio.current_time()
        rate = self.reckon_rate(now)
        if now < self._refused_at + _REFUSES_SECONDS:  # as `refuses`, whose clock is asked already
            self._space_out(now, rate)

    def place(self) -> Place:
        """Return a place for one request, still outside."""
        return Place(self)

    def no_place(self) -> Overloaded:
        """Note that there are too many requests, and return the error that says so."""
        return self._full(f"{self.requests} requests are under way, intake.in_flight_max")

    def no_bytes(self) -> Overloaded:
        """Note that there are too many bytes, and return the error that says so."""
        return self._full(f"{self.bytes} bytes are under way, and intake.bytes_in_flight_max would be passed")

    def _space_out(self, now: float, rate: float) -> None:
        """While there was no room a moment ago, let in hardly more a second than end.

        The places that a batch leaves all at once would otherwise be taken all at once, and whoever comes next would
        wait, to be refused, until the loop is through with all of their bodies. More are let in than end, so that a
        flood fills the room again; when it does not, the flood is over, and two that come close together are welcome.
        """
        if now < self._next_at:
            raise self._overloaded("more come than end")
        self._next_at = now + (min(_SPACE_SECONDS_MAX, _SPACE / rate) if rate > 0 else _SPACE_SECONDS_MAX)

    def refuses(self) -> bool:
        """Tell whether anybody was refused for want of room within the last second."""
        return trio.current_time() < self._refused_at + _REFUSES_SECONDS

    def reckon_rate(self, now: float) -> float:
        """Return how many requests a second end, a mean in which older ones fade.

        It is reckoned with each that comes. Those that ended since the last one count as if they did now: after a burst
        and a silence the first answer is too hopeful, by as many as may be under way at most.
        """
        faded = self._rate * math.exp((self._rated_at - now) / _RATE_WINDOW_SECONDS)
        self._rate = faded + self.ended / _RATE_WINDOW_SECONDS
        self._rated_at, self.ended = now, 0
        return self._rate

    def _full(self, why: str) -> Overloaded:
        self._refused_at = trio.current_time()
        return self._overloaded(why)

    def _overloaded(self, why: str) -> Overloaded:
        rate = self.reckon_rate(trio.current_time())
        drained = min(self.requests / rate if rate > 0 else math.inf, self._request_seconds)
        # Spread over as long again and at least a second: those refused together must not come back together.
        return Overloaded(why, retry_after_seconds=drained + self._random() * max(1.0, drained))
