"""Pings the database and each dependency at an interval, and keeps the last result of each for ``/readyz``.

Open it to change how soon ``/readyz`` shows that something does not answer. A request asks nobody: ``/readyz`` needs no
key, so each of them would otherwise cost every dependency one more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import trio
from msgspec import Struct

from convo.errors import ConvoError
from convo.web.description.service_views import DependencyView

Ping = Callable[[], Awaitable[None]]
DATABASE_PING = "database"


class PingEvery(Struct, frozen=True, kw_only=True):
    """How one dependency is pinged, and how often."""

    ping: Ping
    seconds: float


class _PingResult(Struct, frozen=True, kw_only=True):
    began: float
    ended: float
    failure: str | None


class Pings:
    """The last ping of each dependency, by name."""

    def __init__(self, pings: Mapping[str, PingEvery]) -> None:
        self._pings = pings
        self._last: dict[str, _PingResult] = {}

    @property
    def keepers(self) -> list[Callable[[], Awaitable[None]]]:
        """The loops that ping, one for each dependency, so that none waits for another."""
        return [partial(self._keep, name) for name in self._pings]

    async def ping(self, name: str) -> None:
        """Ping one dependency now, and keep the result."""
        began, failure = trio.current_time(), None
        try:
            await self._pings[name].ping()
        except ConvoError as error:
            failure = error.detail
        last = self._last.get(name)
        # Two may be under way: the one that began later knows more.
        if last is None or last.began <= began:
            self._last[name] = _PingResult(began=began, ended=trio.current_time(), failure=failure)

    async def _keep(self, name: str) -> None:
        while True:
            await self.ping(name)
            await trio.sleep(self._pings[name].seconds)

    def shown(self) -> dict[str, DependencyView]:
        """Return what is shown of each dependency's last ping."""
        return {name: self._shown(name) for name in self._pings}

    def _shown(self, name: str) -> DependencyView:
        last = self._last.get(name)
        if last is None:
            return DependencyView(ok=False, seconds=None, age_seconds=None, detail="its first ping has not ended yet")
        return DependencyView(
            ok=last.failure is None,
            seconds=last.ended - last.began,
            age_seconds=trio.current_time() - last.ended,
            detail=last.failure,
        )
