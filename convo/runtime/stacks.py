"""Reads a running thread's frames: names a place in the code, and finds the Trio task that a stack belongs to.

The loop watch (who held the loop) and the list of tasks (where each task waits) are made of it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import trio

PACKAGE = str(Path(__file__).parents[1]) + "/"
"""The folder of our own code."""

# Of a stack: so many of its innermost frames, whosever they are, so many of ours, and the outermost.
_INNERMOST, _OURS = 5, 8


def frames_of(innermost: FrameType | None) -> list[FrameType]:
    """List the frames from the innermost to the task's own, or to Trio's loop where no task is at work."""
    frames: list[FrameType] = []
    frame = innermost
    while frame is not None and frame.f_code.co_name != "unrolled_run":
        frames.append(frame)
        frame = frame.f_back
    return frames


def summary(frames: list[FrameType]) -> tuple[str, ...]:
    """Name the places that matter of a stack, from the innermost outwards, each once."""
    ours = [frame for frame in frames[_INNERMOST:] if frame.f_code.co_filename.startswith(PACKAGE)]
    return tuple(dict.fromkeys(place(frame) for frame in (*frames[:_INNERMOST], *ours[:_OURS], *frames[-1:])))


def place(frame: FrameType) -> str:
    """Name a frame's file, line and function; the file as it is imported, without the folder it lies in."""
    file = frame.f_code.co_filename
    folders = [f"{folder}/" for folder in sys.path if folder and file.startswith(f"{folder}/")]
    return f"{file[len(max(folders, key=len, default='')) :]}:{frame.f_lineno} {frame.f_code.co_name}"


def task_of(root: trio.lowlevel.Task | None, frames: list[FrameType]) -> trio.lowlevel.Task | None:
    """Find the task, ``root`` or one below it, that the frames belong to: its coroutine's own frame is one of them."""
    outermost = set(frames[-3:])  # Trio may put a frame of its own around a task's
    return next((task for task in _tasks(root) if getattr(task.coro, "cr_frame", None) in outermost), None)


def _tasks(root: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    found = deque([root] if root else [])
    while found:
        task = found.popleft()
        yield task
        for nursery in task.child_nurseries:
            # Copied at once: another thread calls this, and the loop may go on at any moment.
            found.extend(list(nursery.child_tasks))
