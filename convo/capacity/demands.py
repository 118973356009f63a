"""What one conversation costs of each resource, and how sure that is: the service demands of a process.

They are those of the utilisation law, U = X * D (Lazowska, Zahorjan, Graham and Sevcik, "Quantitative System
Performance", 1984, chapter 3): what is busy is the rate times the demand. ``finding`` finds them.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

Covariance = tuple[tuple[float, ...], ...]


class CpuDemands(Struct, frozen=True, kw_only=True):
    """Processor seconds: ``idle`` a second without work, and for each accept, transaction of accepts and analysis.

    ``upkeep`` is of a transaction of jobs, a lease or a settle, with what the loop does once for each. ``apart``:
    whether the loads that were seen tell accepts and analyses apart. ``covariance`` is of the five figures.
    """

    idle: float = 0.0
    accept: float = 0.0
    commit: float = 0.0
    analysis: float = 0.0
    upkeep: float = 0.0
    apart: bool = True
    covariance: Covariance = ()


class CommitDemands(Struct, frozen=True, kw_only=True):
    """How long a transaction of the committer takes: ``each`` whatever is in it, and ``row`` for each conversation."""

    each: float = 0.0
    row: float = 0.0
    covariance: Covariance = ()


class WaitDemands(Struct, frozen=True, kw_only=True):
    """For how long the loop's thread waits for a processor: ``lost`` of the time whatever it does, and with its work.

    ``slowed`` is how many times longer its work takes by that.
    """

    lost: float = 0.0
    slowed: float = 1.0
    covariance: Covariance = ()


class PaceDemands(Struct, frozen=True, kw_only=True):
    """What the pace reckons with: ``analysis`` seconds of the interpreter, and what accepts take from analyses.

    ``lost`` is the share that analyses never had, and ``accept`` seconds are lost to them with each accept.
    """

    analysis: float
    lost: float = 0.0
    accept: float = 0.0
    covariance: Covariance = ()


class Demands(Struct, frozen=True, kw_only=True):
    """What was measured, and what one conversation costs.

    ``accepted_most`` and ``analysed_most`` are the highest rates that were seen. ``process`` and ``machine`` are
    processor time; ``machine`` is None where the system does not count it, or others keep it so busy (``others``, in
    cores) that nothing can be seen. ``calls`` and ``call_seconds`` are of one conversation, by dependency; so are the
    figures that follow ``waits``.
    """

    seconds: float
    readings: int
    accepted: float
    analysed: float
    process: CpuDemands
    machine: CpuDemands | None
    commit: CommitDemands
    pace: PaceDemands | None = None
    accepted_most: float = 0.0
    analysed_most: float = 0.0
    others: float = 0.0
    waits: WaitDemands = WaitDemands()
    settle_seconds: float = 0.0
    job_seconds: float = 0.0
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    price: float = 0.0
    object_bytes: float = 0.0
    calls: Mapping[str, float] = {}
    call_seconds: Mapping[str, float] = {}
