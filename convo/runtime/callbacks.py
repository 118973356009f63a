"""Runs the callbacks of trio-asyncio's loop where they come up, instead of each in a pass of Trio's loop of its own.

By itself, trio-asyncio wakes its main task for each callback, and after each read from a socket it waits until that
task has run all of them: six passes of Trio's loop for one query, each of which costs as much as decoding a short
conversation. Here the task that starts a unit of work also runs its first step, and the task that reads the answer also
runs the step that takes it. The main task is left with timers and with what comes from threads.

Open it when trio-asyncio changes: it replaces what is private there.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Awaitable, Callable
from types import MethodType
from typing import Any, Final

import trio
from sniffio import thread_local
from trio_asyncio._handles import AsyncHandle

from convo.runtime.bell import Bell

# How many callbacks are run before other tasks get their turn.
_AT_ONCE = 64


class Callbacks:
    """The callbacks of one open loop that wait to be run.

    As a context manager: what comes up in the block is run at its end, by the present task. No block may wait.
    """

    def __init__(self, loop: Any) -> None:
        self._loop: Final = loop
        self._waiting: Final[deque[asyncio.Handle]] = deque()
        self._main: Final = Bell()
        self._here = False
        queue = loop._q_send
        # The loop puts its callbacks there, those of threads too.
        loop._q_send = self
        loop._main_loop_one = MethodType(_main_loop_one, self)
        loop._io_task = MethodType(_io_task, self)
        # Its main task still waits at the queue that it had.
        queue.send_nowait(asyncio.Handle(lambda: None, (), loop))

    def send_nowait(self, handle: asyncio.Handle) -> None:
        """Take one callback or timer of the loop."""
        if isinstance(handle, asyncio.TimerHandle):
            heapq.heappush(self._loop._timers, handle)
            # Only of an earlier one the main task has to know.
            if self._loop._timers[0] is handle:
                self._main.ring()
            return
        self._waiting.append(handle)
        if not self._here:
            self._main.ring()

    def __enter__(self) -> None:
        self._here = True

    def __exit__(self, *_: object) -> None:
        # Among the last callbacks is the one that ends the main task, and only that task may run it.
        if self._loop._stop_wait is None:
            self._run()
        self._here = False
        if self._waiting:
            self._main.ring()

    async def run_next(self, *, wait: bool) -> None:
        """Run what waits; if there is nothing, wait for the next callback or timer.

        Raises:
            WouldBlock: there is nothing, and ``wait`` is false.
        """
        timers, now = self._loop._timers, self._loop.time()
        if self._waiting:
            await trio.lowlevel.checkpoint()
        elif not timers:
            await self._next(math.inf, wait=wait)
        elif timers[0].when() > now:
            await self._next(timers[0].when(), wait=wait)
        while timers and timers[0].when() <= self._loop.time():
            self._waiting.append(heapq.heappop(timers))
        self._here = True
        try:
            self._run()
        finally:
            self._here = False
        if self._waiting and isinstance(self._waiting[0], AsyncHandle):
            await self._start(self._waiting.popleft())

    async def _next(self, until: float, *, wait: bool) -> None:
        if not wait:
            raise trio.WouldBlock
        if until == math.inf:  # most of the time: a scope would cost half as much as all the rest
            await self._main.rung()
            return
        with trio.move_on_at(until):
            await self._main.rung()

    async def _start(self, handle: AsyncHandle) -> None:
        handle._context.run(self._loop._nursery.start_soon, handle._run, name=handle._callback)
        await handle._started.wait()  # no deadline: Trio starts it in its next pass

    def _run(self) -> None:
        """Run what waits, in its order, up to the first callback that starts a Trio task."""
        waiting, library = self._waiting, thread_local.name
        thread_local.name = "asyncio"
        try:
            for _ in range(_AT_ONCE):
                if not waiting or isinstance(waiting[0], AsyncHandle):
                    return
                handle = waiting.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            thread_local.name = library


async def _main_loop_one(callbacks: Callbacks, no_wait: bool = False) -> None:  # noqa: FBT001, FBT002  (as it is called)
    await callbacks.run_next(wait=not no_wait)


async def _io_task(callbacks: Callbacks, file: int, handle: Any, ready: Callable[[int], Awaitable[None]]) -> None:
    """Run a reader or a writer whenever its socket is ready, and what comes of it."""
    with handle._scope:
        try:
            while not handle.cancelled():
                await ready(file)
                if not handle.cancelled():
                    with callbacks:
                        handle._run()
        except Exception as error:  # noqa: BLE001  (also what Trio raises of a socket that was closed meanwhile)
            if not handle.cancelled():
                handle._raise(error)
