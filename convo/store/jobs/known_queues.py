"""Where due jobs stand, known for a moment, so that leases need not read over what was leased before them.

Open it to change when a lease stops searching, or how long a job can stay unseen then. An old snapshot (``pg_dump``, a
long transaction) keeps every row and index entry that was leased since it began: neither vacuum nor a scan may remove
them. A search from the beginning of a queue reads over all of them, more with every lease.

So a lease that read too many entries looks around once more, and notes of every queue (a key, and what its jobs wait
for) where its first due job stands. For ``KNOWN_SECONDS`` the leases of this process begin there, and note how far
they came. What comes meanwhile is new, and is found by its age.

A job that comes back to a place before that (its lease was given up, or its transaction took long) is not seen until
the queues are searched again, after ``KNOWN_SECONDS``. Without too many entries to read nothing of this happens.

It is kept in the process: a row in the database that says how far the leases came would be changed by every lease, and
under an old snapshot all its versions would be read, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from convo.conversation.tenant import turn_bounds
from convo.store.job_sql import DUE, QUEUED
from convo.store.postgres import Connection

KNOWN_SECONDS = 5.0
"""So long it is not searched. A job that came back waits so much longer for a lease at most, in each process."""

READ_OVER_MAX = 1_000
"""A lease that reads more entries of the index looks around. Without an old snapshot it reads a few for each key.

PostgreSQL counts them only with ``track_counts``, without which there is no autovacuum either.
"""

QUEUES_MAX = 1_000
"""With more queues that wait for the same nothing is noted. A search reads over what lies between some of them only."""

NEW_MAX = 1_000
"""So many new jobs are read in one lease; the next one goes on behind them."""

# An accept is seen so long after the time of its job at most, usually: it was not committed before.
_LATE = timedelta(seconds=1)

_Place = tuple[datetime, int]
"""``available_at`` and ``seq``: the order of a queue."""
FIRST_TIME = datetime.min.replace(tzinfo=UTC)
"""Before the time of every job."""


class KnownQueues:
    """What one process knows of the queues of due jobs, as long as it is worth it."""

    def __init__(self) -> None:
        self._allowed: tuple[str, ...] = ()
        self._now = 0.0
        self._until = 0.0
        self.learned = False
        """Whether the queues are known."""
        # By key, and by what its jobs wait for.
        self._places: dict[str, dict[str, _Place]] = {}
        # What is new stands behind this place in the order of the jobs' age.
        self._new: _Place = (FIRST_TIME, 0)

    def begin(self, allowed: Sequence[str], now: float) -> None:
        """Forget what is too old at ``now``, by ``trio.current_time()``, or stands for other values of ``waits_for``.

        They are ``allowed`` in the lease that begins.
        """
        self._now = now
        if now >= self._until or tuple(allowed) != self._allowed:
            self._until, self.learned = 0.0, False
        self._allowed = tuple(allowed)

    # --- what a lease asks

    @property
    def new_since(self) -> datetime:
        """All that was due before this time, by the database's clock, is known: none of it is delayed any more."""
        return self._new[0]

    def keys(self, after: str, bounds: tuple[str, str]) -> list[str]:
        """List the keys with due jobs between these bounds, those behind ``after`` first."""
        first, end = (bound.encode() for bound in bounds)
        return self._sorted(lambda key: first <= key < end, lambda key: key <= after.encode())

    def turns(self, behind: str) -> list[tuple[str, str]]:
        """List the ``turn_bounds`` of the tenants with due jobs, those from the key ``behind`` on first."""
        keys = self._sorted(lambda _: True, lambda key: key < behind.encode())
        return list(dict.fromkeys(map(turn_bounds, keys)))

    def queues(self, keys: Sequence[str]) -> tuple[list[Any], ...]:
        """Return columns: three of the keys, and three of their queues, in the order in which jobs are leased.

        Of a key: its name, the number of its first queue, and of its last one. Of a queue: what its jobs wait for, and
        ``available_at`` and ``seq`` of the place to begin at.
        """
        starts: list[int] = []
        ends: list[int] = []
        found: list[tuple[str, datetime, int]] = []
        for key in keys:
            of_key = self._places[key]
            starts.append(len(found) + 1)
            found += [(name, *of_key[name]) for name in self._allowed if name in of_key]
            ends.append(len(found))
        return list(keys), starts, ends, *([queue[at] for queue in found] for at in range(3))

    # --- what it is told

    def note_taken(self, keys: Sequence[str], rows: Sequence[Mapping[str, Any]], wanted: int, share: int) -> None:
        """Note what was leased of these keys, when ``wanted`` jobs were, and of no key more than its ``share``."""
        for row in rows:
            of_key, name = self._places[row["fair_key"]], row["waits_for"]
            of_key[name] = max(of_key[name], _place(row))
        if len(rows) < wanted:
            taken = Counter(row["fair_key"] for row in rows)
            for key in keys:
                if taken[key] < share:
                    del self._places[key]

    async def add_new(self, connection: Connection, now: datetime, *, all_due: bool) -> None:
        """Add what is due since the last lease, at ``now`` by the database's clock.

        Without ``all_due`` some delayed jobs, due since then too, are to be added in the next lease.
        """
        rows = await connection.fetch(_NEW, *self._new, NEW_MAX)
        self._add(rows)
        if all_due:
            self._new = _place(rows[-1]) if len(rows) == NEW_MAX else max(self._new, _new_at(now))

    async def note_read(self, connection: Connection, entries: int, now: datetime) -> None:
        """Look around if a lease, at ``now`` by the database's clock, read too many entries of the index."""
        if entries <= READ_OVER_MAX or self._now < self._until:
            return
        self._until = self._now + KNOWN_SECONDS
        rows = await connection.fetch(_FIRST, list(self._allowed), QUEUES_MAX)
        if all(row["n"] <= QUEUES_MAX for row in rows):
            self.learned, self._places, self._new = True, {}, _new_at(now)
            self._add(rows)

    def _add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            of_key, name, place = self._places.setdefault(row["fair_key"], {}), row["waits_for"], _place(row)
            of_key[name] = min(of_key.get(name, place), place)

    def _sorted(self, wanted: Callable[[bytes], bool], later: Callable[[bytes], bool]) -> list[str]:
        keys = [key for one in self._places if wanted(key := one.encode())]
        return [key.decode() for key in sorted(keys, key=lambda key: (later(key), key))]


def _place(row: Mapping[str, Any]) -> _Place:
    return row["available_at"], row["seq"]


def _new_at(now: datetime) -> _Place:
    return now - _LATE, 0


_FIRST = f"""
WITH RECURSIVE queue (waits_for, fair_key, available_at, seq, n) AS (
    SELECT allowed.waits_for, one.*, 1 FROM unnest($1::text[]) AS allowed (waits_for), LATERAL (
        SELECT fair_key, available_at, seq FROM job WHERE {DUE} AND job.waits_for = allowed.waits_for
        ORDER BY fair_key, available_at, seq LIMIT 1) AS one
    UNION ALL
    SELECT queue.waits_for, one.*, n + 1 FROM queue, LATERAL (
        SELECT fair_key, available_at, seq FROM job
        WHERE {DUE} AND job.waits_for = queue.waits_for AND job.fair_key > queue.fair_key
        ORDER BY fair_key, available_at, seq LIMIT 1) AS one
    WHERE n <= $2
)
SELECT waits_for, fair_key, available_at, seq, n FROM queue
"""
_NEW = f"""
SELECT waits_for, fair_key, available_at, seq FROM job
WHERE {QUEUED} AND (available_at, seq) > ($1, $2) ORDER BY available_at, seq LIMIT $3
"""
