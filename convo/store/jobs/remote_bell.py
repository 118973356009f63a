"""The bell between processes: a process that takes in wakes those that work, which would else look once a poll.

Open it to change how soon a job starts in another process. It is rung by a statement of its own, after the commit and
never in the transaction of an accept: there each NOTIFY would wait for the one before it. One that gets lost costs a
poll, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from convo.errors import ConvoError
from convo.observe import log_records
from convo.runtime.bell import Bell
from convo.store.postgres import SINGLE, Connection, DedicatedConnection

_CHANNEL = "convo_jobs"
# Commits that follow each other within this time are one ring.
_PAUSE_SECONDS = 0.01


class RemoteBell:
    """Rings in other processes when jobs were committed here, and rings ``bell`` when they do.

    ``wanted`` returns whether another process is to know of new jobs. ``look_seconds`` is how often a listener sees to
    it that its connection is alive.
    """

    def __init__(
        self, dedicated: DedicatedConnection, bell: Bell, wanted: Callable[[], bool], look_seconds: float
    ) -> None:
        self._dedicated = dedicated
        self._bell = bell
        self._wanted = wanted
        self._look_seconds = look_seconds
        self._due = Bell()
        self._listening: Any = None
        # A dedicated connection has one user at a time.
        self._one = trio.Lock()

    def ring(self) -> None:
        """Let other processes know of new jobs, soon, where that is wanted."""
        if self._wanted():
            self._due.ring()

    async def run(self) -> None:
        """Ring whenever it is due, until cancelled; then close the connection."""
        try:
            while True:
                await self._due.rung()
                await self._try(_ring)
                await trio.sleep(_PAUSE_SECONDS)
        finally:
            await self._dedicated.close()  # noqa: ASYNC102  (shields itself, with a bound)

    async def listen(self) -> None:
        """Listen for others until cancelled; after the connection was lost, anew."""
        while True:
            await self._try(self._listen)
            await trio.sleep(self._look_seconds)

    async def _try(self, body: Callable[[Any], Any]) -> None:
        try:
            async with self._one:
                await self._dedicated.run("db.bell", body, begin=SINGLE)
        except ConvoError as error:
            # The polls find the jobs meanwhile.
            log_records.bell_failed(reason=error.detail)

    async def _listen(self, connection: Any) -> None:
        if connection is self._listening:
            await connection.fetchval("SELECT 1")
        else:
            await connection.add_listener(_CHANNEL, self._rung)
            self._listening = connection
            # What was rung before.
            self._bell.ring()

    def _rung(self, *_: object) -> None:
        self._bell.ring()


async def _ring(connection: Connection) -> None:
    await connection.execute(f"NOTIFY {_CHANNEL}")
