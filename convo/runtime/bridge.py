"""The crossing from Trio into asyncio and back: how Trio code calls an asyncio library such as asyncpg."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio
import trio_asyncio

from convo.errors import DatabaseUnavailable
from convo.observe import log_records
from convo.runtime.callbacks import Callbacks

T = TypeVar("T")


class Bridge:
    """An open asyncio loop; ``cross`` runs one coroutine function on it."""

    def __init__(self, loop: Any, callbacks: Callbacks) -> None:
        self._loop = loop
        self._callbacks = callbacks

    async def cross(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run one asyncio coroutine function to its end, cancelling it when the trio caller is cancelled.

        A whole unit of work is one crossing: a unit that crossed several times would lose pool slots when cancelled.

        Raises:
            DatabaseUnavailable: the asyncio library cancelled its own futures (ours is ``trio.Cancelled``).
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        # A caller started in a nursery that opened before the loop did not inherit the current loop.
        token = trio_asyncio.current_loop.set(self._loop)
        try:
            with self._callbacks:
                task = self._loop.create_task(function(*args))
            return await trio_asyncio.run_aio_future(task)  # type: ignore[no-any-return]
        except asyncio.CancelledError as error:
            raise DatabaseUnavailable("the asyncio library cancelled the call") from error
        finally:
            trio_asyncio.current_loop.reset(token)


def _report(_loop: object, context: dict[str, Any]) -> None:
    # The loop's own handler would raise into its nursery: an exception that no caller awaits would end the process.
    log_records.asyncio_stray(text=str(context.get("message", "")), error=repr(context.get("exception")))


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """Open the asyncio loop; open it before every other resource, and close it last."""
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(_report)
        yield Bridge(loop, Callbacks(loop))


async def within(seconds: float, awaitable: Awaitable[T]) -> T:
    """Bound an await on the asyncio side, for the clean-up after a Trio cancellation: no cancel scope bounds that.

    Raises:
        TimeoutError: it took longer than ``seconds``.
    """
    # Not `wait_for`: the task that it makes may never begin where the loop ends.
    async with asyncio.timeout(seconds):
        return await awaitable


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Run a function that blocks in a thread, from the asyncio side."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)


async def side_by_side(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T | BaseException]:
    """Make calls side by side on the asyncio side; return what each returned or raised, in their order."""
    return await asyncio.gather(*(call() for call in calls), return_exceptions=True)


async def together(
    calls: Sequence[Callable[[], Awaitable[T]]], grace_seconds: float, *, undo: Callable[[T], object]
) -> list[T]:
    """Make calls side by side on the asyncio side; return what came of those that succeeded, in their order.

    Once one has succeeded, the others have ``grace_seconds`` left. ``undo`` takes what nobody gets any more.

    Raises:
        Exception: none succeeded; the last one's.
    """
    if len(calls) == 1:
        return [await calls[0]()]
    tasks = [asyncio.ensure_future(call()) for call in calls]
    try:
        waiting = set(tasks)
        while waiting and not any(map(_succeeded, tasks)):
            # no deadline: whoever crosses has one
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if waiting:
            await asyncio.wait(waiting, timeout=grace_seconds)  # no deadline: whoever crosses has one
    except BaseException:
        await _cancel(tasks)  # noqa: ASYNC102  (asyncio's side of the bridge)
        for task in filter(_succeeded, tasks):
            undo(task.result())
        raise
    await _cancel(tasks)
    found = [task.result() for task in tasks if _succeeded(task)]
    if not found:
        tasks[-1].result()
    return found


async def _cancel(tasks: Sequence[asyncio.Future[T]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _succeeded(task: asyncio.Future[T]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
