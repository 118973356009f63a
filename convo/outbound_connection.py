"""One HTTP/1.1 connection to another service, used for one call after another: what stands below ``outbound``.

Open it to change how a request is written, or how an answer is cut out of the bytes
that come. The request is written in one piece, and httptools reads the answer.

httpx and what it is made of took 0.46 ms of the processor for a call where this takes 0.08 (``scripts/bench/calls.py
--client``), which was the most of what a conversation cost. Its errors are raised here too, so that callers need not
know which of both connects; calls through a proxy still go through httpx.

A request is never sent twice. A connection is used again only after an answer that was read to its end.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Self

import httptools
import httpx
import trio
from msgspec import Struct

IDLE_SECONDS = 5.0
"""A connection that nobody used for so long is not used again: most servers keep it for longer."""

_READ_BYTES = 65_536
# What a server may send between two bytes of a body: the head, interim answers, sizes of chunks, trailers.
_FRAMING_BYTES_MAX = 100 * 1024
# Every header with a name and a value that can stand in a head. No value can begin another line.
_HEAD = re.compile(r"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t\x20-\x7e]*\r\n)*")


class Place(Struct, frozen=True, kw_only=True):
    """Where a connection leads: the name or address of a host, its port, and whether it speaks TLS there."""

    host: str
    port: int
    tls: bool


class WireAnswer(Struct, frozen=True, kw_only=True):
    """An answer as it came: its status, its headers by their names in lower case, its body up to the bound."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def request_bytes(method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """Write a request; ``target`` is the path with its query, ``headers`` begin with ``host``.

    Raises:
        httpx.LocalProtocolError: a header holds what no header can.
    """
    head = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    # The second condition: a line break inside a value, behind which something stands that looks like a header.
    if _HEAD.fullmatch(head) is None or head.count("\n") != len(headers):
        raise httpx.LocalProtocolError("a header holds what no header can")
    length = "" if body is None else f"content-length: {len(body)}\r\n"
    return f"{method} {target} HTTP/1.1\r\n{head}{length}\r\n".encode("ascii") + (body or b"")


class OutboundConnection:
    """An open connection: one call at a time.

    ``reusable``: the last answer was read to its end, and both sides keep the connection. It is closed by whoever has
    it, at once and without a word: no call waits for that of a server that does not answer.
    """

    def __init__(self, stream: trio.abc.Stream, socket: trio.socket.SocketType) -> None:
        self.reusable = True
        self.idle_since = 0.0
        self._stream = stream
        self._socket = socket

    @classmethod
    async def open(cls, place: Place, trusted: ssl.SSLContext) -> Self:  # no deadline: callers do
        """Connect, and agree on TLS where the place speaks it.

        Raises:
            httpx.ConnectError: nobody listens there, the name is unknown, or its certificate is not trusted.
        """
        try:
            plain = await trio.open_tcp_stream(place.host, place.port)
        except (OSError, UnicodeError) as error:  # the second of a name that none can be
            raise httpx.ConnectError(str(error)) from error
        if not place.tls:
            return cls(plain, plain.socket)
        under_tls = trio.SSLStream(plain, trusted, server_hostname=place.host, https_compatible=True)
        try:
            await under_tls.do_handshake()
        except trio.BrokenResourceError as error:
            plain.socket.close()
            raise httpx.ConnectError(str(error.__cause__ or error)) from error
        except BaseException:
            plain.socket.close()
            raise
        return cls(under_tls, plain.socket)

    def close(self) -> None:
        """Close it, whatever it is at."""
        self._socket.close()

    def is_stale(self, now: float) -> bool:
        """Return whether it has been idle for too long, or has something to read: its server has closed it."""
        return now > self.idle_since + IDLE_SECONDS or self._socket.is_readable()

    # no deadline: callers do
    async def exchange(self, request: bytes, bytes_max: int) -> WireAnswer:
        """Send a request, and read the answer: its body up to the first bytes past ``bytes_max``, none where that is 0.

        Raises:
            httpx.HTTPError: the connection broke, or what came is no answer.
        """
        self.reusable = False
        # A server may answer before it has read all, and close: then there is an answer to read.
        with suppress(trio.BrokenResourceError):
            await self._stream.send_all(request)
        reader = _Reader(bytes_max)
        try:
            while not reader.ended:
                reader.take(await self._stream.receive_some(_READ_BYTES))
        except trio.BrokenResourceError as error:
            raise httpx.ReadError(str(error.__cause__ or error)) from error
        finally:
            answer = reader.close()
        self.reusable = reader.keeps
        return answer


class _Reader:
    """Cuts one answer out of what is received. httptools calls its ``on_`` methods."""

    def __init__(self, bytes_max: int) -> None:
        self.ended = False
        self.keeps = False
        self._bytes_max = bytes_max
        self._fields: list[tuple[bytes, bytes]] = []
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._status = 0
        self._framing = 0
        self._parser = httptools.HttpResponseParser(self)
        # What servers get wrong and every client reads: line ends without CR, folded headers, a length beside chunks.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_chunked_length=True,
            lenient_transfer_encoding=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
            lenient_data_after_close=True,
        )

    def take(self, data: bytes | bytearray) -> None:
        """Read on with what was received; nothing means that the server has closed its side.

        Raises:
            httpx.RemoteProtocolError: it is no answer, or it is not complete.
        """
        if not data:
            self._end_with_connection()
            return
        before = len(self._body)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            # What stands behind a whole answer is nobody's.
            self.keeps = False
            if not self.ended:
                raise httpx.RemoteProtocolError(str(error)) from error
        self._framing = self._framing + len(data) if len(self._body) == before else 0
        if self._framing > _FRAMING_BYTES_MAX:
            raise httpx.RemoteProtocolError("too many bytes without a body")
        if self._status and (not self._bytes_max or len(self._body) > self._bytes_max):
            self.ended = True

    def _end_with_connection(self) -> None:
        if not self._status:
            raise httpx.RemoteProtocolError("the server disconnected without an answer")
        if "content-length" in self._headers or "chunked" in self._headers.get("transfer-encoding", "").lower():
            raise httpx.RemoteProtocolError("the server disconnected within its answer")
        self.ended = True

    def close(self) -> WireAnswer:
        """Return what was read, and forget the parser: each holds the other."""
        del self._parser
        return WireAnswer(status=self._status, headers=self._headers, body=bytes(self._body))

    # --- called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.ended and not self._status:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        # Those below 200 say that the answer will come.
        if status >= 200 and not self.ended:
            self._status = status
            for name, value in self._fields:
                key, text = name.decode("latin-1").lower(), value.decode("latin-1")
                self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text
        self._fields.clear()

    def on_body(self, data: bytes) -> None:
        if not self.ended and self._bytes_max:
            self._body += data

    def on_message_complete(self) -> None:
        if self._status and not self.ended:
            self.ended = True
            self.keeps = self._parser.should_keep_alive()
