"""The budget of a day: whether calls may still be made, by what all processes have spent since 00:00 UTC.

It learns the sum from whoever reads it in the database, and counts what this process has spent since. Calls that are
under way when the budget is spent are made to their end: it can be passed by what they cost.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from convo.observe import log_records
from convo.settings import NANO


class DailyBudget:
    """The budget of one process; ``limit`` is in the currency of the prices.

    ``changed`` is called when it is spent, and when it is free again.
    """

    def __init__(self, limit: float, changed: Callable[[], None] = lambda: None) -> None:
        self._limit = limit
        self._changed = changed
        self._day = ""
        self._known = 0
        self._unbooked = 0
        self._ends_at: float | None = None
        self._was_spent = False

    def note_paid(self, nano: int) -> None:
        """Note what a call of this process costs that is not in the sum yet."""
        self._unbooked += nano
        self._note_change()

    def learn(self, day: str, nano: int, seconds_left: float, *, booked: int = 0) -> None:
        """Note the sum of ``day``, of which ``seconds_left`` are left; it holds ``booked``, noted before as paid."""
        self._unbooked -= booked
        # Two transactions may be learnt in another order than they were committed in: a sum only grows.
        self._known = max(nano, self._known) if day == self._day else nano
        self._day = day
        self._ends_at = trio.current_time() + seconds_left
        self._note_change()

    def forget(self) -> None:
        """Forget the sum: the database went back."""
        self._day, self._known, self._ends_at = "", 0, None

    def is_known(self) -> bool:
        """Return whether the sum was read."""
        return self._ends_at is not None

    def reason(self) -> str:
        """Return why no call may be made now; empty where it may."""
        if self._ends_at is None:
            return "what was spent today is not read yet, and llm.daily_budget bounds it"
        if not self.is_spent():
            return ""
        return (
            f"llm.daily_budget = {self._limit:g} is spent: {self._spent():.4f} on {self._day};"
            " jobs wait until 00:00 UTC, or until it is raised"
        )

    def _spent(self) -> float:
        return (self._known + self._unbooked) / NANO

    def is_spent(self) -> bool:
        """Return whether it is known to be spent."""
        # A new day has begun, whoever reads its sum first.
        if self._ends_at is None or trio.current_time() >= self._ends_at:
            return False
        return self._spent() >= self._limit

    def _note_change(self) -> None:
        """Report once when it is spent, and once when calls are made again."""
        spent = self.is_spent()
        if spent == self._was_spent:
            return
        self._was_spent = spent
        if spent:
            log_records.budget_spent(dependency="llm", budget=self._limit, spent=round(self._spent(), 6), day=self._day)
        else:
            log_records.budget_free(dependency="llm", budget=self._limit)
        self._changed()
