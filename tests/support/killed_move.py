"""A start on a data folder of an older major version that kills itself: ``STEP before|after DATA_DIR``.

A step is a function of ``convo.major_move``. The start ends as a power cut would end it, before the step or after it.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from convo import major_move

STEPS = (
    *("_dump", "write_backup", "_fill", "restore_backup", "_mark_verified", "_set_aside"),
    *("_put_in_place", "_clear_away"),
)


def arm(step: str, when: str) -> None:
    """Make this process kill itself at the step."""
    assert step in STEPS
    done: Callable[..., Any] = getattr(major_move, step)

    def die(now: str) -> None:
        if now == when:
            os.kill(os.getpid(), signal.SIGKILL)

    async def dying(*args: Any, **options: Any) -> Any:
        die("before")
        result = await done(*args, **options)
        die("after")
        return result

    def dying_at_once(*args: Any, **options: Any) -> Any:
        die("before")
        result = done(*args, **options)
        die("after")
        return result

    setattr(major_move, step, dying if inspect.iscoroutinefunction(done) else dying_at_once)


async def start(data_dir: Path) -> None:
    async with major_move.open_moved(data_dir):
        pass


if __name__ == "__main__":
    arm(sys.argv[1], sys.argv[2])
    trio.run(start, Path(sys.argv[3]))
