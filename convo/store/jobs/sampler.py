"""Counts the jobs now and then for the gauges that ``/metrics`` shows: jobs by state, and the age of the oldest."""

from __future__ import annotations

from collections.abc import Callable

import trio

from convo.errors import ConvoError
from convo.observe import log_records, metrics
from convo.store.jobs.table import Jobs


async def sample_jobs(
    jobs: Jobs, interval_seconds: float, note_oldest: Callable[[float], object] = lambda _: None
) -> None:
    """Set the gauges at once and then every ``interval_seconds``, until cancelled.

    ``note_oldest`` gets the age in seconds of the job that is due longest, each time.
    """
    while True:
        try:
            counts, oldest_seconds = await jobs.count()
        except ConvoError as error:
            log_records.sample_failed(reason=error.detail)
        else:
            for state, count in counts.items():
                metrics.jobs.labels(state).set(count)
            metrics.oldest_ready_job_age_seconds.set(oldest_seconds)
            note_oldest(oldest_seconds)
        await trio.sleep(interval_seconds)
