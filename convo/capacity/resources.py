"""How many conversations a second each resource of one process allows, with the formula and its numbers.

Two laws are used, each on one resource at a time. **Utilisation law**: a resource is busy for U = X * D, so a processor
of one core ends at X = 1 / D, and is called full a little below it (``FULL``). **Little's law**: N = X * R are under
way at once (Little, "A proof for the queuing formula L = λW", 1961), so N places that are held for R seconds each end
at X = N / R. The least of them all is the bottleneck. Both hold whatever the arrivals are like. How sure the demands
are makes a range of each end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from msgspec import Struct

from convo.capacity.demands import CommitDemands, CpuDemands, Demands, PaceDemands, WaitDemands
from convo.capacity.fitting import variance
from convo.capacity.processors import (
    FULL,
    LOOP_FULL,
    NEVER_WAITS,
    FullLoad,
    Room,
    Work,
    find_loop_room,
    find_room,
    waits_at_end,
)
from convo.plural import plural
from convo.runtime.pace import FLOOR

PLANNED_SHARE = 0.7
"""So much of what a resource allows is planned with: at 0.7, a wait is about three times the work itself."""

_DAY_SECONDS = 86_400
# Nine of ten ends are within so many standard deviations.
_DEVIATIONS = 1.645
# Beyond this a figure is not known at all.
_DEVIATION_MAX = 5.0
# What the laws themselves are off by, as one standard deviation.
_LAW_ERROR = 0.05
# What the machine takes is shown where it is seen at least as well as this, among what others take of it.
_SEEN_ERROR = 0.5


class Allowance(Struct, frozen=True, kw_only=True):
    """What a process and its surroundings allow at most.

    ``cores`` are those of the machine or the container; ``batch_rows`` is the most that one transaction stores;
    ``concurrency`` is by dependency. ``daily_budget`` is for all processes together, 0 for none.
    """

    cores: float
    batch_rows: int
    workers: int
    concurrency: Mapping[str, int] = {}
    daily_budget: float = 0.0


class Resource(Struct, frozen=True, kw_only=True):
    """One resource: the most conversations a second that it allows, and how that is calculated.

    Nine times in ten it is from ``low`` to ``high``. ``limits`` is what it limits. ``shared`` resources are not more
    with more processes.
    """

    name: str
    limits: Work
    per_second: float
    low: float
    high: float
    formula: str
    shared: bool = False


def find_resources(demands: Demands, allowed: Allowance) -> tuple[Resource, ...]:
    """Return every resource that was in use, those of accepts first; one that costs nothing measurable is none."""
    found = [*_for_accepts(demands, allowed), *(_for_analyses(demands, allowed) if demands.analysed else ())]
    return tuple(one for one in found if math.isfinite(one.per_second))


def _for_accepts(demands: Demands, allowed: Allowance) -> Iterator[Resource]:
    if not demands.accepted:
        return
    yield from _processors(demands, allowed, "accepts")
    if demands.commit.each or demands.commit.row:
        yield _committer(demands.commit, allowed.batch_rows)


def _for_analyses(demands: Demands, allowed: Allowance) -> Iterator[Resource]:
    yield from _processors(demands, allowed, "both" if demands.accepted else "analyses")
    if demands.accepted and demands.pace is not None:
        yield _pace(demands.pace)
    if allowed.workers and demands.job_seconds:
        yield _places("workers", "jobs.workers", allowed.workers, demands.job_seconds, "a job")
    for name, count in allowed.concurrency.items():
        held, calls = demands.call_seconds.get(name, 0.0), demands.calls.get(name, 0.0)
        if held > 0 and calls > 0:
            what = f"{calls:.2f} calls of {held / calls:.3g} s each"
            yield _places(name, f"concurrency of {name}", count, held, what)
    if allowed.daily_budget and demands.price > 0:
        budget = f"llm.daily_budget {allowed.daily_budget:g}"
        rate = allowed.daily_budget / demands.price / _DAY_SECONDS
        formula = f"{budget} / {demands.price:.6g} a conversation / {_DAY_SECONDS} s"
        yield _resource("daily budget", "analyses", rate, formula, shared=True)


def _resource(  # noqa: PLR0913  (all that a resource is made of)
    name: str, limits: Work, rate: float, formula: str, *, relative: float = 0.0, shared: bool = False
) -> Resource:
    """Make a resource; ``relative`` is the variance of its rate's logarithm."""
    factor = math.exp(_DEVIATIONS * min(math.hypot(math.sqrt(relative), _LAW_ERROR), _DEVIATION_MAX))
    return Resource(
        name=name,
        limits=limits,
        per_second=rate,
        low=rate / factor,
        high=rate * factor,
        formula=formula,
        shared=shared,
    )


# --- processors


def _processors(demands: Demands, allowed: Allowance, limits: Work) -> Iterator[Resource]:
    load = FullLoad(
        limits=limits,
        rows_max=allowed.batch_rows,
        commit_seconds=demands.commit.each,
        settle_seconds=demands.settle_seconds,
    )
    process, machine, waits = demands.process, demands.machine, demands.waits
    if machine is not None:
        room = find_room(machine, load, allowed.cores)
        if math.sqrt(room.relative) <= _SEEN_ERROR:
            yield _processor("machine", load, machine, room, FULL, cores=allowed.cores)
            waits = waits_at_end(load, process, machine, allowed.cores, waits)
    yield _processor("interpreter", load, process, find_loop_room(process, load, waits), LOOP_FULL[limits], waits=waits)


def _processor(  # noqa: PLR0913  (one law with all that it needs)
    name: str,
    load: FullLoad,
    cpu: CpuDemands,
    room: Room,
    full: float,
    *,
    cores: float = 1.0,
    waits: WaitDemands = NEVER_WAITS,
) -> Resource:
    words = " + ".join(f"{cost * 1e3:.3f} ms {what}" for what, cost in room.costs.items() if cost)
    had = f"{full:g} x {cores:g} core{'' if cores == 1.0 else 's'}"
    if waits.lost or waits.slowed > 1:
        had = f"({full:g} - {waits.lost:.3f} lost) x 1 core / {waits.slowed:.2f} slowed"
    told_apart = cpu.apart or load.limits != "accepts"
    note = "" if told_apart else " (accepts came with one analysis each: told apart by a guess)"
    return _resource(
        name,
        load.limits,
        room.per_second,
        f"({had} - {min(cpu.idle, cores / 2):.3f} idle) / ({words}){note}",
        relative=room.relative,
    )


# --- places


def _committer(commit: CommitDemands, rows: int) -> Resource:
    seconds = commit.each + commit.row * rows
    return _resource(
        "committer",
        "accepts",
        rows / seconds,
        f"{rows} {plural(rows, 'row')}"
        f" / ({commit.each * 1e3:.2f} ms a transaction + {rows} x {commit.row * 1e3:.3f} ms a row)",
        relative=variance(commit.covariance, (1 / seconds, rows / seconds)),
    )


def _pace(pace: PaceDemands) -> Resource:
    """Return where accepts leave analyses as much as they need: X * analysis = 1 - lost - X * accept."""
    cost = pace.analysis + pace.accept
    left = max(0.0, 1.0 - pace.lost)
    rate = max(left / cost, FLOOR / pace.analysis)
    return _resource(
        "pace",
        "both",
        rate,
        f"(1 - {pace.lost:.3f} lost) / ({pace.analysis * 1e3:.2f} ms an analysis + {pace.accept * 1e3:.2f} ms that an"
        f" accept keeps from analyses), at least {FLOOR:g} / {pace.analysis * 1e3:.2f} ms",
        relative=variance(pace.covariance, (1 / max(left, FLOOR), 1 / cost)),
    )


def _places(name: str, setting: str, count: int, held_seconds: float, what: str) -> Resource:
    return _resource(name, "analyses", count / held_seconds, f"{setting} {count} / {held_seconds:.3g} s ({what})")
