"""What clients do to a server to hold it up; it knows addresses and bytes, not which server is there.

A client takes its position, and then holds it until it is cancelled. A server that ends a connection has defended
itself: that is no error here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
from collections.abc import Awaitable, Callable

import trio
from msgspec import Struct

from scripts.bench import load, malformed

_CONNECT_SECONDS = 5.0
_PIPELINED = 16
# How long a client that sent nonsense waits for an answer before it goes.
_NONSENSE_SECONDS = 0.15
_AT_ONCE = 64
_TRIES = 3
# What a client meets whose server has ended the connection.
GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, StopIteration)
_numbers = itertools.count()


class Aim(Struct, frozen=True, kw_only=True):
    """What is attacked: an address, the path of a large answer, and a body that the accept route takes, less its id.

    ``lives`` tells whether the server's process is still there.
    """

    host: str
    port: int
    large: str
    tail: str
    lives: Callable[[], bool]


Take = Callable[[Aim], Awaitable[trio.SocketStream | None]]
Hold = Callable[[trio.SocketStream], Awaitable[None]]


class Died(Exception):
    """The server's process ended during an attack: ``name`` says of what, ``number`` where in the list that stands."""

    def __init__(self, number: int, name: str) -> None:
        super().__init__(name)
        self.number = number
        self.name = name


async def occupy(
    take: Take, hold: Hold, aim: Aim, count: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Attack with so many clients at once; started when every one of them has its position, or was refused."""
    # A listening queue holds some hundreds; what overflows it is only sent again by the kernel a second later.
    room = trio.CapacityLimiter(100)
    async with trio.open_nursery() as holders:

        async def take_one() -> None:
            async with room:
                with contextlib.suppress(*GONE):
                    stream = await take(aim)
                    if stream is not None:
                        holders.start_soon(hold, stream)

        async with trio.open_nursery() as takers:
            for _ in range(count):
                takers.start_soon(take_one)
        task_status.started()


async def stay(stream: trio.SocketStream) -> None:
    """Keep a connection open, neither reading nor writing."""
    async with stream:
        await trio.sleep_forever()


async def drip(stream: trio.SocketStream) -> None:
    """Send one byte a second."""
    async with stream:
        with contextlib.suppress(*GONE):
            while True:
                await stream.send_all(b"x")
                await trio.sleep(1.0)


# --- positions


def request(aim: Aim) -> bytes:
    """Make one good request with an id of its own."""
    body = f'{{"conversation_id": "hostile-{os.getpid()}-{next(_numbers)}", {aim.tail}'.encode()
    head = "POST /v1/conversations/end HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def connected(aim: Aim, *, receive_bytes: int = 0) -> trio.SocketStream:
    """Connect; with a small receive buffer, where one is given."""
    connection = trio.socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    try:
        with trio.fail_after(_CONNECT_SECONDS):
            await connection.connect((aim.host, aim.port))
    except BaseException:
        connection.close()
        raise
    return trio.SocketStream(connection)


async def reset(aim: Aim) -> None:
    """Be killed with RST: before a byte, in the head, in the body, or before the answer, in turn."""
    stream = await connected(aim)
    whole = request(aim)
    await stream.send_all(whole[: (0, 40, len(whole) // 2, len(whole))[next(_numbers) % 4]])
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)


async def unread(aim: Aim) -> trio.SocketStream:
    """Ask for a large answer many times, and read none of it."""
    stream = await connected(aim, receive_bytes=4096)
    await stream.send_all(f"GET {aim.large} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * _PIPELINED)
    return stream


async def idle(aim: Aim) -> trio.SocketStream:
    """Have one request answered, and never close."""
    stream = await connected(aim)
    await stream.send_all(request(aim))
    await load.answer(stream)
    return stream


async def half_closed(aim: Aim) -> trio.SocketStream:
    """Close the sending side after a request, read its answer, and keep the other side open."""
    stream = await connected(aim)
    await stream.send_all(request(aim))
    await stream.send_eof()
    await load.answer(stream)
    return stream


async def unreleased(aim: Aim) -> trio.SocketStream:
    """Take an answer's first bytes and never the rest, as a pool does whose connections nobody gives back."""
    stream = await connected(aim)
    await stream.send_all(request(aim))
    await stream.receive_some(12)
    return stream


async def slow_head(aim: Aim) -> trio.SocketStream:
    """Send a part of a head and stop."""
    stream = await connected(aim)
    await stream.send_all(request(aim)[:60])
    return stream


async def slow_body(aim: Aim) -> trio.SocketStream:
    """Send a head and ten bytes of the body, and stop."""
    stream = await connected(aim)
    whole = request(aim)
    await stream.send_all(whole[: whole.index(b"\r\n\r\n") + 14])
    return stream


async def dripping(aim: Aim) -> trio.SocketStream:
    """Begin a head, or a body, in turn, of which one byte a second will follow."""
    return await (slow_head, slow_body)[next(_numbers) % 2](aim)


# --- nonsense


async def openings(aim: Aim, first: int) -> None:
    """Send each malformed opening from the ``first`` on, one after the other.

    Raises:
        Died: one of them ended the server's process.
    """
    for number, (name, sent) in enumerate(malformed.OPENINGS.items()):
        if number >= first:
            await _say(aim, sent)
            # The process takes a moment to fall, and serves nobody meanwhile.
            await trio.sleep(0.05)
            if await _fallen(aim):
                raise Died(number, name)


async def mutations(aim: Aim, first: int, count: int) -> None:
    """Send so many random mutations of good requests, from the ``first`` on, many at once.

    Raises:
        Died: one of them, or of those about it, ended the server's process.
    """
    for batch in range(first, count, _AT_ONCE):
        last = min(batch + _AT_ONCE, count) - 1
        async with trio.open_nursery() as nursery:
            for number in range(batch, last + 1):
                nursery.start_soon(_say, aim, malformed.mutation(number))
        if await _fallen(aim):
            raise Died(last, f"one of the mutations {batch} to {last}")


async def _fallen(aim: Aim) -> bool:
    """Tell whether the server is gone, or answers nobody any more; one that was merely slow is not."""
    for _ in range(_TRIES):
        if not aim.lives():
            return True
        if await _answers(aim):
            return False
    return True


async def _say(aim: Aim, sent: bytes) -> None:
    """Send something and go, whatever becomes of it."""
    with contextlib.suppress(*GONE):
        async with await connected(aim) as stream:
            with trio.move_on_after(_NONSENSE_SECONDS):
                await stream.send_all(sent)
                await stream.send_eof()
                while await stream.receive_some():
                    pass


async def _answers(aim: Aim) -> bool:
    with contextlib.suppress(*GONE), trio.fail_after(_CONNECT_SECONDS):
        async with await connected(aim) as stream:
            await stream.send_all(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return bool(await stream.receive_some())
    return False
