"""What a connection keeps of the request that it answers, where it is recorded: its span, and the waits for the client.

Those begin before the span does, and end after all that the door knows of the request.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter_ns

from convo.observe.traced_waits import PastWaits, record_within
from convo.observe.tracing import Span

_NANO = 1_000_000_000

_present: ContextVar[KeptRequest | None] = ContextVar("kept_request", default=None)


class KeptRequest:
    """The present request of one connection; its ``span``, where it is recorded, ends when the answer is written."""

    __slots__ = ("_answered_ns", "_before", "_streams", "span")

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.span: Span | None = None
        self._before = PastWaits()
        self._answered_ns = 0
        self._streams = False

    @property
    def used(self) -> bool:
        """Whether there is anything for ``end`` to do."""
        return self.span is not None or bool(self._before)

    @property
    def answered_seconds(self) -> float:
        """How long ago its answer was made."""
        return (perf_counter_ns() - self._answered_ns) / _NANO

    def note_before(self, name: str, seconds: float) -> None:
        """Note a named wait that has just ended, in case that the request behind it turns out to be recorded."""
        self._before.note(name, seconds)

    def note(self, name: str, seconds: float, error: str = "") -> None:
        """Record a named wait that has just ended, where the request is recorded."""
        if self.span is not None:
            record_within(self.span, name, seconds, error=error)

    def begin(self, span: Span) -> None:
        """Keep the span of the request, which has begun."""
        self._before.record_in([span])
        self.span = span

    def answer(self, *, streams: bool) -> None:
        """Note that its answer is made. The span does not wait for one that ``streams``: that may last for hours."""
        self._answered_ns = perf_counter_ns()
        self._streams = streams
        if streams and self.span is not None:
            self.span.end()

    def end(self, error: str = "") -> None:
        """Note that the connection is done with the request, or has given it up with an ``error``."""
        span = self.span
        if span is None:
            self._before.clear()
            return
        if self._streams:
            record_within(span, "connection.stream", self.answered_seconds, error=error)
        elif error:
            span.attributes["error.type"], span.error = "deadline_exceeded", error
        span.end()
        self._forget()


@contextmanager
def keeping(kept: KeptRequest) -> Iterator[None]:
    """Let ``kept`` have the spans of the requests that begin inside the block, one after the other."""
    token = _present.set(kept)
    try:
        yield
    finally:
        _present.reset(token)


def kept_request() -> KeptRequest | None:
    """Return what the running task's connection keeps of its request; None where it keeps nothing."""
    return _present.get()
