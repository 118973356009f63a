"""A circuit breaker: after enough failures it refuses all calls for a while, then lets one through to try.

**closed**: every call passes. **open**: none does, for ``open_seconds``. **half-open**: one call is under way as a
probe, or the next call becomes it. Its success closes the breaker, its failure opens it for another period.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

from msgspec import Struct

State = Literal["closed", "open", "half-open"]


class Rules(Struct, frozen=True, kw_only=True):
    """When a breaker opens: so many failures in a row, or more than half of the last ``calls``; and for how long."""

    failures: int = 5
    calls: int = 20
    open_seconds: float = 60.0


class Permit(Struct, frozen=True):
    """The right to make one call; the end of a call from before the last change of the breaker does not count."""

    round: int


class Breaker:
    """Counts how calls end; ``now`` is a point in time of any clock that only goes forward."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._round = 0
        self._in_a_row = 0
        self._last: deque[bool] = deque(maxlen=rules.calls)
        self._opened_at: float | None = None
        self._probe: Permit | None = None

    def state(self, now: float) -> State:
        """Return its state."""
        if self._opened_at is None:
            return "closed"
        return "open" if now < self._opened_at + self._rules.open_seconds else "half-open"

    @property
    def probe_at(self) -> float | None:
        """When the next probe may go, or could have gone; None while the breaker is closed."""
        return None if self._opened_at is None else self._opened_at + self._rules.open_seconds

    def lets_through(self, now: float) -> bool:
        """Return whether a call made now would pass."""
        return self.state(now) == "closed" or (self.state(now) == "half-open" and self._probe is None)

    def admit(self, now: float) -> Permit | None:
        """Let one call through, or return None; each permit is ended by one of the three methods below."""
        if not self.lets_through(now):
            return None
        if self._opened_at is None:
            return Permit(self._round)
        self._round += 1
        self._probe = Permit(self._round)
        return self._probe

    def succeeded(self, permit: Permit) -> bool:
        """Note that a call succeeded; return whether that closed the breaker."""
        if permit.round != self._round:
            return False
        self._in_a_row = 0
        self._last.append(True)
        if self._opened_at is None:
            return False
        self._opened_at = self._probe = None
        self._last.clear()
        return True

    def failed(self, permit: Permit, now: float) -> bool:
        """Note that a call failed as in an outage; return whether that opened the breaker."""
        if permit.round != self._round:
            return False
        self._in_a_row += 1
        self._last.append(False)
        most = self._last.count(False) * 2 > self._rules.calls
        if self._probe is None and self._in_a_row < self._rules.failures and not most:
            return False
        self.open(now)
        return True

    def open(self, now: float) -> None:
        """Open it whatever it counted; calls that are under way count no more."""
        self._opened_at = now
        self._probe = None
        self._round += 1
        self._in_a_row = 0
        self._last.clear()

    def dropped(self, permit: Permit) -> None:
        """Note that a call ended for a reason of its own: it was cancelled, or what it sent was wrong."""
        if permit == self._probe:
            self._probe = None
