from __future__ import annotations

import pytest

from convo.capacity.fitting import Sum, fit_costs, fit_sums, variance


def test_costs_of_several_kinds_are_found_from_their_sums() -> None:
    counts = [(100.0, 100.0, 0.0), (400.0, 200.0, 3.0), (900.0, 300.0, 9.0), (50.0, 50.0, 40.0)]
    totals = [sum(cost * count for cost, count in zip((0.0002, 0.0005, 0.01), row, strict=True)) for row in counts]
    assert fit_costs(counts, totals) == pytest.approx((0.0002, 0.0005, 0.01))


def test_no_cost_is_below_nothing() -> None:
    # Without the bound, the second kind would cost -1.
    assert fit_costs([(1.0, 0.0), (2.0, 1.0), (3.0, 3.0)], [2.0, 3.0, 3.0])[1] == 0.0


def test_a_kind_of_which_there_is_none_costs_nothing() -> None:
    assert fit_costs([(2.0, 0.0), (4.0, 0.0)], [1.0, 2.0]) == pytest.approx((0.5, 0.0))


def test_kinds_that_always_come_together_are_charged_to_one_of_them() -> None:
    found = fit_costs([(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)], [10.0, 20.0, 30.0])
    assert min(found) == 0.0
    assert found[0] + 2 * found[1] == pytest.approx(10.0)


def test_rows_that_do_not_fit_their_totals_are_refused() -> None:
    with pytest.raises(ValueError, match="each total needs one row"):
        fit_costs([(1.0,)], [1.0, 2.0])
    assert fit_costs([], []) == ()


def test_sums_count_as_far_as_they_are_sure() -> None:
    found = fit_sums(
        [Sum(counts=(1.0,), total=10.0, error=1.0), Sum(counts=(1.0,), total=20.0, error=2.0)],
    )
    assert found.costs == pytest.approx((12.0,))
    assert found.variance((1.0,)) == pytest.approx(1 / (1 + 1 / 4))


def test_what_is_known_beforehand_tells_apart_what_always_comes_together() -> None:
    both, known = Sum(counts=(1.0, 1.0), total=8.0, error=0.1), Sum(counts=(-3.0, 1.0), total=0.0, error=1.0)
    found = fit_sums([both, both, known])
    assert found.costs == pytest.approx((2.0, 6.0))
    # Their sum is sure, and what each of them is, is not.
    assert found.variance((1.0, 1.0)) == pytest.approx(0.1**2 / 2)
    assert found.variance((1.0, 0.0)) == pytest.approx((1.0**2 + 0.1**2 / 2) / 16, rel=0.01)


def test_a_kind_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(ValueError, match="of one kind nothing is known"):
        fit_sums([Sum(counts=(1.0, 0.0), total=1.0, error=1.0)])


def test_without_a_covariance_a_figure_is_taken_as_it_is() -> None:
    assert variance((), (1.0, 2.0)) == 0.0
