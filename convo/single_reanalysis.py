"""Analyses one conversation again that somebody has asked for, and lets what was found take the place of the result.

Open it to change what becomes of ``POST /v1/conversations/{id}/reanalyse``. It works as a re-run of many does
(``reanalysis``), but at once, one conversation after the other, and what was found is promoted without a comparison.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from msgspec import Struct

from convo.analysis.analysts import AnalystsOfSets
from convo.analysis.analyze import Analyst
from convo.conversation.model import PartName
from convo.conversation.tenant import Reach
from convo.errors import ConvoError, Invalid, Overloaded, Refused
from convo.observe import log_records, tracing
from convo.pipeline.spending import Spending
from convo.reanalysis import Reanalysis, asked_part
from convo.runtime.bell import Bell
from convo.runtime.deadline import deadline
from convo.settings import Settings
from convo.store.audit_log import Caller
from convo.store.jobs.promotion import Promotion
from convo.store.jobs.reruns import Rerun, Reruns
from convo.store.jobs.single_reruns import PartAgain, SingleReruns
from convo.store.logs import ReadLog
from convo.store.outbox import Outbox
from convo.store.owed_sets import OwedSets
from convo.store.postgres import Postgres

WAITING_MAX = 100
_SLACK_SECONDS = 30.0
_RETRY_SECONDS = 5.0


class _Ordered(Struct, frozen=True, kw_only=True):
    conversation_id: str
    rerun: Rerun
    analyst: Analyst
    trace: str | None


class SingleReanalyses:
    """What was asked for at this process and is not done yet; ``run`` works on it."""

    def __init__(  # noqa: PLR0913, PLR0917  (what it works on, and with what)
        self,
        settings: Settings,
        postgres: Postgres,
        owed_sets: OwedSets,
        analysts: AnalystsOfSets,
        read_log: ReadLog,
        outbox: Outbox,
        spending: Spending | None = None,
    ) -> None:
        self._settings = settings
        self._postgres = postgres
        self._owed_sets = owed_sets
        self._analysts = analysts
        self._read_log = read_log
        self._outbox = outbox
        self._spending = spending
        # A part may be tried again: for so long it is this process's.
        self._seconds = 2 * settings.analysis.job_seconds + _SLACK_SECONDS
        self._reruns = Reruns(postgres, owed_sets)
        self._single = SingleReruns(postgres, owed_sets, 2 * self._seconds)
        self._waiting: deque[_Ordered] = deque()
        self._bell = Bell()

    async def order(
        self, reach: Reach, conversation_id: str, part: PartName | None, caller: Caller
    ) -> Sequence[PartName]:
        """Have a part of a conversation found again, or all that it is owed; return which.

        Raises:
            NotFound, Erased, Expired: as for any read of it.
            NotAnalysed: its analysis has not ended well.
            Invalid: no such part is declared, or this process cannot find it.
            RerunOpen: a re-run of the part is open already.
            Overloaded: too many wait already.
        """
        found = await self._single.find(reach, conversation_id)
        names = list(found.owed.asked) if part is None else [part]
        if len(self._waiting) + len(names) > WAITING_MAX:
            raise Overloaded(f"{len(self._waiting)} parts wait to be found again", retry_after_seconds=_RETRY_SECONDS)
        asked, span = [self._asked(name) for name in names], tracing.current_span()
        trace = None if span is None else span.context.stored
        reruns = await self._single.begin(found, [again for again, _ in asked], reach, caller)
        self._waiting += [
            _Ordered(conversation_id=conversation_id, rerun=rerun, analyst=analyst, trace=trace)
            for rerun, (_, analyst) in zip(reruns, asked, strict=True)
        ]
        self._bell.ring()
        return names

    def _asked(self, name: PartName) -> tuple[PartAgain, Analyst]:
        try:
            owed, analyst, version = asked_part(self._settings, name, self._analysts.of)
        except Refused as error:
            raise Invalid(error.detail, path="$.part") from error
        return PartAgain(part=name, version=version, owed=owed), analyst

    async def run(self) -> None:
        """Work on what was asked for, one after the other, until cancelled."""
        while True:
            while self._waiting:
                one = self._waiting.popleft()
                with (
                    log_records.bound(conversation_id=one.conversation_id),
                    tracing.within_span(tracing.continued(one.trace, f"find {one.rerun.part} again", "internal")),
                ):
                    try:
                        await self._work(one)
                    except ConvoError as error:
                        log_records.rerun_failed(part=one.rerun.part, reason=error.detail)
            await self._bell.rung()

    async def _work(self, one: _Ordered) -> None:
        rerun = one.rerun
        work = Reanalysis(self._settings, self._reruns, rerun, one.analyst, self._read_log, self._spending)
        try:
            with deadline("reanalysis.one", self._seconds):
                await work.run(1)
        except ConvoError as error:
            log_records.rerun_failed(part=rerun.part, reason=error.detail)
        promotion = Promotion(self._postgres, rerun, self._settings.score, self._owed_sets, self._outbox)
        promoted = await promotion.promote()
        failure = await self._single.end(rerun)
        if failure is None:
            log_records.part_found_again(part=rerun.part, by=one.analyst.by, points=promoted.points)
        else:
            log_records.rerun_failed(part=rerun.part, reason=failure)
