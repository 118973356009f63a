"""Accepts come first: other work begins while none is under way, or after a moment of waiting for that.

Open it to change how long the other work waits. It stops no step that has begun. So while conversations come in, the
other work rests besides after each of its steps: otherwise it would take every moment that accepts leave, and the next
accept would find the interpreter, the processor and the database busy. All other work has one account of that, in
whichever thread it is done: with one for each thread it would have a share for each.
"""

from __future__ import annotations

from time import perf_counter

import trio

PATIENCE_SECONDS = 0.015
"""How long other work waits for a moment without an accept: under steady accepts there is none."""


# Conversations come in where the last accept ended so lately.
_LATELY_SECONDS = 1.0
# No step of the other work, however long it was, is followed by a longer rest.
_REST_SECONDS_MAX = 0.25


class Precedence:
    """Counts the accepts under way, from when the body of each is here until its answer is written."""

    def __init__(self) -> None:
        self.under_way = 0
        self.others_share = 1.0
        """The share of its time that other work has while conversations come in; 1: it does not rest."""
        # Not by Trio's clock: threads of all its runs ask.
        self._ended_at = -_LATELY_SECONDS
        self._rests_until = 0.0
        self._none = trio.lowlevel.ParkingLot()

    def begin(self) -> None:
        """Count one accept."""
        self.under_way += 1

    def end(self) -> None:
        """End what ``begin`` began."""
        self.under_way -= 1
        self._ended_at = perf_counter()
        if not self.under_way:
            self._none.unpark_all()

    def rest_seconds(self, worked_seconds: float) -> float:
        """Return how long other work rests after a step that took ``worked_seconds`` of the interpreter."""
        if not self.under_way and perf_counter() - self._ended_at > _LATELY_SECONDS:
            return 0.0
        return min(worked_seconds * (1 / self.others_share - 1), _REST_SECONDS_MAX)

    def note_worked(self, seconds: float) -> None:
        """Note a step of other work that took so much of the interpreter: all other work rests for it."""
        if rest := self.rest_seconds(seconds):
            now = perf_counter()
            # Between two threads that note at once, one rest may be lost: a lock would cost more than that.
            self._rests_until = min(max(self._rests_until, now) + rest, now + _REST_SECONDS_MAX)

    def rest_left(self) -> float:
        """Return for how long other work rests before its next step.

        Whoever has slept so long begins, even if others have worked meanwhile: it would never have its turn otherwise.
        """
        return max(0.0, self._rests_until - perf_counter())

    async def none_under_way(self) -> None:
        """Wait until no accept is under way. The caller bounds it, by ``PATIENCE_SECONDS``."""
        while self.under_way:
            await self._none.park()


ACCEPTS = Precedence()
"""Those of this process: there is one interpreter."""
