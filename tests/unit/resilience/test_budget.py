from __future__ import annotations

from convo.resilience.budget import RetryBudget


def spent(budget: RetryBudget, now: float, tries: int = 1000) -> int:
    return sum(budget.spend(now) for _ in range(tries))


def test_a_fifth_of_the_calls_may_be_made_again() -> None:
    budget = RetryBudget(0.2, 0)
    for _ in range(100):
        budget.note_call(0.0)
    assert spent(budget, 1.0) == 20


def test_a_few_may_always() -> None:
    budget = RetryBudget(0.2, 3)
    budget.note_call(0.0)
    assert spent(budget, 0.0) == 3


def test_what_is_over_a_minute_old_counts_no_more() -> None:
    budget = RetryBudget(0.2, 3)
    for _ in range(100):
        budget.note_call(0.0)
    assert spent(budget, 59.9) == 20
    assert spent(budget, 60.0) == 0  # the calls are gone, the retries are not
    assert spent(budget, 119.9) == 3


def test_a_refused_retry_takes_nothing() -> None:
    budget = RetryBudget(0.0, 1)
    assert spent(budget, 0.0) == 1
    assert spent(budget, 60.0, 1) == 1
