"""Reads the body of a request from its connection, under a deadline for the whole and a minimum rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from io import BytesIO

import trio

from convo.errors import BadRequest, TooLarge
from convo.http import http1
from convo.http.framing import BodyFraming, Chunked, Sized
from convo.http.phases import PhasedStream
from convo.http.wire import ClientGone
from convo.settings import ConnectionSettings, WebSettings

_NOTHING = Sized(0)


class CutShort(BadRequest):
    """The connection ended before the body did."""


# no deadline: PhasedStream.run opens one scope around all that a connection does, and each phase moves its deadline
class RequestBody:
    """The bodies of one connection's requests, one after another; ``until`` is when the request's time ends."""

    __slots__ = ("_began", "_body", "_bytes", "_came_at", "_expects", "_now", "_settings", "_stream", "_web", "until")

    def __init__(
        self, stream: PhasedStream, settings: ConnectionSettings, web: WebSettings, now: Callable[[], float]
    ) -> None:
        self._stream = stream
        self._settings = settings
        self._web = web
        self._now = now
        self.forget()

    def forget(self) -> None:
        """Expect no body."""
        self._body: BodyFraming = _NOTHING
        self._began = self._came_at = -1.0
        self._bytes = 0
        self._expects = False
        self.until = math.inf

    def begin(self, length: int | None, *, expects: bool) -> None:
        """Expect a body of ``length`` bytes, or in chunks; ``expects``: the client waits for ``100 Continue``."""
        self._body = Chunked() if length is None else Sized(length)
        self._expects = expects

    @property
    def done(self) -> bool:
        """Whether all of the body was read."""
        return self._body.done

    @property
    def waited_seconds(self) -> float:
        """How long the client has been waited for, to send the body."""
        return self._now() - self._began if self._began >= 0 else 0.0

    def skip(self) -> bool:
        """Discard what has arrived of the body; tell whether that was all of it."""
        stream = self._stream
        if stream.rest and not self._body.done:
            try:
                _, stream.rest = self._body.take(stream.rest)
            except BadRequest:
                return False
        return self._body.done

    async def whole(self, grow: Callable[[int], None]) -> bytes:
        """Read the whole body; call ``grow`` with the length of each piece. It is in memory only once.

        Raises:
            TooLarge: the body is over the limit.
            BadRequest: it cannot be read, or it ends too early.
            Overloaded: ``grow`` found no room for it.
        """
        limit = self._web.raw_bytes_max
        first = await self.piece()
        grow(len(first))
        if self._body.done:
            return first
        # BytesIO returns what it holds without a copy, which joining the pieces would make.
        whole = BytesIO()
        whole.write(first)
        while not self._body.done:
            if whole.tell() > limit:
                raise too_large(self._web)
            piece = await self.piece()
            grow(len(piece))
            whole.write(piece)
        return whole.getvalue()

    async def piece(self) -> bytes:
        """Return the next piece, empty after the last.

        Raises:
            BadRequest: the body cannot be read.
            CutShort: it ends too early.
        """
        body, stream = self._body, self._stream
        while not body.done:
            if stream.rest:
                piece, stream.rest = body.take(stream.rest)
                self._bytes += len(piece)
                if body.done and self._began >= 0:
                    stream.waits.body(self._now() - self._began)
                if stream.rest and not body.done:
                    # Many small chunks: a client that sends them must not hold the loop until the last.
                    await trio.lowlevel.checkpoint()
                if piece:
                    return piece
            else:
                await self._more()
        return b""

    async def _more(self) -> None:
        stream = self._stream
        now = self._now()
        # What we did between two pieces is no time of the client's.
        self._began = now if self._began < 0 else self._began + now - self._came_at
        self._came_at = now
        if self._expects:
            self._expects = False
            await stream.send(http1.CONTINUE)
            stream.answer_begun = False
        if not stream.answer_begun:
            stream.enter("body", self._deadline())
        try:
            more = await stream.more()
        except ClientGone:
            stream.gone = True
            more = False
        self._came_at = self._now()
        if not more:
            raise CutShort("the connection ended in the middle of the body")
        if not stream.answer_begun:
            stream.enter("handler", self.until)

    def _deadline(self) -> float:
        settings = self._settings
        earned = settings.body_patience_seconds + self._bytes / settings.body_bytes_per_second_min
        return min(self._began + min(earned, settings.body_seconds), self.until)


def too_large(settings: WebSettings, size: int | None = None) -> TooLarge:
    """Return the error for a body over the limit."""
    sent = "" if size is None else f" of {size} bytes"
    return TooLarge(f"a body{sent} is over web.raw_bytes_max = {settings.raw_bytes_max} bytes")
