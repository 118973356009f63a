"""Finds the parts that no score waits for and that failed with their conversation: each by itself, behind live work.

Open it to change when such a part is tried again. Their rows stand in ``store/jobs/part_jobs.py``.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from random import random

import trio

from convo.analysis.analysts import AnalystsOfSets
from convo.analysis.analyze import PartFailure, analyze
from convo.conversation import digest as digests
from convo.conversation import transcript
from convo.conversation.model import Conversation, Finding, PartName
from convo.errors import ConvoError, RemoteError
from convo.observe import log_records, tracing
from convo.observe.traced_waits import gathering_waits
from convo.pipeline.spending import Spending, counted
from convo.resilience import retry
from convo.runtime import threads
from convo.runtime.deadline import deadline
from convo.settings import Settings
from convo.store import logs
from convo.store.jobs.part_jobs import PartJob, PartJobs, StoredConversation

_TAKEN_MAX = 8
# Beside the time of the analysis: to read the log before it, and to store what came of it.
_SLACK_SECONDS = 30.0
_GIVE_UP_LOOK_SECONDS = 60.0
ReadPackedLog = Callable[[int], Awaitable[bytes | None]]


class PartKeeper:
    """Takes part jobs while ``idle`` says that nothing live waits for a worker."""

    def __init__(  # noqa: PLR0913, PLR0917  (what it works on, and with what)
        self,
        jobs: PartJobs,
        settings: Settings,
        analysts: AnalystsOfSets,
        read_log: ReadPackedLog,
        idle: Callable[[], bool],
        spending: Spending | None = None,
    ) -> None:
        self._jobs = jobs
        self._settings = settings
        self._analysts = analysts
        self._read_log = read_log
        self._idle = idle
        self._spending = spending

    async def run(self) -> None:
        """Work on part jobs until cancelled, and give up those that nobody takes."""
        looked_at = -math.inf
        while True:
            try:
                if trio.current_time() >= looked_at + _GIVE_UP_LOOK_SECONDS:
                    looked_at = trio.current_time()
                    await self.give_up()
                worked = self._idle() and await self.work()
            except ConvoError as error:
                log_records.part_jobs_failed(reason=error.detail)
                worked = False
            if not worked:
                await trio.sleep(self._settings.jobs.poll_seconds)

    async def give_up(self) -> None:
        """Fail what nobody has taken for ``jobs.give_up_seconds``."""
        seconds = self._settings.jobs.give_up_seconds
        if count := await self._jobs.give_up(seconds):
            log_records.part_jobs_given_up(count=count, seconds=seconds)

    async def work(self) -> bool:
        """Take what is due and work on it; return whether there was anything."""
        seconds = self._settings.analysis.job_seconds + _SLACK_SECONDS
        with gathering_waits() as waits:
            taken = await self._jobs.take(self._analysts.able(), _TAKEN_MAX, seconds)
        if waits is not None:
            waits.record_in({job.seq: job.trace for job in taken}.values(), rows=len(taken))
        by_seq = sorted(taken, key=lambda job: job.seq)
        for _, of_one in groupby(by_seq, key=lambda job: job.seq):
            jobs = list(of_one)
            with tracing.within_span(tracing.continued(jobs[0].trace, "part job", "consumer")):
                await self._work_on(jobs)
        return bool(taken)

    async def _work_on(self, jobs: Sequence[PartJob]) -> None:
        """Find parts of one conversation, those of one model in one call."""
        by_name = {job.name: job for job in jobs}
        analysts = self._analysts.of(jobs[0].owed)
        found: dict[PartName, tuple[str, Finding]] = {}

        async def store(name: PartName, by: str, finding: Finding) -> None:
            found[name] = (by, finding)

        try:
            with deadline("analysis.job", self._settings.analysis.job_seconds):
                conversation = await read_conversation(jobs[0], self._read_log, self._settings.analysis.job_seconds)
                asked = {name: analysts[name] for name in by_name}
                failures = await counted(self._spending, jobs[0], partial(analyze, conversation, asked, (), store))
        except ConvoError as error:
            failures = {name: PartFailure(by="", error=error) for name in by_name if name not in found}
        for name, (by, finding) in found.items():
            await self._jobs.done(by_name[name], by, finding)
            log_records.part_job_done(conversation_id=by_name[name].conversation_id, part=name, by=by)
        await self._note_failures(by_name, failures)

    async def _note_failures(
        self, by_name: Mapping[PartName, PartJob], failures: Mapping[PartName, PartFailure]
    ) -> None:
        settings = self._settings.jobs
        for name, failure in failures.items():
            job, error = by_name[name], failure.error
            outage = isinstance(error, RemoteError) and error.outage
            given_up = outage and job.waited_seconds >= settings.give_up_seconds
            last = given_up or (not outage and job.attempts + 1 >= settings.attempts_max)
            reason = error.detail
            if given_up:
                reason = (
                    f"given up: jobs.give_up_seconds = {settings.give_up_seconds:g} s after its conversation was done:"
                    f" {reason}"
                )
            later = retry.next_wait_seconds(
                job.attempts + 1,
                backoff_seconds=settings.backoff_seconds,
                backoff_max_seconds=settings.backoff_max_seconds,
                asked_seconds=None,
                random=random(),
            )
            await self._jobs.failed(job, failure.by, reason, later=None if last else later, spent=not outage)
            log_records.part_job_failed(
                conversation_id=job.conversation_id, part=name, attempt=job.attempts + 1, reason=reason, last=last
            )


async def read_conversation(stored: StoredConversation, read_log: ReadPackedLog, seconds: float) -> Conversation:
    """Read and decode what one part is found in; decoding may take ``seconds``.

    Raises:
        ConvoError: its log is no longer stored, or cannot be read now.
    """
    packed = await read_log(stored.seq)
    if packed is None:
        raise ConvoError("the log of this conversation is no longer stored")
    with deadline("analysis.decode", seconds):
        return await threads.run_in_thread(_decoded, stored, packed, limiter=threads.JOBS)


def _decoded(stored: StoredConversation, packed: bytes) -> Conversation:
    logs.check_log_hash(packed, stored.log_hash, stored.conversation_id)
    return Conversation(
        conversation_id=stored.conversation_id,
        user_id=stored.user_id,
        bot_id=stored.bot_id,
        digest=digests.expand(stored.digest),
        turns=transcript.turns(logs.unpack(packed), stored.started_at, stored.ended_at),
        asked_before=True,
        remote_prefix=stored.remote_prefix,
    )
