from __future__ import annotations

import signal

import pytest
import trio
from structlog.testing import capture_logs

from convo.runtime.signals import obey, receive_signals, reload_observers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_signal_sets_the_stop_and_is_logged_by_name(number: signal.Signals, nursery: trio.Nursery) -> None:
    stop = trio.Event()
    with receive_signals() as signals, capture_logs() as records:
        nursery.start_soon(obey, signals, stop)
        signal.raise_signal(number)
        with trio.fail_after(5):
            await stop.wait()
        nursery.cancel_scope.cancel()
    assert [record["reason"] for record in records] == [number.name]
    assert signal.getsignal(number) == signal.SIG_IGN, "a second one must not kill what has stopped in order"


async def test_sigusr1_logs_the_tasks_and_stops_nothing(nursery: trio.Nursery) -> None:
    stop, before = trio.Event(), signal.getsignal(signal.SIGUSR1)
    with capture_logs() as records, receive_signals() as signals:
        nursery.start_soon(obey, signals, stop)
        signal.raise_signal(signal.SIGUSR1)
        with trio.fail_after(5):
            while not records:  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert {record["event"] for record in records} == {"task_waits"}
    assert not stop.is_set()
    assert signal.getsignal(signal.SIGUSR1) == before


async def test_sighup_has_everything_read_again_and_stops_nothing(nursery: trio.Nursery) -> None:
    stop, before, read = trio.Event(), signal.getsignal(signal.SIGHUP), trio.Event()
    with reload_observers.adding(read.set), receive_signals() as signals, capture_logs() as records:
        nursery.start_soon(obey, signals, stop)
        signal.raise_signal(signal.SIGHUP)
        with trio.fail_after(5):
            await read.wait()
        nursery.cancel_scope.cancel()
    assert [(record["event"], record["reason"]) for record in records] == [("service_reloading", "SIGHUP")]
    assert not stop.is_set()
    assert signal.getsignal(signal.SIGHUP) == before
