"""Asks the database for keys that are not held in memory, so that a guess costs it next to nothing.

Open it to change how much unknown keys may cost. All that are asked for at the same time are one query. There are at
most ``1 / _SPACE_SECONDS`` of these in a second, one after the other. A key that was not found is not asked for again
for a while.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Generic, TypeVar

import trio
from msgspec import Struct

from convo.errors import ConvoError, KeysUnavailable, TooManyRequests
from convo.observe import metrics
from convo.store import keys
from convo.store.keys import ApiKey
from convo.store.postgres import Postgres
from convo.web.wrong_keys import WrongKeys

_SPACE_SECONDS = 0.05
_ASKED_MAX = 200
_NONE_MAX = 10_000
# So long no more is asked after the database could not answer: each request would wait for it.
_PAUSE_SECONDS = 1.0


T = TypeVar("T")


class FoundKey(Struct, Generic[T], frozen=True, kw_only=True):
    """A key that the database knows, and when it was asked, by ``trio.current_time()``."""

    key: T
    asked_at: float


class _Asked(Generic[T]):
    """One unknown key, and the requests that wait for what the database says of it."""

    __slots__ = ("answered", "failure", "found", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.answered = False
        self.found: FoundKey[T] | None = None
        self.failure: ConvoError | None = None


class Lookup(ABC, Generic[T]):
    """The keys that are asked for now, and those that the database did not know a moment ago.

    What it is asked for (``read``) may be anything that has an id and that a request shows as its key.
    """

    def __init__(self, postgres: Postgres, none_seconds: float) -> None:
        self.postgres = postgres
        self._none_seconds = none_seconds
        self._asked: dict[str, _Asked[T]] = {}
        self._none_until: OrderedDict[str, float] = OrderedDict()
        self._one_query = trio.Lock()
        self._next_at = self._pause_until = -math.inf
        self._forgotten = 0

    @abstractmethod
    async def read(self, ids: Collection[str]) -> Mapping[str, T]:
        """Read which of these the database knows, by their ids.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: it does not answer.
        """

    def knows_none(self, key_id: str, now: float) -> bool:
        """Return whether the database did not know a key of this id a moment ago."""
        return self._none_until.get(key_id, -math.inf) > now

    async def ask_for(
        self, key_id: str, fits: Callable[[T], bool], wrong: WrongKeys, address: str
    ) -> FoundKey[T] | None:
        """Ask for a key that is not held, for the client at this address; None where there is none that ``fits``.

        It counts as a wrong one until it is found. Many requests that show it at the same time count as one.

        Raises:
            TooManyRequests: this client has shown too many wrong keys, or as ``ask``.
            KeysUnavailable: as ``ask``.
        """
        first = key_id not in self._asked
        if first:
            wrong.take(address)
        found = await self.ask(key_id)
        if found is None or not fits(found.key):
            if not first:
                wrong.take(address, even_in_debt=True)
            return None
        if first:
            wrong.give_back(address)
        return found

    async def ask(self, key_id: str) -> FoundKey[T] | None:
        """Ask the database for the valid key of this id; None where there is none.

        Raises:
            TooManyRequests: too many unknown keys are asked for already.
            KeysUnavailable: the database does not answer.
        """
        asked = self._asked.get(key_id) or self._begin(key_id)
        asked.waiting += 1
        try:
            async with self._one_query:
                # The query of a request before this one may have answered for this one, too.
                if not asked.answered:
                    await self._query()
        finally:
            asked.waiting -= 1
            if not asked.waiting and self._asked.get(key_id) is asked:
                del self._asked[key_id]
        if asked.failure is not None:
            raise KeysUnavailable(
                f"the database could not be asked for this key: {asked.failure.detail}",
                retry_after_seconds=_PAUSE_SECONDS,
            )
        return asked.found

    def forget(self) -> None:
        """Forget which keys the database did not know: it went back, and may know them now."""
        self._forgotten += 1
        self._none_until.clear()

    def _begin(self, key_id: str) -> _Asked[T]:
        now = trio.current_time()
        if now < self._pause_until:
            metrics.keys_refused_total.labels("not_read").inc()
            raise KeysUnavailable(
                "the database could not be asked for unknown keys a moment ago",
                retry_after_seconds=self._pause_until - now,
            )
        if len(self._asked) >= _ASKED_MAX:
            metrics.keys_refused_total.labels("crowded").inc()
            raise TooManyRequests(
                f"{_ASKED_MAX} unknown keys of all clients are being asked for already", retry_after_seconds=1
            )
        asked = self._asked[key_id] = _Asked[T]()
        return asked

    async def _query(self) -> None:
        await trio.sleep_until(self._next_at)
        asked_at, forgotten = trio.current_time(), self._forgotten
        self._next_at = asked_at + _SPACE_SECONDS
        batch = dict(self._asked)
        try:
            found = await self.read(batch)
        except ConvoError as error:
            self._pause_until = trio.current_time() + _PAUSE_SECONDS
            for asked in batch.values():
                asked.answered, asked.failure = True, error
        else:
            for key_id, asked in batch.items():
                asked.answered = True
                if key_id in found:
                    asked.found = FoundKey(key=found[key_id], asked_at=asked_at)
                elif forgotten == self._forgotten:
                    self._note_none(key_id, asked_at)
        for key_id, asked in batch.items():
            if self._asked.get(key_id) is asked:
                del self._asked[key_id]

    def _note_none(self, key_id: str, now: float) -> None:
        self._none_until[key_id] = now + self._none_seconds
        self._none_until.move_to_end(key_id)
        if len(self._none_until) > _NONE_MAX:
            self._none_until.popitem(last=False)


class KeyLookup(Lookup[ApiKey]):
    """Asks for keys of clients."""

    async def read(self, ids: Collection[str]) -> Mapping[str, ApiKey]:
        """Read those that are valid."""
        return {key.key_id: key for key in await keys.find_good(self.postgres, ids)}
