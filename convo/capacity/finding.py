"""Finds the service demands of a process in readings of it at work.

Several kinds of work share one processor, so their demands are fitted to the loads that were seen (as Kraft,
Pacheco-Sanchez, Casale and Dawson do, "Estimating service resource consumption from response time measurements", 2009).
Where loads cannot tell two kinds apart, what is known of the program beforehand does, as far as it goes (``PRIOR_*``).
The covariance says how far that is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import hypot, sqrt
from statistics import mean, pstdev

from msgspec import Struct

from convo.capacity.demands import CommitDemands, CpuDemands, Demands, PaceDemands, WaitDemands
from convo.capacity.fitting import Sum, fit_sums
from convo.capacity.levels import LoadLevel, find_levels, find_steps, is_quiet
from convo.capacity.usage import Usage
from convo.runtime.pace import BOOKKEEPING_SECONDS, FLOOR, accept_share_seconds

PRIOR_COMMIT, PRIOR_COMMIT_ERROR = 3.0, 1.0
"""Of the interpreter, a transaction takes about so many times what one of its rows takes. It is the same program
everywhere, so it is about the same on every machine (readings of scripts/bench/load_test.py: 2.7 to 4.2 times)."""

PRIOR_ACCEPT = BOOKKEEPING_SECONDS / 10
"""What an accept without its transaction takes of the interpreter, beside what a job takes. It is as unsure as it is
large, and counts only beside analyses: they often come one with each accept."""

PRIOR_UPKEEP, PRIOR_UPKEEP_ERROR = 0.22, 0.1
"""Of what a conversation takes besides its analyst, a transaction of jobs takes this share: a lease, or a settle. At a
low rate there are three for each, as one of two leases finds nothing (scripts/bench/load_test.py: 2.0 ms of 8.4)."""

PRIOR_CALL = 0.002
"""What a call of a model or of another service takes of the interpreter, give or take half of it."""

# A load says what work costs as exactly as this, and one reading of it so much less.
_ERROR, _READING_ERROR = 0.06, 0.15
# Transactions wait for a disk that others use, too.
_COMMIT_ERROR, _COMMIT_READING_ERROR = 0.15, 0.4
# Of the time, less than this is not seen.
_SEEN_LEAST = 1e-4
_QUIET_LEAST = 3
# A thread may wait for a processor for so much of the time whatever it does. What it waits besides, the higher loads
# say, give or take a quarter.
_LOST_ERROR = 0.2
_WAITS_ERROR = 0.25
# Two kinds of work are told apart where their ratio changes by so much between loads.
_VARIES = 1.4
# Where all cores are busy, the others on the machine have less than they would take.
_SATURATED = 0.97
# Where others keep more of the machine busy, what conversations take of it cannot be seen.
_OTHERS_MAX = 0.6


class Known(Struct, frozen=True, kw_only=True):
    """What is known beforehand of processor time: of an analysis, give or take ``error``, and of a transaction.

    Of that, ``analyst`` has nothing to do with jobs. ``commit_error`` is how unsure ``PRIOR_COMMIT`` is, and
    ``upkeep_error`` ``PRIOR_UPKEEP``.
    """

    analysis: float
    error: float
    analyst: float
    upkeep_error: float = PRIOR_UPKEEP_ERROR
    commit_error: float = PRIOR_COMMIT_ERROR

    def with_others(self) -> Known:
        """Add what PostgreSQL and clients on the same machine may do for it: about half as much, and unsure."""
        return Known(
            analysis=1.5 * self.analysis,
            error=self.error + self.analysis / 2,
            analyst=self.analyst,
            upkeep_error=2 * self.upkeep_error,
            commit_error=2 * self.commit_error,
        )


def find_demands(readings: Sequence[Usage], cores: float) -> Demands | None:
    """Find the demands from the differences between readings, oldest first; None where there are fewer than two.

    ``cores`` are those of the machine.
    """
    steps = find_steps(readings)
    if not steps:
        return None
    whole = readings[-1].since(readings[0])
    quiet, levels = [step for step in steps if is_quiet(step)], find_levels(steps)
    accepted, analysed = max(whole.accepted, 1.0), max(whole.analysed, 1.0)
    waits = _waits(levels)
    analysis = whole.analyst_seconds / analysed + BOOKKEEPING_SECONDS
    guessed = BOOKKEEPING_SECONDS + PRIOR_CALL * sum(whole.calls.values()) / analysed
    analyst = whole.analyst_seconds / analysed + guessed - BOOKKEEPING_SECONDS
    known = Known(analysis=analyst + BOOKKEEPING_SECONDS, error=guessed / 2, analyst=analyst)
    process = _cpu(quiet, levels, lambda step: step.process_seconds, known)
    others = mean(step.machine_seconds / step.at for step in quiet) if quiet else 0.0
    machine = None
    if any(step.machine_seconds for step in steps) and others <= _OTHERS_MAX * cores:
        free = [level for level in levels if level.done.machine_seconds < _SATURATED * cores * level.done.at]
        machine = _cpu(quiet, free or levels, lambda step: step.machine_seconds, known.with_others())
    return Demands(
        seconds=whole.at,
        readings=len(readings),
        accepted=whole.accepted,
        analysed=whole.analysed,
        process=process,
        machine=machine,
        commit=_commit(levels, process.accept * waits.slowed),
        pace=_pace(levels, analysis, accept_share_seconds(whole.accept_busy_seconds / accepted, waits.slowed)),
        accepted_most=max((level.accepted_per_second for level in levels), default=0.0),
        analysed_most=max((level.done.analysed / level.done.at for level in levels), default=0.0),
        others=others,
        waits=waits,
        settle_seconds=whole.settle_seconds / max(whole.settles, 1.0),
        job_seconds=whole.job_seconds / analysed,
        tokens_in=whole.tokens_in / analysed,
        tokens_out=whole.tokens_out / analysed,
        price=whole.price / analysed,
        object_bytes=whole.object_bytes / max(whole.packed_logs, 1.0),
        calls={name: figure / analysed for name, figure in whole.calls.items()},
        call_seconds={name: figure / analysed for name, figure in whole.call_seconds.items()},
    )


# --- processors


def _cpu(
    quiet: Sequence[Usage], levels: Sequence[LoadLevel], used: Callable[[Usage], float], known: Known
) -> CpuDemands:
    """Fit what each kind of work takes."""
    rates = [used(step) / step.at for step in quiet]
    # What others use comes and goes. A load says of conversations no more than what exceeds that.
    flicker = pstdev(rates) if len(rates) >= _QUIET_LEAST else 0.0
    idle = mean(rates) if rates else 0.0
    sums = [_idle_sum(rates, flicker, levels, used)]
    for level in levels:
        done, total = level.done, used(level.done)
        worked = max(total - idle * done.at, total / 10)
        error = hypot(_error(worked, level.readings), flicker * done.at, _SEEN_LEAST * done.at)
        counts = (done.at, done.accepted, done.commits, done.analysed, done.settles + done.leases)
        sums.append(Sum(counts=counts, total=total, error=error))
    accepted, commits, analysed = (
        sum(getattr(level.done, name) for level in levels) for name in ("accepted", "commits", "analysed")
    )
    worked = sum(max(0.0, used(level.done) - idle * level.done.at) for level in levels)
    # As far as it is seen at all: others may have taken less than they took in quiet moments.
    seen = hypot(worked / 10, flicker * sum(level.done.at for level in levels))
    rough = max(worked - known.analysis * analysed, seen) / (accepted + PRIOR_COMMIT * commits) if accepted else 1.0
    error = known.commit_error * max(rough, 1e-6)
    sums.append(Sum(counts=(0.0, -PRIOR_COMMIT, 1.0, 0.0, 0.0), total=0.0, error=error))
    sums.append(Sum(counts=(0.0, 0.0, 0.0, 1.0, 0.0), total=known.analysis if analysed else 0.0, error=known.error))
    counted = analysed if any(level.done.leases or level.done.settles for level in levels) else 0.0
    besides = max(worked - known.analyst * counted, seen) / counted if counted else 0.0
    error = max(known.upkeep_error * besides, 1e-9)
    sums.append(Sum(counts=(0.0, 0.0, 0.0, 0.0, 1.0), total=PRIOR_UPKEEP * besides, error=error))
    if not accepted:
        sums.append(Sum(counts=(0.0, 1.0, 0.0, 0.0, 0.0), total=0.0, error=1e-9))
    elif analysed:
        sums.append(Sum(counts=(0.0, 1.0, 0.0, 0.0, 0.0), total=PRIOR_ACCEPT, error=PRIOR_ACCEPT))
    fit = fit_sums(sums)
    idle, accept, commit, analysis_cost, upkeep = fit.costs
    return CpuDemands(
        idle=idle,
        accept=accept,
        commit=commit,
        analysis=analysis_cost,
        upkeep=upkeep,
        apart=not (accepted and analysed) or _varies(levels),
        covariance=fit.covariance,
    )


def _idle_sum(
    rates: Sequence[float], flicker: float, levels: Sequence[LoadLevel], used: Callable[[Usage], float]
) -> Sum:
    counts = (1.0, 0.0, 0.0, 0.0, 0.0)
    if rates:
        found = mean(rates)
        return Sum(counts=counts, total=found, error=max(hypot(found / 10, flicker / sqrt(len(rates))), 1e-6))
    # Without quiet readings all that was used is charged to conversations, unless loads tell otherwise.
    least = min((used(level.done) / level.done.at for level in levels), default=0.0)
    return Sum(counts=counts, total=0.0, error=max(least / 2, 1e-6))


def _error(figure: float, readings: int) -> float:
    return figure * hypot(_ERROR, _READING_ERROR / sqrt(readings))


def _varies(levels: Sequence[LoadLevel]) -> bool:
    ratios = sorted((level.done.accepted + 1.0) / (level.done.analysed + 1.0) for level in levels)
    return len(ratios) > 1 and ratios[-1] / ratios[0] >= _VARIES


def _waits(levels: Sequence[LoadLevel]) -> WaitDemands:
    """Fit for how long the loop's thread waits for a processor: for how long in any case, and how much with its work.

    A thread that wakes up seldom waits each time, and not in proportion to its work. What it waits besides grows with
    its work up to the end. PostgreSQL and whoever sends are among those that it waits for.
    """
    worked = [level for level in levels if level.done.loop_seconds]
    if not worked:
        return WaitDemands()
    most = max(level.done.loop_seconds / level.done.at for level in worked)
    high = [level.done for level in worked if level.done.loop_seconds >= most * level.done.at / 2]
    share = sum(done.queued_seconds for done in high) / sum(done.loop_seconds for done in high)
    full = max((level.done.loop_seconds + level.done.queued_seconds) / level.done.at for level in worked)
    sums = [
        Sum(
            counts=(level.done.at, level.done.loop_seconds),
            total=level.done.queued_seconds,
            # The lower a load, the less it says of the end, so its own waits are not what its error is a share of.
            error=_error(full, level.readings) * level.done.at,
        )
        for level in worked
    ]
    sums.append(Sum(counts=(1.0, 0.0), total=0.0, error=_LOST_ERROR))
    sums.append(Sum(counts=(0.0, 1.0), total=share, error=0.02 + share * _WAITS_ERROR))
    fit = fit_sums(sums)
    return WaitDemands(lost=fit.costs[0], slowed=1.0 + fit.costs[1], covariance=fit.covariance)


# --- transactions, and the pace of analyses


def _commit(levels: Sequence[LoadLevel], row: float) -> CommitDemands:
    """Fit what a transaction takes; a row takes about half of ``row``, the time of an accept in the loop.

    A slow transaction gathers many rows, so rows seem to make it slow. Loads, and not single readings, are compared:
    how much comes does not depend on how long a transaction takes.
    """
    worked = [level for level in levels if level.done.commits]
    if not worked:
        return CommitDemands()
    sums = []
    for level in worked:
        done = level.done
        share = hypot(_COMMIT_ERROR, _COMMIT_READING_ERROR / sqrt(level.readings))
        error = hypot(done.commit_seconds * share, _SEEN_LEAST * done.at)
        sums.append(Sum(counts=(done.commits, done.accepted), total=done.commit_seconds, error=error))
    sums.append(Sum(counts=(0.0, 1.0), total=row / 2, error=max(row / 4, 1e-7)))
    fit = fit_sums(sums)
    return CommitDemands(each=fit.costs[0], row=fit.costs[1], covariance=fit.covariance)


def _pace(levels: Sequence[LoadLevel], analysis: float, accept: float) -> PaceDemands | None:
    """Fit what accepts took from analyses; by the pace's own law an accept takes ``accept`` seconds."""
    worked = [level.done for level in levels if level.done.accepted and level.done.pace_seconds]
    # At the floor, more accepts take no more.
    free = [done for done in worked if done.pace_seconds > 2 * FLOOR * done.at]
    if not worked:
        return None
    sums = []
    for done in free:
        lost = max(0.0, done.at - done.pace_seconds)
        sums.append(Sum(counts=(done.at, done.accepted), total=lost, error=hypot(lost / 10, done.at / 50)))
    sums.append(Sum(counts=(1.0, 0.0), total=0.0, error=0.1))
    sums.append(Sum(counts=(0.0, 1.0), total=accept, error=max(accept / 2, 1e-6)))
    fit = fit_sums(sums)
    return PaceDemands(analysis=analysis, lost=fit.costs[0], accept=fit.costs[1], covariance=fit.covariance)
