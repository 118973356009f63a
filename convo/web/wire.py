"""The bytes of one client's socket, plain or under TLS; it knows no HTTP and no deadline: its caller has one.

A plain socket is read and written by its number, without trio's own stream. Both try first: under load a busy client's
next request is here once the others had their turn, and to have the kernel wake us costs more than to look in vain.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from typing import Protocol

import trio

from convo.web.forwarded import plain_address

PIECE_BYTES = 1 << 16
# All sockets are read into this one: to allocate so much for each small request would tear the heap to pieces.
_buffer = memoryview(bytearray(PIECE_BYTES))
_LINGER_NOT = struct.pack("ii", 1, 0)


class Gone(Exception):
    """The client has broken the connection off."""


class Wire(Protocol):
    """What a connection reads from and writes to."""

    encrypted: bool

    async def open(self) -> None:
        """Do what comes before the first byte. Raises: Gone."""

    async def receive(self) -> bytes:
        """Wait for bytes; none when the client has ended its side. Raises: Gone."""

    def send_now(self, data: bytes) -> int:
        """Write what goes without waiting; return how much. Raises: Gone."""

    async def send(self, data: memoryview) -> int:
        """Wait until some of it is written; return how much, at most ``PIECE_BYTES``. Raises: Gone."""

    async def receive_remains(self) -> bytes:
        """Read what nobody will look at, below all encryption. Raises: Gone."""

    def pending(self) -> bool:
        """Tell whether something has come that was not read yet."""

    def finish(self) -> None:
        """End our side; the client's stays open."""

    def abort(self) -> None:
        """Have the kernel forget, at the close, what the client has not taken."""

    def close(self) -> None:
        """Close it for both."""


class Plain:
    """A socket as it is."""

    __slots__ = ("_number", "_socket", "_stream")

    encrypted = False

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._number = stream.socket.fileno()
        # The same number without trio's wrapping; given back before trio closes it.
        self._socket = socket.socket(stream.socket.family, socket.SOCK_STREAM, stream.socket.proto, self._number)
        self._socket.settimeout(0)

    async def open(self) -> None:
        """Do nothing."""

    async def receive(self) -> bytes:
        """Wait for bytes; none when the client has ended its side. Raises: Gone."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return bytes(_buffer[: self._socket.recv_into(_buffer)])
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._number)
            except OSError as error:
                raise Gone from error

    receive_remains = receive

    def send_now(self, data: bytes | memoryview) -> int:
        """Write what goes without waiting; return how much. Raises: Gone."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise Gone from error

    async def send(self, data: memoryview) -> int:
        """Wait until some of it is written; return how much, at most ``PIECE_BYTES``. Raises: Gone."""
        while True:
            await trio.lowlevel.wait_writable(self._number)
            sent = self.send_now(data[:PIECE_BYTES])
            if sent:
                return sent

    def pending(self) -> bool:
        """Tell whether something has come that was not read yet."""
        return _has_bytes(self._number)

    def finish(self) -> None:
        """End our side; the client's stays open."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Have the kernel forget, at the close, what the client has not taken."""
        _forget_unsent(self._stream)

    def close(self) -> None:
        """Close it for both."""
        self._socket.detach()
        self._stream.socket.close()


class Tls:
    """A socket under TLS."""

    __slots__ = ("_stream",)

    encrypted = True

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream

    async def open(self) -> None:
        """Shake hands. Raises: Gone."""
        try:
            await self._stream.do_handshake()
        except trio.BrokenResourceError as error:
            raise Gone from error

    async def receive(self) -> bytes:
        """Wait for bytes; none when the client has ended its side. Raises: Gone."""
        try:
            return bytes(await self._stream.receive_some(PIECE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Gone from error

    async def receive_remains(self) -> bytes:
        """Read what nobody will look at, below all encryption. Raises: Gone."""
        try:
            return bytes(await self._stream.transport_stream.receive_some(PIECE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Gone from error

    def send_now(self, _data: bytes) -> int:
        """Write nothing: what is encrypted must then be sent, and that may take time."""
        return 0

    async def send(self, data: memoryview) -> int:
        """Write one piece. Raises: Gone."""
        piece = data[:PIECE_BYTES]
        try:
            await self._stream.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Gone from error
        return len(piece)

    def pending(self) -> bool:
        """Tell whether something has come that was not read yet."""
        return _has_bytes(self._stream.transport_stream.socket.fileno())

    def finish(self) -> None:
        """End our side; the client's stays open."""
        with contextlib.suppress(OSError):
            self._stream.transport_stream.socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Have the kernel forget, at the close, what the client has not taken."""
        _forget_unsent(self._stream.transport_stream)

    def close(self) -> None:
        """Close it for both."""
        self._stream.transport_stream.socket.close()


Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


def wire_of(stream: Stream) -> tuple[Wire, trio.SocketStream]:
    """Return the wire of what was accepted, and the socket under it."""
    if isinstance(stream, trio.SSLStream):
        return Tls(stream), stream.transport_stream
    return Plain(stream), stream


def addresses(transport: trio.SocketStream) -> tuple[str, tuple[str, int]]:
    """Return the client's address, and where it has come to."""
    try:
        host, port = transport.socket.getsockname()[:2]
        return plain_address(transport.socket.getpeername()[0]), (host, port)
    except OSError:
        # Gone before it was looked at: the first read says so, too.
        return "", ("", 0)


def _forget_unsent(stream: trio.SocketStream) -> None:
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)


def _has_bytes(number: int) -> bool:
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))
