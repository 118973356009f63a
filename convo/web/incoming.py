"""The body of one request as it comes in: piece by piece, under a deadline as a whole and a least rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from io import BytesIO

from convo.config import ConnectionSettings, WebSettings
from convo.errors import BadRequest
from convo.observe import metrics
from convo.web import http1
from convo.web.asgi import CutShort
from convo.web.body import Body, Chunked, Sized
from convo.web.channel import Channel
from convo.web.door import too_large
from convo.web.wire import Gone

_NOTHING = Sized(0)


class Incoming:
    """The bodies of one connection's requests, one after another; ``until`` is the end of the request's budget."""

    __slots__ = ("_began", "_body", "_bytes", "_channel", "_expects", "_now", "_settings", "_web", "until")

    def __init__(
        self, channel: Channel, settings: ConnectionSettings, web: WebSettings, now: Callable[[], float]
    ) -> None:
        self._channel = channel
        self._settings = settings
        self._web = web
        self._now = now
        self.forget()

    def forget(self) -> None:
        """Expect none."""
        self._body: Body = _NOTHING
        self._began = -1.0
        self._bytes = 0
        self._expects = False
        self.until = math.inf

    def begin(self, length: int | None, *, expects: bool) -> None:
        """Expect one of so many bytes, or in chunks; who ``expects`` is told to go on once somebody wants it."""
        self._body = Chunked() if length is None else Sized(length)
        self._expects = expects

    @property
    def done(self) -> bool:
        """Whether all of it was taken."""
        return self._body.done

    def skip(self) -> bool:
        """Take what is here of it, for nobody; tell whether that was all."""
        channel = self._channel
        if channel.rest and not self._body.done:
            try:
                _, channel.rest = self._body.take(channel.rest)
            except BadRequest:
                return False
        return self._body.done

    async def whole(self, grow: Callable[[int], None]) -> bytes:
        """Read all of it, which is in memory once; ``grow`` is told how much each piece of it brings.

        Raises:
            TooLarge: it is over the limit.
            BadRequest: it cannot be read, or ends too early.
            Overloaded: there is no room for it.
        """
        limit = self._web.body_bytes_max
        first = await self.piece()
        grow(len(first))
        if self._body.done:
            return first
        # What BytesIO holds it gives away without a copy.
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
        """Return the next piece, empty behind the last.

        Raises:
            BadRequest: it cannot be read.
            CutShort: it ends too early.
        """
        body, channel = self._body, self._channel
        while not body.done:
            if channel.rest:
                piece, channel.rest = body.take(channel.rest)
                self._bytes += len(piece)
                if body.done and self._began >= 0:
                    metrics.wait_seconds.labels("connection.body").observe(self._now() - self._began)
                if piece:
                    return piece
            else:
                await self._more()
        return b""

    async def _more(self) -> None:
        channel = self._channel
        if self._began < 0:
            self._began = self._now()
        if self._expects:
            self._expects = False
            await channel.send(http1.CONTINUE)
            channel.said = False
        if not channel.said:
            channel.enter("body", self._deadline())
        try:
            more = await channel.more()
        except Gone:
            channel.gone = True
            more = False
        if not more:
            raise CutShort("the connection ended in the middle of the body")
        if not channel.said:
            channel.enter("handler", self.until)

    def _deadline(self) -> float:
        settings = self._settings
        earned = settings.body_patience_seconds + self._bytes / settings.body_bytes_per_second_min
        return min(self._began + min(earned, settings.body_seconds), self.until)
