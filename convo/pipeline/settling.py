"""Settles jobs whose parts are all found while their workers, none of whom is free, go on with the next ones.

Open it to change how many jobs may wait for their commit. A settle takes tens of milliseconds, nearly all of them for
the database and its disk; a few workers that waited for it would do nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from convo.observe import log_records
from convo.pipeline.at_work import JobAtWork
from convo.runtime.bell import Bell

SETTLING_MAX = 128
"""So many workers and tasks that settle are enough: two batches of the settler, one under way and one that gathers.
Where there are as many workers, each settles its own jobs: with 256 of them a job cost more where it was handed over.
"""


class Settling:
    """Takes jobs from workers and ends each with ``settle``, as many side by side as its ``run`` was started.

    ``bell`` is rung when nothing is left to settle: a suspect may wait for that.
    """

    def __init__(self, settle: Callable[[JobAtWork], Awaitable[None]], bell: Bell) -> None:
        self._settle = settle
        self._bell = bell
        self._send, self._receive = trio.open_memory_channel[JobAtWork](0)
        self._under_way = 0

    @property
    def busy(self) -> bool:
        """Whether a job that was handed over is not settled yet."""
        return self._under_way > 0

    async def hand_over(self, job: JobAtWork) -> None:
        """Have ``job`` settled, or settle it here where all who could are busy.

        Nothing can cancel it in between: it goes to somebody who waits for it, or its ending shields itself.
        """
        self._under_way += 1
        try:
            self._send.send_nowait(job)
        except trio.WouldBlock:
            await self._settle_one(job)

    async def run(self) -> None:
        """Settle one job after another until cancelled; one that is under way is settled first."""
        async for job in self._receive:  # no deadline: jobs come or do not
            with log_records.bound(conversation_id=job.lease.conversation_id):
                await self._settle_one(job)

    async def _settle_one(self, job: JobAtWork) -> None:
        try:
            await self._settle(job)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._bell.ring()
