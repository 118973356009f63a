"""A bell: wakes the one task that waits for work; it does not say which work there is."""

from __future__ import annotations

import trio


class Bell:
    """Rings that no task waited for are kept as one."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        """Wake the waiting task, or the next one that waits."""
        self._rung.set()

    async def rung(self) -> None:
        """Wait for a ring, then make the bell silent again."""
        await self._rung.wait()
        self._rung = trio.Event()
