from __future__ import annotations

import pytest

from convo.observe.metrics import Distribution
from convo.observe.percentiles import gained, percentile

BOUNDS = (1.0, 2.0, 4.0)


def test_what_came_between_two_looks_is_counted() -> None:
    assert gained([3, 5, 0, 1], [1, 5, 0, 0]) == [2, 0, 0, 1]


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        # Ten between 0 and 1: spread evenly.
        ([10, 0, 0, 0], 0.5, 0.5),
        ([10, 0, 0, 0], 0.99, 0.99),
        # Half below 1, half between 2 and 4.
        ([5, 0, 5, 0], 0.5, 1.0),
        ([5, 0, 5, 0], 0.75, 3.0),
        ([5, 0, 5, 0], 1.0, 4.0),
        # What is above the last bound is at least that.
        ([1, 0, 0, 99], 0.99, 4.0),
    ],
)
def test_a_percentile_lies_between_the_bounds_of_its_figures(counts: list[int], share: float, expected: float) -> None:
    assert percentile(BOUNDS, counts, share) == pytest.approx(expected)


def test_of_nothing_there_is_no_percentile() -> None:
    assert percentile(BOUNDS, [0, 0, 0, 0], 0.99) is None


def test_it_reads_the_counts_of_a_distribution() -> None:
    distribution = Distribution(BOUNDS)
    for figure in (0.5, 1.5, 1.5, 9.0):
        distribution.observe(figure)
    assert percentile(distribution.bounds, distribution.counts, 0.75) == pytest.approx(2.0)
