"""How many conversations a second each resource of one process allows, with the formula and its numbers.

Two laws are used, each on one resource at a time. **Utilisation law**: a resource is busy for U = X * D, so a processor
of one core ends at X = 1 / D. **Little's law**: N = X * R are under way at once (Little, "A proof for the queuing
formula L = λW", 1961), so N places that are held for R seconds each end at X = N / R. The least of them all is the
bottleneck. Both hold whatever the arrivals are like; what they leave out is that waits grow before the end is reached,
so a plan stays below it (``PLANNED_SHARE``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

from msgspec import Struct

from convo.capacity.demands import CommitDemands, CpuDemands, Demands
from convo.runtime.pace import BOOKKEEPING_SECONDS, balanced_rate

PLANNED_SHARE = 0.7
"""So much of what a resource allows is planned with: at 0.7, a wait is about three times the work itself."""

Work = Literal["accepts", "analyses", "both"]
"""What needs a resource: taking conversations in, analysing them, or both."""

_DAY_SECONDS = 86_400


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

    ``limits`` is what it limits. ``shared`` resources are not more with more processes.
    """

    name: str
    limits: Work
    per_second: float
    formula: str
    shared: bool = False


def find_resources(demands: Demands, allowed: Allowance) -> tuple[Resource, ...]:
    """Return every resource that was in use, those of accepts first; one that costs nothing measurable is none."""
    found = [*_for_accepts(demands, allowed), *(_for_analyses(demands, allowed) if demands.analysed else ())]
    return tuple(one for one in found if math.isfinite(one.per_second))


def _for_accepts(demands: Demands, allowed: Allowance) -> Iterator[Resource]:
    if not demands.accepted:
        return
    yield _processor("interpreter", "accepts", demands.process, allowed.batch_rows)
    if demands.machine is not None:
        yield _processor("machine", "accepts", demands.machine, allowed.batch_rows, cores=allowed.cores)
    if demands.commit.each or demands.commit.row:
        yield _committer(demands.commit, allowed.batch_rows)


def _for_analyses(demands: Demands, allowed: Allowance) -> Iterator[Resource]:
    work: Work = "both" if demands.accepted else "analyses"
    yield _processor("interpreter", work, demands.process, allowed.batch_rows)
    if demands.machine is not None:
        yield _processor("machine", work, demands.machine, allowed.batch_rows, cores=allowed.cores)
    if demands.accepted:
        yield _pace(demands)
    if allowed.workers and demands.job_seconds:
        yield _places("workers", "jobs.workers", allowed.workers, demands.job_seconds, "a job")
    for name, count in allowed.concurrency.items():
        held, calls = demands.call_seconds.get(name, 0.0), demands.calls.get(name, 0.0)
        if held > 0 and calls > 0:
            what = f"{calls:.2f} calls of {held / calls:.3g} s each"
            yield _places(name, f"concurrency of {name}", count, held, what)
    if allowed.daily_budget and demands.price > 0:
        budget = f"llm.daily_budget {allowed.daily_budget:g}"
        yield Resource(
            name="daily budget",
            limits="analyses",
            per_second=allowed.daily_budget / demands.price / _DAY_SECONDS,
            formula=f"{budget} / {demands.price:.6g} a conversation / {_DAY_SECONDS} s",
            shared=True,
        )


# --- processors


def _processor(name: str, limits: Work, cpu: CpuDemands, rows: int, *, cores: float = 1.0) -> Resource:
    """Apply the utilisation law to the processors of the machine, or to the one that runs the interpreter.

    At a low rate each accept has a transaction of its own. The fuller the processor, the more accepts gather while a
    transaction is under way: at the end up to ``rows`` share one.
    """
    # Whoever else wants the processors has to share them: more than half of them is not lost to others.
    idle = min(cpu.idle, cores / 2)
    costs = {"an accept": cpu.accept, f"a transaction / {rows} rows": cpu.commit / rows} if limits != "analyses" else {}
    costs |= {"an analysis": cpu.analysis} if limits != "accepts" else {}
    one = sum(costs.values())
    words = " + ".join(f"{cost * 1e3:.3f} ms {what}" for what, cost in costs.items() if cost)
    note = "" if cpu.apart else " (an accept with its analysis: they came at one ratio)"
    return Resource(
        name=name,
        limits=limits,
        per_second=(cores - idle) / one if one else math.inf,
        formula=f"({cores:g} core{'' if cores == 1.0 else 's'} - {idle:.3f} idle) / ({words}){note}",
    )


# --- places


def _committer(commit: CommitDemands, rows: int) -> Resource:
    seconds = commit.each + commit.row * rows
    return Resource(
        name="committer",
        limits="accepts",
        per_second=rows / seconds,
        formula=f"{rows} rows / ({commit.each * 1e3:.2f} ms a transaction + {rows} x {commit.row * 1e3:.3f} ms a row)",
    )


def _pace(demands: Demands) -> Resource:
    cost = demands.analyst_seconds + BOOKKEEPING_SECONDS
    return Resource(
        name="pace",
        limits="both",
        per_second=balanced_rate(cost, demands.accept_busy_seconds),
        formula=f"analyses have what accepts leave: {cost * 1e3:.2f} ms an analysis, and accepts that were under way"
        f" for {demands.accept_busy_seconds * 1e3:.2f} ms each",
    )


def _places(name: str, setting: str, count: int, held_seconds: float, what: str) -> Resource:
    return Resource(
        name=name,
        limits="analyses",
        per_second=count / held_seconds,
        formula=f"{setting} {count} / {held_seconds:.3g} s ({what})",
    )
