"""Those who wait for a job to end: woken by this process's own endings, or by one query for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from convo.errors import ConvoError
from convo.observe import events
from convo.store.postgres import RELAXED, Connection, Postgres


class Watch:
    """Wakes readers when the job they wait for is done or dead, in whichever process it ended."""

    def __init__(self, postgres: Postgres, poll_seconds: float) -> None:
        self._postgres = postgres
        self._poll_seconds = poll_seconds
        self._awaited: defaultdict[int, set[trio.Event]] = defaultdict(set)

    @contextmanager
    def waiting(self, seq: int) -> Iterator[trio.Event]:
        """Watch for the end of a job inside: the event is set when it has ended."""
        event = trio.Event()
        self._awaited[seq].add(event)
        try:
            yield event
        finally:
            self._awaited[seq].discard(event)
            if not self._awaited[seq]:
                del self._awaited[seq]

    def tell(self, seq: int) -> None:
        """Wake whoever waits for this job."""
        for event in self._awaited.get(seq, ()):
            event.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look for endings in other processes, one query for all who wait, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(self._poll_seconds)
            if self._awaited:
                try:
                    await self._look(list(self._awaited))
                except ConvoError as error:
                    events.watch_failed(reason=error.detail)

    async def _look(self, seqs: list[int]) -> None:
        async def body(connection: Connection) -> list[int]:
            return [row["seq"] for row in await connection.fetch(_ENDED, seqs)]

        for seq in await self._postgres.run("db.watch", body, begin=RELAXED):
            self.tell(seq)


_ENDED = "SELECT seq FROM job WHERE seq = ANY($1::bigint[]) AND state IN ('done', 'dead')"
