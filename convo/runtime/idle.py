"""A moment in which this process has nothing to do: when work may begin that is never urgent.

Open it to change what such work gives way to.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from trio._core._run import wait_all_tasks_blocked  # trio.testing has it, too, and imports pytest where that is there

GIVE_WAY_SECONDS = 1.0
"""How long such work waits before it looks again."""

# Nothing runs in this process for so long.
_IDLE_SECONDS = 0.001


async def until_idle(pressed: Callable[[], bool]) -> None:
    """Wait for a moment in which nothing runs here and ``pressed`` is not so."""
    while True:
        await wait_all_tasks_blocked(_IDLE_SECONDS)
        if not pressed():
            return
        await trio.sleep(GIVE_WAY_SECONDS)
