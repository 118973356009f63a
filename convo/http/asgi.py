"""One request as an ASGI 3 app sees it: its scope, and the messages in both directions."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

import trio

from convo.errors import BadRequest, ConvoError
from convo.http.http1 import LAST_CHUNK, HeaderFields, RequestHead, chunk, date_line, has_body, head_of
from convo.http.phases import PhasedStream
from convo.http.request_body import CutShort, RequestBody

AsgiMessage = MutableMapping[str, Any]
App = Callable[
    [AsgiMessage, Callable[[], Awaitable[AsgiMessage]], Callable[[AsgiMessage], Awaitable[None]]], Awaitable[None]
]

EXTENSION = "convo.connection"
"""In a scope's ``extensions``: this server never cancels a ``send``."""

# The longest heartbeat of a stream is far below it.
_PIECE_SECONDS = 30.0


def asgi_scope(request: RequestHead, *, encrypted: bool, client: str, server: tuple[str, int]) -> AsgiMessage:
    """Describe a request as ASGI 3 has it."""
    path, _, query = request.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.version,
        "method": request.method,
        "scheme": "https" if encrypted else "http",
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": request.headers,
        "client": (client, 0),
        "server": server,
        "state": {},
        "extensions": {EXTENSION: {}},
    }


class Exchange:
    """The messages of one request and its answer.

    ``keeps`` decides, when the answer begins, whether another request can follow. ``refusal`` is what was wrong with
    the body: the app itself sees only a disconnect.
    """

    __slots__ = (
        "_body", "_chunks", "_given", "_keeps", "_left", "_request", "_silent", "_start", "_stream", "_watch",
        "begun", "ended", "keep", "refusal", "status",
    )  # fmt: skip

    def __init__(
        self, stream: PhasedStream, body: RequestBody, request: RequestHead, keeps: Callable[[], bool]
    ) -> None:
        self._stream = stream
        self._body = body
        self._request = request
        self._keeps = keeps
        self._given = False
        self._start: AsgiMessage | None = None
        self._chunks = False
        self._silent = False
        self._left: int | None = None
        self._watch: trio.CancelScope | None = None
        self.begun = False
        self.ended = False
        self.keep = False
        self.status = 0
        self.refusal: ConvoError | None = None

    async def receive(self) -> AsgiMessage:
        """Return the next piece of the body; after the last, wait until the client is gone or the answer is sent."""
        if not (self._given or self.ended):
            try:
                piece = await self._body.piece()
            except CutShort:
                return {"type": "http.disconnect"}
            except BadRequest as error:
                self.refusal = error
                return {"type": "http.disconnect"}
            self._given = self._body.done
            return {"type": "http.request", "body": piece, "more_body": not self._given}
        if not self.ended:
            with trio.CancelScope() as self._watch:
                await self._stream.until_gone()
        return {"type": "http.disconnect"}

    async def send(self, message: AsgiMessage) -> None:
        """Write the next message of the answer."""
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body" and not self.ended:
            await self._send_body(bytes(message.get("body", b"")), more=message.get("more_body", False))

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        data = b"" if self.begun else self._begin(len(body), more=more)
        if not self._silent:
            if self._left is not None:
                self._left -= len(body)
            data += chunk(body) if self._chunks and body else body
            if self._chunks and not more:
                data += LAST_CHUNK
        if data:
            await self._stream.send(data)  # no deadline: the connection has one
        if more and self._left is None:
            # Its end is not known: each piece has a time of its own.
            self._stream.enter("stream", trio.current_time() + _PIECE_SECONDS)
        if not more:
            self._end()

    def _begin(self, size: int, *, more: bool) -> bytes:
        """Decide how the end of the answer's body is marked, and return the answer's head."""
        if self._start is None:
            raise ConvoError("the app sent a body before a status")
        self.begun = True
        self.status = int(self._start["status"])
        self.keep = self._keeps()
        headers: HeaderFields = [(bytes(name).lower(), bytes(value)) for name, value in self._start.get("headers", ())]
        given = dict(headers)
        if b"close" in given.get(b"connection", b"").lower():
            self.keep = False
        self._silent = not has_body(self._request.method, self.status)
        if b"content-length" in given:
            self._left = int(given[b"content-length"])
        elif not self._silent:
            headers += self._framing(size, more=more)
        headers += self._connection(given)
        return head_of(self.status, headers, date_line(int(time.time())))

    def _framing(self, size: int, *, more: bool) -> HeaderFields:
        if not more:
            return [(b"content-length", b"%d" % size)]
        if self._request.version == "1.0":
            # HTTP/1.0 has no chunks: the end of the connection is the end of the body.
            self.keep = False
            return []
        self._chunks = True
        return [(b"transfer-encoding", b"chunked")]

    def _connection(self, given: dict[bytes, bytes]) -> HeaderFields:
        if b"connection" in given:
            return []
        if not self.keep:
            return [(b"connection", b"close")]
        return [(b"connection", b"keep-alive")] if self._request.version == "1.0" else []

    def _end(self) -> None:
        self.ended = True
        if self._left and not self._silent:
            # Shorter than announced: only the end of the connection can show it to the client.
            self.keep = False
        if self._watch is not None:
            self._watch.cancel()
