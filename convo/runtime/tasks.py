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

from convo.observe import log_records
from convo.runtime import deadline, stacks
from convo.runtime.precedence import ACCEPTS

# Looking at one costs about 0.1 ms, several times that where it stands deep in calls.
_AT_ONCE = 2
# An accept has a step in each of some ten passes of the loop. If each of them had a slice in it, it would wait for all
# of these. For so long one look waits for accepts, all in all: under steady accepts there is no moment without one.
_PATIENCE_SECONDS = 1.0
# Several who ask at once must not share the loop's time among them until none has an answer in time.
_one_look = trio.Lock()
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


async def tree() -> TaskView:
    """Look at every task of this Trio run, from the one that started it all.

    Other tasks run meanwhile, so what is shown is not of one moment: a task that ends before it is looked at is left
    out. To look at all at once would hold the loop for seconds where thousands of clients are connected.

    Raises:
        RuntimeError: this is not a thread in which Trio runs.
    """
    root = trio.lowlevel.current_root_task()
    assert root is not None, "the run has begun"  # noqa: S101  (only its very first moment has none)
    async with _one_look:
        return await _seen(root, _Slices())


def flat(task: TaskView, depth: int = 0) -> Iterator[tuple[int, TaskView]]:
    """List a task and all below it, each with its depth."""
    yield depth, task
    for nursery in task.nurseries:
        for child in nursery.tasks:
            yield from flat(child, depth + 1)


async def log_tasks() -> None:
    """Log every task, in the tree's order."""
    slices = _Slices()
    for depth, task in flat(await tree()):
        await slices.give_way()
        log_records.task_waits(
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


class _Slices:
    """Lets other tasks run after every few that were looked at, and accepts end."""

    def __init__(self) -> None:
        self._count = 0
        self._patience = _PATIENCE_SECONDS

    async def give_way(self) -> None:
        self._count += 1
        if self._count % _AT_ONCE:
            return
        await trio.lowlevel.checkpoint()
        if ACCEPTS.under_way and self._patience > 0:
            began = trio.current_time()
            with trio.move_on_after(self._patience):
                await ACCEPTS.none_under_way()
            self._patience -= trio.current_time() - began


async def _seen(task: trio.lowlevel.Task, slices: _Slices) -> TaskView:
    await slices.give_way()
    now = trio.current_time()
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
        conversation_id=log_records.bound_in(task.context).get("conversation_id"),
        nurseries=tuple([await _all_seen(_by_name(one.child_tasks), slices) for one in tuple(task.child_nurseries)]),
    )


async def _all_seen(found: Iterable[trio.lowlevel.Task], slices: _Slices) -> NurseryView:
    return NurseryView(tasks=tuple([await _seen(task, slices) for task in found if _lives(task)]))


def _lives(task: trio.lowlevel.Task) -> bool:
    return getattr(task.coro, "cr_frame", None) is not None


def _by_name(found: Iterable[trio.lowlevel.Task]) -> list[trio.lowlevel.Task]:
    return sorted(found, key=lambda one: one.name)


def _places(task: trio.lowlevel.Task) -> tuple[str | None, str | None]:
    """Name where a task waits, and where in our code."""
    frames = [frame for frame, _ in task.iter_await_frames()]
    outside = [frame for frame in frames if not frame.f_code.co_filename.startswith(_TRIO_CORE)]
    ours = [frame for frame in outside if frame.f_code.co_filename.startswith(stacks.PACKAGE)]
    return _innermost(outside or frames), _innermost(ours)


def _innermost(frames: list[FrameType]) -> str | None:
    return stacks.place(frames[-1]) if frames else None


def _deadlines(context: Context) -> tuple[deadline.deadline | None, deadline.deadline | None]:
    """Find the innermost of the named deadlines around a task, and the one that ends first."""
    around = list(deadline.around(context))
    return (around[0], min(around, key=lambda one: one.scope.deadline)) if around else (None, None)
