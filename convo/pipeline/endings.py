"""How the work on one job ends: exactly one of settle, fail, park and release, with all that was found stored.

Open it to change what a worker does with a result or a failure. Every ending is shielded from cancellation for
``shutdown.settle_seconds``, so that a stop still stores it. An ending that fails is left to the heartbeat, which gives
the job back, or else to the end of the lease.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from random import random

import trio

from convo.analysis.analyze import PartFailure
from convo.analysis.job_calls import JobCalls, calls_at_work
from convo.conversation.model import Finding, PartName
from convo.dependencies import row_name
from convo.errors import BadRow, ConvoError, LeaseLost, RemoteError
from convo.observe import log_records, metrics, tracing
from convo.pipeline.at_work import JobAtWork
from convo.pipeline.blame import Blame
from convo.pipeline.held import HeldLeases
from convo.pipeline.spending import Spending
from convo.resilience import retry
from convo.resilience.dependency import JobDependency
from convo.runtime.deadline import deadline
from convo.settings import Settings
from convo.store.jobs.lease import Lease
from convo.store.jobs.part_writer import PartWriter
from convo.store.jobs.settle import Settler
from convo.store.jobs.table import Jobs
from convo.store.purposes import RESERVED

Ended = Callable[[int], None]
"""Called with the ``seq`` of every job that this process made done or dead."""

Failures = Mapping[PartName, PartFailure]


class Endings:
    """Stores what became of a job, and what it has found."""

    def __init__(  # noqa: PLR0913  (all that an ending writes to or asks)
        self,
        *,
        settings: Settings,
        jobs: Jobs,
        part_writer: PartWriter,
        settler: Settler,
        held: HeldLeases,
        dependencies: Mapping[str, JobDependency],
        ended: Ended,
        spending: Spending | None = None,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._part_writer = part_writer
        self._settler = settler
        self._held = held
        self._dependencies = dependencies
        self._ended = ended
        self._spending = spending
        self._blame = Blame(jobs, dependencies)
        # Of a thousand jobs that end without a settle in one moment most would find no connection in their time.
        self._turn = trio.CapacityLimiter(RESERVED["endings"] - 1)

    def hold(self, lease: Lease, since: float) -> AbstractContextManager[trio.CancelScope]:
        """Do the work of ``lease`` inside; as ``HeldLeases.hold``."""
        return self._held.hold(lease, since)

    def calls_of(self, lease: Lease) -> JobCalls:
        """Return what notes the calls to language models under this lease; without one it notes nothing."""
        return JobCalls(lease.seq) if self._spending is None else self._spending.calls_of(lease)

    async def _store_costs(self, calls: JobCalls | None) -> None:
        if self._spending is not None and calls is not None:
            await self._spending.store(calls)

    async def store_part(self, lease: Lease, name: PartName, by: str, finding: Finding) -> None:
        """Store what one part found, and before it what it cost; as ``PartWriter.store``."""
        await self._store_costs(calls_at_work())
        await self._part_writer.store(lease, name, by, finding)

    async def store_ticket(self, lease: Lease, name: PartName, ticket: str) -> None:
        """Store what to ask a service with later; as ``Jobs.store_ticket``."""
        with trio.CancelScope(shield=True), deadline("job.ending", self._settings.shutdown.settle_seconds):
            await self._jobs.store_ticket(lease, name, ticket)

    async def settle(self, job: JobAtWork) -> None:
        """End a job whose parts are all found; fail it where the database refuses one of them."""
        refused: BadRow | None = None
        with self._ending(job) as count:
            await self._store_costs(job.calls)
            try:
                left = {name: (one.by, one.error.detail) for name, one in job.left.items()}
                found = await self._settler.settle(job.lease, job.waits, job.found, left)
            except BadRow as error:
                refused = error
            else:
                count("settle")
                log_records.job_settled(conversation_id=job.lease.conversation_id, score=found.value)
                self._ended(job.lease.seq)
        if refused is not None:
            await self.fail(job, refused.detail, {})

    async def _store_found(self, job: JobAtWork) -> None:
        # A part that the database refuses is found again with the next attempt, and is that one's failure.
        with suppress(BadRow):
            await job.store_found(self.store_part)

    def own_failures(self, lease: Lease, failures: Failures) -> Failures:
        """Return the failures that are the job's own, and no outage; as ``Blame.own``."""
        return self._blame.own(lease, failures)

    async def fail(self, job: JobAtWork, reason: str, failures: Failures) -> None:
        """Spend an attempt of the job, or bury it when that was the last one."""
        lease = job.lease
        attempt = lease.attempts + 1
        again_in_seconds = self._backoff_seconds(attempt)
        for name, failure in failures.items():
            log_records.part_failed(
                conversation_id=lease.conversation_id, part=name, attempt=attempt, reason=failure.error.detail
            )
        with self._ending(job) as count:
            await self._store_costs(job.calls)
            await self._store_found(job)
            failed = {name: (failure.by, failure.error.detail) for name, failure in failures.items()}
            async with self._turn:
                dead = await self._jobs.fail(lease, reason, failed, later=again_in_seconds, waits=job.waits)
            if dead:
                count("bury")
                log_records.job_buried(conversation_id=lease.conversation_id, attempts=attempt, reason=reason)
                self._ended(lease.seq)
            else:
                count("fail")
                log_records.job_failed(
                    conversation_id=lease.conversation_id,
                    attempt=attempt,
                    reason=reason,
                    again_in_seconds=again_in_seconds,
                )
            self._blame.spent(lease, failures)
            await self._blame.give_back()

    def _backoff_seconds(self, attempt: int) -> float:
        jobs = self._settings.jobs
        return retry.next_wait_seconds(
            attempt,
            backoff_seconds=jobs.backoff_seconds,
            backoff_max_seconds=jobs.backoff_max_seconds,
            asked_seconds=None,
            random=random(),
        )

    async def park(self, job: JobAtWork, failures: Failures) -> None:
        """Let the job wait for the dependency of its first failure; no attempt is spent."""
        name, first = next(iter(failures.items()))
        await self.park_for(job, name, first.error)

    async def park_for(self, job: JobAtWork, what: str, error: ConvoError) -> None:
        """Let the job wait for the dependency without which it has no ``what``; no attempt is spent."""
        lease = job.lease
        waits_for = row_name(error.dependency) if isinstance(error, RemoteError) else ""
        reason = f"{what}: {error.detail}"
        with self._ending(job) as count:
            await self._store_costs(job.calls)
            await self._store_found(job)
            later = self._parked_seconds(waits_for, error)
            async with self._turn:
                await self._jobs.park(lease, waits_for, reason, later=later, waits=job.waits)
            count("park")
            log_records.job_parked(conversation_id=lease.conversation_id, waits_for=waits_for, reason=reason)
            await self._blame.give_back()

    def _parked_seconds(self, waits_for: str, error: ConvoError) -> float:
        """Return how long a parked job waits at least.

        While its dependency is out that is 0: no lease takes it. When the dependency flows again by now, the job would
        be leased at once, so it waits a backoff. So does one that failed as all do: it may itself be at fault, and the
        next to find out is to be another one.
        """
        if isinstance(error, RemoteError) and error.later_seconds is not None:
            return error.later_seconds
        dependency = self._dependencies.get(waits_for)
        systemic = isinstance(error, RemoteError) and error.systemic
        if dependency is not None and not dependency.flows() and not systemic:
            return 0.0
        return self._settings.jobs.backoff_seconds * (1 + random())

    async def release(self, job: JobAtWork, reason: str, *, later: float = 0.0) -> None:
        """Give the job back, at once or ``later``; no attempt is spent."""
        lease = job.lease
        with self._ending(job) as count:
            await self._store_costs(job.calls)
            await self._store_found(job)
            async with self._turn:
                await self._jobs.release(lease, later=later, reason=reason, waits=job.waits)
            count("release")
            log_records.job_released(conversation_id=lease.conversation_id, reason=reason)

    @contextmanager
    def _ending(self, job: JobAtWork) -> Iterator[Callable[[str], None]]:
        # Its renewal would find the lease gone while the ending is on its way back, and take that for a loss.
        self._held.let_go([job.lease])
        # Whoever stores the ending may be another task than the one that did the work.
        with tracing.resumed_span(job.span):
            try:
                with trio.CancelScope(shield=True), deadline("job.ending", self._settings.shutdown.settle_seconds):
                    yield partial(_count, job)
            except LeaseLost as error:
                _end_span(job, error)
                log_records.lease_lost(conversation_id=job.lease.conversation_id, reason=error.detail)
            except ConvoError as error:
                _end_span(job, error)
                self._held.give_back_later(job)
                log_records.ending_failed(conversation_id=job.lease.conversation_id, reason=error.detail)
            else:
                _end_span(job)


def _count(job: JobAtWork, ending: str) -> None:
    metrics.jobs_ended_total.labels(ending).inc()
    if job.span is not None:
        job.span.attributes |= {
            "convo.conversation_id": job.lease.conversation_id,
            "convo.attempt": job.lease.attempts + 1,
            "convo.ending": ending,
        }
        if ending in ("fail", "bury"):
            job.span.error = ending


def _end_span(job: JobAtWork, error: ConvoError | None = None) -> None:
    if job.span is not None:
        if error is not None:
            job.span.fail(error)
        job.span.end()
