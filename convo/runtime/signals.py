"""The signals that a process obeys.

SIGTERM and SIGINT stop it, SIGHUP has it read the certificate and the clients' keys again, and SIGUSR1 logs where every
task waits.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import trio

from convo.observe import log_records
from convo.observe.observers import Observers
from convo.runtime import tasks

_STOP = (signal.SIGTERM, signal.SIGINT)
_OBEYED = (*_STOP, signal.SIGHUP, signal.SIGUSR1)

reload_observers: Observers[Callable[[], None]] = Observers()
"""Called at SIGHUP, each to read again what it has read from outside; none of them may wait."""


@contextmanager
def receive_signals() -> Iterator[AsyncIterator[int]]:
    """Yield the signals that arrive inside the block.

    After a stop signal they stay ignored when the block ends: a second SIGTERM, sent while the last resources close,
    must not kill the process and change its exit code.
    """
    # Trio's receiver puts back, when it closes, what it finds here: "ignore".
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _OBEYED}
    stopped = False

    async def noted(signals: AsyncIterator[int]) -> AsyncIterator[int]:
        nonlocal stopped
        async for number in signals:  # no deadline: signals come or do not
            stopped = stopped or number in _STOP
            yield number

    try:
        with trio.open_signal_receiver(*_OBEYED) as signals:
            yield noted(signals)
    finally:
        if not stopped:
            for number, handler in before.items():
                signal.signal(number, handler)


async def obey(signals: AsyncIterator[int], stop: trio.Event) -> None:
    """Set ``stop`` at a stop signal, reload at SIGHUP, and log the tasks at SIGUSR1, until cancelled."""
    async for number in signals:  # no deadline: signals come or do not
        if number == signal.SIGUSR1:
            await tasks.log_tasks()
            continue
        if number == signal.SIGHUP:
            log_records.service_reloading(reason=signal.Signals(number).name)
            for reload in reload_observers.current:
                reload()
            continue
        log_records.service_stopping(reason=signal.Signals(number).name)
        stop.set()
