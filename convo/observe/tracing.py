"""Traces: the span that the running task works in, and the spans of this process that ended and are not sent yet.

Open it to record more of a request or a job. Whether a request is recorded is decided once, when it begins: of one that
is not, no span is made, and nothing is asked but whether the task has one. Where ``otel.endpoint`` is empty there is no
``Recorder``, and no task ever has a span. Spans are sent by ``convo.otel``.

A span of another task or process continues a trace by its stored context (``continued``): a job goes on with the trace
of the request that brought its conversation. Named waits are recorded by ``traced_waits``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from random import getrandbits, random
from time import perf_counter_ns, time_ns
from types import TracebackType
from typing import Literal, Self

from convo.errors import ConvoError
from convo.observe import log_records, metrics
from convo.observe.trace_context import TraceContext, read_context, read_stored_context

SpanKind = Literal["internal", "server", "client", "producer", "consumer"]
AttributeValue = str | int | float | bool | list[str]

_NANO = 1_000_000_000
_NO_HEADERS: Mapping[str, str] = {}
_NO_ATTRIBUTES: Mapping[str, AttributeValue] = {}

_present: ContextVar[Span | None] = ContextVar("present_span", default=None)


class Span:
    """One step of a trace, from its making to ``end``; as a context manager, what the task does inside is part of it.

    ``wait`` is the named deadline that bounds the same step, so that it is not recorded a second time.
    """

    __slots__ = (
        *("_bound", "_offset_ns", "_recorder", "_token", "attributes", "began_ns", "ended_ns", "error", "kind", "name"),
        *("parent_id", "span_id", "state", "trace_id", "wait"),
    )

    def __init__(  # noqa: PLR0913  (what a span is)
        self,
        recorder: Recorder,
        name: str,
        kind: SpanKind,
        *,
        parent: TraceContext | Span | None,
        wait: str = "",
        offset_ns: int | None = None,
    ) -> None:
        self._recorder = recorder
        # All times of a span, and of those within it, are by one clock that only goes forward, and by the wall clock as
        # it was when the first of them began.
        self._offset_ns = time_ns() - perf_counter_ns() if offset_ns is None else offset_ns
        self.name = name
        self.kind = kind
        self.trace_id: str = f"{getrandbits(128) or 1:032x}" if parent is None else parent.trace_id
        self.parent_id = "" if parent is None else parent.span_id
        self.state: str = "" if parent is None else parent.state
        self.span_id: str = f"{getrandbits(64) or 1:016x}"
        self.wait = wait
        self.attributes: dict[str, AttributeValue] = {}
        self.error = ""
        self.began_ns = self.now_ns()
        self.ended_ns = 0

    @property
    def context(self) -> TraceContext:
        """What continues the trace behind this span."""
        return TraceContext(trace_id=self.trace_id, span_id=self.span_id, state=self.state)

    def began_seconds_ago(self, seconds: float) -> None:
        """Note that it began so many seconds before now."""
        self.began_ns = self.now_ns() - round(seconds * _NANO)

    def now_ns(self) -> int:
        """Return the time, in nanoseconds since 1970."""
        return self._offset_ns + perf_counter_ns()

    def child(self, name: str, kind: SpanKind = "internal", *, wait: str = "") -> Span:
        """Begin a step within this one."""
        return Span(self._recorder, name, kind, parent=self, wait=wait, offset_ns=self._offset_ns)

    def add(
        self,
        name: str,
        seconds: float,
        *,
        ended_seconds_ago: float = 0.0,
        error: str = "",
        attributes: Mapping[str, AttributeValue] = _NO_ATTRIBUTES,
    ) -> None:
        """Record a step within this one that took so many seconds and has ended."""
        one = self.child(name)
        one.attributes |= attributes
        one.error = error
        # Its seconds were measured by another clock: it cannot have begun before this step.
        one.end_past(seconds, ended_seconds_ago, not_before_ns=self.began_ns)

    def end_past(self, seconds: float, ended_seconds_ago: float, *, not_before_ns: int = 0) -> None:
        """End a step that was made just now and stands for one that ended before and took so many seconds."""
        ended_ns = self.began_ns - round(ended_seconds_ago * _NANO)
        self.began_ns = max(not_before_ns, ended_ns - round(seconds * _NANO))
        self.end(at_ns=max(self.began_ns, ended_ns))

    def fail(self, error: BaseException) -> None:
        """Note what the step failed with."""
        self.attributes["error.type"], self.error = fault_of(error)

    def end(self, *, at_ns: int | None = None) -> None:
        """End the step, now or then; a second time it does nothing."""
        if not self.ended_ns:
            self.ended_ns = self.now_ns() if at_ns is None else at_ns
            self._recorder.put(self)

    def enter(self) -> None:
        """Let what the task does from now on be part of this step, until ``leave``."""
        self._token = _present.set(self)
        self._bound = log_records.bound(trace_id=self.trace_id, span_id=self.span_id)
        self._bound.__enter__()

    def leave(self) -> None:
        """Undo ``enter``; the step goes on until ``end``."""
        self._bound.__exit__()
        _present.reset(self._token)

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        if error is not None:
            self.fail(error)
        self.end()


def fault_of(error: BaseException) -> tuple[str, str]:
    """Return the kind and the text of what a step failed with: of an error of another program its type alone."""
    if isinstance(error, ConvoError):
        return error.code, error.detail or error.title
    return type(error).__name__, type(error).__name__


class Recorder:
    """The spans that have ended and are not taken yet, at most ``spans_max``; what comes beyond is dropped and counted.

    ``sample`` is the share of requests without a ``traceparent`` that is recorded. ``arrived`` is called when there are
    ``many`` spans.
    """

    def __init__(
        self, *, sample: float, spans_max: int, many: int = 0, arrived: Callable[[], None] = lambda: None
    ) -> None:
        self._sample = sample
        self._spans_max = spans_max
        self._many = many
        self._arrived = arrived
        self._spans: deque[Span] = deque()

    def __len__(self) -> int:
        return len(self._spans)

    def put(self, span: Span) -> None:
        """Keep a span that has ended, or drop and count it."""
        if len(self._spans) >= self._spans_max:
            metrics.spans_dropped_total.labels("queue_full").inc()
            return
        self._spans.append(span)
        if len(self._spans) == self._many:
            self._arrived()

    def take(self, count: int) -> list[Span]:
        """Return up to so many spans, the oldest first, and keep them no longer."""
        return [self._spans.popleft() for _ in range(min(count, len(self._spans)))]

    def begin(self, name: str, kind: SpanKind, traceparent: str, tracestate: str) -> Span | None:
        """Begin the first span here of a request with these headers; None where it is not to be recorded.

        What its sender decided counts; where nothing is known of a sender, chance decides.
        """
        parent = read_context(traceparent, tracestate) if traceparent else None
        recorded = random() < self._sample if parent is None else parent.sampled
        return Span(self, name, kind, parent=parent) if recorded else None


class _Recording:
    """The recorder of this process."""

    recorder: Recorder | None = None


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Record into ``recorder`` inside the block."""
    before, _Recording.recorder = _Recording.recorder, recorder
    try:
        yield
    finally:
        _Recording.recorder = before


def records() -> bool:
    """Return whether this process records anything."""
    return _Recording.recorder is not None


def begin_span(name: str, kind: SpanKind, traceparent: str = "", tracestate: str = "") -> Span | None:
    """As ``Recorder.begin``; None at once where nothing is recorded."""
    recorder = _Recording.recorder
    return None if recorder is None else recorder.begin(name, kind, traceparent, tracestate)


def continued(stored: str | None, name: str, kind: SpanKind, *, wait: str = "") -> Span | None:
    """Begin a span in the trace of a stored context; None where there is none, or nothing is recorded."""
    recorder = _Recording.recorder
    if recorder is None or stored is None:
        return None
    parent = read_stored_context(stored)
    return None if parent is None else Span(recorder, name, kind, parent=parent, wait=wait)


def current_span() -> Span | None:
    """Return the span that the running task works in; None where it is not recorded."""
    return _present.get()


def within_span(span: Span | None) -> AbstractContextManager[Span | None]:
    """Make ``span`` the running task's inside the block, and end it there; nothing is done for None."""
    return _NONE if span is None else span


@contextmanager
def resumed(span: Span) -> Iterator[None]:
    """Make ``span`` the running task's inside the block, and leave it open."""
    token = _present.set(span)
    try:
        with log_records.bound(trace_id=span.trace_id, span_id=span.span_id):
            yield
    finally:
        _present.reset(token)


def resumed_span(span: Span | None) -> AbstractContextManager[None]:
    """As ``resumed``; nothing is done for None."""
    return _NONE if span is None else resumed(span)


def child_span(name: str, kind: SpanKind = "internal", *, wait: str = "") -> AbstractContextManager[Span | None]:
    """Begin a step within that of the running task, and end it with the block; nothing is done where there is none."""
    span = _present.get()
    return _NONE if span is None else span.child(name, kind, wait=wait)


_NONE: nullcontext[None] = nullcontext()


def trace_headers() -> Mapping[str, str]:
    """Return the headers that pass the running task's trace on; empty where it has none."""
    span = _present.get()
    return _NO_HEADERS if span is None else span.context.headers
