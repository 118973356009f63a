"""Deadlines with names: every wait for something outside the process stands in one; ``waits`` lists them.

What is to be done with each wait that ends (metrics, the waits of a job) is in ``wait_observers``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Self

import trio

from convo.errors import DeadlineExceeded
from convo.observe.observers import Observers

WaitObserver = Callable[[str, float, str | None], None]
"""Takes a wait's name, its seconds, and the name of the deadline that ran out with it; None where none did."""

# A job has a few waits; one that tries again and again for minutes has hundreds. The longest ones are kept.
_SPANS_MAX = 32
# What is shorter cannot be seen on a line that shows the whole.
_SPAN_SECONDS = 0.005


class CollectedWaits(dict[str, float]):
    """The seconds spent in each named wait, by its name; ``spans`` say of the longer ones when they were.

    A span is the name, and its beginning and end in seconds since ``since``, which is by ``trio.current_time()``.
    """

    def __init__(self, since: float) -> None:
        super().__init__()
        self._since = since
        self.spans: list[tuple[str, float, float]] = []

    def note(self, name: str, seconds: float) -> None:
        """Note a wait that has just ended."""
        self[name] = self.get(name, 0.0) + seconds
        if seconds < _SPAN_SECONDS:
            return
        until = trio.current_time() - self._since
        self.spans.append((name, max(0.0, until - seconds), until))
        if len(self.spans) > _SPANS_MAX:
            self.spans.remove(min(self.spans, key=lambda span: span[2] - span[1]))


_collected: ContextVar[CollectedWaits | None] = ContextVar("collected_waits", default=None)
_innermost: ContextVar[deadline | None] = ContextVar("innermost_deadline", default=None)


def _collect(name: str, seconds: float, _exceeded: str | None) -> None:
    if (waits := _collected.get()) is not None:
        waits.note(name, seconds)


# One place for the whole process: a list in each context would cost a search through the context for each observer.
wait_observers: Observers[WaitObserver] = Observers(_collect)


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
def collecting(since: float | None = None) -> Iterator[CollectedWaits]:
    """Yield the seconds spent in each named wait inside the block, filled in as the waits end.

    Their spans count from ``since``, by ``trio.current_time()``; from now, where it is not given.
    """
    waits = CollectedWaits(trio.current_time() if since is None else since)
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
        try:
            self.scope.__exit__(kind, error, trace)
        finally:
            exceeded = (self.culprit or self.name) if self.scope.cancelled_caught else None
            for observe in wait_observers.current:
                observe(self.name, seconds, exceeded)
        if exceeded is not None:
            raise DeadlineExceeded(exceeded, self.seconds, "" if self.culprit is None else self.name)
        if isinstance(error, trio.Cancelled) and self.outer is not None and self.outer.culprit is None:
            self.outer.culprit = self.culprit or self.name
