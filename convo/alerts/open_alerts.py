"""Keeps what is stored of this process's alerts, and learns who has acknowledged them, here or at another process.

Open it to change when the database is asked. Nothing is asked while nothing lasts. While the database does not answer,
an acknowledgement counts in this process alone, and is stored when it answers again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import trio
from msgspec import Struct

from convo.alerts.rules import KINDS, AlertKey
from convo.errors import ConvoError, DatabaseUnavailable, NotFound
from convo.observe import log_records
from convo.runtime.bell import Bell
from convo.store.audit_log import NO_CALLER, Caller
from convo.store.open_alerts import (
    Acknowledgement,
    OpenAlert,
    OpenKey,
    acknowledge_alert,
    close_alerts,
    list_open,
    mark_open,
    open_alert,
)
from convo.store.postgres import Postgres

_CLOSING_MAX = 1000
_NAMED_MAX = 10
_AGAIN_SECONDS = 0.5
_START_SECONDS = 30.0
"""After a start, people are notified of nothing for so long, until the database says what was acknowledged before."""


class HeldAlert(Struct, kw_only=True):
    """An alert of this process that was notified and lasts; ``since`` is on the clock of ``trio.current_time()``.

    ``known``: the database was asked for it, so that ``since``, ``step`` and ``acknowledged`` are what a process before
    this one knew, or it does not answer. ``step`` is how far it was escalated, -1 while nobody was notified.
    """

    key: OpenKey
    since: float
    step: int = -1
    known: bool = False
    stored: bool = False
    acknowledged: Acknowledgement | None = None


class OpenAlerts:
    """The alerts of this process that were notified and last.

    ``folder`` names the process, the same after a restart; ``answers`` says whether the database can be asked, None
    until it is prepared. ``acknowledged`` is called when one is.
    """

    def __init__(
        self,
        postgres: Postgres,
        folder: Callable[[], str],
        look_seconds: float,
        answers: Callable[[], bool | None],
    ) -> None:
        self._postgres = postgres
        self._folder = folder
        self._look_seconds = look_seconds
        self._answers = answers
        self._held: dict[AlertKey, HeldAlert] = {}
        self._closing: list[OpenKey] = []
        self._bell = Bell()
        self.acknowledged: Callable[[AlertKey], None] = lambda _key: None

    def held(self, key: AlertKey) -> HeldAlert | None:
        """Return what is known of an alert; None where it was not notified, or is over."""
        return self._held.get(key)

    def hold(self, key: AlertKey, since: float) -> None:
        """Keep an alert from now on: it was notified."""
        if key not in self._held:
            folder = "" if KINDS[key[0]].shared else self._folder()
            self._held[key] = HeldAlert(key=(*key, folder), since=since)
            self._bell.ring()

    def end(self, key: AlertKey) -> None:
        """Keep an alert no longer: it is resolved."""
        held = self._held.pop(key, None)
        if held is not None and len(self._closing) < _CLOSING_MAX:
            self._closing.append(held.key)
            self._bell.ring()

    def keep_only(self, keys: Iterable[AlertKey]) -> None:
        """Drop all others without removing them: another process has them from now on."""
        kept = set(keys)
        for key in [key for key in self._held if key not in kept]:
            del self._held[key]

    # --- acknowledging

    async def acknowledge(self, kind: str, component: str | None, by: str, caller: Caller) -> list[OpenAlert]:
        """Note who has acknowledged the alerts of a type, of one component or of all, and return them.

        The first acknowledgement stays. While the database does not answer, it counts for the alerts of this process.

        Raises:
            NotFound: no alert like that lasts that was notified.
            ConvoError: the database does not answer, and this process has no such alert.
        """
        here = [key for key in self._held if key[0] == kind and component in (None, key[1])]
        found: list[OpenAlert] = []
        try:
            if not self._answers():
                raise DatabaseUnavailable("the database does not answer, so only this process's own alerts are known")
            found = await acknowledge_alert(self._postgres, kind, component, by, caller)
        except ConvoError:
            if not here:
                raise
        given = {(one.type, one.component): one.acknowledged for one in found}
        usual = Acknowledgement(by=by or caller.key_id or "somebody without a key", at=datetime.now(UTC))
        for key in here:
            self._note(key, given.get(key) or usual)
        known = {one.key for one in found}
        found += [self._shown(self._held[key]) for key in here if self._held[key].key not in known]
        if not found:
            of = f" of {component!r}" if component else ""
            raise NotFound(f"no alert {kind}{of} lasts that was notified; {await self._lasting()}")
        return found

    async def _lasting(self) -> str:
        """Name what lasts, for whoever has named something else."""
        names = [f"{one.type} of {one.component!r}" for one in await list_open(self._postgres)]
        shown = ", ".join(list(dict.fromkeys(names))[:_NAMED_MAX])
        return f"these do: {shown}" if shown else "none does"

    def _shown(self, held: HeldAlert) -> OpenAlert:
        kind, component, folder = held.key
        age = trio.current_time() - held.since
        return OpenAlert(
            type=kind,
            component=component,
            folder=folder,
            age_seconds=age,
            step=held.step,
            acknowledged=held.acknowledged,
        )

    def _note(self, key: AlertKey, given: Acknowledgement | None) -> None:
        held = self._held.get(key)
        if held is not None and held.acknowledged is None and given is not None:
            held.acknowledged = given
            self.acknowledged(key)

    # --- the database

    async def run(self) -> None:
        """Store what is new, mark what lasts and remove what is over, until cancelled."""
        while True:
            if not self._held and not self._closing:
                await self._bell.rung()
            await self._look()
            is_any_new = any(not held.known for held in self._held.values())
            with trio.move_on_after(min(_AGAIN_SECONDS, self._look_seconds) if is_any_new else self._look_seconds):
                await self._bell.rung()

    async def _look(self) -> None:
        answers = self._answers()
        if answers:
            try:
                await self._store()
            except ConvoError as error:
                log_records.alerts_not_stored(reason=error.detail)
        # Where it does not answer, what this process knows itself is all there is. At a start it soon does.
        patience_seconds = _START_SECONDS if answers is None else 0.0
        for held in self._held.values():
            held.known = held.known or trio.current_time() >= held.since + patience_seconds

    async def _store(self) -> None:
        closing, self._closing = self._closing, []
        if closing:
            await close_alerts(self._postgres, closing)
        for key, held in [*self._held.items()]:
            if not held.stored:
                await self._open(key, held)
        steps = {held.key: held.step for held in self._held.values() if held.stored}
        found = {one.key: one for one in await mark_open(self._postgres, steps)} if steps else {}
        for key, held in [*self._held.items()]:
            if held.key in found:
                self._note(key, found[held.key].acknowledged)
            elif held.key in steps:
                # A database that went back does not have it.
                held.stored = False

    async def _open(self, key: AlertKey, held: HeldAlert) -> None:
        one = await open_alert(self._postgres, held.key)
        if held.acknowledged is not None and one.acknowledged is None:
            await acknowledge_alert(self._postgres, *key, held.acknowledged.by, NO_CALLER)
        held.stored = True
        if not held.known:
            held.since = min(held.since, trio.current_time() - one.age_seconds)
            held.step = max(held.step, one.step)
            if held.acknowledged is None:
                # Notified by the process before: this one goes on silently.
                held.acknowledged = one.acknowledged
            held.known = True
        self._note(key, one.acknowledged)
