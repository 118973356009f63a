"""A worker: one job after another, each with exactly one ending; it knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import random

import trio

from convo import threads
from convo.analysis.analyze import Analysts, Failure, analyze
from convo.bell import Bell
from convo.config import Settings
from convo.conversation import transcript
from convo.conversation.model import Conversation, Finding, PartName
from convo.deadline import collecting, deadline
from convo.errors import ConvoError, DatabaseUnavailable, LeaseLost, RemoteError
from convo.observe import events, metrics
from convo.pipeline.held import Held
from convo.pipeline.publisher import Ended, Handed
from convo.resilience import retry
from convo.resilience.dependency import Dependency, is_outage
from convo.store import logs
from convo.store.jobs import Jobs, Lease
from convo.store.logs import Handover
from convo.store.postgres import Postgres
from convo.store.runs import Waits
from convo.store.settle import Settler
from convo.store.shelf import Shelf

_CANCELLED = "the process stops, or the lease is lost"


class Worker:
    """Analyses conversations; several of its ``run`` side by side are the workers of a process."""

    def __init__(
        self,
        *,
        settings: Settings,
        postgres: Postgres,
        jobs: Jobs,
        shelf: Shelf,
        settler: Settler,
        handover: Handover,
        held: Held,
        analysts: Analysts,
        dependencies: Mapping[str, Dependency],
        bell: Bell,
        ended: Ended,
    ) -> None:
        self._settings = settings
        self._postgres = postgres
        self._jobs = jobs
        self._shelf = shelf
        self._settler = settler
        self._handover = handover
        self._held = held
        self._analysts = analysts
        self._dependencies = dependencies
        self._bell = bell
        self._ended = ended

    async def run(self, channel: trio.MemoryReceiveChannel[Handed]) -> None:
        """Take jobs until the channel closes; ring the bell whenever this worker becomes free."""
        async with channel:
            self._bell.ring()
            async for lease, since in channel:
                with events.bound(conversation_id=lease.conversation_id), self._held.hold(lease, since) as scope:
                    await self._work(lease)
                if scope.cancelled_caught:
                    events.lease_lost(conversation_id=lease.conversation_id, reason="its time ran out, or it was taken")
                self._bell.ring()

    async def _work(self, lease: Lease) -> None:
        """Do one job to its one ending. What we cannot end ourselves ends with its lease."""
        with collecting() as waits:
            await self._work_and_end(lease, waits)

    async def _work_and_end(self, lease: Lease, waits: Waits) -> None:
        try:
            with deadline("analysis.job", self._settings.analysis.job_seconds):
                failures = await self._analyze(lease)
        except trio.Cancelled:
            await self._release(lease, _CANCELLED, waits)  # noqa: ASYNC102  (an ending shields itself, with a bound)
            raise
        except BaseExceptionGroup as group:
            await self._end_parts(lease, group, waits)
        except (LeaseLost, DatabaseUnavailable) as error:
            # Not at once: while nothing can be stored, each round would ask every analyst anew for nothing.
            await self._release(lease, error.detail, waits, later=self._settings.jobs.backoff_seconds)
        except ConvoError as error:
            await self._fail(lease, error.detail, {}, waits)
        except Exception as error:  # noqa: BLE001  (here one job ends: a bug in it is that job's failure)
            events.job_crashed(conversation_id=lease.conversation_id, error=error)
            await self._fail(lease, f"a bug in convo: {type(error).__name__}", {}, waits)
        else:
            own = {name: failure for name, failure in failures.items() if not is_outage(failure.error)}
            if own:
                name, first = next(iter(own.items()))
                await self._fail(lease, f"{name}: {first.error.detail}", failures, waits)
            elif failures:
                await self._park(lease, failures, waits)
            else:
                await self._settle(lease, waits)

    async def _end_parts(self, lease: Lease, group: BaseExceptionGroup[BaseException], waits: Waits) -> None:
        """End a job whose parts were cancelled, one ``Cancelled`` each, or had a bug, or both at once."""
        bugs, cancelled = group.split(Exception)
        if bugs is not None:
            events.job_crashed(conversation_id=lease.conversation_id, error=bugs)
        if cancelled is not None:
            await self._release(lease, _CANCELLED, waits)
            raise cancelled
        names = sorted({type(error).__name__ for error in _leaves(group)})
        await self._fail(lease, f"a bug in convo: {', '.join(names)}", {}, waits)

    async def _analyze(self, lease: Lease) -> dict[PartName, Failure]:
        conversation = await self._read(lease)

        async def store(name: PartName, by: str, finding: Finding) -> None:
            await self._shelf.store(lease, name, by, finding)

        return await analyze(conversation, self._analysts, lease.parts, store)

    async def _read(self, lease: Lease) -> Conversation:
        packed = self._handover.take(lease.seq) or await logs.read(self._postgres, lease.seq)
        if packed is None:
            raise ConvoError("the log of this conversation is missing")
        if len(packed) < self._settings.web.offload_bytes // 8:
            return _conversation(lease, packed)
        with deadline("analysis.decode", self._settings.analysis.job_seconds):
            return await trio.to_thread.run_sync(
                _conversation, lease, packed, abandon_on_cancel=True, limiter=threads.JOBS
            )

    # --- the endings: one of them, under a shield that the stop's own grace bounds

    async def _settle(self, lease: Lease, waits: Waits) -> None:
        with self._ending(lease) as ending:
            found = await self._settler.settle(lease, waits)
            ending("settle")
            events.job_settled(conversation_id=lease.conversation_id, score=found.value)
            self._ended(lease.seq)

    async def _fail(self, lease: Lease, reason: str, failures: Mapping[PartName, Failure], waits: Waits) -> None:
        attempt = lease.attempts + 1
        jobs = self._settings.jobs
        later = retry.wait_seconds(
            attempt,
            backoff_seconds=jobs.backoff_seconds,
            backoff_max_seconds=jobs.backoff_max_seconds,
            asked_seconds=None,
            random=random(),
        )
        for name, failure in failures.items():
            events.part_failed(
                conversation_id=lease.conversation_id, part=name, attempt=attempt, reason=failure.error.detail
            )
        with self._ending(lease) as ending:
            failed = {name: (failure.by, failure.error.detail) for name, failure in failures.items()}
            if await self._jobs.fail(lease, reason, failed, later=later, waits=waits):
                ending("bury")
                events.job_buried(conversation_id=lease.conversation_id, attempts=attempt, reason=reason)
                self._ended(lease.seq)
            else:
                ending("fail")
                events.job_failed(
                    conversation_id=lease.conversation_id, attempt=attempt, reason=reason, again_in_seconds=later
                )

    async def _park(self, lease: Lease, failures: Mapping[PartName, Failure], waits: Waits) -> None:
        name, first = next(iter(failures.items()))
        waits_for = first.error.dependency if isinstance(first.error, RemoteError) else ""
        reason = f"{name}: {first.error.detail}"
        with self._ending(lease) as ending:
            await self._jobs.park(lease, waits_for, reason, later=self._parked_seconds(waits_for), waits=waits)
            ending("park")
            events.job_parked(conversation_id=lease.conversation_id, waits_for=waits_for, reason=reason)

    def _parked_seconds(self, waits_for: str) -> float:
        """Tell how long a parked job waits at least: until its dependency flows again, which it may do now."""
        dependency = self._dependencies.get(waits_for)
        if dependency is not None and not dependency.flows():
            return 0.0
        return self._settings.jobs.backoff_seconds * (1 + random())

    async def _release(self, lease: Lease, reason: str, waits: Waits, *, later: float = 0.0) -> None:
        with self._ending(lease) as ending:
            await self._jobs.release(lease, later=later, reason=reason, waits=waits)
            ending("release")
            events.job_released(conversation_id=lease.conversation_id, reason=reason)

    @contextmanager
    def _ending(self, lease: Lease) -> Iterator[Callable[[str], None]]:
        """Shield an ending. One that fails is left to the end of the lease, which makes the job ready again."""
        try:
            with trio.CancelScope(shield=True), deadline("job.ending", self._settings.shutdown.settle_seconds):
                yield lambda ending: metrics.jobs_ended_total.labels(ending).inc()
        except LeaseLost as error:
            events.lease_lost(conversation_id=lease.conversation_id, reason=error.detail)
        except ConvoError as error:
            self._held.left(lease)
            events.ending_failed(conversation_id=lease.conversation_id, reason=error.detail)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _conversation(lease: Lease, packed: bytes) -> Conversation:
    items = transcript.decode_log(logs.unpack(packed))
    return Conversation(
        conversation_id=lease.conversation_id,
        user_id=lease.user_id,
        bot_id=lease.bot_id,
        digest=lease.digest,
        turns=transcript.turns(items, lease.started_at, lease.ended_at),
    )
