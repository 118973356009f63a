from __future__ import annotations

import trio
from trio.testing import MockClock

from convo.resilience.daily_budget import DailyBudget
from convo.settings import NANO
from tests.support.making import told

HOUR = 3600.0
CENT = NANO // 100


async def test_nothing_is_called_before_the_sum_is_read() -> None:
    budget = DailyBudget(1.0)
    assert "not read yet" in budget.reason()
    budget.learn("2026-11-30", 0, HOUR)
    assert budget.reason() == ""
    budget.forget()
    assert "not read yet" in budget.reason()


async def test_it_is_spent_by_what_all_processes_spent_and_what_this_one_has_not_booked() -> None:
    budget = DailyBudget(1.0)
    budget.learn("2026-11-30", 60 * CENT, HOUR)
    budget.note_paid(39 * CENT)
    assert budget.reason() == ""
    budget.note_paid(1 * CENT)
    assert budget.reason() == (
        "llm.daily_budget = 1 is spent: 1.0000 on 2026-11-30; jobs wait until 00:00 UTC, or until it is raised"
    )
    budget.learn("2026-11-30", 99 * CENT, HOUR, booked=39 * CENT)
    assert "1.0000" in budget.reason(), "what is booked does not count twice"


async def test_a_sum_of_the_same_day_that_comes_late_takes_nothing_off() -> None:
    budget = DailyBudget(1.0)
    budget.learn("2026-11-30", 100 * CENT, HOUR)
    budget.learn("2026-11-30", 10 * CENT, HOUR)
    assert "is spent" in budget.reason()


async def test_at_midnight_calls_are_made_again_by_themselves(autojump_clock: MockClock) -> None:
    budget = DailyBudget(1.0)
    with told() as events:
        budget.learn("2026-11-30", 100 * CENT, 5 * HOUR)
        await trio.sleep(5 * HOUR - 0.001)
        assert "is spent" in budget.reason()
        await trio.sleep(0.001)
        assert budget.reason() == ""
        budget.learn("2026-12-01", 3 * CENT, 24 * HOUR)
    assert budget.reason() == ""
    assert [name for name in events if name.startswith("budget")] == ["budget_spent", "budget_free"]


async def test_who_waits_is_called_when_it_is_spent_and_when_it_is_free() -> None:
    changes: list[str] = []
    budget = DailyBudget(1.0, lambda: changes.append(budget.reason()[:5]))
    budget.learn("2026-11-30", 100 * CENT, HOUR)
    budget.learn("2026-11-30", 100 * CENT, HOUR)
    budget.learn("2026-12-01", 0, HOUR)
    assert changes == ["llm.d", ""]
