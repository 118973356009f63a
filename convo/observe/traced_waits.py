"""Named waits as steps of a trace: those of a task that has a span, and those of a task that works for several traces.

Open it to change how a wait is recorded. A transaction that stores for many is no part of the span of one of them, and
when a request begins its connection has waited already. Who can say later whose waits these were gathers them
(``PastWaits``), and has them recorded then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from time import perf_counter_ns
from types import TracebackType
from typing import Self

from msgspec import Struct

from convo.observe import metrics, tracing
from convo.observe.tracing import AttributeValue, Span, fault_of

_NANO = 1_000_000_000
_NONE: nullcontext[None] = nullcontext()
_NO_ATTRIBUTES: Mapping[str, AttributeValue] = {}

_gathering: ContextVar[PastWaits | None] = ContextVar("past_waits", default=None)


class PastWait(Struct, kw_only=True):
    """A wait, when it ended, and what it failed with: the kind of the error and its text, empty where it did not."""

    name: str
    seconds: float
    ended_ns: int
    error_type: str = ""
    error: str = ""

    @property
    def ended_seconds_ago(self) -> float:
        """How long ago it ended."""
        return (perf_counter_ns() - self.ended_ns) / _NANO


class PastWaits:
    """Waits in their order; as a context manager, those that the running task has inside the block.

    What ends the block with an error is noted of the last one.
    """

    __slots__ = ("_kept", "_token")

    def __init__(self) -> None:
        self._kept: list[PastWait] = []
        self._token: Token[PastWaits | None] | None = None

    def __iter__(self) -> Iterator[PastWait]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def note(self, name: str, seconds: float, error: str = "") -> None:
        """Note a wait that has just ended."""
        self._kept.append(PastWait(name=name, seconds=seconds, ended_ns=perf_counter_ns(), error=error))

    def clear(self) -> None:
        """Forget them."""
        self._kept.clear()

    def record_in(self, traces: Iterable[Span | str | None], *, rows: int | None = None) -> None:
        """Record them in each of these traces, by a span or a stored context; ``rows`` is how many shared them."""
        for trace in traces:
            for one in self._kept if trace is not None else ():
                _record_past(one, trace, rows)

    def __enter__(self) -> Self:
        self._token = _gathering.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _gathering.reset(self._token)
        if self._kept and isinstance(error, Exception):
            self._kept[-1].error_type, self._kept[-1].error = fault_of(error)


def gathering_waits() -> AbstractContextManager[PastWaits | None]:
    """Gather the named waits of the running task, which has no span, inside the block.

    Nothing is done, and there is nothing to record afterwards, where this process records nothing.
    """
    return PastWaits() if tracing.records() else _NONE


def record_wait(name: str, seconds: float, exceeded: str | None) -> None:
    """Record a named wait of a task that has a span, or gathers its waits (``runtime.deadline.WaitObserver``)."""
    span, error = tracing.current_span(), "" if exceeded is None else ran_out(exceeded)
    if span is None:
        if (waits := _gathering.get()) is not None:
            waits.note(name, seconds, error)
    elif span.wait != name:
        record_within(span, name, seconds, error=error)
    else:
        metrics.wait_seconds.labels(name).note_exemplar(seconds, span.trace_id, span.span_id)
        span.error = error or span.error


def ran_out(name: str) -> str:
    """Say which deadline has ended a wait."""
    return f"the deadline {name} ran out"


def record_within(  # noqa: PLR0913  (what is known of a wait)
    span: Span,
    name: str,
    seconds: float,
    *,
    ended_seconds_ago: float = 0.0,
    error: str = "",
    attributes: Mapping[str, AttributeValue] = _NO_ATTRIBUTES,
) -> None:
    """Record a named wait within a span, and note in which trace it was met."""
    metrics.wait_seconds.labels(name).note_exemplar(seconds, span.trace_id, span.span_id)
    span.add(name, seconds, ended_seconds_ago=ended_seconds_ago, error=error, attributes=attributes)


def _record_past(one: PastWait, trace: Span | str | None, rows: int | None) -> None:
    attributes: dict[str, AttributeValue] = {} if rows is None else {"convo.batch_rows": rows}
    if one.error_type:
        attributes["error.type"] = one.error_type
    ago = one.ended_seconds_ago
    if isinstance(trace, Span):
        record_within(trace, one.name, one.seconds, ended_seconds_ago=ago, error=one.error, attributes=attributes)
    elif (span := tracing.continued(trace, one.name, "internal")) is not None:
        metrics.wait_seconds.labels(one.name).note_exemplar(one.seconds, span.trace_id, span.span_id)
        span.attributes |= attributes
        span.error = one.error
        span.end_past(one.seconds, ago)
