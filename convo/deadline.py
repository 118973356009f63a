"""Deadlines with names: every wait for something outside the process stands in one; ``waits`` lists them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Self

import trio

from convo.errors import DeadlineExceeded
from convo.observe import metrics
from convo.waits import NAMES

# From the start, so that a rate over them begins at 0 and an alert on one that never ran out is no gap.
for _name in NAMES:
    metrics.wait_seconds.labels(_name)
    metrics.deadline_exceeded_total.labels(_name)

_collected: ContextVar[dict[str, float] | None] = ContextVar("collected_waits", default=None)
_innermost: ContextVar[deadline | None] = ContextVar("innermost_deadline", default=None)


def ends_at() -> float:
    """Return when the first of the named deadlines around the caller ends, by ``trio.current_time()``; inf for none.

    Scopes without a name do not count: a lease's, which is moved on while the work goes well, is one.
    """
    earliest, around = math.inf, _innermost.get()
    while around is not None:
        earliest = min(earliest, around.scope.deadline)
        around = around.outer
    return earliest


def around(context: Context) -> Iterator[deadline]:
    """Yield the named deadlines that are open around a task, given its context, from the innermost outwards."""
    one = context.get(_innermost)
    while one is not None:
        # A task that outlives the block it was started in, in a nursery further out, has that block's context still.
        if not one.left:
            yield one
        one = one.outer


@contextmanager
def collecting() -> Iterator[dict[str, float]]:
    """Yield the seconds spent in each named wait inside the block, filled in as the waits end."""
    waits: dict[str, float] = {}
    token = _collected.set(waits)
    try:
        yield waits
    finally:
        _collected.reset(token)


class deadline:  # noqa: N801  (reads as a statement: `with deadline("db.accept", 3.0):`)
    """Bound a block to ``seconds`` under ``name``, the metric label, the log key and the text of the error.

    Deadlines nest: the innermost one that was still waiting when an outer one ran out is remembered as the
    outer's ``culprit``, so that an answer can name the wait that used the time up.

    ``since``, by ``trio.current_time()``, is when the time began to run; now, where it is not given.

    Raises:
        DeadlineExceeded: the block was cancelled because this deadline's own time ran out.
    """

    def __init__(self, name: str, seconds: float, *, since: float | None = None) -> None:
        self.name = name
        self.seconds = seconds
        self.culprit: str | None = None
        self.outer: deadline | None = None
        self.left = False
        self.scope = trio.CancelScope()
        self._since = since

    def __enter__(self) -> Self:
        self.started = trio.current_time() if self._since is None else self._since
        self.scope.deadline = self.started + self.seconds
        self.outer = _innermost.get()
        self._token = _innermost.set(self)
        self.scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.left = True
        _innermost.reset(self._token)
        seconds = trio.current_time() - self.started
        metrics.wait_seconds.labels(self.name).observe(seconds)
        if (waits := _collected.get()) is not None:
            waits[self.name] = waits.get(self.name, 0.0) + seconds
        self.scope.__exit__(kind, error, trace)
        if self.scope.cancelled_caught:
            metrics.deadline_exceeded_total.labels(self.culprit or self.name).inc()
            if self.culprit is None:
                raise DeadlineExceeded(self.name, self.seconds)
            raise DeadlineExceeded(self.culprit, self.seconds, self.name)
        if isinstance(error, trio.Cancelled) and self.outer is not None and self.outer.culprit is None:
            self.outer.culprit = self.culprit or self.name
