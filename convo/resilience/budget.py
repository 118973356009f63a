"""A budget for retries: a part of the calls of the last minute, so that a brown-out is not amplified; no clock."""

from __future__ import annotations

from collections import deque

_WINDOW_SECONDS = 60.0


class RetryBudget:
    """Lets so many retries through as are at most ``ratio`` of the calls of the last minute, and always ``floor``."""

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
        """Take one retry out of the budget; False, and nothing taken, when there is none left."""
        _forget(self._calls, now)
        _forget(self._retries, now)
        if len(self._retries) + 1 > max(self._floor, self._ratio * len(self._calls)):
            return False
        self._retries.append(now)
        return True


def _forget(times: deque[float], now: float) -> None:
    while times and times[0] <= now - _WINDOW_SECONDS:
        times.popleft()
