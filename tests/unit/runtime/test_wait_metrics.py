from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from convo.errors import DeadlineExceeded
from convo.observe import metrics
from convo.runtime.deadline import deadline, wait_observers
from convo.runtime.wait_metrics import count_wait


async def test_every_wait_is_measured_and_every_end_is_counted_by_its_name(autojump_clock: MockClock) -> None:
    waits, ends = metrics.wait_seconds.labels("test.counted"), metrics.deadline_exceeded_total.labels("test.counted")
    with wait_observers.adding(count_wait):
        with deadline("test.counted", 3.0):
            await trio.sleep(2)
        assert (waits.total, ends.value) == (2.0, 0)
        with pytest.raises(DeadlineExceeded), deadline("test.counted", 3.0):
            await trio.sleep_forever()
    assert (waits.total, ends.value) == (5.0, 1)


async def test_a_deadline_that_ran_out_in_another_wait_counts_for_that_wait(autojump_clock: MockClock) -> None:
    inner, outer = (metrics.deadline_exceeded_total.labels(f"test.{name}") for name in ("inner", "outer"))
    with (
        wait_observers.adding(count_wait),
        pytest.raises(DeadlineExceeded),
        deadline("test.outer", 3.0),
        deadline("test.inner", 9.0),
    ):
        await trio.sleep_forever()
    assert (inner.value, outer.value) == (1, 0)
