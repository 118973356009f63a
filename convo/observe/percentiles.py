"""Computes percentiles of what a distribution has gained between two looks; open it to change how they are estimated.

A distribution (``metrics``) only counts how many figures fell at or below each bound. Within two bounds the figures are
taken as spread evenly, as Prometheus does it.
"""

from __future__ import annotations

from collections.abc import Sequence


def gained(now: Sequence[int], before: Sequence[int]) -> list[int]:
    """Return by how much each count has grown."""
    return [count - earlier for count, earlier in zip(now, before, strict=True)]


def percentile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Estimate below which figure a ``share`` of them lies (0.99: the 99th percentile), in the unit of the bounds.

    ``counts`` has one more than there are bounds: what was above the last one, which is then the estimate. None where
    nothing was counted.
    """
    total = sum(counts)
    if not total:
        return None
    wanted, reached, lower = share * total, 0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and reached + count >= wanted:
            return lower + (bound - lower) * (wanted - reached) / count
        reached += count
        lower = bound
    return lower
