"""The publisher: it leases jobs for workers that wait, and a few ahead, and rescues leases that ended.

Open it to change when jobs start: suspects, probes, and how many are leased ahead.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import trio

from convo.errors import ConvoError
from convo.observe import log_records, metrics
from convo.observe.traced_waits import gathering_waits
from convo.pipeline.endings import Ended
from convo.pipeline.held import HeldLeases
from convo.pipeline.quiet import QuietTime
from convo.resilience.dependency import JobDependency
from convo.runtime.bell import Bell
from convo.settings import JobsSettings
from convo.store.jobs.lease import Lease
from convo.store.jobs.table import Jobs

Handed = tuple[Lease, float]
"""A lease, and when it was asked for by ``trio.current_time()``."""

LEASED_AHEAD_MAX = 64
"""So many leases at most wait for a worker to become free."""

# So many seconds of work are leased ahead: the jobs that were leased in the last second say how many that is. Where
# jobs take long there are none, and every due job is left to whichever process has a worker first.
_AHEAD_SECONDS = 0.2
_RATE_SECONDS = 1.0
# To read more rows at once holds the loop for longer than a slice of the work of others.
_LEASES_MAX = 128
_RETURN_SECONDS = 1.0


class Pacing(Protocol):
    """What says how many jobs may start (``runtime.pace.Pacer``)."""

    def allowed(self) -> float:
        """Return how many jobs may start now."""

    def started(self, jobs: int) -> None:
        """Note that so many jobs have started."""

    def wait_seconds(self) -> float:
        """Return how long to wait until one more job may start."""


class Publisher:
    """The feed of the workers: a lease goes to a worker that is waiting, or waits for the next one that becomes free.

    What waits is held and renewed like the others, is as much as the workers take in a fifth of a second, and is given
    back at a stop.

    Jobs that wait for a dependency that is out stay where they are, except one that finds out whether it is back.
    A suspect (a job whose process died with it before) is handed over when nothing else is at work here, and nothing
    is being settled. One process at a time waits for that (``pipeline/quiet.py``).

    No more jobs start than ``pacer`` allows: a receipt is owed now, an analysis is not.

    While ``takes_jobs`` returns false, nothing is leased: the settings of this process would give other results than
    those of the processes at work (``pipeline/agreement.py``).
    """

    def __init__(  # noqa: PLR0913, PLR0917  (what a feed works with)
        self,
        jobs: Jobs,
        settings: JobsSettings,
        bell: Bell,
        dependencies: Sequence[JobDependency],
        ended: Ended,
        held: HeldLeases,
        pacer: Pacing,
        takes_jobs: Callable[[], bool] = lambda: True,
        settling: Callable[[], bool] = lambda: False,
    ) -> None:
        self._jobs = jobs
        self._settings = settings
        self._bell = bell
        self._dependencies = dependencies
        self._ended = ended
        self._held = held
        self._pacer = pacer
        self._takes_jobs = takes_jobs
        self._settling = settling
        self._leased: deque[tuple[float, int]] = deque()
        self._unhanded: deque[Lease] = deque()
        self._idle = 0
        self._rescued_at = -settings.heartbeat_seconds
        self._rescue_again = False
        self._quiet = QuietTime()

    @property
    def takes_at_once(self) -> bool:
        """Whether a job that is due now starts here without delay."""
        return self._idle > 0 and self._pacer.allowed() >= 1 and self._takes_jobs()

    async def run(
        self,
        channel: trio.MemorySendChannel[Handed],
        ahead: trio.MemoryReceiveChannel[Handed],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Feed the workers until cancelled, then close the channel and give back what waits in it.

        ``ahead`` is the channel's other end; it has room for ``LEASED_AHEAD_MAX``.
        """
        task_status.started()
        try:
            await self._feed_on(channel)
        finally:
            # Before a worker can take any of it.
            left = [*_left_in(ahead), *self._unhanded]
            channel.close()
            ahead.close()
            await self._return(left)  # noqa: ASYNC102  (shields itself, with a bound)

    async def _feed_on(self, channel: trio.MemorySendChannel[Handed]) -> None:
        while True:
            try:
                more = await self._feed(channel)
            except ConvoError as error:
                log_records.lease_failed(reason=error.detail)
                more = False
            if self._pacer.allowed() < 1:
                # Not for the bell: every accept rings it.
                await trio.sleep(min(self._pacer.wait_seconds(), self._settings.poll_seconds))
            elif not more:
                with trio.move_on_after(self._settings.poll_seconds):
                    await self._bell.rung()

    async def _return(self, leases: Sequence[Lease]) -> None:
        self._held.let_go(leases)
        if leases:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _RETURN_SECONDS):
                try:
                    await self._jobs.return_unbegun(leases)
                except ConvoError as error:
                    # The end of the stop gives back all that this process has, or else the end of the leases.
                    log_records.ending_failed(conversation_id="*", reason=error.detail)

    async def _feed(self, channel: trio.MemorySendChannel[Handed]) -> bool:
        """Lease for every worker that waits, and ahead; return whether there may be more to do at once."""
        more = await self._rescue()
        if not self._takes_jobs():
            return more
        waiting = channel.statistics()
        self._idle = waiting.tasks_waiting_receive
        everybody = self._idle == self._settings.workers and not waiting.current_buffer_used and not self._settling()
        wanted = self._wanted(self._idle, waiting.current_buffer_used)
        if not wanted or not await self._may_lease(everybody=everybody):
            return more
        asked = trio.current_time()
        with gathering_waits() as waits:
            leases = await self._lease(wanted)
        if waits is not None:
            # Whose they are is known only now.
            waits.record_in([lease.trace for lease in leases], rows=len(leases))
        if leases:
            log_records.jobs_leased(jobs=len(leases), seconds=trio.current_time() - asked)
            self._pacer.started(len(leases))
            self._leased.append((asked, len(leases)))
        for lease in leases:
            self._held.keep(lease, asked)
        self._unhanded += leases
        while self._unhanded:
            # There is room. One after the other, so that the workers begin in this order.
            await channel.send((self._unhanded[0], asked))  # no deadline: it never waits
            self._unhanded.popleft()
        self._idle = channel.statistics().tasks_waiting_receive
        if everybody and not leases and self._quiet.skip_others():
            return True
        return more or (not self._quiet.at_work and _may_be_more(leases, wanted))

    def _wanted(self, idle: int, queued: int) -> int:
        """Return how many jobs to lease: for all idle workers, and ahead once half of what was ahead is taken."""
        ahead = 0 if self._quiet.suspects_due else self._ahead()
        if not idle and 2 * queued > ahead:
            return 0
        return max(0, min(idle + ahead - queued, _LEASES_MAX, math.floor(min(self._pacer.allowed(), _LEASES_MAX))))

    def _ahead(self) -> int:
        since = trio.current_time() - _RATE_SECONDS
        while self._leased and self._leased[0][0] < since:
            self._leased.popleft()
        rate = sum(jobs for _, jobs in self._leased) / _RATE_SECONDS
        return min(LEASED_AHEAD_MAX, int(rate * _AHEAD_SECONDS))

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


def _left_in(ahead: trio.MemoryReceiveChannel[Handed]) -> list[Lease]:
    left: list[Lease] = []
    with suppress(trio.WouldBlock, trio.EndOfChannel):
        while True:
            left.append(ahead.receive_nowait()[0])
    return left


def _may_be_more(leases: Sequence[Lease], asked: int) -> bool:
    """Return whether due jobs may be left: the lease was full, or some key got its whole share of it."""
    jobs = Counter(lease.fair_key for lease in leases)
    return len(leases) >= asked or any(count >= -(-asked // len(jobs)) for count in jobs.values())
