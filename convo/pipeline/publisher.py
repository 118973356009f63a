"""The publisher: it leases jobs for workers that already wait, and rescues leases that ended.

Open it to change when jobs start: suspects, probes, and the rest while requests are being refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import trio

from convo.errors import ConvoError
from convo.observe import log_records, metrics
from convo.pipeline.endings import Ended
from convo.pipeline.quiet import QuietTime
from convo.resilience.dependency import Dependency
from convo.runtime.bell import Bell
from convo.settings import JobsSettings
from convo.store.jobs.lease import Lease
from convo.store.jobs.table import Jobs

Handed = tuple[Lease, float]
"""A lease, and when it was asked for by ``trio.current_time()``."""

# A job of the embedded analyst takes some 10 ms of the processor. While requests are being refused, jobs get at most a
# twentieth of it.
_PRESSED_SECONDS = 0.2


class Publisher:
    """The feed of the workers: each lease goes to a worker that is waiting, never into a queue.

    Jobs that wait for a dependency that is out stay where they are, except one that finds out whether it is back.
    A suspect (a job whose process died with it before) is handed over when nothing else is at work here. One process
    at a time waits for that (``pipeline/quiet.py``).

    While ``pressed`` returns true, requests are being refused. Then jobs start one by one, with a pause between them:
    a receipt is owed now, an analysis is not.

    While ``takes_jobs`` returns false, nothing is leased: the settings of this process would give other results than
    those of the processes at work (``pipeline/agreement.py``).
    """

    def __init__(  # noqa: PLR0913, PLR0917  (what a feed works with)
        self,
        jobs: Jobs,
        settings: JobsSettings,
        bell: Bell,
        dependencies: Sequence[Dependency],
        ended: Ended,
        pressed: Callable[[], bool] = lambda: False,
        takes_jobs: Callable[[], bool] = lambda: True,
    ) -> None:
        self._jobs = jobs
        self._settings = settings
        self._bell = bell
        self._dependencies = dependencies
        self._ended = ended
        self._pressed = pressed
        self._takes_jobs = takes_jobs
        self._rescued_at = -settings.heartbeat_seconds
        self._rescue_again = False
        self._quiet = QuietTime()

    async def run(
        self,
        channel: trio.MemorySendChannel[Handed],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Feed the workers until cancelled, then close the channel."""
        async with channel:
            task_status.started()
            while True:
                if self._pressed():
                    await trio.sleep(_PRESSED_SECONDS)
                try:
                    more = await self._feed(channel)
                except ConvoError as error:
                    log_records.lease_failed(reason=error.detail)
                    more = False
                if not more:
                    with trio.move_on_after(self._settings.poll_seconds):
                        await self._bell.rung()

    async def _feed(self, channel: trio.MemorySendChannel[Handed]) -> bool:
        """Lease for every worker that waits; return whether there may be more to do at once."""
        more = await self._rescue()
        if not self._takes_jobs():
            return more
        idle = channel.statistics().tasks_waiting_receive
        everybody = idle == self._settings.workers
        if self._pressed():
            idle = min(idle, 1)
        if not idle or not await self._may_lease(everybody=everybody):
            return more
        asked = trio.current_time()
        leases = await self._lease(idle)
        if leases:
            log_records.jobs_leased(jobs=len(leases), seconds=trio.current_time() - asked)
        for lease in leases:
            await channel.send((lease, asked))  # no deadline: a worker of ours is waiting for it
        if everybody and not leases and self._quiet.skip_others():
            return True
        return more or (not self._quiet.at_work and _may_be_more(leases, idle))

    async def _may_lease(self, *, everybody: bool) -> bool:
        """Return false while a suspect is at work here, or while all others are awaited so that one can start."""
        if self._quiet.at_work:
            if not everybody:
                return False
            self._quiet.end(trio.current_time())
        if self._quiet.wanted(trio.current_time()):
            if await self._jobs.claim_suspects(out=self._out_and_not_probed()):
                self._quiet.begin(trio.current_time())
            else:
                self._quiet.none_found()
        return everybody or not self._quiet.waiting

    async def _lease(self, idle: int) -> list[Lease]:
        if self._quiet.waiting:
            leases = await self._jobs.lease_suspect(out=self._out_and_not_probed())
            if leases:
                self._quiet.handed_over()
                return leases
            self._quiet.none_found()
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

    async def _rescue(self) -> bool:
        """Rescue at every heartbeat, and at once again while one pass did not do everything; return whether so."""
        beat = trio.current_time() >= self._rescued_at + self._settings.heartbeat_seconds
        if not beat and not self._rescue_again:
            return False
        found = await self._jobs.rescue(gives_up=self._takes_jobs())
        self._rescue_again = found.more
        if found.rescued:
            metrics.leases_rescued_total.inc(found.rescued)
            log_records.lease_rescued(count=found.rescued)
        for seq, reason in found.buried.items():
            metrics.jobs_ended_total.labels("bury").inc()
            log_records.job_given_up(seq=seq, reason=reason)
            self._ended(seq)
            # A thousand lines of the log take 0.1 s, and requests wait meanwhile.
            await trio.lowlevel.cancel_shielded_checkpoint()
        if beat:
            self._rescued_at = trio.current_time()
            await self._look_for_suspects()
        return found.more

    async def _look_for_suspects(self) -> None:
        if not self._settings.workers or self._quiet.at_work:
            return
        if self._quiet.waiting:
            if not await self._jobs.claim_suspects(out=self._out_and_not_probed()):
                self._quiet.none_found()
        else:
            self._quiet.suspects_due = await self._jobs.has_suspects(out=self._out_and_not_probed())


def _may_be_more(leases: Sequence[Lease], asked: int) -> bool:
    """Return whether due jobs may be left: the lease was full, or some key got its whole share of it."""
    jobs = Counter(lease.fair_key for lease in leases)
    return len(leases) >= asked or any(count >= -(-asked // len(jobs)) for count in jobs.values())
