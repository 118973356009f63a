"""All open connections of a process: how many there may be, and how they end when the process stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import trio

from convo.http.addresses import client_network
from convo.http.forwarded import Proxies
from convo.observe import log_records, metrics
from convo.observe.throttle import Throttle
from convo.settings import ConnectionSettings

_LOG_INTERVAL_SECONDS = 5.0
# Refused connections that may wait until their answer is read; those beyond are closed at once.
_REFUSING_MAX = 256


class Member(Protocol):
    """What ``Connections`` needs of a connection."""

    peer: str

    @property
    def phase(self) -> str:
        """What it waits for at present."""

    def end_if_idle(self) -> None:
        """End, if no request is under way and none has begun to arrive."""


class Connections:
    """The connections of one process; ``most`` is how many there may be."""

    def __init__(self, settings: ConnectionSettings, proxies: Proxies, most: int) -> None:
        self._per_peer = settings.connections_per_peer_max
        self._proxies = proxies
        self._most = most
        self._members: set[Member] = set()
        self._of_client: Counter[str] = Counter()
        self._refusing = 0
        self._throttle = Throttle(_LOG_INTERVAL_SECONDS)
        self.draining = False
        for phase in metrics.CONNECTION_PHASES:
            metrics.connections.labels(phase).set_function(self._counting(phase))
            # Created at the start: an alert cannot watch the rate of a series that does not exist yet.
            metrics.deadline_exceeded_total.labels(f"connection.{phase}")

    def _counting(self, phase: str) -> Callable[[], float]:
        # Counted when the metric is read, because a connection changes its phase several times a request.
        return lambda: sum(member.phase == phase for member in self._members)

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: Member) -> bool:
        """Add a connection; false if there is no room for it, in all or for its client."""
        client = client_network(member.peer)
        full = len(self._members) >= self._most
        if full or (self._of_client[client] >= self._per_peer and not self._proxies.trusts(member.peer)):
            self._log_full(member.peer)
            if not self._of_client[client]:
                del self._of_client[client]
            return False
        self._members.add(member)
        self._of_client[client] += 1
        return True

    def remove(self, member: Member) -> None:
        """Remove a connection, whether it was added or not."""
        if member not in self._members:
            return
        self._members.remove(member)
        client = client_network(member.peer)
        self._of_client[client] -= 1
        if not self._of_client[client]:
            del self._of_client[client]

    @contextmanager
    def refusing(self) -> Iterator[bool]:
        """Count a refused connection that waits until its answer is read; yield false if too many do."""
        self._refusing += 1
        try:
            yield self._refusing <= _REFUSING_MAX
        finally:
            self._refusing -= 1

    def drain(self) -> None:
        """End all idle connections; the others end after their present answer."""
        self.draining = True
        for member in list(self._members):
            member.end_if_idle()

    def log_failed(self, error: Exception) -> None:
        """Log an exception that ended a connection, at most once in a few seconds."""
        suppressed = self._throttle.due("failed", trio.current_time())
        if suppressed is not None:
            log_records.connection_failed(error=error, suppressed=suppressed)

    def _log_full(self, peer: str) -> None:
        suppressed = self._throttle.due("full", trio.current_time())
        if suppressed is not None:
            log_records.connections_full(peer=peer, connections=len(self._members), suppressed=suppressed)
