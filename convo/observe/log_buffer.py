"""Log records that wait to be sent to a collector: every record that convo logs, with the ids of its trace.

Open it to change what of a record may leave the process. Lines of libraries are not among them. Of an exception there
is only its type and where it was raised, and of a service's answer its status: what they say are texts from outside.
"""

from __future__ import annotations

import re
import traceback
from collections import deque
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from threading import Lock
from time import time_ns
from typing import Any

import structlog
from msgspec import Struct
from structlog.contextvars import merge_contextvars

from convo.observe import log_records, metrics

# As ``resilience.dependency`` writes the first words of an answer.
_ANSWERED = re.compile(r"(; it answered \d+): .*", re.DOTALL)
_CAUSES_MAX = 5
_FRAMES_MAX = 50


class LogRecord(Struct, frozen=True, kw_only=True):
    """One record: its name and fields, its level as structlog has it, and when it was logged.

    ``at_ns`` counts nanoseconds since 1970. The ids are empty where nothing is recorded of what it was logged in.
    """

    at_ns: int
    level: str
    name: str
    fields: dict[str, Any]
    trace_id: str
    span_id: str


class LogBuffer:
    """The records that are not taken yet, at most ``records_max``; what comes beyond is dropped and counted.

    Records come from any thread, and nobody waits for one.
    """

    def __init__(self, records_max: int) -> None:
        self._records_max = records_max
        # Cells of metrics are written by the loop's thread alone, but for this one.
        self._dropping = Lock()
        self._records: deque[LogRecord] = deque()

    def __len__(self) -> int:
        return len(self._records)

    def put(self, record: LogRecord) -> None:
        """Keep a record, or drop and count it."""
        if len(self._records) >= self._records_max:
            with self._dropping:
                metrics.otel_records_dropped_total.labels("queue_full").inc()
        else:
            self._records.append(record)

    def take(self, count: int) -> list[LogRecord]:
        """Return up to so many records, the oldest first, and keep them no longer."""
        return [self._records.popleft() for _ in range(min(count, len(self._records)))]

    def __call__(self, _logger: object, method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Keep a record on its way to the log (a processor of structlog, behind the bound fields)."""
        own = dict(fields)
        error = own.pop("exc_info", None)
        if isinstance(error, BaseException):
            own |= _described(error)
        self.put(
            LogRecord(
                at_ns=time_ns(),
                level=method,
                name=own.pop("event"),
                trace_id=own.pop("trace_id", ""),
                span_id=own.pop("span_id", ""),
                fields={name: _own_words(value) for name, value in own.items()},
            )
        )
        return fields


@contextmanager
def buffering(buffer: LogBuffer) -> Iterator[None]:
    """Put every record that is logged inside the block into ``buffer`` as well."""
    before = structlog.get_config()["processors"]
    at = before.index(merge_contextvars) + 1 if merge_contextvars in before else 0
    structlog.configure(processors=[*before[:at], buffer, *before[at:]])
    # A logger keeps the processors that it was bound with. The one of libraries is left alone.
    logger = log_records.log_to(structlog.get_logger().bind())
    try:
        yield
    finally:
        structlog.configure(processors=before)
        log_records.log_to(logger)


def _own_words(value: Any) -> Any:
    return _ANSWERED.sub(r"\1", value) if isinstance(value, str) else value


def _described(error: BaseException) -> dict[str, str]:
    """Describe an exception by the names of the conventions, without what it says."""
    texts: list[str] = []
    one = error
    while len(texts) < _CAUSES_MAX:
        frames = traceback.StackSummary.from_list(traceback.extract_tb(one.__traceback__)[-_FRAMES_MAX:])
        texts.append(f"{type(one).__qualname__}\n{''.join(frames.format())}")
        cause = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        if cause is None:
            break
        one = cause
    return {"exception.type": type(error).__qualname__, "exception.stacktrace": "\ncaused by ".join(texts)}
