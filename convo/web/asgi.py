"""One request as an ASGI 3 app sees it: its scope, and the messages both ways; it knows no socket and no deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol
from urllib.parse import unquote

import trio

from convo.errors import BadRequest, ConvoError
from convo.web.http1 import LAST_CHUNK, Headers, RequestHead, chunk, has_body, head_of

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

EXTENSION = "convo.connection"
"""In a scope's ``extensions``: this server lets every ``send`` come to its end."""


class Talk(Protocol):
    """What an exchange needs of its connection."""

    @property
    def body_done(self) -> bool:
        """Whether all of the body was taken."""

    async def body_piece(self) -> bytes:
        """Return the next piece of the body, empty behind the last. Raises: BadRequest, CutShort."""

    async def until_gone(self) -> None:
        """Return when the client has broken off."""

    async def send(self, data: bytes) -> None:
        """Write it; nothing happens when the client is gone."""

    def keeps(self) -> bool:
        """Decide whether there can be another request after this one."""

    def date(self) -> bytes:
        """Return the lines that stand in every answer."""


class CutShort(BadRequest):
    """The client's side ended in the middle of its body."""


def scope_of(request: RequestHead, *, encrypted: bool, client: str, server: tuple[str, int]) -> Message:
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

    ``refusal`` is what was wrong with the body, when the app was told that the client is gone for that reason.
    """

    __slots__ = (
        "_chunks", "_given", "_left", "_request", "_silent", "_start", "_talk", "_watch",
        "begun", "ended", "keep", "refusal", "status",
    )  # fmt: skip

    def __init__(self, talk: Talk, request: RequestHead) -> None:
        self._talk = talk
        self._request = request
        self._given = False
        self._start: Message | None = None
        self._chunks = False
        self._silent = False
        self._left: int | None = None
        self._watch: trio.CancelScope | None = None
        self.begun = False
        self.ended = False
        self.keep = False
        self.status = 0
        self.refusal: ConvoError | None = None

    async def receive(self) -> Message:
        """Return the next piece of the body; behind the last, wait until the client is gone or answered."""
        if not (self._given or self.ended):
            try:
                piece = await self._talk.body_piece()
            except CutShort:
                return {"type": "http.disconnect"}
            except BadRequest as error:
                self.refusal = error
                return {"type": "http.disconnect"}
            self._given = self._talk.body_done
            return {"type": "http.request", "body": piece, "more_body": not self._given}
        if not self.ended:
            with trio.CancelScope() as self._watch:
                await self._talk.until_gone()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take the next message of the answer."""
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
            await self._talk.send(data)
        if not more:
            self._end()

    def _begin(self, size: int, *, more: bool) -> bytes:
        """Decide how the answer's body is framed, and return the head."""
        if self._start is None:
            raise ConvoError("the app sent a body before a status")
        self.begun = True
        self.status = int(self._start["status"])
        self.keep = self._talk.keeps()
        headers: Headers = [(bytes(name).lower(), bytes(value)) for name, value in self._start.get("headers", ())]
        given = dict(headers)
        if b"close" in given.get(b"connection", b"").lower():
            self.keep = False
        self._silent = not has_body(self._request.method, self.status)
        if b"content-length" in given:
            self._left = int(given[b"content-length"])
        elif not self._silent:
            headers += self._framing(size, more=more)
        headers += self._connection(given)
        return head_of(self.status, headers, self._talk.date())

    def _framing(self, size: int, *, more: bool) -> Headers:
        if not more:
            return [(b"content-length", b"%d" % size)]
        if self._request.version == "1.0":
            # Its end is the connection's.
            self.keep = False
            return []
        self._chunks = True
        return [(b"transfer-encoding", b"chunked")]

    def _connection(self, given: dict[bytes, bytes]) -> Headers:
        if b"connection" in given:
            return []
        if not self.keep:
            return [(b"connection", b"close")]
        return [(b"connection", b"keep-alive")] if self._request.version == "1.0" else []

    def _end(self) -> None:
        self.ended = True
        if self._left and not self._silent:
            # Shorter than promised: only the end of the connection can say so.
            self.keep = False
        if self._watch is not None:
            self._watch.cancel()
