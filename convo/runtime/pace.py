"""How many jobs may start now: accepts have the interpreter first, analyses get a share of what is left.

Open it to change what receipts cost while a backlog is analysed. A receipt is owed now, an analysis is not. The share
follows from how busy the accepts are and how late the loop runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from time import thread_time

import trio
from msgspec import Struct

from convo.observe import metrics
from convo.runtime import threads
from convo.runtime.scheduled import ThreadTimes

FLOOR = 0.1
"""The least share of the interpreter that analyses have: no backlog waits for ever."""

BOOKKEEPING_SECONDS = 0.0015
"""What a job takes of the interpreter besides its analysts (scripts/bench/jobs.py: 1.0 to 1.3 ms with 8 workers)."""

SETTLED_ROWS_MAX = 64
"""So many jobs are settled in one transaction at most."""
SETTLE_GATHER_SECONDS = 0.02
"""For so long jobs gather that are settled together."""

# With accepts under way for so much of the time, analyses have the floor. At 500 requests/s it is two thirds.
_BUSY = 0.6
# One accept counts for so long at most: on a slow disk it waits for longer, and needs no interpreter meanwhile. Where
# others on the machine take the processor, it counts for as many times longer as this process waits for it.
_ACCEPT_SECONDS = 0.0025
_SLOWED_MAX = 3.0
# Below this the analyses are not paced at all.
_QUIET = 0.05
# Where accepts come and the loop runs so late, it has no time to spare, whatever keeps it.
_LATE_SECONDS = 0.02
# A burst is noticed at once, its end a little later: the pause between two requests is none.
_FADES = 0.1
_COST_FADES = 0.2
# So much of the time may be used at once after a pause.
_BURST_SECONDS = 0.1
_TICK_SECONDS = 0.05


class Pace:
    """The jobs that may start, as a share of the interpreter divided by what a job takes of it.

    ``load`` is 0 while nothing else needs the interpreter, and 1 when the analyses have no more than ``FLOOR``.
    """

    def __init__(self, now: float) -> None:
        self.load = 0.0
        self._cost = BOOKKEEPING_SECONDS
        self._credit = 0.0
        self._at = now

    @property
    def share(self) -> float:
        """The share of the interpreter that analyses have now."""
        return max(FLOOR, 1.0 - self.load)

    def note_accepts(
        self, seconds: float, accepts: int, busy_seconds: float, late_seconds: float, slowed: float = 1.0
    ) -> None:
        """Note the last ``seconds``: how many accepts ended, for how long any was under way, how late the loop ran.

        ``slowed`` is how many times longer all work takes because others use the machine's processors.
        """
        busy = min(busy_seconds, accepts * _ACCEPT_SECONDS * min(slowed, _SLOWED_MAX)) / seconds
        self.note_load(max(busy / _BUSY, late_seconds / _LATE_SECONDS) if accepts else 0.0)

    def note_load(self, found: float) -> None:
        """Note a load, at once where it is higher than before."""
        found = min(1.0, found)
        self.load = found if found > self.load else self.load + (found - self.load) * _FADES

    def note_cost(self, jobs: int, analyst_seconds: float) -> None:
        """Note what the analysts took of the interpreter for the last ``jobs``."""
        if jobs:
            found = analyst_seconds / jobs + BOOKKEEPING_SECONDS
            self._cost += (found - self._cost) * _COST_FADES

    def allowed(self, now: float) -> float:
        """Return how many jobs may start; infinite while nothing else needs the interpreter."""
        if self.load < _QUIET:
            self._credit, self._at = 0.0, now
            return math.inf
        rate = self.share / self._cost
        self._credit = min(self._credit + (now - self._at) * rate, max(1.0, _BURST_SECONDS * rate))
        self._at = now
        return self._credit

    def started(self, jobs: int) -> None:
        """Note that so many jobs have started."""
        self._credit -= jobs

    def wait_seconds(self) -> float:
        """Return how long to wait until one more job may start."""
        return max(0.0, (1.0 - self._credit) * self._cost / self.share)


def accept_share_seconds(busy_seconds: float, slowed: float) -> float:
    """Return what one accept that is under way for ``busy_seconds`` takes of the time that analyses might have.

    It is the law of ``Pace.note_accepts``, without its peaks: a load that rises counts at once.
    """
    return min(busy_seconds, _ACCEPT_SECONDS * min(slowed, _SLOWED_MAX)) / _BUSY


class Accepts(Struct, frozen=True):
    """What a process has accepted so far: how many requests have ended, and for how many seconds any was under way."""

    ended: int
    busy_seconds: float


class Pacer:
    """Keeps the ``pace`` of a process: looks at its accepts and at its loop twenty times a second.

    ``refuses`` returns whether requests are being refused. ``analyst_seconds`` returns what the analysts have taken of
    the interpreter so far.
    """

    def __init__(
        self, accepts: Callable[[], Accepts], refuses: Callable[[], bool], analyst_seconds: Callable[[], float]
    ) -> None:
        self.pace = Pace(trio.current_time())
        self._accepts = accepts
        self._refuses = refuses
        self._analyst_seconds = analyst_seconds
        self._started = 0
        self.share_seconds = 0.0
        """The share of the interpreter that analyses were allowed, times its time, since the start."""

    def allowed(self) -> float:
        """Return how many jobs may start now; as ``Pace.allowed``."""
        return self.pace.allowed(trio.current_time())

    def started(self, jobs: int) -> None:
        """Note that so many jobs have started."""
        self.pace.started(jobs)
        self._started += jobs

    def wait_seconds(self) -> float:
        """Return how long to wait until one more job may start; as ``Pace.wait_seconds``."""
        return self.pace.wait_seconds()

    async def run(self) -> None:
        """Look again and again until cancelled; run it in the loop's own thread."""
        with ThreadTimes() as thread:
            await self._look(partial(_scheduled, thread))

    async def _look(self, scheduled: Callable[[], tuple[float, float]]) -> None:
        at, before, used, (worked, queued) = trio.current_time(), self._accepts(), self._analyst_seconds(), scheduled()
        shared = self.pace.share
        while True:
            await trio.sleep_until(at + _TICK_SECONDS)
            now, accepts, used_now = trio.current_time(), self._accepts(), self._analyst_seconds()
            worked_now, queued_now = scheduled()
            if self._refuses():
                self.pace.note_load(1.0)
            else:
                self.pace.note_accepts(
                    now - at,
                    accepts.ended - before.ended,
                    accepts.busy_seconds - before.busy_seconds,
                    # A loop that is late and has not worked was kept from it by others on this machine.
                    min(now - at - _TICK_SECONDS, worked_now - worked),
                    1.0 + (queued_now - queued) / max(worked_now - worked, _TICK_SECONDS / 100),
                )
            self.pace.note_cost(self._started, used_now - used)
            # Until now the share of the last look was allowed.
            self.share_seconds += (now - at) * shared
            shared = self.pace.share
            metrics.analyses_share.set(self.pace.share)
            threads.set_share(self.pace.share)
            at, before, used, self._started = now, accepts, used_now, 0
            worked, queued = worked_now, queued_now


def _scheduled(thread: ThreadTimes) -> tuple[float, float]:
    """Return for how many seconds this thread has worked, and waited for a processor where the kernel says that."""
    return thread.read() if thread.counted else (thread_time(), 0.0)
