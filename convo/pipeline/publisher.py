"""Leases jobs for workers that already wait, and rescues leases that ended; it knows nothing of the work itself."""

from __future__ import annotations

import trio

from convo.bell import Bell
from convo.config import JobsSettings
from convo.errors import ConvoError
from convo.observe import events, metrics
from convo.store.jobs import Jobs, Lease

Handed = tuple[Lease, float]
"""A lease, and when it was asked for by ``trio.current_time()``."""


class Publisher:
    """The feed of the workers: what it leases goes to a worker that is waiting, never into a queue."""

    def __init__(self, jobs: Jobs, settings: JobsSettings, bell: Bell) -> None:
        self._jobs = jobs
        self._settings = settings
        self._bell = bell
        self._rescued_at = -settings.heartbeat_seconds

    async def run(
        self,
        channel: trio.MemorySendChannel[Handed],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Feed the workers until cancelled, then close the channel; what was leased and not handed over goes back."""
        async with channel:
            task_status.started()
            while True:
                try:
                    more = await self._feed(channel)
                except ConvoError as error:
                    events.lease_failed(reason=error.detail)
                    more = False
                if not more:
                    with trio.move_on_after(self._settings.poll_seconds):
                        await self._bell.heard()

    async def _feed(self, channel: trio.MemorySendChannel[Handed]) -> bool:
        """Lease for every worker that waits; return whether there may be more to do at once."""
        await self._rescue()
        idle = channel.statistics().tasks_waiting_receive
        if not idle:
            return False
        asked = trio.current_time()
        leases = await self._jobs.lease(idle)
        if leases:
            events.jobs_leased(jobs=len(leases), seconds=trio.current_time() - asked)
        for lease in leases:
            await channel.send((lease, asked))
        return len(leases) == idle

    async def _rescue(self) -> None:
        if trio.current_time() < self._rescued_at + self._settings.heartbeat_seconds:
            return
        self._rescued_at = trio.current_time()
        rescued = await self._jobs.rescue()
        if rescued:
            metrics.leases_rescued_total.inc(rescued)
            events.lease_rescued(count=rescued)
