"""Keeps the database's count, sees at each heartbeat whether the database went back, and settles it when it did.

Open it to change what a process does between two sessions. What shows that a database went back is in ``history``; what
the process drops then is in ``service``.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from convo.errors import ConvoError, DeadlineExceeded
from convo.observe import log_records
from convo.runtime.bell import Bell
from convo.runtime.deadline import deadline
from convo.store.history import BEAT, SKIP_EVENT_NUMBERS, FoundPoint, read_history
from convo.store.postgres import DURABLE, RELAXED, Connection, Postgres
from convo.store.receipts import GivenReceipts

_SAVE_SECONDS = 10.0
_AGAIN_SECONDS = 1.0
_IDS_A_RECORD = 100


class GoingBack:
    """Watches the history of the database of one process; ``moved`` rings when it may have gone back."""

    def __init__(
        self, postgres: Postgres, receipts: GivenReceipts, heartbeat_seconds: float, leads: Callable[[], bool]
    ) -> None:
        self._postgres = postgres
        self._sessions = postgres.sessions
        self._receipts = receipts
        self._heartbeat_seconds = heartbeat_seconds
        self._leads = leads
        self._bell = Bell()
        self._sessions.moved = self._bell.ring

    async def beat(self) -> None:
        """Count on, in the process that leads, and compare, in every process, at each heartbeat until cancelled."""
        while True:
            await trio.sleep(self._heartbeat_seconds)
            if self._sessions.history.went_back:
                continue
            try:
                self._sessions.compare(await self._read(counting=self._leads()))
                await self._save()
            except ConvoError as error:
                log_records.history_failed(reason=error.detail)

    async def noticed(self) -> str:
        """Wait until the database is known to have gone back; return what shows it."""
        while True:
            if self._sessions.history.suspected and not self._sessions.history.went_back:
                await self._look_for_receipts()
            if self._sessions.history.went_back:
                return self._sessions.history.went_back
            await self._bell.rung()

    async def _look_for_receipts(self) -> None:
        try:
            _, unknown = await self._receipts.missing(self._postgres)
        except ConvoError as error:
            log_records.history_failed(reason=error.detail)
            await trio.sleep(_AGAIN_SECONDS)
            self._bell.ring()
            return
        self._sessions.history.suspected = False
        if not unknown:
            self._receipts.start_over()
        else:
            self._sessions.history.went_back = "it does not know conversations that were acknowledged"
            self._sessions.generation += 1

    async def settle(self) -> None:
        """Begin anew where the database stands now; call it when this process has signed in, under ``signing_in``.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: it does not answer.
        """
        reason = self._sessions.history.went_back
        if reason:
            await self._postgres.run("db.history", _skip_event_numbers)
        found = await self._read(counting=False)
        if reason:
            asked, unknown = await self._receipts.missing(self._postgres)
            self._receipts.start_over(unknown)
            for first in range(0, len(unknown), _IDS_A_RECORD):
                log_records.receipts_missing(conversation_ids=unknown[first : first + _IDS_A_RECORD])
            log_records.database_went_back(
                reason=reason, receipts=asked, missing=len(unknown), conversation_ids=unknown[:_IDS_A_RECORD]
            )
        self._sessions.history.settle(found)
        await self._save()

    async def _read(self, *, counting: bool) -> FoundPoint:
        history = self._sessions.history
        # Another session may be opened on another cluster meanwhile.
        asked, system = history.seen, history.system

        async def body(connection: Connection) -> FoundPoint:
            if counting:
                await connection.fetchval(BEAT)
            return await read_history(connection, asked, system)

        # Whoever sees a count has to find it again after a crash of the server.
        return await self._postgres.run("db.history", body, begin=DURABLE if counting else RELAXED)

    async def _save(self) -> None:
        try:
            with deadline("history.save", _SAVE_SECONDS):
                await trio.to_thread.run_sync(self._sessions.history.save, abandon_on_cancel=True)
        except DeadlineExceeded as error:
            log_records.history_failed(reason=error.detail)


async def _skip_event_numbers(connection: Connection) -> None:
    await connection.execute(SKIP_EVENT_NUMBERS)
