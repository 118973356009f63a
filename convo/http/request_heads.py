"""Reads the heads of a connection's requests, one after another, each under a deadline and after all other tasks.

Open it for what a client may send before and between its requests: blank lines, and requests that do not wait for the
answers.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from convo.http import http1
from convo.http.phases import PhasedStream
from convo.settings import ConnectionSettings

# Requests that one client may have waiting behind one another, each for one pass of the loop. One that has more is
# disconnected after an answer, as HTTP allows, and sends the rest again.
PIPELINED_MAX = 256


class RequestHeads:
    """The heads of one connection's requests; ``started`` is when the first byte of the present one was there."""

    __slots__ = ("_blank_lines", "_now", "_pipelined", "_settings", "_stream", "started")

    def __init__(self, stream: PhasedStream, settings: ConnectionSettings, now: Callable[[], float]) -> None:
        self._stream = stream
        self._settings = settings
        self._now = now
        self._pipelined = 0  # requests in a row that had arrived before the last answer was written
        self.forget()

    def forget(self) -> None:
        """Expect another request."""
        self._blank_lines = 0
        self.started = 0.0

    def too_many_wait(self) -> bool:
        """Tell whether the client has sent more requests ahead than may wait."""
        return self._pipelined >= PIPELINED_MAX and bool(self._stream.rest)

    async def next(self) -> bytes:
        """Wait for the next head and return it; empty if the client has ended its side.

        Raises:
            BadRequest, HeadTooLarge, TargetTooLong: as ``http1.find_end``.
            ClientGone: the client has broken the connection.
        """
        stream = self._stream
        if stream.rest:
            await self._give_way()
        else:
            stream.idle()
            if not await stream.more():
                return b""
            self._pipelined = 0
            self.started = self._now()
        end = self._find_end()
        if end < 0:
            end = await self._rest()
        if end < 0:
            return b""
        raw, stream.rest = stream.rest[:end], stream.rest[end:]
        return raw

    async def _give_way(self) -> None:
        """Let all other tasks run before the next request, which has arrived behind the last one.

        Else a client that sends thousands at once would hold the loop until all of them are answered.
        """
        self._pipelined += 1
        self.started = self._now()
        # Its own phase: the deadline of the last request must not end this one.
        self._stream.enter("head", self.started + self._settings.head_seconds)
        await trio.lowlevel.checkpoint()

    async def _rest(self) -> int:
        self._stream.enter("head", self.started + self._settings.head_seconds)
        self._pipelined = 0
        end = -1
        while end < 0:
            if not await self._stream.more():
                return -1
            end = self._find_end()
        self._stream.waits.head(self._now() - self.started)
        return end

    def _find_end(self) -> int:
        stream = self._stream
        if stream.rest.startswith(b"\r\n"):
            self._blank_lines += (blank := http1.blank_lines(stream.rest, self._blank_lines))
            stream.rest = stream.rest[2 * blank :]
        return http1.find_end(stream.rest, self._settings.head_bytes_max, self._settings.target_bytes_max)
