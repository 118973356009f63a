"""The living tree of Trio's nurseries and tasks, and where each task waits; it reads code, never a local variable.

What waits for something outside the process stands in a named deadline, and that one knows since when: a task in none
waits for other tasks (a channel, a bell, an event), and of those nobody notes when they last ran, for that would be a
hook at every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextvars import Context
from types import FrameType
from typing import Annotated

import trio
from msgspec import Meta, Struct

from convo import deadline
from convo.observe import events, loop

_TRIO_CORE = f"{trio.__path__[0]}/_core/"


class NurseryView(Struct, frozen=True, kw_only=True):
    """One nursery and the tasks in it, by name."""

    tasks: tuple[TaskView, ...]


class TaskView(Struct, frozen=True, kw_only=True):
    """One task, where it waits, and the nurseries that it holds open."""

    name: str
    waits_in: Annotated[str | None, Meta(description="The innermost `file:line function` outside of Trio's own core.")]
    ours: Annotated[str | None, Meta(description="The innermost `file:line function` of convo; null for none.")]
    wait: Annotated[str | None, Meta(description="The innermost named deadline that it stands in; null for none.")]
    wait_seconds: Annotated[float | None, Meta(description="For how long it has stood in that one.")]
    deadline: Annotated[str | None, Meta(description="The named deadline around it that ends first.")]
    deadline_seconds: Annotated[float | None, Meta(description="What is left until that one ends.")]
    conversation_id: str | None
    nurseries: tuple[NurseryView, ...]


def tree() -> TaskView:
    """Look at every task of this Trio run, from the one that started it all.

    Raises:
        RuntimeError: this is not a thread in which Trio runs.
    """
    root = trio.lowlevel.current_root_task()
    assert root is not None, "the run has begun"  # noqa: S101  (only its very first moment has none)
    return _seen(root, trio.current_time())


def flat(task: TaskView, depth: int = 0) -> Iterator[tuple[int, TaskView]]:
    """List a task and all below it, each with its depth."""
    yield depth, task
    for nursery in task.nurseries:
        for child in nursery.tasks:
            yield from flat(child, depth + 1)


def tell() -> None:
    """Tell of every task as an event, in the tree's order."""
    for depth, task in flat(tree()):
        events.task_waits(
            depth=depth,
            task=task.name,
            waits_in=task.waits_in,
            ours=task.ours,
            wait=task.wait,
            wait_seconds=task.wait_seconds,
            deadline=task.deadline,
            deadline_seconds=task.deadline_seconds,
            conversation_id=task.conversation_id,
        )


def _seen(task: trio.lowlevel.Task, now: float) -> TaskView:
    waits_in, ours = _places(task)
    innermost, first = _deadlines(task.context)
    ends = math.inf if first is None else first.scope.deadline
    return TaskView(
        name=task.name,
        waits_in=waits_in,
        ours=ours,
        wait=None if innermost is None else innermost.name,
        wait_seconds=None if innermost is None else now - innermost.started,
        deadline=None if first is None else first.name,
        deadline_seconds=ends - now if math.isfinite(ends) else None,
        conversation_id=events.bound_in(task.context).get("conversation_id"),
        nurseries=tuple(
            NurseryView(tasks=tuple(_seen(child, now) for child in _by_name(one.child_tasks)))
            for one in task.child_nurseries
        ),
    )


def _by_name(found: Iterable[trio.lowlevel.Task]) -> list[trio.lowlevel.Task]:
    return sorted(found, key=lambda one: one.name)


def _places(task: trio.lowlevel.Task) -> tuple[str | None, str | None]:
    """Name where a task waits, and where in our code."""
    frames = [frame for frame, _ in task.iter_await_frames()]
    outside = [frame for frame in frames if not frame.f_code.co_filename.startswith(_TRIO_CORE)]
    ours = [frame for frame in outside if frame.f_code.co_filename.startswith(loop.PACKAGE)]
    return _innermost(outside or frames), _innermost(ours)


def _innermost(frames: list[FrameType]) -> str | None:
    return loop.place(frames[-1]) if frames else None


def _deadlines(context: Context) -> tuple[deadline.deadline | None, deadline.deadline | None]:
    """Find the innermost of the named deadlines around a task, and the one that ends first."""
    around = list(deadline.around(context))
    return (around[0], min(around, key=lambda one: one.scope.deadline)) if around else (None, None)
