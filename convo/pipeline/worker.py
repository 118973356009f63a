"""A worker: it takes one job after another, analyses the conversation, and gives each job exactly one ending.

Open it to change which failure leads to which ending. The endings themselves stand in ``pipeline/endings.py``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import trio

from convo.analysis.analyze import OFFLOAD_CHARACTERS, Analysts, PartFailure, analyze
from convo.analysis.job_calls import working_for
from convo.conversation import transcript
from convo.conversation.model import Conversation, Finding, PartName
from convo.conversation.owed import Owed
from convo.errors import ConvoError, DatabaseUnavailable, LeaseLost, RemoteError, RemoteUnavailable
from convo.observe import log_records, tracing
from convo.pipeline.at_work import JobAtWork
from convo.pipeline.endings import Endings
from convo.pipeline.publisher import Handed
from convo.runtime import threads
from convo.runtime.bell import Bell
from convo.runtime.deadline import collecting, deadline
from convo.settings import Settings
from convo.store import logs
from convo.store.jobs.lease import Lease
from convo.store.logs import TakeLog

# One in so many workers may have a conversation of more than ``threads.LARGE_BYTES``; the others wait for their turn.
_LARGE_SHARE = 4
# So many workers read a log at a time that did not come with its lease.
_READING = 2
# So many are ready for the embedded analyst's thread.
_LONG = 4
AnalystsOf = Callable[[Owed], Analysts]
Settle = Callable[[JobAtWork], Awaitable[None]]
"""Takes a job whose parts are all found where no other worker is free: it is settled when this returns, or will be
(``pipeline/settling.py``)."""

_CANCELLED = "the process stops, or the lease is lost"


class Worker:
    """Analyses conversations; several of its ``run`` side by side are the workers of a process."""

    def __init__(
        self,
        *,
        settings: Settings,
        endings: Endings,
        settle: Settle,
        take_log: TakeLog,
        analysts: AnalystsOf,
        bell: Bell,
    ) -> None:
        self._settings = settings
        self._endings = endings
        self._settle = settle
        self._statistics: Callable[[], trio.MemoryChannelStatistics]
        self._take_log = take_log
        self._analysts_of = analysts
        self._bell = bell
        # As turns a conversation of 2 MB takes 11 MB, for as long as a service takes to answer.
        self._large = trio.CapacityLimiter(max(1, settings.jobs.workers // _LARGE_SHARE))
        # Those that the embedded analyst works on in a thread wait for each other, for longer than a job may take.
        self._long = trio.CapacityLimiter(_LONG)
        # A thousand workers that read at once would wait for connections until there is no time left.
        self._reading = trio.CapacityLimiter(_READING)

    async def run(self, channel: trio.MemoryReceiveChannel[Handed]) -> None:
        """Take jobs until the channel closes; ring the bell whenever this worker becomes free."""
        async with channel:
            self._statistics = channel.statistics
            self._bell.ring()
            async for lease, since in channel:  # no deadline: jobs come or do not
                span = tracing.continued(lease.trace, "job", "consumer")
                with (
                    log_records.bound(conversation_id=lease.conversation_id),
                    self._endings.hold(lease, since) as scope,
                    collecting(since) as waits,
                    working_for(self._endings.calls_of(lease)) as calls,
                    tracing.resumed_span(span),
                ):
                    analysts = self._analysts_of(lease.owed)
                    missing = [name for name in analysts if name not in lease.parts]
                    await self._work(JobAtWork(lease, waits, missing, calls, span), analysts)
                if scope.cancelled_caught:
                    log_records.lease_lost(
                        conversation_id=lease.conversation_id, reason="its time ran out, or it was taken"
                    )
                self._bell.ring()

    async def _work(self, job: JobAtWork, analysts: Analysts) -> None:
        """Do one job to its one ending. A job that cannot be ended here ends with its lease."""
        unable = _unable(job.lease, analysts)
        if unable:
            # Before anything is asked: the process that has it asks for all.
            await self._endings.park(job, unable)
            return
        try:
            packed = await self._packed_log(job.lease)
            async with self._turn(packed, analysts):
                with deadline("analysis.job", self._settings.analysis.job_seconds):
                    failures = await self._analyze(job, packed, analysts)
        except trio.Cancelled:
            await self._endings.release(job, _CANCELLED)  # noqa: ASYNC102  (shields itself, with a bound)
            raise
        except BaseExceptionGroup as group:
            await self._end_parts(job, group)
        except RemoteError as error:
            # Of a part that fails none comes out of the analysis: it is the log, which lies in object storage.
            await self._endings.park_for(job, "log", error)
        except (LeaseLost, DatabaseUnavailable) as error:
            # Not at once: while nothing can be stored, each try would ask every analyst again for nothing.
            await self._endings.release(job, error.detail, later=self._settings.jobs.backoff_seconds)
        except ConvoError as error:
            await self._endings.fail(job, error.detail, {})
        except Exception as error:  # noqa: BLE001  (here one job ends: a bug in it is that job's failure)
            log_records.job_crashed(conversation_id=job.lease.conversation_id, error=error)
            await self._endings.fail(job, f"a bug in convo: {type(error).__name__}", {})
        else:
            await self._end(job, failures)

    async def _end(self, job: JobAtWork, failures: dict[PartName, PartFailure]) -> None:
        required = {name: one for name, one in failures.items() if name in job.lease.owed.required}
        own = self._endings.own_failures(job.lease, required)
        job.left = {name: one for name, one in failures.items() if name not in required}
        if own:
            name, first = next(iter(own.items()))
            await self._endings.fail(job, f"{name}: {first.error.detail}", failures)
        elif required:
            await self._endings.park(job, required)
        elif self._statistics().tasks_waiting_receive:
            # Another worker is free for the next job, and jobs that end together are settled together.
            await self._endings.settle(job)
        else:
            await self._settle(job)

    async def _end_parts(self, job: JobAtWork, group: BaseExceptionGroup[BaseException]) -> None:
        """End a job whose parts were cancelled, one ``Cancelled`` each, or had a bug, or both at once."""
        bugs, cancelled = group.split(Exception)
        if bugs is not None:
            log_records.job_crashed(conversation_id=job.lease.conversation_id, error=bugs)
        if cancelled is not None:
            await self._endings.release(job, _CANCELLED)
            raise cancelled
        names = sorted({type(error).__name__ for error in _leaves(group)})
        await self._endings.fail(job, f"a bug in convo: {', '.join(names)}", {})

    @asynccontextmanager
    async def _turn(self, packed: bytes, analysts: Analysts) -> AsyncGenerator[None]:
        """Wait, in the time before the job's own begins, until there is room for a long or a large conversation."""
        bytes_ = logs.unpacked_bytes(packed)
        if bytes_ > threads.LARGE_BYTES:
            async with self._large:
                yield
        elif bytes_ > OFFLOAD_CHARACTERS and all(analyst.in_process for analyst in analysts.values()):
            async with self._long:
                yield
        else:
            yield

    async def _packed_log(self, lease: Lease) -> bytes:
        async with self._reading:
            packed = await self._take_log(lease.seq, lease.digest)
        if packed is None:
            raise ConvoError("the log of this conversation is missing")
        return packed

    async def _analyze(self, job: JobAtWork, packed: bytes, analysts: Analysts) -> dict[PartName, PartFailure]:
        conversation = await self._read(job.lease, packed)

        async def store(name: PartName, by: str, finding: Finding) -> None:
            job.note(name, by, finding)
            if not analysts[name].in_process:
                await job.store_if_others_are_slow(self._endings.store_part)

        async def keep_ticket(name: PartName, ticket: str) -> None:
            await self._endings.store_ticket(job.lease, name, ticket)

        return await analyze(conversation, analysts, job.lease.parts, store, keep_ticket, job.note)

    async def _read(self, lease: Lease, packed: bytes) -> Conversation:
        unpacked_bytes = max(len(packed), logs.unpacked_bytes(packed))
        if unpacked_bytes < self._settings.web.offload_bytes:
            return _conversation(lease, packed)
        limiter = threads.LARGE if unpacked_bytes > threads.LARGE_BYTES else threads.JOBS
        with deadline("analysis.decode", self._settings.analysis.job_seconds):
            return await threads.run_in_thread(_conversation, lease, packed, limiter=limiter)


def _unable(lease: Lease, analysts: Analysts) -> dict[PartName, PartFailure]:
    """Return the required parts that this process cannot find, each with what it lacks."""
    missing = {
        name: one for name, one in analysts.items() if one.missing and name in lease.owed.required - lease.parts.keys()
    }
    return {
        name: PartFailure(
            by=one.by, error=RemoteUnavailable(one.missing, f"this process has no {name} as it was declared")
        )
        for name, one in missing.items()
    }


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _conversation(lease: Lease, packed: bytes) -> Conversation:
    logs.check_log_hash(packed, lease.log_hash, lease.conversation_id)
    return Conversation(
        conversation_id=lease.conversation_id,
        user_id=lease.user_id,
        bot_id=lease.bot_id,
        digest=lease.digest,
        turns=transcript.turns(logs.unpack(packed), lease.started_at, lease.ended_at),
        asked_before=lease.asked_before,
        tickets=lease.tickets,
        remote_prefix=lease.remote_prefix,
    )
