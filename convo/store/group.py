"""Group commit: concurrent callers share one transaction, and each gets its own outcome.

Open it to change how batches form, or what happens when one fails. While one transaction is under way the next batch
gathers, so nobody waits for a timer. What is committed is the caller's affair.

A commit stands in the trace of each caller: its named waits, and before them the wait for the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter_ns
from typing import Generic, TypeVar

import trio

from convo.errors import BadRow, ConvoError, Draining, TransactionLost
from convo.observe import log_records, tracing
from convo.observe.traced_waits import PastWaits
from convo.runtime.bell import Bell

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Commit = Callable[[Sequence[Item]], Awaitable[Sequence[Outcome | ConvoError]]]

_NANO = 1_000_000_000


class Submitted(Generic[Item, Outcome]):
    """An item that is to be committed, and its outcome as soon as there is one."""

    __slots__ = ("_outcome", "_then", "afford_until", "answered", "gone", "item", "since_ns", "span")

    def __init__(self, item: Item, afford_until: float, then: Callable[[], None] | None = None) -> None:
        self.item = item
        self.afford_until = afford_until
        self.answered = trio.Event()
        self.gone = False
        self._outcome: Outcome | ConvoError | None = None
        self._then = then
        # Whose trace the commit is a part of, and since when it is waited for.
        self.span = tracing.current_span()
        self.since_ns = 0 if self.span is None else perf_counter_ns()

    @property
    def known(self) -> bool:
        """Whether the outcome is there."""
        return self._outcome is not None

    def answer(self, outcome: Outcome | ConvoError) -> None:
        """Give the caller its outcome, if it still waits."""
        if not self.gone:
            self._outcome = outcome
        self.answered.set()
        if self._then is not None:
            self._then()

    async def outcome(self) -> Outcome:
        """Wait for the outcome.

        When the caller is cancelled before its batch is taken, its item is not committed. Afterwards it is, and only
        the waiting ends.

        Raises:
            ConvoError: what the commit says of this item; Draining when the process stops.
        """
        try:
            await self.answered.wait()
        finally:
            self.gone = True
        outcome, self._outcome = self._outcome, None
        if not isinstance(outcome, ConvoError):
            return outcome  # type: ignore[return-value]
        try:
            raise outcome
        finally:
            # Error, traceback, this frame and the item are a cycle: without this they stay until the collector runs.
            del outcome

    def record(self, waits: PastWaits, began_ns: int, rows: int) -> None:
        """Record what the commit of a batch waited for, and the wait until it began, where the item has a trace."""
        if self.span is None:
            return
        now_ns = perf_counter_ns()
        # Of a batch that is tried again, or in halves, the wait for each commit counts from the one before.
        waited, ago = (began_ns - self.since_ns) / _NANO, (now_ns - began_ns) / _NANO
        self.span.add("wait for batch", waited, ended_seconds_ago=ago)
        waits.record_in([self.span], rows=rows)
        self.since_ns = now_ns


class Group(Generic[Item, Outcome]):
    """Gathers items of concurrent callers and commits them in batches, in the order in which they came.

    ``commit`` takes a batch and returns one outcome for each item, in order. An error among them is that item's alone.
    ``item_bytes`` returns the size that counts towards ``bytes_max``. ``unit_seconds`` is what one more transaction may
    take. ``gather_seconds`` is how long a batch gathers besides, as long as items come several at a time: for items
    that nobody awaits at once, fewer and larger transactions.
    """

    def __init__(  # noqa: PLR0913  (what a batch is bounded by)
        self,
        commit: Commit[Item, Outcome],
        *,
        rows_max: int,
        bytes_max: int,
        unit_seconds: float,
        item_bytes: Callable[[Item], int],
        gather_seconds: float = 0.0,
    ) -> None:
        self._commit = commit
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._unit_seconds = unit_seconds
        self._item_bytes = item_bytes
        self._gather_seconds = gather_seconds
        self._queue: deque[Submitted[Item, Outcome]] = deque()
        self._bell = Bell()
        self._closed = False

    def submit(self, item: Item, until: float | None = None) -> Awaitable[Outcome]:
        """Commit ``item`` in one batch with other callers' items, and return its outcome; as ``enqueue`` and the wait.

        Raises:
            ConvoError: what the commit says of this item; Draining when the process stops.
        """
        return self.enqueue(item, until).outcome()

    def enqueue(
        self, item: Item, until: float | None = None, then: Callable[[], None] | None = None
    ) -> Submitted[Item, Outcome]:
        """Have ``item`` committed in one batch with other callers' items.

        ``until`` is when the caller's time is over, by ``trio.current_time()``; without it, trio's own deadline counts.
        ``then`` is called when there is an outcome, whether the caller waits for it or not.

        Raises:
            Draining: the process stops.
        """
        if self._closed:
            raise Draining("the service is stopping; nothing was stored")
        afford_until = trio.current_effective_deadline() if until is None else until
        waiter: Submitted[Item, Outcome] = Submitted(item, afford_until, then)
        self._queue.append(waiter)
        self._bell.ring()
        return waiter

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit batch after batch until cancelled; callers that still wait then get ``Draining``."""
        batch: list[Submitted[Item, Outcome]] = []
        task_status.started()
        try:
            while True:
                batch = self._take()
                if batch:
                    await self._settle(batch)
                    # Where a whole batch waits already, to wait would only hold it up.
                    if self._gather_seconds and len(batch) > 1 and len(self._queue) < self._rows_max:
                        await trio.sleep(self._gather_seconds)
                else:
                    await self._bell.rung()
        finally:
            self._closed = True
            for waiter in (*batch, *self._queue):
                if not waiter.answered.is_set():
                    waiter.answer(Draining("the service is stopping; send it again, it is stored at most once"))

    def _take(self) -> list[Submitted[Item, Outcome]]:
        batch: list[Submitted[Item, Outcome]] = []
        size = 0
        while self._queue and len(batch) < self._rows_max:
            waiter = self._queue[0]
            if not waiter.gone:
                size += self._item_bytes(waiter.item)
                if batch and size > self._bytes_max:
                    break
                batch.append(waiter)
            self._queue.popleft()
        return batch

    async def _settle(self, batch: list[Submitted[Item, Outcome]]) -> None:
        try:
            outcomes = await self._commit_twice_if_lost(batch)
        except BadRow as error:
            await self._split(batch, error)
        except ConvoError as error:
            log_records.batch_failed(rows=len(batch), error=error.detail)
            for waiter in batch:
                waiter.answer(error)
        else:
            for waiter, outcome in zip(batch, outcomes, strict=True):
                waiter.answer(outcome)

    async def _commit_twice_if_lost(self, batch: list[Submitted[Item, Outcome]]) -> Sequence[Outcome | ConvoError]:
        try:
            return await self._commit_once(batch)
        except TransactionLost:
            # Nobody knows whether it was committed, so ``commit`` must be safe to run twice with the same batch.
            waiting = [waiter.afford_until for waiter in batch if not waiter.gone]
            if not waiting or min(waiting) < trio.current_time() + self._unit_seconds:
                raise
        return await self._commit_once(batch)

    async def _commit_once(self, batch: list[Submitted[Item, Outcome]]) -> Sequence[Outcome | ConvoError]:
        """Commit, and record what that waited for in the trace of each item that has one."""
        items = [waiter.item for waiter in batch]
        if not tracing.records():
            return await self._commit(items)
        waits, began_ns = PastWaits(), perf_counter_ns()
        try:
            with waits:
                return await self._commit(items)
        finally:
            for waiter in batch:
                waiter.record(waits, began_ns, len(batch))

    async def _split(self, batch: list[Submitted[Item, Outcome]], error: BadRow) -> None:
        """Halve the batch until the row that the database refuses is alone."""
        if len(batch) == 1:
            batch[0].answer(error)
            return
        log_records.batch_split(rows=len(batch), sqlstate=error.sqlstate)
        middle = len(batch) // 2
        await self._settle(batch[:middle])
        await self._settle(batch[middle:])
