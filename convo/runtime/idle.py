"""A moment in which this process has nothing to do: when work may begin that is never urgent.

Open it to change what such work gives way to.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio
from trio._core._run import wait_all_tasks_blocked  # trio.testing has it, too, and imports pytest where that is there

GIVE_WAY_SECONDS = 1.0
"""How long such work waits before it looks again."""

# Nothing runs in this process for so long.
_IDLE_SECONDS = 0.001


async def until_idle(pressed: Callable[[], bool], within_seconds: float = math.inf) -> bool:
    """Wait for a moment in which nothing runs here and ``pressed`` is not so; return whether it came in that time."""
    with trio.move_on_after(within_seconds):
        while True:
            await wait_all_tasks_blocked(_IDLE_SECONDS)
            if not pressed():
                return True
            await trio.sleep(GIVE_WAY_SECONDS)
    return False


class IdleMoments:
    """The idle moments that one piece of work waits for: since when there was none, and when it waits no longer.

    After ``busy_limit_seconds`` without one, the work goes on in spite of the load, step by step: before each step a
    moment is waited for, as long as ``GIVE_WAY_SECONDS``. With the first that comes, it waits as before.
    """

    def __init__(self, pressed: Callable[[], bool], busy_limit_seconds: float) -> None:
        self._pressed = pressed
        self._busy_limit_seconds = busy_limit_seconds
        self._busy_since: float | None = None
        self.longest_seconds = 0.0
        """The longest wait since ``begin``."""

    @property
    def busy_seconds(self) -> float:
        """For how long a moment has been waited for in vain; 0 where none is waited for."""
        return 0.0 if self._busy_since is None else trio.current_time() - self._busy_since

    async def next_one(self) -> None:
        """Wait for a moment, or until there was none for too long."""
        if self._busy_since is None:
            self._busy_since = trio.current_time()
        left = self._busy_since + self._busy_limit_seconds - trio.current_time()
        came = await until_idle(self._pressed, max(left, GIVE_WAY_SECONDS))
        self.longest_seconds = max(self.longest_seconds, self.busy_seconds)
        if came:
            self._busy_since = None

    def begin(self) -> None:
        """Note that work begins."""
        self.longest_seconds = 0.0

    def end(self) -> None:
        """Note that nothing is waited for any more: there is no work."""
        self._busy_since = None
