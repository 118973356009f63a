"""Writes log records to stderr as JSON or readable lines; open it to change a line's form or how lines are written.

A thread of its own writes, so that the loop never waits for the reader of our log. A line goes into a bounded queue.
When that is full the line is dropped and counted, and one line says how many were lost as soon as there is room again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import msgspec
import structlog
from structlog.contextvars import merge_contextvars
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import ExceptionRenderer, TimeStamper, add_log_level

from convo.observe import log_records, metrics
from convo.settings import ObserveSettings

CLOSE_SECONDS = 1.0
"""How long closing waits for a reader that does not read."""

BATCH_LINES = 256
FIELD_CHARACTERS_MAX = 16_384

Fields = MutableMapping[str, Any]


class Writer:
    """A bounded queue of lines and the thread that writes them to a file descriptor."""

    def __init__(self, descriptor: int, lines_max: int) -> None:
        self._descriptor = descriptor
        self._lines_max = lines_max
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._dropped_lines = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)

    def start(self) -> None:
        """Start the writing thread."""
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Queue one line, or drop and count it; never wait."""
        # The thread's own line reports the drops and must not be dropped itself.
        if self._queue.qsize() < self._lines_max or threading.get_ident() == self._thread.ident:
            self._queue.put(line)
        else:
            self._drop(1)

    # structlog calls the method that has the level's name.
    debug = info = warning = error = critical = msg = put

    def close(self) -> None:
        """Write what is queued and end the thread, but wait no longer than ``CLOSE_SECONDS`` for it."""
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _drop(self, lines: int) -> None:
        metrics.log_dropped_total.inc(lines)
        with self._lock:
            self._dropped_lines += lines

    def _run(self) -> None:
        # The report of drops is a line too: after the end of the queue one more round may be due.
        while not (self._ended and self._queue.empty()):
            batch = self._take()
            if self._write(b"".join(batch)):
                self._report_dropped()
            else:
                self._drop(len(batch))

    def _take(self) -> list[bytes]:
        batch: list[bytes] = []
        line = self._queue.get()
        while line is not None:
            batch.append(line)
            if len(batch) == BATCH_LINES or self._queue.empty():
                return batch
            line = self._queue.get()
        self._ended = True
        return batch

    def _write(self, content: bytes) -> bool:
        # A reader that is gone, or a full disk: the lines are lost, the process is not.
        try:
            while content:
                content = content[self._write_some(content) :]
        except OSError:
            return False
        return True

    def _write_some(self, content: bytes) -> int:
        try:
            return os.write(self._descriptor, content)
        except BlockingIOError:
            # Whoever shares our terminal or pipe has made it non-blocking.
            select.select([], [self._descriptor], [])
            return 0

    def _report_dropped(self) -> None:
        with self._lock:
            lines, self._dropped_lines = self._dropped_lines, 0
        if lines:
            log_records.log_dropped(lines=lines)


class _Library(logging.Handler):
    """Passes on what libraries log through the standard library's logging."""

    def __init__(self, logger: Any) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        log = getattr(self._logger, level)
        log("library", logger=record.name, text=_library_text(record), exc_info=record.exc_info or None)


def _library_text(record: logging.LogRecord) -> str:
    # A library's mistake in its own format string is no reason to fail in the middle of its work.
    try:
        return record.getMessage()
    except (TypeError, ValueError, LookupError, AttributeError):
        return f"{record.msg!r} {record.args!r}"


# --- from a record to a line


def _without_nones(_logger: object, _method: str, fields: Fields) -> Fields:
    # Before the bound ones are merged: a missing conversation_id must not hide a bound one.
    return {name: value for name, value in fields.items() if value is not None}


def _in_order(_logger: object, _method: str, fields: Fields) -> Fields:
    head = {name: fields.pop(name) for name in ("timestamp", "level", "event") if name in fields}
    return head | {name: _cut(value) for name, value in fields.items()}


def _cut(value: object) -> object:
    if isinstance(value, str) and len(value) > FIELD_CHARACTERS_MAX:
        return f"{value[:FIELD_CHARACTERS_MAX]}… ({len(value)} characters)"
    return value


def _as_json(_logger: object, _method: str, fields: Fields) -> bytes:
    # Lone surrogates, keys that are no text, numbers past 64 bits, depth: rare, and no reason to lose the line.
    try:
        return msgspec.json.encode(fields, enc_hook=repr) + b"\n"
    except (ValueError, TypeError, OverflowError, RecursionError):
        return json.dumps({_safe(name): _safe(value) for name, value in fields.items()}).encode() + b"\n"


def _safe(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text.encode("utf-8", "backslashreplace").decode()


class _Pretty:
    """Renders for a terminal, and lets no field steer that terminal."""

    def __init__(self, *, colors: bool) -> None:
        # Not structlog's default traceback: it shows local variables, and with them keys and conversations.
        self._render = ConsoleRenderer(colors=colors, repr_native_str=True, exception_formatter=plain_traceback)

    def __call__(self, logger: Any, method: str, fields: Fields) -> bytes:
        if isinstance(trace := fields.get("exception"), str):
            fields["exception"] = _CONTROLS.sub(_escaped, trace)
        return _safe(self._render(logger, method, fields)).encode() + b"\n"


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _escaped(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}"


# --- open and close


@contextmanager
def open_log(settings: ObserveSettings, descriptor: int = 2) -> Iterator[None]:
    """Send every record, and what libraries log from WARNING up, to ``descriptor`` until the block ends."""
    writer = Writer(descriptor, settings.log_queue_lines)
    writer.start()
    pretty = settings.log_format == "pretty" or (settings.log_format == "auto" and os.isatty(descriptor))
    logger = _configure(writer, settings.log_level, _Pretty(colors=os.isatty(descriptor)) if pretty else _as_json)
    log_records.log_to(logger)
    library = _Library(logger)
    logging.getLogger().addHandler(library)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        logging.getLogger().removeHandler(library)
        writer.close()
        structlog.reset_defaults()
        log_records.log_to(structlog.get_logger())


def _rounded(_logger: Any, _method: str, fields: Fields) -> Fields:
    """Show seconds and other figures to the microsecond: more digits are noise."""
    for name, value in fields.items():
        if type(value) is float:
            fields[name] = round(value, 6)
    return fields


def _configure(writer: Writer, level: str, render: Any) -> Any:
    structlog.configure(
        processors=[
            _without_nones,
            merge_contextvars,
            add_log_level,
            TimeStamper(fmt="iso", utc=True),
            ExceptionRenderer(),
            _rounded,
            _in_order,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: writer,
    )
    # Bound once: finding the configuration anew at every record costs ten times a disabled one.
    return structlog.get_logger().bind()
