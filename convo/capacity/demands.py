"""What one conversation costs of each resource, found from readings of a process at work: its service demands.

The demands are those of the utilisation law, U = X * D (Lazowska, Zahorjan, Graham and Sevcik, "Quantitative System
Performance", 1984, chapter 3): what is busy is the rate times the demand. Several kinds of work share one processor, so
their demands are fitted to many short readings (as Kraft, Pacheco-Sanchez, Casale and Dawson do, "Estimating service
resource consumption from response time measurements", 2009). Where readings cannot tell two kinds apart, all of it is
charged to the conversation: a forecast is then too careful, and never too hopeful.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median

from msgspec import Struct

from convo.capacity.fitting import fit_costs
from convo.capacity.usage import Usage

_QUIET_LEAST = 3
# Two kinds of work are told apart where their ratio changes by so much between readings.
_VARIES = 1.4
_BATCHES_VARY = 1.5
# An assumption: of the processor, a transaction takes at most so many times what one of its rows takes. What a fit to
# noisy readings gives it beyond that is a row's.
_COMMIT_ROWS = 4.0
# A transaction is told apart from its rows only where much larger ones were seen: both wait for the same disk.
_ROWS_VARY = 3.0
_SHARE_OF_EDGE = 10
_SLOWED_LEAST = 1.25


class CpuDemands(Struct, frozen=True, kw_only=True):
    """Processor seconds: ``idle`` a second without work, and for each accept, transaction of accepts and analysis.

    ``apart``: whether accepts and analyses could be told apart; else ``accept`` holds both.
    """

    idle: float = 0.0
    accept: float = 0.0
    commit: float = 0.0
    analysis: float = 0.0
    apart: bool = True


class CommitDemands(Struct, frozen=True, kw_only=True):
    """How long a transaction of the committer takes: ``each`` whatever is in it, and ``row`` for each conversation."""

    each: float = 0.0
    row: float = 0.0


class Demands(Struct, frozen=True, kw_only=True):
    """What was measured, and what one conversation costs.

    ``process`` and ``machine`` are processor time; ``machine`` is None where the system does not count it. ``slowed``
    is how many times longer the work of the process takes because others want the same processors. ``calls`` and
    ``call_seconds`` are of one conversation, by dependency; so are the figures that follow ``slowed``.
    """

    seconds: float
    readings: int
    accepted: float
    analysed: float
    process: CpuDemands
    machine: CpuDemands | None
    commit: CommitDemands
    slowed: float = 1.0
    accept_busy_seconds: float = 0.0
    job_seconds: float = 0.0
    analyst_seconds: float = 0.0
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    price: float = 0.0
    object_bytes: float = 0.0
    calls: Mapping[str, float] = {}
    call_seconds: Mapping[str, float] = {}


def find_demands(readings: Sequence[Usage]) -> Demands | None:
    """Find the demands from the differences between readings, oldest first; None where there are fewer than two."""
    if len(readings) < 2:
        return None
    steps = [later.since(earlier) for earlier, later in pairwise(readings)]
    steps = [step for step in steps if step.at > 0]
    whole = readings[-1].since(readings[0])
    if not steps or whole.at <= 0:
        return None
    counted = any(step.machine_seconds for step in steps)
    accepted, analysed = max(whole.accepted, 1.0), max(whole.analysed, 1.0)
    return Demands(
        seconds=whole.at,
        readings=len(readings),
        accepted=whole.accepted,
        analysed=whole.analysed,
        process=_cpu(steps, lambda step: step.process_seconds),
        machine=_cpu(steps, lambda step: step.machine_seconds) if counted else None,
        commit=_commit(steps),
        slowed=_slowed(steps),
        accept_busy_seconds=whole.accept_busy_seconds / accepted,
        job_seconds=whole.job_seconds / analysed,
        analyst_seconds=whole.analyst_seconds / analysed,
        tokens_in=whole.tokens_in / analysed,
        tokens_out=whole.tokens_out / analysed,
        price=whole.price / analysed,
        object_bytes=whole.object_bytes / max(whole.packed_logs, 1.0),
        calls={name: figure / analysed for name, figure in whole.calls.items()},
        call_seconds={name: figure / analysed for name, figure in whole.call_seconds.items()},
    )


def _cpu(steps: Sequence[Usage], used: Callable[[Usage], float]) -> CpuDemands:
    quiet = [used(step) / step.at for step in steps if not step.accepted and not step.analysed]
    # Without quiet readings nothing is called idle: all that was used is charged to the conversations.
    idle = median(quiet) if len(quiet) >= _QUIET_LEAST else 0.0
    worked = [step for step in steps if step.accepted or step.analysed]
    totals = [max(0.0, used(step) - idle * step.at) for step in worked]
    batches = _varies([(step.accepted, step.commits) for step in worked], _BATCHES_VARY)
    analysed = any(step.analysed for step in worked)
    apart = analysed and _varies([(step.accepted + 1.0, step.analysed + 1.0) for step in worked])
    rows = [(step.accepted, step.commits if batches else 0.0, step.analysed if apart else 0.0) for step in worked]
    accept, commit, analysis = fit_costs(rows, totals) if rows else (0.0, 0.0, 0.0)
    if commit > _COMMIT_ROWS * accept:
        # Readings too noisy to tell the two apart; all in the transaction, no number of rows would ever be too many.
        both = [(row[0] + _COMMIT_ROWS * row[1], row[2]) for row in rows]
        accept, analysis = fit_costs(both, totals)
        commit = _COMMIT_ROWS * accept
    only_analyses = analysed and not any(step.accepted for step in worked)
    if only_analyses:
        analysis = sum(totals) / sum(step.analysed for step in worked)
    return CpuDemands(
        idle=idle, accept=accept, commit=commit, analysis=analysis, apart=apart or only_analyses or not analysed
    )


def _slowed(steps: Sequence[Usage]) -> float:
    """Return how much longer work takes by the others on the machine.

    While this process has work, PostgreSQL and whoever sends are among the others, and are counted with the machine.
    While it has none, a thread that seldom wakes up waits longer than its share. So it is the lesser of both.
    """
    quiet = [step for step in steps if not step.accepted and not step.analysed]
    busiest = sorted(steps, key=lambda step: step.loop_seconds / step.at)[-max(1, len(steps) // 4) :]
    if len(quiet) < _QUIET_LEAST:
        return 1.0
    slowed = min(_waits(quiet), _waits(busiest))
    # On an idle machine a thread that wakes up waits a little, too.
    return slowed if slowed >= _SLOWED_LEAST else 1.0


def _waits(steps: Sequence[Usage]) -> float:
    worked = sum(step.loop_seconds for step in steps)
    return 1.0 + sum(step.queued_seconds for step in steps) / worked if worked > 0 else 1.0


def _commit(steps: Sequence[Usage]) -> CommitDemands:
    worked = [step for step in steps if step.commits]
    if not worked:
        return CommitDemands()
    totals = [step.commit_seconds for step in worked]
    mean = sum(totals) / sum(step.commits for step in worked)
    if not _varies([(step.accepted, step.commits) for step in worked], _ROWS_VARY):
        return CommitDemands(each=mean)
    each, row = fit_costs([(step.commits, step.accepted) for step in worked], totals)
    # None is free, whatever its rows: then what was measured is how busy the machine was.
    return CommitDemands(each=each, row=row) if each >= mean / 10 else CommitDemands(each=mean)


def _varies(pairs: Sequence[tuple[float, float]], least: float = _VARIES) -> bool:
    """Return whether the ratio of two counts changes enough between readings to tell what each of them costs."""
    ratios = sorted(one / other for one, other in pairs if one and other)
    if len(ratios) < 4:
        return False
    edge = len(ratios) // _SHARE_OF_EDGE
    return ratios[-1 - edge] / ratios[edge] >= least
