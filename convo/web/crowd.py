"""All open connections together: how many there may be, and that they end; it knows none of their bytes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import trio

from convo.config import ConnectionSettings
from convo.observe import events, metrics
from convo.web.forwarded import Proxies

_TOLD_SECONDS = 5.0
_LEAVING_MAX = 256

Thing = TypeVar("Thing")


class Member(Protocol):
    """One connection, as the crowd sees it."""

    peer: str

    @property
    def phase(self) -> str:
        """What it waits for."""

    def dismiss(self) -> None:
        """End, if nothing is under way and nothing is about to be."""


class Crowd:
    """The connections of one process; ``most`` is how many there may be."""

    def __init__(self, settings: ConnectionSettings, proxies: Proxies, most: int) -> None:
        self._per_peer = settings.connections_per_peer_max
        self._proxies = proxies
        self._most = most
        self._members: set[Member] = set()
        self._of_peer: Counter[str] = Counter()
        self._leaving = 0
        self.draining = False
        self.tell_failed = Sparsely[Exception](
            lambda error, unsaid: events.connection_failed(error=error, unsaid=unsaid)
        )
        self._tell_full = Sparsely[str](
            lambda peer, unsaid: events.connections_full(peer=peer, connections=len(self._members), unsaid=unsaid)
        )
        for phase in metrics.CONNECTION_PHASES:
            metrics.connections.labels(phase).set_function(self._counting(phase))
            # Shown from the start: a rate of something that was never there cannot be watched.
            metrics.deadline_exceeded_total.labels(f"connection.{phase}")

    def _counting(self, phase: str) -> Callable[[], float]:
        # Counted when somebody asks: a connection changes its phase several times a request.
        return lambda: sum(member.phase == phase for member in self._members)

    def __len__(self) -> int:
        return len(self._members)

    def enter(self, member: Member) -> bool:
        """Take a connection in; false when there is no room for it, in all or for its address."""
        peer = member.peer
        full = len(self._members) >= self._most
        if full or (self._of_peer[peer] >= self._per_peer and not self._proxies.trusts(peer)):
            self._tell_full(peer)
            if not self._of_peer[peer]:
                del self._of_peer[peer]
            return False
        self._members.add(member)
        self._of_peer[peer] += 1
        return True

    def leave(self, member: Member) -> None:
        """Let a connection go that was taken in, or was not."""
        if member not in self._members:
            return
        self._members.remove(member)
        self._of_peer[member.peer] -= 1
        if not self._of_peer[member.peer]:
            del self._of_peer[member.peer]

    @contextmanager
    def seeing_off(self) -> Iterator[bool]:
        """Count one that was turned away and waits for its answer to be seen; false when there are too many of them."""
        self._leaving += 1
        try:
            yield self._leaving <= _LEAVING_MAX
        finally:
            self._leaving -= 1

    def drain(self) -> None:
        """Send those home that have nothing under way; the others end with their answer."""
        self.draining = True
        for member in list(self._members):
            member.dismiss()


class Sparsely(Generic[Thing]):
    """Tells of something at most once in a few seconds, and then how often it went unsaid."""

    def __init__(self, tell: Callable[[Thing, int], None]) -> None:
        self._tell = tell
        self._unsaid = 0
        self._told_at = -math.inf

    def __call__(self, thing: Thing) -> None:
        """Tell of it, or count it."""
        now = trio.current_time()
        if now < self._told_at + _TOLD_SECONDS:
            self._unsaid += 1
            return
        self._tell(thing, self._unsaid)
        self._told_at, self._unsaid = now, 0
