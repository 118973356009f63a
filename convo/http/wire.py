"""Reads and writes a client's socket, plain or under TLS; the caller holds the deadline.

A plain socket is used by its file number, without Trio's own stream. Reading and writing are tried before waiting:
under load a client's next request is usually there after one pass of the loop, and a wake-up from the kernel costs more
than a failed attempt.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from typing import Protocol

import trio

from convo.http.addresses import plain_address

PIECE_BYTES = 1 << 16
# All sockets are read into this one buffer: 64 KiB allocated for each small request would fragment the heap.
_buffer = memoryview(bytearray(PIECE_BYTES))
_LINGER_NOT = struct.pack("ii", 1, 0)


class ClientGone(Exception):
    """The client has broken the connection."""


class Wire(Protocol):
    """What a connection reads from and writes to."""

    encrypted: bool

    async def open(self) -> None:
        """Do the TLS handshake, if there is one. Raises: ClientGone."""

    async def receive(self) -> bytes:
        """Wait for bytes; empty if the client has ended its side. Raises: ClientGone."""

    def send_now(self, data: bytes) -> int:
        """Write as much as possible without waiting; return how much. Raises: ClientGone."""

    async def send(self, data: memoryview) -> int:
        """Wait until some of it is written; return how much, at most ``PIECE_BYTES``. Raises: ClientGone."""

    async def receive_remains(self) -> bytes:
        """Read bytes that are discarded, below the encryption. Raises: ClientGone."""

    def pending(self) -> bool:
        """Tell whether bytes have arrived that were not read yet."""

    def finish(self) -> None:
        """End our side; the client can still send."""

    def abort(self) -> None:
        """Make the kernel discard, at the close, what the client has not read."""

    def close(self) -> None:
        """Close both sides."""


class Plain:
    """A socket without encryption."""

    __slots__ = ("_number", "_socket", "_stream")

    encrypted = False

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._number = stream.socket.fileno()
        # The same number without Trio's wrapper; detached again before Trio closes it.
        self._socket = socket.socket(stream.socket.family, socket.SOCK_STREAM, stream.socket.proto, self._number)
        self._socket.settimeout(0)

    async def open(self) -> None:
        """Do nothing."""

    async def receive(self) -> bytes:
        """Wait for bytes; empty if the client has ended its side. Raises: ClientGone."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return bytes(_buffer[: self._socket.recv_into(_buffer)])
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._number)
            except OSError as error:
                raise ClientGone from error

    receive_remains = receive

    def send_now(self, data: bytes | memoryview) -> int:
        """Write as much as possible without waiting; return how much. Raises: ClientGone."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ClientGone from error

    async def send(self, data: memoryview) -> int:
        """Wait until some of it is written; return how much, at most ``PIECE_BYTES``. Raises: ClientGone."""
        while True:
            await trio.lowlevel.wait_writable(self._number)
            sent = self.send_now(data[:PIECE_BYTES])
            if sent:
                return sent

    def pending(self) -> bool:
        """Tell whether bytes have arrived that were not read yet."""
        return _has_bytes(self._number)

    def finish(self) -> None:
        """End our side; the client can still send."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Make the kernel discard, at the close, what the client has not read."""
        _forget_unsent(self._stream)

    def close(self) -> None:
        """Close both sides."""
        self._socket.detach()
        self._stream.socket.close()


# no deadline: PhasedStream.carry opens one scope around all that a connection does, and each phase moves its deadline
class Tls:
    """A socket under TLS."""

    __slots__ = ("_stream",)

    encrypted = True

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream

    async def open(self) -> None:
        """Shake hands. Raises: ClientGone."""
        try:
            await self._stream.do_handshake()
        except trio.BrokenResourceError as error:
            raise ClientGone from error

    async def receive(self) -> bytes:
        """Wait for bytes; empty if the client has ended its side. Raises: ClientGone."""
        try:
            return bytes(await self._stream.receive_some(PIECE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ClientGone from error

    async def receive_remains(self) -> bytes:
        """Read bytes that are discarded, below the encryption. Raises: ClientGone."""
        try:
            return bytes(await self._stream.transport_stream.receive_some(PIECE_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ClientGone from error

    def send_now(self, _data: bytes) -> int:
        """Write nothing: once encrypted, the bytes must be sent, and that may take time."""
        return 0

    async def send(self, data: memoryview) -> int:
        """Write one piece. Raises: ClientGone."""
        piece = data[:PIECE_BYTES]
        try:
            await self._stream.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ClientGone from error
        return len(piece)

    def pending(self) -> bool:
        """Tell whether bytes have arrived that were not read yet."""
        return _has_bytes(self._stream.transport_stream.socket.fileno())

    def finish(self) -> None:
        """End our side; the client can still send."""
        with contextlib.suppress(OSError):
            self._stream.transport_stream.socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Make the kernel discard, at the close, what the client has not read."""
        _forget_unsent(self._stream.transport_stream)

    def close(self) -> None:
        """Close both sides."""
        self._stream.transport_stream.socket.close()


Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


def wire_of(stream: Stream) -> tuple[Wire, trio.SocketStream]:
    """Return the wire of an accepted stream, and the socket under it."""
    if isinstance(stream, trio.SSLStream):
        return Tls(stream), stream.transport_stream
    return Plain(stream), stream


def addresses(transport: trio.SocketStream) -> tuple[str, tuple[str, int]]:
    """Return the client's address, and the local address that it connected to."""
    try:
        host, port = transport.socket.getsockname()[:2]
        peer = transport.socket.getpeername()[0]
        return plain_address(peer) or peer, (host, port)
    except OSError:
        # The client was gone before we looked: the first read reports it, too.
        return "", ("", 0)


def _forget_unsent(stream: trio.SocketStream) -> None:
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)


def _has_bytes(number: int) -> bool:
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))
