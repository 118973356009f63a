"""Finds one part again for stored conversations, behind live work, in whichever process runs it.

Open it to change how a re-run is worked on. Which conversations it is of, and who has which of them, stands in
``store/jobs/reruns.py``; what was found changes nothing (``store/jobs/promotion.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import random

import trio
from msgspec import Struct, structs

from convo.analysis.analyze import Analyst, Analysts, PartFailure, analyze
from convo.analysis.declared import declarations
from convo.conversation.model import Finding, PartName
from convo.conversation.owed import DEFAULT_OWED, Owed, owed_of, version_of
from convo.errors import ConvoError, Refused, RemoteError
from convo.observe import log_records
from convo.pipeline.part_keeper import read_conversation
from convo.pipeline.spending import Spending, counted
from convo.resilience import retry
from convo.runtime.deadline import deadline
from convo.settings import Settings
from convo.store.jobs.reruns import Rerun, Reruns, TakenCandidate, Taking
from convo.store.logs import ReadLog

# How long a worker pauses that was given nothing, by the reason.
_PAUSE_SECONDS = {"": 0.0, "live": 0.1, "rate": 0.05, "later": 0.5}


def asked_part(
    settings: Settings, name: PartName, analysts_of: Callable[[Owed], Analysts]
) -> tuple[Owed, Analyst, str]:
    """Return what is asked for a part as it is declared now, who is asked, and the version of both.

    Raises:
        Refused: the part is not declared, or these settings do not have what it needs.
    """
    declared = declarations(settings)
    every = DEFAULT_OWED.parts if declared is None else declared.parts
    part = next((one for one in every if one.name == name), None)
    if part is None:
        known = ", ".join(one.name for one in every)
        raise Refused(f"there is no part {name!r}: these are declared: {known}. Declare it as [parts.{name}]")
    owed = DEFAULT_OWED if declared is None else owed_of([structs.replace(part, skipped="")])
    analyst = analysts_of(owed)[name]
    if analyst.missing:
        raise Refused(f"the part {name} needs {analyst.missing}, which these settings do not have")
    return owed, analyst, part.version or version_of(name, analyst.by)


class RerunTally(Struct):
    """What this process has done in a re-run so far, and why it was given nothing lately."""

    found: int = 0
    failed: int = 0
    waits_for: str = ""


class Reanalysis:
    """Works on one re-run with ``analyst``, until it is paused or nothing is left."""

    def __init__(  # noqa: PLR0913, PLR0917  (what it works on, and with what)
        self,
        settings: Settings,
        reruns: Reruns,
        rerun: Rerun,
        analyst: Analyst,
        read_log: ReadLog,
        spending: Spending | None = None,
    ) -> None:
        self._settings = settings
        self._reruns = reruns
        self._rerun = rerun
        self._analyst = analyst
        self._read_log = read_log
        self._spending = spending
        self._taken: dict[int, TakenCandidate] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self.tally = RerunTally()

    async def run(self, workers: int) -> None:
        """Work on it with so many conversations at a time; what is under way when this is cancelled is given back."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._renew)
                async with trio.open_nursery() as working:
                    give, receive = trio.open_memory_channel[TakenCandidate](0)
                    working.start_soon(self._take, give, workers)
                    for _ in range(workers):
                        working.start_soon(self._work, receive)
                nursery.cancel_scope.cancel()
        finally:
            await self._leave()  # noqa: ASYNC102  (shields itself, with a bound)

    async def _leave(self) -> None:
        if self._taken:
            with trio.CancelScope(shield=True), deadline("reanalysis.leave", self._settings.database.unit_seconds):
                try:
                    await self._reruns.give_back(list(self._taken.values()))
                except ConvoError as error:
                    log_records.rerun_failed(part=self._rerun.part, reason=error.detail)

    async def _take(self, give: trio.MemorySendChannel[TakenCandidate], count: int) -> None:
        """Take what is due, a few at a time, and hand it to the workers; end when there is nothing more to take."""
        async with give:
            while True:
                try:
                    taking = await self._reruns.take(self._rerun, count, self._settings.jobs.lease_seconds)
                except ConvoError as error:
                    log_records.rerun_failed(part=self._rerun.part, reason=error.detail)
                    taking = Taking(reason="later")
                self.tally.waits_for = taking.reason
                self._taken |= {one.seq: one for one in taking.taken}
                for one in taking.taken:
                    await give.send(one)  # no deadline: it ends when a worker is free
                if taking.reason in ("paused", "ended"):
                    return
                await trio.sleep(_PAUSE_SECONDS[taking.reason])

    async def _work(self, receive: trio.MemoryReceiveChannel[TakenCandidate]) -> None:
        async for one in receive:  # no deadline: there is something to do, or there is not
            with trio.CancelScope() as scope:
                self._scopes[one.seq] = scope
                # It may have been lost while it waited for a worker.
                if self._taken.get(one.seq) is one:
                    await self._end(one)
            self._taken.pop(one.seq, None)
            self._scopes.pop(one.seq, None)

    async def _end(self, one: TakenCandidate) -> None:
        try:
            await self._find(one)
        except ConvoError as error:
            # The database is out, or restarts: it is due again when its time is over.
            log_records.rerun_failed(part=self._rerun.part, reason=error.detail)

    async def _find(self, one: TakenCandidate) -> None:
        found: dict[PartName, tuple[str, Finding]] = {}

        async def store(name: PartName, by: str, finding: Finding) -> None:
            found[name] = (by, finding)

        began = trio.current_time()
        try:
            with deadline("analysis.job", self._settings.analysis.job_seconds):
                conversation = await read_conversation(one, self._read_log, self._settings.analysis.job_seconds)
                asked = {one.part: self._analyst}
                failures = await counted(self._spending, one, partial(analyze, conversation, asked, (), store))
        except ConvoError as error:
            failures = {one.part: PartFailure(by=self._analyst.by, error=error)}
        if one.part in found:
            by, finding = found[one.part]
            if await self._reruns.done(one, by, finding, trio.current_time() - began):
                self.tally.found += 1
        else:
            await self._note_failure(one, failures[one.part])

    async def _note_failure(self, one: TakenCandidate, failure: PartFailure) -> None:
        settings, error = self._settings.jobs, failure.error
        outage = isinstance(error, RemoteError) and error.outage
        last = not outage and one.attempts + 1 >= settings.attempts_max
        later = retry.next_wait_seconds(
            one.attempts + 1,
            backoff_seconds=settings.backoff_seconds,
            backoff_max_seconds=settings.backoff_max_seconds,
            asked_seconds=None,
            random=random(),
        )
        await self._reruns.failed(one, failure.by, error.detail, later=None if last else later, spent=not outage)
        self.tally.failed += last
        if outage:
            # Each of the others would only find the same.
            self.tally.waits_for = error.detail
            await trio.sleep(settings.backoff_seconds)

    async def _renew(self) -> None:
        """Keep what is under way, and stop the work on what another process has taken meanwhile."""
        while True:
            await trio.sleep(self._settings.jobs.heartbeat_seconds)
            if not self._taken:
                continue
            asked = list(self._taken.values())
            try:
                kept = await self._reruns.renew(asked, self._settings.jobs.lease_seconds)
            except ConvoError as error:
                log_records.rerun_failed(part=self._rerun.part, reason=error.detail)
                continue
            for one in asked:
                if one.seq not in kept and self._taken.get(one.seq) is one:
                    del self._taken[one.seq]
                    if one.seq in self._scopes:
                        self._scopes[one.seq].cancel()
