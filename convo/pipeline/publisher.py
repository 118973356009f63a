"""Leases jobs for workers that already wait, and rescues leases that ended; it knows nothing of the work itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import trio

from convo.bell import Bell
from convo.config import JobsSettings
from convo.errors import ConvoError
from convo.observe import events, metrics
from convo.resilience.dependency import Dependency
from convo.store.jobs import Jobs, Lease

Handed = tuple[Lease, float]
"""A lease, and when it was asked for by ``trio.current_time()``."""

# A job of the embedded analyst takes some 10 ms of the processor: while the door refuses, a twentieth of it at most.
_PRESSED_SECONDS = 0.2

Ended = Callable[[int], None]
"""Told the ``seq`` of every job that came to its last ending here: done or dead."""


class Publisher:
    """The feed of the workers: what it leases goes to a worker that is waiting, never into a queue.

    What waits for a dependency that is out is left where it is, but for one job that finds out whether it is back.
    A suspect (a job whose process died with it before) is handed over when nothing else is at work.

    While ``pressed`` says that the door refuses, jobs start one by one, with a rest between them: a receipt is owed
    now, an analysis is not.
    """

    def __init__(  # noqa: PLR0913, PLR0917  (what a feed works with)
        self,
        jobs: Jobs,
        settings: JobsSettings,
        bell: Bell,
        dependencies: Sequence[Dependency],
        ended: Ended,
        pressed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._jobs = jobs
        self._settings = settings
        self._bell = bell
        self._dependencies = dependencies
        self._ended = ended
        self._pressed = pressed
        self._rescued_at = -settings.heartbeat_seconds
        self._suspects = False
        self._alone = False

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
                if self._pressed():
                    await trio.sleep(_PRESSED_SECONDS)
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
        everybody = idle == self._settings.workers
        if self._pressed():
            idle = min(idle, 1)
        if not idle or ((self._suspects or self._alone) and not everybody):
            return False
        self._alone = False
        asked = trio.current_time()
        leases = await self._lease(idle)
        if leases:
            events.jobs_leased(jobs=len(leases), seconds=trio.current_time() - asked)
        for lease in leases:
            await channel.send((lease, asked))
        return _may_be_more(leases, idle)

    async def _lease(self, idle: int) -> list[Lease]:
        if self._suspects:
            leases = await self._jobs.lease_suspect(out=self._out_and_not_probed())
            if leases:
                self._alone = True
                return leases
            self._suspects = False
        probes = await self._probes(idle)
        out = [dependency.name for dependency in self._dependencies if not dependency.flows()]
        return probes + (await self._jobs.lease(idle - len(probes), out=out) if len(probes) < idle else [])

    async def _probes(self, idle: int) -> list[Lease]:
        leases: list[Lease] = []
        for dependency in self._dependencies:
            if len(leases) < idle and dependency.wants_probe():
                probe = await self._jobs.lease_probe(dependency.name)
                if probe:
                    dependency.probe_sent()
                leases += probe
        return leases

    def _out_and_not_probed(self) -> list[str]:
        return [one.name for one in self._dependencies if not one.flows() and not one.wants_probe()]

    async def _rescue(self) -> None:
        if trio.current_time() < self._rescued_at + self._settings.heartbeat_seconds:
            return
        self._rescued_at = trio.current_time()
        found = await self._jobs.rescue()
        if found.rescued:
            metrics.leases_rescued_total.inc(found.rescued)
            events.lease_rescued(count=found.rescued)
        for seq, reason in found.buried.items():
            metrics.jobs_ended_total.labels("bury").inc()
            events.job_given_up(seq=seq, reason=reason)
            self._ended(seq)
        if self._settings.workers:
            self._suspects = await self._jobs.has_suspects(out=self._out_and_not_probed())


def _may_be_more(leases: Sequence[Lease], asked: int) -> bool:
    """Tell whether a lease left due jobs behind: it was full, or somebody got all of what was each one's share."""
    jobs = Counter(lease.fair_key for lease in leases)
    return len(leases) >= asked or any(count >= -(-asked // len(jobs)) for count in jobs.values())
