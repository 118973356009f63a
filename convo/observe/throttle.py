"""Decides which of many equal log lines is written: one in each interval, with the count of those left out."""

from __future__ import annotations

from collections.abc import Hashable

_KEYS_MAX = 100


class Throttle:
    """Lets each key through once in ``interval_seconds``; ``now`` is any clock that only goes forward, in seconds."""

    def __init__(self, interval_seconds: float = 10.0) -> None:
        self._interval_seconds = interval_seconds
        self._passed: dict[Hashable, tuple[float, int]] = {}

    def due(self, key: Hashable, now: float) -> int | None:
        """Return how often ``key`` was suppressed since it last passed; None when it is suppressed now."""
        before = self._passed.get(key)
        if before is None:
            if len(self._passed) >= _KEYS_MAX:
                # The key may be a text from outside: forget all of them rather than grow without a bound.
                self._passed.clear()
            self._passed[key] = (now, 0)
            return 0
        last, suppressed = before
        if now - last < self._interval_seconds:
            self._passed[key] = (last, suppressed + 1)
            return None
        self._passed[key] = (now, 0)
        return suppressed

    def forget(self) -> None:
        """Let every key pass at once the next time."""
        self._passed.clear()
