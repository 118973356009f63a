"""Cancels a piece of work at its first, second, third … step, so that a test can check each time what is left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from trio.abc import Instrument


class _AtStep(Instrument):
    """Cancels a scope at the given step, counting the steps of all tasks since it was added."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self._left = step
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def completes(work: Callable[[], Awaitable[object]], *, cancelled_at: int) -> bool:
    """Do ``work`` and cancel it at this step of the whole run; return whether it was done before."""
    with trio.CancelScope() as scope:
        watching = _AtStep(cancelled_at, scope)
        trio.lowlevel.add_instrument(watching)
        try:
            await work()
        finally:
            trio.lowlevel.remove_instrument(watching)
    return not scope.cancel_called


async def walk(
    begin: Callable[[int], Awaitable[Callable[[], Awaitable[object]]]],
    look: Callable[[int], Awaitable[None]],
    *,
    most: int = 2_000,
) -> int:
    """Cancel the work that ``begin`` makes at its first, second, third … step until it completes.

    ``look`` asserts the invariant after each; both are given the step. Return how many steps the work took.
    """
    for step in range(1, most):
        done = await completes(await begin(step), cancelled_at=step)
        await look(step)
        if done:
            return step
    raise AssertionError(f"the work did not complete within {most} steps")
