"""What jobs spend on language models: notes each call as it is answered, stores it, and knows the budget of the day.

Open it to change when costs are stored, or by what they are counted. They are stored before the parts that they brought
and before each ending of a job. What cannot be stored then is stored with the next that can be. A process that dies
loses what the runs under way had not stored yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Protocol, TypeVar

import trio

from convo.analysis.job_calls import JobCalls, PaidCall, working_for
from convo.analysis.llm_usage import shared_out
from convo.analysis.remote import RemoteAnalyst
from convo.conversation.tenant import Tenant
from convo.errors import ConvoError
from convo.observe import log_records, metrics
from convo.resilience.daily_budget import DailyBudget
from convo.runtime.deadline import deadline
from convo.settings import NANO, Settings
from convo.store import costs
from convo.store.costs import CostRow, DaySum
from convo.store.group import Group
from convo.store.postgres import RELAXED, Connection, Postgres

T = TypeVar("T")

BOTS_MAX = 100
"""So many bots, each of one tenant, have metrics of their own; all others are one, called ``other``."""
_ROWS_MAX = 512
_LATE_MAX = 10_000
# The batch under way and one's own, and half a unit for the loop.
_UNITS = 2.5
_OTHER = ("other", "other")


class PaidWork(Protocol):
    """What calls are made for: a lease, a part job, or a conversation of a re-run."""

    @property
    def seq(self) -> int: ...  # noqa: D102
    @property
    def tenant(self) -> Tenant: ...  # noqa: D102
    @property
    def bot_id(self) -> str: ...  # noqa: D102


class Spending:
    """The calls of one process; ``budget`` is None where there is no limit."""

    def __init__(self, postgres: Postgres, budget: DailyBudget | None, look_seconds: float) -> None:
        self._postgres = postgres
        self._budget = budget
        self._look_seconds = look_seconds
        self._late: deque[CostRow] = deque(maxlen=_LATE_MAX)
        self._bots: set[tuple[str, str]] = set()
        self._group: Group[Sequence[CostRow], None] = Group(
            self._commit,
            rows_max=_ROWS_MAX,
            bytes_max=_ROWS_MAX,
            unit_seconds=postgres.unit_seconds,
            item_bytes=len,
        )

    def calls_of(self, work: PaidWork) -> JobCalls:
        """Return what notes the calls that are made for this work."""
        return JobCalls(work.seq, self._noted, (work.tenant.name, work.bot_id))

    def _noted(self, call: PaidCall) -> None:
        if self._budget is not None and call.nano:
            self._budget.note_paid(call.nano)

    def _shown(self, bot: tuple[str, str]) -> tuple[str, str]:
        if bot not in self._bots:
            if len(self._bots) >= BOTS_MAX:
                return _OTHER
            self._bots.add(bot)
        return bot

    async def store(self, calls: JobCalls) -> None:
        """Store what these calls cost; what cannot be stored now is stored later."""
        taken = calls.take()
        for call in taken:
            _count(call, *self._shown(calls.bot))
        rows = [row for call in taken for row in _rows(calls.seq, call)]
        if not rows and not self._late:
            return
        late = list(islice(self._late, _ROWS_MAX - len(rows))) if len(rows) < _ROWS_MAX else []
        for _ in late:
            self._late.popleft()
        rows += late
        stored = False
        try:
            with deadline("job.costs", _UNITS * self._postgres.unit_seconds):
                await self._group.submit(rows)
            stored = True
        except ConvoError as error:
            log_records.costs_not_stored(rows=len(self._late) + len(rows), reason=error.detail)
        finally:
            if not stored:
                # Each row is told apart by its number: one that was stored after all does no harm a second time.
                self._late += rows

    async def run_group(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store batch after batch until cancelled."""
        await self._group.run(task_status=task_status)

    async def _commit(self, batches: Sequence[Sequence[CostRow]]) -> list[None]:
        rows = [row for batch in batches for row in batch]

        async def body(connection: Connection) -> DaySum:
            return await costs.store_costs(connection, rows)

        self._learn(await self._postgres.run("db.costs", body, begin=RELAXED), sum(row.nano or 0 for row in rows))
        return [None] * len(batches)

    def _learn(self, found: DaySum, booked: int = 0) -> None:
        metrics.llm_spent_today.set(found.nano / NANO)
        if self._budget is not None:
            self._budget.learn(found.day.isoformat(), found.nano, found.seconds_left, booked=booked)

    async def look(self) -> None:
        """Read what all processes have spent today again and again, until cancelled."""
        while True:
            try:
                self._learn(await costs.read_day(self._postgres))
            except ConvoError as error:
                log_records.day_sum_not_read(reason=error.detail)
            await trio.sleep(self._look_seconds)

    def is_ready(self) -> bool:
        """Return whether it is known what was spent today, where that is bounded: no job starts before."""
        return self._budget is None or self._budget.is_known()

    @property
    def warning(self) -> str:
        """What ``/readyz`` warns of: that the budget is spent; empty where it is not."""
        if self._budget is None or not self._budget.is_spent():
            return ""
        return f"LLM_BUDGET_SPENT: {self._budget.reason()}"

    def forget(self) -> None:
        """Forget what was learned from the database before it went back."""
        self._late.clear()
        if self._budget is not None:
            self._budget.forget()


def spending_of(
    settings: Settings,
    postgres: Postgres,
    remotes: Sequence[RemoteAnalyst],
    changed: Callable[[], None] = lambda: None,
) -> Spending | None:
    """Make what counts the calls of a process, and withholds them while the budget is spent; None without a model."""
    llm = settings.llm
    if not llm.model:
        return None
    budget = DailyBudget(llm.daily_budget, changed) if llm.daily_budget else None
    if budget is not None:
        for remote in remotes:
            if remote.kind == "llm":
                remote.dependency.withheld = budget.reason
    return Spending(postgres, budget, settings.jobs.heartbeat_seconds)


async def counted(spending: Spending | None, work: PaidWork, find: Callable[[], Awaitable[T]]) -> T:
    """Call ``find``, and store what it has asked of language models, whatever comes of it."""
    if spending is None:
        return await find()
    calls = spending.calls_of(work)
    try:
        with working_for(calls):
            return await find()
    finally:
        # Where this is cancelled it is stored with the next that is.
        await spending.store(calls)  # noqa: ASYNC102  (it has a deadline)


def _rows(seq: int, call: PaidCall) -> list[CostRow]:
    tokens, among = call.tokens, len(call.parts)
    counts = (None, None, None) if tokens is None else (tokens.sent, tokens.answered, tokens.cached)
    sent, answered, cached, nano = (shared_out(number, among) for number in (*counts, call.nano))
    return [
        CostRow(
            seq=seq,
            call=call.number,
            part=part,
            by=call.by,
            sent=sent[place],
            answered=answered[place],
            cached=cached[place],
            nano=nano[place],
        )
        for place, part in enumerate(call.parts)
    ]


def _count(call: PaidCall, tenant: str, bot: str) -> None:
    if call.tokens is None:
        metrics.llm_unknown_calls_total.labels(call.server).inc()
        return
    if call.nano is None:
        metrics.llm_unpriced_calls_total.labels(call.server).inc()
    tokens = call.tokens
    for kind, number in (("in", tokens.sent), ("out", tokens.answered), ("cached", tokens.cached)):
        metrics.llm_bot_tokens_total.labels(tenant, bot, kind).inc(number)
        for part, share in zip(call.parts, shared_out(number, len(call.parts)), strict=True):
            metrics.llm_tokens_total.labels(call.server, part, kind).inc(share or 0)
    if call.nano:
        metrics.llm_bot_price_total.labels(tenant, bot).inc(call.nano / NANO)
        for part, share in zip(call.parts, shared_out(call.nano, len(call.parts)), strict=True):
            metrics.llm_price_total.labels(call.server, part).inc((share or 0) / NANO)
