"""Requests that wait for a job to end (``?wait=``): how they learn of it, in whichever process it ended.

Endings in this process wake them at once. For all others one query asks the database at every poll.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from convo.errors import ConvoError
from convo.observe import log_records
from convo.store.postgres import RELAXED, Connection, Postgres


class Watch:
    """Wakes readers when the job they wait for is done or dead."""

    def __init__(self, postgres: Postgres, poll_seconds: float) -> None:
        self._postgres = postgres
        self._poll_seconds = poll_seconds
        self._awaited: defaultdict[int, set[trio.Event]] = defaultdict(set)

    @contextmanager
    def waiting(self, seq: int) -> Iterator[trio.Event]:
        """Watch for the end of a job inside the block: the event is set when it has ended."""
        event = trio.Event()
        self._awaited[seq].add(event)
        try:
            yield event
        finally:
            self._awaited[seq].discard(event)
            if not self._awaited[seq]:
                del self._awaited[seq]

    def wake(self, seq: int) -> None:
        """Wake every reader that waits for this job."""
        for event in self._awaited.get(seq, ()):
            event.set()

    def wake_all(self) -> None:
        """Wake every reader: each reads its conversation again, by its id."""
        for seq in list(self._awaited):
            self.wake(seq)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask the database for endings in other processes, one query for all readers, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(self._poll_seconds)
            if self._awaited:
                try:
                    await self._look(list(self._awaited))
                except ConvoError as error:
                    log_records.watch_failed(reason=error.detail)

    async def _look(self, seqs: list[int]) -> None:
        async def body(connection: Connection) -> list[int]:
            return [row["seq"] for row in await connection.fetch(_ENDED, seqs)]

        for seq in await self._postgres.run("db.watch", body, begin=RELAXED):
            self.wake(seq)


_ENDED = "SELECT seq FROM every_job WHERE seq = ANY($1::bigint[]) AND state IN ('done', 'dead', 'superseded')"
