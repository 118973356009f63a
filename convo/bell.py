"""A bell: somebody rings, whoever waits wakes; it knows nothing of why."""

from __future__ import annotations

import trio


class Bell:
    """Rings that nobody heard yet are kept as one."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        """Wake whoever waits, or the next who comes to wait."""
        self._rung.set()

    async def heard(self) -> None:
        """Wait for a ring, then make the bell silent again."""
        await self._rung.wait()
        self._rung = trio.Event()
