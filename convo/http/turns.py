"""Lets requests that are no accepts begin one after the other, each in a moment in which the loop has nothing to do.

Open it when such requests wait for too long, or hold accepts up. An accept takes no turn.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from time import thread_time
from weakref import WeakValueDictionary

import trio
from trio._core._run import wait_all_tasks_blocked  # trio.testing has it, too, and imports pytest where that is there

from convo.http.addresses import client_network
from convo.observe import metrics
from convo.observe.kept_request import kept_request
from convo.runtime.precedence import ACCEPTS, PATIENCE_SECONDS, Precedence

# A loop without a quiet moment still begins 200 of them a second; one that is never without an accept 60, by
# PATIENCE_SECONDS.
_PATIENCE_SECONDS = 0.005
# Nothing runs for so long: the request whose turn it is waits for the database, and the next one can have the time.
_IDLE_SECONDS = 0.001
# In a busy loop, one that waits for a slow statement or a slow client keeps the others waiting no longer.
_TURN_SECONDS = 0.02

_present: ContextVar[_Turn | None] = ContextVar("present_turn", default=None)


class _Work:
    """Counts what the loop works during turns: all other work rests for it."""

    def __init__(self, accepts: Precedence) -> None:
        self._accepts = accepts
        self._turns = 0
        self._counted = 0.0

    def begin(self) -> None:
        if not self._turns:
            self._counted = thread_time()
        self._turns += 1

    def end(self) -> None:
        self._turns -= 1
        now = thread_time()
        self._accepts.note_worked(now - self._counted)
        self._counted = now


class _Turn:
    """From the moment in which one request begins to the one in which the next may."""

    def __init__(self, work: _Work) -> None:
        self._ended = False
        self._waiting = trio.CancelScope()
        self._work = work
        work.begin()

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._work.end()
        self._waiting.cancel()

    async def over(self) -> None:
        if not self._ended:
            with trio.move_on_after(_TURN_SECONDS) as self._waiting:
                await wait_all_tasks_blocked(_IDLE_SECONDS)


class Turns:
    """The turns of one process.

    An accept takes about ten passes of the loop. If each connection of a flood had a step in each pass, the accept
    would wait ten times for all of them. One request at a time, begun in a quiet moment, has one step in a pass.

    Clients take turns, and the connections of a client among themselves: a client with a thousand connections waits for
    itself, and the others do not wait for it.
    """

    def __init__(self, accepts: Precedence = ACCEPTS) -> None:
        self._first = trio.Lock()
        self._of_client: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        self._accepts = accepts
        self._work = _Work(accepts)
        self._last = _Turn(self._work)  # the last one that began
        self._last.end()

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[None]:
        """Wait until a request of the client at this address may begin; its turn ends with the block, or earlier.

        The caller holds the deadline.
        """
        began = trio.current_time()
        own = self._lock_of(client_network(address))
        # Both locks hand over in the order of arrival.
        await _acquire(own)
        try:
            await _acquire(self._first)
            try:
                await self._quiet()
                self._last = turn = _Turn(self._work)
            finally:
                self._first.release()
        finally:
            own.release()
        seconds = trio.current_time() - began
        metrics.wait_seconds.labels("connection.turn").observe(seconds)
        if (kept := kept_request()) is not None:
            kept.note_before("connection.turn", seconds)
        token = _present.set(turn)
        try:
            yield
        finally:
            _present.reset(token)
            turn.end()

    async def _quiet(self) -> None:
        await self._last.over()
        if rest := self._accepts.rest_left():
            await trio.sleep(rest)
        with trio.move_on_after(PATIENCE_SECONDS):
            while True:
                with trio.move_on_after(_PATIENCE_SECONDS):
                    await wait_all_tasks_blocked()
                if not self._accepts.under_way:
                    return
                await self._accepts.none_under_way()

    def _lock_of(self, client: str) -> trio.Lock:
        lock = self._of_client.get(client)
        if lock is None:
            lock = self._of_client[client] = trio.Lock()
        return lock


async def _acquire(lock: trio.Lock) -> None:
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()


def end_turn() -> None:
    """End the turn of the present request, where it has one: it waits for something that may take long."""
    turn = _present.get()
    if turn is not None:
        turn.end()
