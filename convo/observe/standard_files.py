"""Writes to standard output and standard error in a way that ends or holds up nothing, whatever stands behind them.

They may be closed, full, or a pipe that nobody reads. Open it to change what a person at a terminal is shown while
convo serves or ends; the log is in ``log``.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO, cast

from convo.observe import log_records
from convo.observe.log import Writer

# Few texts are written, and each is whole.
_TEXTS_MAX = 100

WriteText = Callable[[str], object]


def hold_standard_files() -> None:
    """Open what is closed of the standard files, before another file gets its number.

    Otherwise a log line could be written into the connection of a client or of the database. They are opened for
    reading only, so that writing to them fails, and what is lost is counted.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken, and all below are in use.
            opened = os.open(os.devnull, os.O_RDONLY)
            # A program that we start would otherwise have the same trouble.
            os.set_inheritable(opened, True)  # noqa: FBT003


@contextmanager
def open_output() -> Iterator[WriteText]:
    """Yield a function that writes a text to standard output and waits for nobody.

    What Python itself reports of exceptions that nobody can catch goes to the log inside the block: on standard error,
    a pipe that nobody reads would hold the loop.
    """
    before = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = lambda found: log_records.exception_lost(where=repr(found.object), error=found.exc_value)
    threading.excepthook = lambda found: log_records.exception_lost(where=repr(found.thread), error=found.exc_value)
    try:
        with _writing(sys.stdout, 1) as write:
            yield write
    finally:
        sys.unraisablehook, threading.excepthook = before


def write_last(text: str) -> None:
    """Write to standard error before the process ends, and wait no longer than a moment for its reader."""
    with _writing(sys.stderr, 2) as write:
        write(text)


@contextmanager
def _writing(stream: TextIO | None, number: int) -> Iterator[WriteText]:
    """Yield a function that hands texts to a thread; ``stream`` is None where ``number`` was closed at the start."""
    try:
        descriptor = number if stream is None else stream.fileno()
    except OSError:
        # Something in this process has taken its place, and reads it.
        yield cast("TextIO", stream).write
        return
    writer = Writer(descriptor, _TEXTS_MAX)
    writer.start()
    try:
        yield lambda text: writer.put(text.encode("utf-8", "backslashreplace"))
    finally:
        writer.close()


def report_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Take the place of ``sys.excepthook``, which would wait for ever for a reader that does not read."""
    write_last("".join(traceback.format_exception(kind, error, trace)))
