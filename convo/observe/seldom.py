"""What happens many times a second is told once, then now and then with a count; it knows no event."""

from __future__ import annotations

from collections.abc import Hashable

AGAIN_SECONDS = 10.0
"""How long the same thing is not told again."""

_KEYS_MAX = 100


class Seldom:
    """Counts what is not told; ``now`` is any clock that only goes forward, in seconds."""

    def __init__(self) -> None:
        self._told: dict[Hashable, tuple[float, int]] = {}

    def due(self, key: Hashable, now: float) -> int | None:
        """Return how often ``key`` was not told since it was told last, when it is to be told now; None when not."""
        last, untold = self._told.get(key, (now - AGAIN_SECONDS, 0))
        if now - last < AGAIN_SECONDS:
            self._told[key] = (last, untold + 1)
            return None
        if key not in self._told and len(self._told) >= _KEYS_MAX:
            self._told.clear()
        self._told[key] = (now, 0)
        return untold

    def forget(self) -> None:
        """Begin anew: everything is told at once."""
        self._told.clear()
