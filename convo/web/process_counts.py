"""Reads from the metrics of this process what the figures of the page are made of, and what came between two readings.

Open it to show another figure of one process. What all processes share is in ``store/shared_figures.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from convo.observe import metrics
from convo.observe.percentiles import gained, percentile
from convo.web.description.figure_views import WaitFigures

_ACCEPTS = frozenset({"/v1/conversations/end", "/v1/conversations/batch"})
_REFUSED = frozenset({"429", "503"})
_TAKEN = "202"
_FROM_QUEUE = "accepted"


class ProcessCounts(Struct, frozen=True, kw_only=True):
    """What only grows, at one moment; ``at`` is ``trio.current_time()``."""

    at: float
    accepts: float
    refused: float
    accept_seconds: tuple[int, ...]
    pass_seconds: tuple[int, ...]
    waits: Mapping[str, tuple[int, ...]]


class ProcessRates(Struct, frozen=True, kw_only=True):
    """What came between two readings, in the units of ``FigureSample``; None where nothing could be measured."""

    accepts_per_s: float | None = None
    refused_per_s: float | None = None
    accept_p50_ms: float | None = None
    accept_p99_ms: float | None = None
    loop_lag_ms: float | None = None


NO_RATES = ProcessRates()
"""Of a first reading, which has none before it."""


def read_counts(now: float) -> ProcessCounts:
    """Read the metrics of this process."""
    lines = metrics.batch_lines_total
    return ProcessCounts(
        at=now,
        # A replay is an accept, too, by every way in.
        accepts=sum(metrics.accept_seconds.counts)
        + lines.labels(_TAKEN).value
        + metrics.queue_messages_total.labels(_FROM_QUEUE).value,
        refused=sum(
            cell.value
            for (route, _, status), cell in list(metrics.requests_total.cells.items())
            if route in _ACCEPTS and status in _REFUSED
        )
        + sum(lines.labels(status).value for status in _REFUSED),
        accept_seconds=tuple(metrics.accept_seconds.counts),
        pass_seconds=tuple(metrics.loop_pass_seconds.counts),
        waits={name: tuple(cell.counts) for (name,), cell in list(metrics.wait_seconds.cells.items())},
    )


def rates_between(before: ProcessCounts, now: ProcessCounts) -> ProcessRates:
    """Compute what came between two readings."""
    seconds = now.at - before.at
    accepts = gained(now.accept_seconds, before.accept_seconds)
    passes = gained(now.pass_seconds, before.pass_seconds)
    return ProcessRates(
        accepts_per_s=round((now.accepts - before.accepts) / seconds, 2),
        refused_per_s=round((now.refused - before.refused) / seconds, 2),
        accept_p50_ms=_milliseconds(percentile(metrics.WAIT_BOUNDS, accepts, 0.5)),
        accept_p99_ms=_milliseconds(percentile(metrics.WAIT_BOUNDS, accepts, 0.99)),
        loop_lag_ms=_milliseconds(percentile(metrics.PASS_BOUNDS, passes, 0.99)),
    )


def waits_between(before: ProcessCounts, now: ProcessCounts) -> tuple[WaitFigures, ...]:
    """List the named waits that ended between two readings, by name."""
    found = []
    for name in sorted(now.waits):
        counts = now.waits[name]
        grown = gained(counts, before.waits.get(name, (0,) * len(counts)))
        p50, p99 = (percentile(metrics.WAIT_BOUNDS, grown, share) for share in (0.5, 0.99))
        if p50 is not None and p99 is not None:
            found.append(WaitFigures(name=name, count=sum(grown), p50_ms=_rounded(p50), p99_ms=_rounded(p99)))
    return tuple(found)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else _rounded(seconds)


def _rounded(seconds: float) -> float:
    return round(seconds * 1000, 3)
