"""Sends what waits of one signal (spans, log records) to the collector: in batches, each attempt under a deadline.

Open it to change what happens when the collector does not take them. Nobody waits for it: what waits is bounded by its
buffer. A batch that fails is sent again a few times and then dropped; while the breaker is open, none is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

import trio
from msgspec import Struct

from convo.errors import DeadlineExceeded, RemoteDenied, RemoteDown, RemoteError, RemoteRefused
from convo.observe.metrics import Family, Total
from convo.outbound import OutboundClient, RemoteAnswer, failure
from convo.resilience.dependency import Dependency
from convo.runtime import threads
from convo.runtime.deadline import deadline
from convo.settings import CallSettings, OtelSettings

BATCH = 256
"""So many spans or records at most are sent in one request."""

COLLECTOR_ANSWER_BYTES_MAX = 64 << 10

_TRIES = 3
_ENCODE_SECONDS = 5.0
# One batch after the other, each while no accept is under way, or after a moment of waiting for that.
_ENCODING = threads.ThreadBehindAccepts()

T = TypeVar("T")
_Waiting_co = TypeVar("_Waiting_co", covariant=True)


class Buffer(Protocol[_Waiting_co]):
    """What waits of one signal."""

    def __len__(self) -> int: ...

    def take(self, count: int) -> Sequence[_Waiting_co]: ...  # noqa: D102  (as ``Recorder.take``)


class Signal(Struct, Generic[T], frozen=True, kw_only=True):
    """What is sent, where to, and how it is counted and logged.

    ``name`` is that of its dependency. ``encode`` writes items as the body of a request, and ``rejected`` reads from an
    answer how many of them were refused. ``what`` names them in warnings.
    """

    name: str
    what: str
    url: str
    headers: Mapping[str, str]
    encode: Callable[[Sequence[T]], bytes]
    rejected: Callable[[bytes], int]
    sent: Total
    dropped: Family[Total]
    log_waiting: Callable[[int, str], None]
    log_dropped: Callable[[int, str], None]


class Sending(Generic[T]):
    """Sends what is in ``buffer``, one batch after the other."""

    def __init__(self, signal: Signal[T], buffer: Buffer[T], client: OutboundClient, settings: OtelSettings) -> None:
        self._signal = signal
        self._buffer = buffer
        self._client = client
        self.dependency = Dependency(
            signal.name,
            CallSettings(
                attempt_seconds=settings.attempt_seconds,
                attempts=1,
                concurrency=1,
                breaker_failures=settings.breaker_failures,
                breaker_open_seconds=settings.breaker_open_seconds,
            ),
        )
        # The batch that is being sent, as it is written, and how often that has failed.
        self._batch: Sequence[T] = []
        self._body = b""
        self._failures = 0
        self._turn = trio.Lock()
        self._dropped = signal.dropped.labels("queue_full").value
        self._reason = ""

    @property
    def waiting(self) -> int:
        """How many wait to be sent."""
        return len(self._batch) + len(self._buffer)

    @property
    def warning(self) -> str:
        """What is to be shown while the collector takes none; empty while it does."""
        return f"takes no {self._signal.what} ({self._reason}); {self.waiting} wait" if self._reason else ""

    async def send_waiting(self) -> None:
        """Send all that wait, until an attempt fails."""
        while self.waiting and await self._send_batch():
            pass
        dropped = self._signal.dropped.labels("queue_full").value
        if dropped > self._dropped:
            self._signal.log_dropped(int(dropped - self._dropped), "more waited than the setting allows")
        self._dropped = dropped

    def drop_left(self) -> None:
        """Drop and count what was not sent; the process stops."""
        if self.waiting:
            self._drop([*self._batch, *self._buffer.take(len(self._buffer))], "stopped", "the process stops")

    async def _send_batch(self) -> bool:
        """Send the batch under way, or the next one; return whether to go on at once."""
        async with self._turn:
            try:
                if not self._batch:
                    self._batch = self._buffer.take(BATCH)
                    self._body = b""
                if not self._body:
                    with deadline("otel.encode", _ENCODE_SECONDS):
                        self._body = await _ENCODING.call_behind(self._signal.encode, self._batch)
                answer = await self.dependency.call(f"{self._signal.name}.export", partial(self._attempt, self._body))
            except DeadlineExceeded as error:
                self._failed(error.detail)
                return False
            except RemoteError as error:
                return self._refused(error)
            self._reason = ""
            rejected = min(self._signal.rejected(answer.body), len(self._batch))
            self._signal.sent.inc(len(self._batch) - rejected)
            self._drop(self._batch[:rejected], "refused", "the collector has refused some of a batch")
            return True

    # no deadline: the dependency sets one around each attempt
    async def _attempt(self, body: bytes) -> RemoteAnswer:
        signal = self._signal
        answer = await self._client.post(signal.url, body, signal.headers, answer_bytes_max=COLLECTOR_ANSWER_BYTES_MAX)
        if not answer.good:
            raise failure(signal.name, answer)
        return answer

    def _refused(self, error: RemoteError) -> bool:
        if isinstance(error, RemoteRefused | RemoteDenied):
            self._reason = error.detail
            self._drop(self._batch, "refused", error.detail)
        elif not isinstance(error, RemoteDown):
            self._failed(error.detail)
        return False

    def _failed(self, reason: str) -> None:
        self._reason = reason
        self._failures += 1
        self._signal.log_waiting(self.waiting, reason)
        if self._failures >= _TRIES:
            self._drop(self._batch, "failed", reason)

    def _drop(self, items: Sequence[T], counted_as: str, reason: str) -> None:
        """End the batch under way; what of it was not sent is counted."""
        if items:
            self._signal.dropped.labels(counted_as).inc(len(items))
            self._signal.log_dropped(len(items), reason)
        self._batch, self._body, self._failures = [], b"", 0
