"""How much work processors have room for at the end: the interpreter's one, or all of the machine.

Open it to change how accepts share transactions, or how the loop waits for a processor, when there is no room left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, structs

from convo.capacity.demands import CpuDemands, WaitDemands
from convo.capacity.fitting import variance
from convo.plural import plural
from convo.runtime.pace import SETTLE_GATHER_SECONDS, SETTLED_ROWS_MAX

Work = Literal["accepts", "analyses", "both"]
"""What needs a resource: taking conversations in, analysing them, or both."""

FULL = 0.9
"""So much of the time the cores of a machine have work at the end."""

LOOP_FULL: Mapping[Work, float] = {"accepts": 0.8, "both": 0.95, "analyses": 0.95}
"""So much of the time the loop works, or waits for a processor, at the end.

Accepts wait for transactions besides. Where they alone filled the loop, scripts/bench/load_test.py found 0.60 to 0.94
in 24 steps that convo did not keep up with, 0.80 on average. Beside analyses it found 0.94 to 0.99 in 15 steps."""

UPKEEP_ALONE = 3
"""So many transactions of jobs a conversation has at a low rate: its lease, one that finds nothing more, its settle."""

NEVER_WAITS = WaitDemands()

# How many rows, or analyses, share a transaction at the end is known within a factor of about two.
_ROWS_ERROR = 0.5
# Who else wants the processors changes: of what is waited for at the end, the loads below it say all but so much.
_WAITS_ERROR = 0.5
_ROUNDS = 20


class Room(Struct, frozen=True, kw_only=True):
    """Cores that are ``free`` for conversations, and what one takes of them in seconds, by what it is for.

    ``rows`` share a transaction. ``relative`` is the variance of the logarithm of the rate that this allows.
    """

    free: float
    rows: int
    costs: Mapping[str, float]
    relative: float

    @property
    def cost(self) -> float:
        """What one conversation takes."""
        return sum(self.costs.values())

    @property
    def per_second(self) -> float:
        """The conversations a second that there is room for; infinite where they cost nothing."""
        return self.free / self.cost if self.cost else math.inf


class FullLoad(Struct, frozen=True, kw_only=True):
    """What fills the processors: ``limits``, with transactions of up to ``rows_max`` that take ``commit_seconds``.

    Those in which analyses end take ``settle_seconds``.
    """

    limits: Work
    rows_max: int
    commit_seconds: float
    settle_seconds: float = 0.0


def find_loop_room(cpu: CpuDemands, load: FullLoad, waits: WaitDemands) -> Room:
    """Find what is free for conversations of the loop's one core; as ``find_room``."""
    return find_room(cpu, load, 1.0, waits, LOOP_FULL[load.limits])


def find_room(
    cpu: CpuDemands, load: FullLoad, cores: float, waits: WaitDemands = NEVER_WAITS, full: float = FULL
) -> Room:
    """Find what is free at the end, and what one conversation takes then; ``full`` is how busy the cores are then.

    Whoever else wants the processors has to share them: more than half of them is not lost to others.
    """
    had = max(full - waits.lost, full / 2) * cores / waits.slowed
    free = max(had - min(cpu.idle, cores / 2), cores / 100)
    accept, commit = (0.0, 0.0) if load.limits == "analyses" else (cpu.accept, cpu.commit)
    analysis = 0.0 if load.limits == "accepts" else cpu.analysis
    # What is busy with accepts alone makes them wait for each other; beside analyses, accepts come first.
    held = load.commit_seconds / (1 - LOOP_FULL["accepts"]) if load.limits == "accepts" else load.commit_seconds
    upkeep, each_end = 0.0 if load.limits == "accepts" else cpu.upkeep, 0.0
    rows = _rows(free, accept + analysis + upkeep, commit, load.rows_max, held)
    shared = f"a transaction / {rows} {plural(rows, 'row')}"
    costs = {"an accept": accept, shared: commit / rows, "an analysis": analysis}
    if upkeep:
        # At the end each lease finds something, and a settle is for all that end within a moment.
        each = accept + commit / rows + analysis + upkeep
        ends = _rows(free, each, upkeep, SETTLED_ROWS_MAX, load.settle_seconds + SETTLE_GATHER_SECONDS)
        each_end = 1 + 1 / ends
        costs[f"a lease, and a settle / {ends}"] = upkeep * each_end
    cost = sum(costs.values())
    if not cost:
        return Room(free=free, rows=rows, costs=costs, relative=0.0)
    # How the logarithm of free / cost moves with each figure of the fits.
    parts = (bool(accept), bool(commit) / rows, bool(analysis), bool(upkeep) * each_end)
    moves = (-1 / free, *(-part / cost for part in parts))
    relative = (
        variance(cpu.covariance, moves)
        + (_ROWS_ERROR * commit / rows / cost) ** 2
        + (_ROWS_ERROR * max(0.0, each_end - 1) * upkeep / cost) ** 2
    )
    relative += (_WAITS_ERROR * (waits.slowed - 1) / waits.slowed) ** 2
    relative += variance(waits.covariance, (-cores / waits.slowed / free, -had / waits.slowed / free))
    return Room(free=free, rows=rows, costs=costs, relative=relative)


def waits_at_end(
    load: FullLoad, process: CpuDemands, machine: CpuDemands, cores: float, waits: WaitDemands
) -> WaitDemands:
    """Return how the loop waits at its end for those that share the cores with it, if that is more than it did.

    It waits where all cores are busy with others. PostgreSQL and clients are among these, and do more at a higher rate.
    """
    slowed, rate = waits.slowed, 0.0
    for _ in range(_ROUNDS):
        room = find_loop_room(process, load, structs.replace(waits, slowed=slowed))
        if not room.cost:
            break
        rate = ((rate or room.per_second) + room.per_second) / 2
        shared = find_room(machine, structs.replace(load, rows_max=room.rows), cores)
        others = max(0.0, machine.idle - process.idle) + rate * max(0.0, shared.cost - room.cost)
        slowed = max(waits.slowed, 1 / (1 - min(others / cores, FULL) ** cores))
    return structs.replace(waits, slowed=slowed)


def _rows(free: float, each: float, commit: float, rows_max: int, held_seconds: float) -> int:
    """Return how many accepts share a transaction at the end, where one is under way for ``held_seconds``.

    At a low rate each accept has a transaction of its own. While one is under way, the next rows gather.
    """
    if free * held_seconds <= each + commit:
        return 1
    # Transactions follow each other without a pause, 1 / held a second, whatever the rate.
    rate = (free - commit / held_seconds) / each if each else math.inf
    return max(1, math.ceil(min(rate * held_seconds, rows_max)))
