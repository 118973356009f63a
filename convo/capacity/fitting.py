"""Least squares without negative answers: finds what each piece of work costs from many sums, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from msgspec import Struct

_SMALL = 1e-12

Rows = Sequence[Sequence[float]]


class Sum(Struct, frozen=True, kw_only=True):
    """One sum that is known: ``counts`` of each kind cost ``total``, give or take ``error`` (one standard deviation).

    What is known beforehand is a sum, too: that b costs about 3 a is counts of (-3, 1) with a total of 0.
    """

    counts: Sequence[float]
    total: float
    error: float


class Fit(Struct, frozen=True, kw_only=True):
    """The cost of one of each kind, and how the errors of these costs go together (their covariance)."""

    costs: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    def variance(self, counts: Sequence[float]) -> float:
        """Return the variance of what so many of each kind cost together."""
        return variance(self.covariance, counts)


def variance(covariance: Rows, counts: Sequence[float]) -> float:
    """Return the variance of a sum of costs with this covariance; 0 where there is none."""
    rows = zip(counts, covariance, strict=False)
    found = sum(one * sum(other * each for other, each in zip(counts, row, strict=True)) for one, row in rows)
    return max(0.0, found)


def fit_sums(sums: Sequence[Sum]) -> Fit:
    """Return the costs that come nearest to all sums, each as far as it is sure, none of them below 0.

    Raises:
        ValueError: the counts are not of one length, or the sums do not say anything of one kind.
    """
    rows = [[count / one.error for count in one.counts] for one in sums]
    costs = fit_costs(rows, [one.total / one.error for one in sums])
    kinds = range(len(costs))
    columns = [_solved(rows, [], kinds, right=[float(at == kind) for at in kinds]) for kind in kinds]
    if any(column is None for column in columns):
        raise ValueError("of one kind nothing is known: give a sum for it, however unsure")
    return Fit(costs=costs, covariance=tuple(tuple(column) for column in columns if column is not None))


def fit_costs(counts: Rows, totals: Sequence[float]) -> tuple[float, ...]:
    """Return the cost of one of each kind, none below 0, whose sums come nearest to ``totals``.

    ``counts`` holds a row for each total: how many of each kind it is made of. A kind that is in no row costs 0. Every
    choice of kinds is solved, which is quick for the three or four that there are here.

    Raises:
        ValueError: the rows are not of one length, or there are not as many as totals.
    """
    kinds = len(counts[0]) if counts else 0
    if len(counts) != len(totals) or any(len(row) != kinds for row in counts):
        raise ValueError("each total needs one row of counts, and all rows are of one length")
    best, least = (0.0,) * kinds, sum(total * total for total in totals)
    for chosen in _choices(kinds):
        found = _solved(counts, totals, chosen)
        if found is None or min(found) < 0:
            continue
        costs = dict(zip(chosen, found, strict=True))
        every = tuple(costs.get(kind, 0.0) for kind in range(kinds))
        missed = sum(
            (total - sum(cost * count for cost, count in zip(every, row, strict=True))) ** 2
            for row, total in zip(counts, totals, strict=True)
        )
        if missed < least:
            best, least = every, missed
    return best


def _choices(kinds: int) -> Iterator[tuple[int, ...]]:
    for size in range(1, kinds + 1):
        yield from combinations(range(kinds), size)


def _solved(
    counts: Rows, totals: Sequence[float], chosen: Sequence[int], right: list[float] | None = None
) -> list[float] | None:
    """Solve the normal equations for these kinds alone, or with another right side; None without a single answer."""
    matrix = [[sum(row[one] * row[other] for row in counts) for other in chosen] for one in chosen]
    if right is None:
        right = [sum(row[one] * total for row, total in zip(counts, totals, strict=True)) for one in chosen]
    size = len(chosen)
    # Kinds of which there are thousands stand beside those of which there are few: the pivots are judged by the scale.
    scales = [matrix[at][at] for at in range(size)]
    for at in range(size):
        if matrix[at][at] <= _SMALL * max(scales[at], _SMALL):
            return None
        for below in range(at + 1, size):
            factor = matrix[below][at] / matrix[at][at]
            matrix[below] = [a - factor * b for a, b in zip(matrix[below], matrix[at], strict=True)]
            right[below] -= factor * right[at]
    found = [0.0] * size
    for at in reversed(range(size)):
        known = sum(matrix[at][after] * found[after] for after in range(at + 1, size))
        found[at] = (right[at] - known) / matrix[at][at]
    return found
