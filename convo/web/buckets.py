"""Remembers how far each client is from its full limit, in bounded memory that no flood of clients resets.

Open it to change what happens when there are more clients than may be remembered. A client's limits are a row of
times, by place; which limit has which place, and its rate, is the caller's.

What is kept of a limit is the time at which it is full again. A client whose limits are all full is like one never
seen, so only such a client is forgotten. Where the others fill the table, clients that are new share places by their
network (``owner_network``): one with a million addresses shares with itself.
"""

from __future__ import annotations

from collections import OrderedDict

from convo.http.addresses import owner_network

_SHARED = 1024
# How many clients are looked at to find one that can be forgotten: those used longest ago, each once in its turn.
_LOOKS = 8


class Buckets:
    """When each of ``limits`` limits of a client is full again, for ``tracked_max`` clients and those that share."""

    def __init__(self, limits: int, tracked_max: int) -> None:
        self._limits = limits
        self._tracked_max = tracked_max
        self._tracked: OrderedDict[str, list[float]] = OrderedDict()
        self._shared: dict[int, list[float]] = {}

    def of(self, client: str, now: float) -> list[float]:
        """Return the times at which a client's limits are full again; the caller moves them on."""
        full_at = self._tracked.get(client)
        if full_at is not None:
            self._tracked.move_to_end(client)
            return full_at
        # Python's hash of a text has a secret of the process: nobody can choose networks that share a place.
        shared = self._shared.get(hash(owner_network(client)) % _SHARED) if self._shared else None
        if len(self._tracked) >= self._tracked_max and not self._make_room(now):
            return shared or self._shared.setdefault(hash(owner_network(client)) % _SHARED, self._full())
        # A client that comes from a shared place brings with it what was taken there.
        self._tracked[client] = full_at = list(shared) if shared else self._full()
        return full_at

    def _full(self) -> list[float]:
        return [0.0] * self._limits

    def _make_room(self, now: float) -> bool:
        for _ in range(_LOOKS):
            client = next(iter(self._tracked))
            if max(self._tracked[client]) <= now:
                del self._tracked[client]
                return True
            self._tracked.move_to_end(client)
        return False
