"""Divides the connections among purposes, so that a heartbeat never waits for a reader.

Open it to move a unit of work to another purpose, or to give a purpose more connections. The committer, the
books, the alerts and the bell have a dedicated connection each and do not come through here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from operator import attrgetter
from typing import Any, Literal

import trio

from convo.errors import PoolExhausted
from convo.observe import metrics

Purpose = Literal["readers", "heartbeat", "keys", "leases", "endings", "background"]

RESERVED: Mapping[Purpose, int] = {"heartbeat": 2, "keys": 1, "leases": 1, "endings": 3, "background": 3}
"""How many connections each purpose has besides the readers' ``database.pool_max``.

Few are enough: a heartbeat, the keys, the publisher, the settler and the part writer run one unit at a time. Endings
have one more for jobs that fail or are parked. Of the background's, samples may hold two for seconds.
"""

PURPOSES: Mapping[str, Purpose] = {
    **dict.fromkeys(("db.renew", "db.history", "db.ping"), "heartbeat"),
    "db.keys": "keys",
    **dict.fromkeys(("db.part", "db.settle", "db.fail", "db.park", "db.release", "db.ticket", "db.costs"), "endings"),
    **dict.fromkeys(("db.lease", "db.rescue"), "leases"),
    **dict.fromkeys(("db.take", "db.watch"), "background"),
    **dict.fromkeys(("db.sample", "db.books", "db.canary", "db.settings", "db.receipts"), "background"),
    **dict.fromkeys(("db.events", "db.courier", "db.part_jobs"), "background"),
    **dict.fromkeys(("db.erasures", "db.untold"), "background"),
    **dict.fromkeys(("db.reruns", "db.promote"), "background"),
    **dict.fromkeys(("db.retire", "db.pack", "db.months", "db.job_room", "db.tenants", "db.import"), "background"),
    **dict.fromkeys(("db.give_back", "db.contents", "db.audit_rows"), "background"),
    **dict.fromkeys(("db.day_sum", "db.schema"), "background"),
    **dict.fromkeys(("db.enter", "db.leave", "db.holders"), "background"),
    **dict.fromkeys(("db.read", "db.list", "db.log", "db.explain"), "readers"),
    **dict.fromkeys(
        ("db.retry", "db.acknowledge", "db.dead", "db.audit_log", "db.erase", "db.webhooks", "db.stream"), "readers"
    ),
    "db.capacity": "readers",
}
"""The purpose of each unit of work that has no dedicated connection, by its name."""

_BORROWED = attrgetter("borrowed_tokens")


class ConnectionShare:
    """The connections of one purpose: how many may be in use, and those that are open and idle, last used last.

    Each purpose keeps its own: a session has the statements of its purpose prepared.
    """

    def __init__(self, size: int) -> None:
        self.limiter = trio.CapacityLimiter(size)
        self.idle: list[Any] = []

    def release(self) -> None:
        """Let another unit of work of this purpose have a connection."""
        self.limiter.release()


class Shares:
    """How many connections each purpose may hold at a time; ``readers`` is the readers' number."""

    def __init__(self, readers: int, acquire_seconds: float) -> None:
        sizes: dict[Purpose, int] = {"readers": readers, **RESERVED}
        self._acquire_seconds = acquire_seconds
        self._of = {purpose: ConnectionShare(size) for purpose, size in sizes.items()}
        for purpose, share in self._of.items():
            metrics.database_connections.labels(purpose).set_function(partial(_BORROWED, share.limiter))

    def take_idle(self) -> list[Any]:
        """Take all idle connections out of their shares."""
        taken = [connection for share in self._of.values() for connection in share.idle]
        for share in self._of.values():
            share.idle.clear()
        return taken

    async def take(self, name: str) -> ConnectionShare:
        """Wait for a connection of the purpose of the unit ``name``; return what is to be released afterwards.

        Raises:
            PoolExhausted: none became free within ``database.acquire_seconds``.
        """
        # What is not listed counts as a reader: it then delays nothing but readers.
        purpose = PURPOSES.get(name, "readers")
        share = self._of[purpose]
        try:
            share.limiter.acquire_nowait()
        except trio.WouldBlock:
            with trio.move_on_after(self._acquire_seconds):
                await share.limiter.acquire()
                return share
            within = f"within database.acquire_seconds = {self._acquire_seconds:g} s"
            raise PoolExhausted(f"no connection of the {purpose} became free {within}") from None
        return share

    def in_use(self) -> tuple[int, int]:
        """Return how many connections are in use and how many there are, of the purpose for which most tasks wait.

        Where nobody waits, it is the readers'. The other purposes may use all of theirs for long and lack nothing.
        """
        limiters = [share.limiter for share in self._of.values()]
        busiest = max(limiters, key=lambda limiter: limiter.statistics().tasks_waiting)
        return busiest.borrowed_tokens, int(busiest.total_tokens)
