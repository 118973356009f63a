"""Answers that many who look at the same list share: one is read and encoded for all who ask after the same events.

Open it to change when an answer may be shared. Who says nothing gets an answer of its own, as new as can be. Who was
told on a live stream (``live``) that something has happened says up to which event (``as_of``), and gets one that was
begun to be read by somebody of the same reach who had been told the same, or later. The event was committed by then, so
the answer holds it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable

import trio
from msgspec import Struct

from convo.http.turns import end_turn
from convo.web.description.messages import Answer

# What is erased meanwhile must not be sent for long; here it is forgotten at once.
_KEPT_SECONDS = 5.0
_KEPT_MAX = 32


class _Shared(Struct):
    """One answer, or the one who reads it: ``ready`` is set when there is an answer, or none will come of it."""

    as_of: int
    begun_at: float
    ready: trio.Event
    answer: Answer | None = None


class SharedAnswers:
    """The answers of the last seconds; ``numbered`` is the last number that an event has, as far as is known here."""

    def __init__(self, numbered: Callable[[], int]) -> None:
        self._numbered = numbered
        self._kept: OrderedDict[Hashable, _Shared] = OrderedDict()

    def forget(self) -> None:
        """Share nothing of before: something was erased, or the database went back."""
        self._kept.clear()

    async def answer(self, key: Hashable, as_of: int | None, make: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return an answer that holds what happened up to event ``as_of``; None: one that nobody shares.

        ``key`` is all that the answer depends on, the reach of the caller among it. What ``make`` raises, the caller
        who makes it gets alone: the others make their own.
        """
        # A number that nobody was told would let one be shared that is older than the next event.
        if as_of is None or as_of > self._numbered():
            return await make()
        while (shared := self._fitting(key, as_of)) is not None:
            if shared.answer is None:
                end_turn()
                await shared.ready.wait()  # no deadline: the caller's request has one, and so has who makes it
            if shared.answer is not None:
                return shared.answer
        return await self._made(key, as_of, make)

    async def _made(self, key: Hashable, as_of: int, make: Callable[[], Awaitable[Answer]]) -> Answer:
        shared = _Shared(as_of=as_of, begun_at=trio.current_time(), ready=trio.Event())
        self._kept[key] = shared
        self._kept.move_to_end(key)
        if len(self._kept) > _KEPT_MAX:
            self._kept.popitem(last=False)
        try:
            shared.answer = await make()
            return shared.answer
        finally:
            if shared.answer is None and self._kept.get(key) is shared:
                del self._kept[key]
            shared.ready.set()

    def _fitting(self, key: Hashable, as_of: int) -> _Shared | None:
        shared = self._kept.get(key)
        if shared is None or shared.as_of < as_of or trio.current_time() > shared.begun_at + _KEPT_SECONDS:
            return None
        return shared
