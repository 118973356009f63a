"""Re-runs as commands: finds a part again with a progress bar, compares what was found, and promotes it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import trio
from msgspec import Struct, structs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from convo.analysis.differing import shown_result
from convo.commands import database
from convo.conversation.model import PartName
from convo.conversation.owed import DEFAULT_PARTS, Owed
from convo.errors import Refused
from convo.observe.log import open_log
from convo.pipeline.spending import spending_of
from convo.plural import plural
from convo.reanalysis import Reanalysis, asked_part
from convo.runtime.bridge import open_bridge
from convo.settings import Settings
from convo.startup import open_analysts, open_storage
from convo.store.costs import ComparedCost, read_rerun_costs
from convo.store.jobs.promotion import Compared, Promoted, Promotion
from convo.store.jobs.reruns import Rerun, RerunOrder, Reruns
from convo.store.logs import LogStore
from convo.store.outbox import Outbox
from convo.store.owed_sets import OwedSets
from convo.store.postgres import Postgres

T = TypeVar("T")
_LOOK_SECONDS = 0.5
_EXAMPLES_MAX = 20
# Behind the server on the same machine, too.
_NICENESS = 10


class WantedRerun(Struct, frozen=True, kw_only=True):
    """What is asked for: the part, and which conversations."""

    part: PartName
    received_since: datetime | None = None
    bot_id: str | None = None
    sample: float = 1.0
    rate: float = 0.0


class CountedRerun(Struct, frozen=True, kw_only=True):
    """How many conversations a re-run would find the part for, and how many have this version already."""

    part: PartName
    version: str
    conversations: int
    up_to_date: int


class WorkedRerun(Rerun, frozen=True, kw_only=True):
    """A re-run as it stands when its command ends.

    ``why_nothing`` is why it found nothing to do, empty where there was something.
    """

    why_nothing: str = ""


class ResultDifference(Struct, frozen=True, kw_only=True):
    """One conversation in which the results differ, by these fields."""

    conversation_id: str
    fields: tuple[str, ...]
    current: Any
    candidate: Any


class PartComparison(Struct, frozen=True, kw_only=True):
    """What a re-run found beside the current results.

    ``compared`` are those that have a current result; ``agreement`` is the share of them that is the same, None where
    there are none. ``fields`` counts by field where they differ. ``points`` is by how much all scores would move.
    ``cost`` is what its calls to language models took, ``cost_before`` what those before it took for the same
    conversations; None where no call is known. ``promoted`` is what the promotion did, None where there was none.
    """

    part: PartName
    version: str
    state: str
    counts: dict[str, int]
    compared: int
    without_current: int
    agreement: float | None
    fields: dict[str, int]
    differences: tuple[ResultDifference, ...]
    scores_moved: int
    points: int
    seconds: float
    made_by: dict[str, int]
    cost: ComparedCost | None = None
    cost_before: ComparedCost | None = None
    promoted: Promoted | None = None


def reanalyse(settings: Settings, wanted: WantedRerun, workers: int) -> WorkedRerun:
    """Work on the re-run of a part until nothing is left or it is paused; return how it stands then.

    Raises:
        Refused: the part is not declared, or the open re-run is of other conversations.
    """
    os.nice(_NICENESS)
    return _run(settings, partial(_reanalyse, settings, wanted, workers))


def count_rerun(settings: Settings, wanted: WantedRerun) -> CountedRerun:
    """Count what a re-run would find again; nothing is written.

    Raises:
        Refused: the part is not declared.
    """
    return _run(settings, partial(_count, settings, wanted))


def pause_rerun(settings: Settings, part: PartName) -> Rerun:
    """Let every process stop working on the re-run of a part.

    Raises:
        Refused: there is none that runs.
    """
    return _run(settings, partial(_pause, settings, part))


def compare_part(settings: Settings, part: PartName, *, promote: bool, min_agreement: float) -> PartComparison:
    """Compare what the newest re-run of a part found with the current results, and ``promote`` it where enough agree.

    Raises:
        Refused: there is no such re-run.
    """
    return _run(settings, partial(_compare, settings, part, promote=promote, min_agreement=min_agreement))


def _run(settings: Settings, work: Callable[[], Awaitable[T]]) -> T:
    with open_log(settings.observe):
        return trio.run(work)


async def _reanalyse(settings: Settings, wanted: WantedRerun, workers: int) -> WorkedRerun:
    async with (
        _opened(settings) as (postgres, owed_sets),
        open_analysts(settings) as (analysts, remotes),
        _log_store(settings, postgres) as log_store,
    ):
        owed, analyst, version = asked_part(settings, wanted.part, analysts.of)
        reruns = Reruns(postgres, owed_sets)
        order = _order(wanted, owed, version)
        open_one = await reruns.read(wanted.part)
        if open_one is not None and open_one.state != "ended" and open_one.version == version:
            _check_same(open_one, order)
        rerun, _ = await reruns.begin(order)
        spending = spending_of(settings, postgres, remotes)
        work = Reanalysis(settings, reruns, rerun, analyst, log_store.take, spending)
        async with trio.open_nursery() as nursery:
            if spending is not None:
                await nursery.start(spending.run_group)
                nursery.start_soon(spending.look)
            nursery.start_soon(_show_progress, reruns, work, rerun)
            await work.run(workers)
            nursery.cancel_scope.cancel()
        ended = await _newest(reruns, wanted.part)
        why = ""
        if ended.state == "ended" and not ended.counts:
            _, up_to_date = await reruns.count(order)
            why = _why_nothing(ended, up_to_date)
        return WorkedRerun(**structs.asdict(ended), why_nothing=why)


def _why_nothing(rerun: Rerun, up_to_date: int) -> str:
    """Return why none of the conversations that a re-run looked at had to be found again."""
    others = max(0, rerun.looked_at - up_to_date)
    if up_to_date:
        found = f"{_conversations(up_to_date)} {'has' if up_to_date == 1 else 'have'} this version already"
        return f"found 0: {found}" + (f", and {_conversations(others)} cannot be chosen" if others else "")
    if not rerun.looked_at:
        return "found 0: no conversation is stored that was received since then"
    limits = [f"--bot {rerun.bot_id}"] if rerun.bot_id is not None else []
    limits += ["--since"] if rerun.received_since is not None else []
    limits += [f"--sample {rerun.sample:g}"] if rerun.sample < 1 else []
    asked = f", and these within {', '.join(limits)}" if limits else ""
    return (
        f"found 0: of {_conversations(others)} none can be chosen: only those that are analysed, whose log is stored"
        f" and that no newer revision replaces{asked}"
    )


def _conversations(count: int) -> str:
    return f"{count:,} {plural(count, 'conversation')}"


async def _show_progress(reruns: Reruns, work: Reanalysis, rerun: Rerun) -> None:
    shown = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as progress:
        bar = progress.add_task(rerun.part, total=rerun.total)
        while True:
            now = await _newest(reruns, rerun.part)
            waits = f" (waits: {work.tally.waits_for})" if work.tally.waits_for else ""
            progress.update(bar, completed=now.settled, description=f"{rerun.part}{waits}")
            await trio.sleep(_LOOK_SECONDS)


async def _count(settings: Settings, wanted: WantedRerun) -> CountedRerun:
    async with _opened(settings) as (postgres, owed_sets), open_analysts(settings) as (analysts, _):
        owed, _, version = asked_part(settings, wanted.part, analysts.of)
        again, up_to_date = await Reruns(postgres, owed_sets).count(_order(wanted, owed, version))
        return CountedRerun(part=wanted.part, version=version, conversations=again, up_to_date=up_to_date)


async def _pause(settings: Settings, part: PartName) -> Rerun:
    async with _opened(settings) as (postgres, owed_sets):
        paused = await Reruns(postgres, owed_sets).pause(part)
        if paused is None:
            raise Refused(f"no re-run of {part} is open")
        return paused


async def _compare(settings: Settings, part: PartName, *, promote: bool, min_agreement: float) -> PartComparison:
    async with _opened(settings) as (postgres, owed_sets):
        reruns = Reruns(postgres, owed_sets)
        rerun = await _newest(reruns, part)
        outbox = Outbox(settings.events.types, settings.score)
        promotion = Promotion(postgres, rerun, settings.score, owed_sets, outbox)
        found = await _summed(rerun, promotion.compared())
        before, again = await read_rerun_costs(postgres, rerun.number)
        found = structs.replace(found, cost=again, cost_before=before)
        if promote and (found.agreement is None or found.agreement >= min_agreement):
            found = structs.replace(found, promoted=await promotion.promote())
        return found


async def _summed(rerun: Rerun, compared: AsyncIterator[Compared]) -> PartComparison:
    pairs = agreeing = alone = moved = points = 0
    seconds = 0.0
    fields: Counter[str] = Counter()
    made_by: Counter[str] = Counter()
    differences: list[ResultDifference] = []
    async for one in compared:  # no deadline: db.reruns ends first
        seconds += one.seconds
        made_by[one.made_by] += 1
        moved, points = moved + (one.moves != 0), points + one.moves
        if one.current is None:
            alone += 1
            continue
        pairs += 1
        agreeing += not one.differs
        fields.update(one.differs)
        if one.differs and len(differences) < _EXAMPLES_MAX:
            shown = shown_result(one.current), shown_result(one.candidate)
            differences.append(
                ResultDifference(
                    conversation_id=one.conversation_id, fields=one.differs, current=shown[0], candidate=shown[1]
                )
            )
    return PartComparison(
        part=rerun.part,
        version=rerun.version,
        state=rerun.state,
        counts=dict(rerun.counts),
        compared=pairs,
        without_current=alone,
        agreement=agreeing / pairs if pairs else None,
        fields=dict(fields.most_common()),
        differences=tuple(differences),
        scores_moved=moved,
        points=points,
        seconds=seconds,
        made_by=dict(made_by),
    )


@asynccontextmanager
async def _log_store(settings: Settings, postgres: Postgres) -> AsyncIterator[LogStore]:
    if not settings.logs.in_objects:
        yield LogStore(postgres)
        return
    async with open_bridge() as bridge, open_storage(settings, bridge, postgres) as storage:
        yield LogStore(postgres, None if storage is None else storage.read_log)


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[Postgres, OwedSets]]:
    async with database.open_served(settings, "works on") as postgres:
        yield postgres, OwedSets()


def _order(wanted: WantedRerun, owed: Owed, version: str) -> RerunOrder:
    return RerunOrder(
        part=wanted.part,
        version=version,
        owed=owed,
        received_since=wanted.received_since,
        bot_id=wanted.bot_id,
        sample=wanted.sample,
        rate=wanted.rate,
    )


def _check_same(rerun: Rerun, order: RerunOrder) -> None:
    """Pass if the open re-run is of the same conversations; a span before now is another moment each time."""
    same = (rerun.bot_id, rerun.sample) == (order.bot_id, order.sample)
    if not same or (rerun.received_since is None) != (order.received_since is None):
        raise Refused(
            f"a re-run of {rerun.part} is open, of other conversations (bot {rerun.bot_id or 'any'}, sample"
            f" {rerun.sample:g}, since {rerun.received_since or 'ever'}): go on with the same --bot, --sample and"
            " --since, or let it end first"
        )


async def _newest(reruns: Reruns, part: PartName) -> Rerun:
    found = await reruns.read(part)
    if found is None:
        known = "" if part in DEFAULT_PARTS else ", as it is declared"
        raise Refused(f"there is no re-run of {part}: `convo reanalyse --part {part}` begins one{known}")
    return found
