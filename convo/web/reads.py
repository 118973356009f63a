"""Limits the reads under way: beyond a number of them, or of bytes that they hold, a read is refused with 503.

Open this file when a read is refused too early or too late. Accepts have limits of their own (``admission``).
"""

from __future__ import annotations

import random as dice
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, Self

import trio

from convo.errors import Overloaded
from convo.http.turns import end_turn
from convo.observe import metrics
from convo.runtime import threads
from convo.runtime.deadline import deadline
from convo.runtime.precedence import ACCEPTS, PATIENCE_SECONDS
from convo.settings import WebSettings
from convo.web.description.messages import Answer

_AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]

# A read takes milliseconds, so there is room again soon. Readers that were refused together must not return together.
_RETRY_SECONDS, _RETRY_SPREAD_SECONDS = 1.0, 2.0
# To make an answer out of so much takes a tenth of a millisecond: an accept under way is let past first.
_NOTICED_BYTES = 8 << 10

AfterSome = Callable[[], None]
"""Is called in the middle of long work, where other work may come in between."""

_give_way = partial(threads.give_way, to_accepts=True)


def _go_on() -> None:
    """Do nothing: a thread can rest, the loop cannot."""


class _Unsent:
    """The bytes of one request's answer, until it is sent."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


_unsent: ContextVar[_Unsent | None] = ContextVar("unsent_answer", default=None)


class ReadUnderWay:
    """One read: the bytes that it holds, until the block ends."""

    __slots__ = ("_bytes", "_reads")

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._bytes = 0

    def __enter__(self) -> Self:
        self._reads.under_way += 1
        return self

    def hold(self, bytes_: int) -> None:
        """Hold ``bytes_`` more.

        Raises:
            Overloaded: there is no room for them. A read that is alone has room for any size: otherwise it would be
                refused for ever.
        """
        reads = self._reads
        if reads.bytes > self._bytes and reads.bytes + bytes_ > reads.settings.read_bytes_max:
            raise reads.overloaded(f"reads hold {reads.bytes} bytes, and this one would exceed web.read_bytes_max")
        reads.bytes += bytes_
        self._bytes += bytes_

    async def answer(self, make: Callable[[AfterSome], Answer], bytes_: int) -> Answer:
        """Make an answer out of about ``bytes_``, in a thread where that would hold the loop.

        ``make`` gets what it calls after each piece of its work.

        Raises:
            DeadlineExceeded: the thread did not end within the request's time.
        """
        settings = self._reads.settings
        if bytes_ >= settings.offload_bytes:
            # What the thread works has an account of its own, and accepts are answered meanwhile.
            end_turn()
            with deadline("web.encode", settings.request_seconds):
                answer = await threads.READS.call_behind(make, _give_way)
        else:
            if bytes_ >= _NOTICED_BYTES:
                with trio.move_on_after(PATIENCE_SECONDS):
                    await ACCEPTS.none_under_way()
            answer = make(_go_on)
        self._reads.keep_unsent(len(answer.body))
        return answer

    def __exit__(self, *_: object) -> None:
        self._reads.under_way -= 1
        self._reads.bytes -= self._bytes


class Reads:
    """Counts the reads under way, and the bytes that they and their unsent answers hold.

    A read that waits for a conversation to end (``wait``) is not under way meanwhile.
    """

    def __init__(self, settings: WebSettings, *, random: Callable[[], float] = dice.random) -> None:
        self.settings = settings
        self._random = random
        self.under_way = 0
        self.bytes = 0
        metrics.reads_in_flight.set_function(lambda: self.under_way)
        metrics.reads_in_flight_bytes.set_function(lambda: self.bytes)

    def begin(self) -> ReadUnderWay:
        """Return a read, to be used in a ``with`` block; it is under way inside.

        Raises:
            Overloaded: too many are under way.
        """
        if self.under_way >= self.settings.reads_max:
            raise self.overloaded(f"{self.under_way} reads are under way, web.reads_max")
        return ReadUnderWay(self)

    def keep_unsent(self, bytes_: int) -> None:
        """Count the bytes of an answer until it is sent: a client may take it slowly."""
        unsent = _unsent.get()
        # A caller of our own, such as the canary, sends nothing.
        if unsent is not None:
            unsent.bytes += bytes_
            self.bytes += bytes_

    def until_sent(self, app: _AsgiApp) -> _AsgiApp:
        """Wrap an ASGI app: when a call of it ends, its answer is sent or given up."""

        async def counting(scope: Any, receive: Any, send: Any) -> None:
            unsent = _Unsent()
            token = _unsent.set(unsent)
            try:
                await app(scope, receive, send)
            finally:
                _unsent.reset(token)
                self.bytes -= unsent.bytes

        return counting

    def overloaded(self, why: str) -> Overloaded:
        """Return the error of a read that is refused."""
        return Overloaded(why, retry_after_seconds=_RETRY_SECONDS + self._random() * _RETRY_SPREAD_SECONDS)
