"""Tells a memory service what was erased here, until it has confirmed each deletion, however long it is away.

Open it to change what it is told for a conversation or a user. What waits stands in the database (``store/untold.py``):
so any process goes on with it, after a restart too. Calls go through the service's own breaker, budget and deadline.
"""

from __future__ import annotations

import trio

from convo.analysis.memory import MemoryService
from convo.errors import ConvoError, RemoteError
from convo.observe import log_records, tracing
from convo.observe.tracing import Span
from convo.plural import plural
from convo.runtime.bell import Bell
from convo.store import untold
from convo.store.postgres import RELAXED, Postgres
from convo.store.untold import ErasureTraces, Telling, Untold, Waiting

_LOOK_SECONDS = 5.0
_RETRY_SECONDS = 1.0
LONG_SECONDS = 600.0
"""What waits for longer is a warning of ``/readyz``."""
# So often a list is read for one deletion: it shows a few hundred at a time.
_LISTS_MAX = 20


def telling_of(service: MemoryService | None) -> Telling | None:
    """Return which service is told of erasures: none, where there is none or it takes no deletion."""
    return Telling(service=service.name, lists=service.lists) if service is not None and service.deletes else None


class Teller:
    """Tells one service."""

    def __init__(self, postgres: Postgres, service: MemoryService, traces: ErasureTraces | None = None) -> None:
        self._postgres = postgres
        self._service = service
        self._traces = traces or ErasureTraces()
        self._bell = Bell()
        self.waiting = Waiting()
        """What waits, as it was last seen."""

    def ring(self) -> None:
        """Have it look now: something was erased."""
        self._bell.ring()

    @property
    def warning(self) -> str:
        """What waits for long, for a person; empty for nothing."""
        waiting = self.waiting
        if waiting.seconds < LONG_SECONDS:
            return ""
        return (
            f"ERASURES_NOT_TOLD: {waiting.count} {plural(waiting.count, 'deletion')}"
            f" {'waits' if waiting.count == 1 else 'wait'} for {self._service.name}, the oldest for"
            f" {waiting.seconds / 60:.0f} min: {waiting.reason or 'not tried yet'}"
        )

    async def run(self) -> None:
        """Tell what is due, every 5 s and when something was erased, until cancelled."""
        while True:
            with trio.move_on_after(_LOOK_SECONDS):
                await self._bell.rung()
            try:
                await self.send_due()
                self.waiting = await self._postgres.run("db.untold", untold.read_waiting, begin=RELAXED)
            except ConvoError as error:
                log_records.untold_failed(service=self._service.name, reason=error.detail)
                await trio.sleep(_RETRY_SECONDS)

    async def send_due(self) -> int:
        """Tell all that is due now; return how much was confirmed."""
        confirmed = 0
        while self._service.dependency.flows() or self._service.dependency.wants_probe():
            one = await untold.take_due(self._postgres, self._service.name)
            if one is None:
                break
            confirmed += await self._tell(one)
        return confirmed

    async def _tell(self, one: Untold) -> bool:
        with tracing.within_span(self._span_of(one)):
            return await self._tell_recorded(one)

    def _span_of(self, one: Untold) -> Span | None:
        """Go on with the trace of the request that erased it; where nobody knows that here, chance decides."""
        name, trace = f"forget {one.kind}", self._traces.of(one.erasure)
        if trace is None:
            return tracing.begin_span(name, "internal")
        return tracing.continued(trace, name, "internal")

    async def _tell_recorded(self, one: Untold) -> bool:
        try:
            done = await self._forget(one)
        except RemoteError as error:
            await untold.failed(self._postgres, one, error.detail)
            log_records.untold_failed(service=one.service, reason=error.detail)
            return False
        if not done:
            await untold.failed(self._postgres, one, "it has more than was deleted at once")
            return False
        await untold.confirmed(self._postgres, one)
        return True

    async def _forget(self, one: Untold) -> bool:
        """Have it deleted; return whether that was all of it."""
        match one.kind:
            case "memory":
                await self._service.forget(one.what)
                return True
            case "conversation":
                return await self._forget_listed(one.whose, only=one.what)
            case "user":
                any_stored, _ = await untold.stored_of_user(self._postgres, one.whose, ())
                if any_stored:
                    return await self._forget_listed(one.whose)
                await self._service.forget_user(one.whose)
                return True

    async def _forget_listed(self, user_id: str, *, only: str | None = None) -> bool:
        """Delete of a user's list what is of the conversation ``only``, or of none that is stored here.

        A user who came back has conversations that ended after the erasure: what they told stays.
        """
        for _ in range(_LISTS_MAX):
            held = await self._service.held_of(user_id)
            if only is None:
                _, stored = await untold.stored_of_user(self._postgres, user_id, {talk for _, talk in held})
                going = [memory for memory, talk in held if talk not in stored]
            else:
                going = [memory for memory, talk in held if talk == only]
            if not going:
                return True
            for memory in going:
                await self._service.forget(memory)
        return False
