"""Counts every named wait in the metrics: ``count_wait`` is one of the observers of deadlines while convo serves."""

from __future__ import annotations

from convo.observe import metrics
from convo.runtime.waits import NAMES

# From the start, so that a rate over them begins at 0 and an alert on one that never ran out is no gap.
for _name in NAMES:
    metrics.wait_seconds.labels(_name)
    metrics.deadline_exceeded_total.labels(_name)


def count_wait(name: str, seconds: float, exceeded: str | None) -> None:
    """Count one wait that ended, and the deadline that ran out with it (``runtime.deadline.WaitObserver``)."""
    metrics.wait_seconds.labels(name).observe(seconds)
    if exceeded is not None:
        metrics.deadline_exceeded_total.labels(exceeded).inc()
