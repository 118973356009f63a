"""What the kernel counts of a thread."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from convo.runtime.scheduled import ThreadTimes

needs_counts = pytest.mark.skipif(
    not Path("/proc/thread-self/schedstat").exists(), reason="this kernel does not count what its threads work"
)


@needs_counts
def test_the_work_of_the_thread_that_asks_is_counted() -> None:
    with ThreadTimes() as times:
        assert times.counted
        worked, queued = times.read()
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        assert times.read()[0] - worked >= 0.015
        assert times.read()[1] >= queued


@needs_counts
def test_another_thread_has_times_of_its_own_and_none_when_it_has_ended() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def work() -> None:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        begun.set()
        may_end.wait()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    with ThreadTimes(thread.native_id) as times:
        assert times.read()[0] >= 0.015
        may_end.set()
        thread.join()
        # It has ended for Python a moment before it has for the kernel.
        until = time.monotonic() + 10
        while times.read() != (0.0, 0.0):
            assert time.monotonic() < until
            time.sleep(0.01)


def test_where_nothing_is_counted_the_times_are_zero() -> None:
    with ThreadTimes(1 << 30) as times:
        assert not times.counted
        assert times.read() == (0.0, 0.0)
    times.close()
