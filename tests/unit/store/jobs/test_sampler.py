from __future__ import annotations

from typing import Any, cast

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from convo.errors import DatabaseUnavailable
from convo.observe import metrics
from convo.store.jobs.sampler import sample_jobs


class FailingOnce:
    """Counts jobs; its second count fails."""

    def __init__(self) -> None:
        self.times: list[float] = []

    async def count(self) -> tuple[dict[str, int], float]:
        await trio.lowlevel.checkpoint()
        self.times.append(trio.current_time())
        if len(self.times) == 2:
            raise DatabaseUnavailable("it is away")
        return {"ready": len(self.times)}, 7.5


async def test_the_gauges_follow_each_sample_and_outlive_one_that_fails(autojump_clock: MockClock) -> None:
    jobs, began, figures = FailingOnce(), trio.current_time(), list[float]()
    with capture_logs() as records:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sample_jobs, cast("Any", jobs), 15.0)
            for _ in range(3):
                await trio.sleep(14.0 if not figures else 15.0)
                figures.append(metrics.jobs.labels("ready")._value.get())
            nursery.cancel_scope.cancel()
    assert [at - began for at in jobs.times] == [0.0, 15.0, 30.0]
    assert figures == [1, 1, 3]
    assert metrics.oldest_ready_job_age_seconds._value.get() == 7.5
    assert [record["event"] for record in records] == ["sample_failed"]
