"""A budget for retries: a share of the calls of the last minute, so that retries cannot add to an overload."""

from __future__ import annotations

from collections import deque

_WINDOW_SECONDS = 60.0


class RetryBudget:
    """Allows as many retries a minute as ``ratio`` of the calls of that minute, and always ``floor``."""

    def __init__(self, ratio: float, floor: int) -> None:
        self._ratio = ratio
        self._floor = floor
        self._calls: deque[float] = deque()
        self._retries: deque[float] = deque()

    def note_call(self, now: float) -> None:
        """Note the first attempt of a call."""
        self._calls.append(now)
        _forget(self._calls, now)

    def spend(self, now: float) -> bool:
        """Take one retry out of the budget; return False, and take nothing, when none is left."""
        _forget(self._calls, now)
        _forget(self._retries, now)
        if len(self._retries) + 1 > max(self._floor, self._ratio * len(self._calls)):
            return False
        self._retries.append(now)
        return True


def _forget(times: deque[float], now: float) -> None:
    while times and times[0] <= now - _WINDOW_SECONDS:
        times.popleft()
