"""Accepts come first: other work begins while none is under way, or after a moment of waiting for that.

Open it to change how long the other work waits. It stops nothing that has begun.
"""

from __future__ import annotations

import trio

PATIENCE_SECONDS = 0.015
"""How long other work waits for a moment without an accept: under steady accepts there is none."""


class Precedence:
    """Counts the accepts under way, from when the body of each is here until its answer is written."""

    def __init__(self) -> None:
        self.under_way = 0
        self._none = trio.lowlevel.ParkingLot()

    def begin(self) -> None:
        """Count one accept."""
        self.under_way += 1

    def end(self) -> None:
        """End what ``begin`` began."""
        self.under_way -= 1
        if not self.under_way:
            self._none.unpark_all()

    async def none_under_way(self) -> None:
        """Wait until no accept is under way. The caller bounds it, by ``PATIENCE_SECONDS``."""
        while self.under_way:
            await self._none.park()


ACCEPTS = Precedence()
"""Those of this process: there is one interpreter."""
