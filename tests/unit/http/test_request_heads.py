"""One client on a wire in memory: how much of what it sends at once is done before another task runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from unittest.mock import Mock

import pytest
import trio

from convo.http.asgi import AsgiMessage
from convo.http.connection import ClientConnection
from convo.http.connections import Connections
from convo.http.context import DirectTarget, ServerContext
from convo.http.forwarded import Proxies
from convo.http.request_heads import PIPELINED_MAX
from convo.http.wire import PIECE_BYTES
from convo.settings import Settings
from convo.web.description.messages import Answer, Bound, Head, NextPiece, Read
from tests.support.doors import END, Receive, Send, answer, get, statuses
from tests.support.memory_wire import Memory

SETTINGS = Settings()
# What a client may have done between two steps of another task.
FEW = 2


async def end(head: Head, read: Read, _next_piece: NextPiece, bound: Bound) -> Answer:
    """Read the body and refuse the request, as the accept route does where there is no room: who is refused for a
    fault of its own takes turns."""
    with bound(8.0):
        await read(lambda _: None)
    return Answer(status=503, body=b"{}")


async def app(scope: AsgiMessage, receive: Receive, send: Send) -> None:
    """Read the body without waiting for anything else, and answer."""
    while (await receive()).get("more_body"):
        pass
    await answer(send, b"{}", status=404)


def context() -> ServerContext:
    proxies = Proxies(SETTINGS.server)
    return ServerContext(
        settings=SETTINGS,
        direct={END.encode(): DirectTarget(method="POST", path=END, takes_turns=False, answer=end)},
        app=app,
        connections=Connections(SETTINGS.connection, proxies, 10),
        proxies=proxies,
    )


async def served(wire: Memory, measure: Callable[[], int] = lambda: 0) -> int:
    """Serve the client; return the largest growth of what is measured between two steps of another task."""
    most = 0
    connection = ClientConnection(
        context(), cast("Any", wire), Mock(socket=Mock(getsockname=Mock(side_effect=OSError)))
    )

    async def watch() -> None:
        nonlocal most
        before = measure()
        while True:
            await trio.lowlevel.checkpoint()
            most, before = max(most, measure() - before), measure()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.lowlevel.checkpoint()
        await connection.run()
        await connection.linger()
        nursery.cancel_scope.cancel()
    return most


EMPTY = get(END, method="POST")
SENT = {
    "refused posts": EMPTY,
    "refused posts in HTTP/1.0": get(END, "Connection: keep-alive", method="POST", version="HTTP/1.0"),
    "requests to the app": get("/nothing"),
    "refused posts in chunks": get(END, "Transfer-Encoding: chunked", method="POST") + b"0\r\n\r\n",
    "blank lines between": EMPTY + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", SENT)
async def test_of_what_comes_at_once_few_requests_are_answered_before_other_tasks_run(name: str) -> None:
    wire = Memory(SENT[name] * 200)
    most = await served(wire, lambda: wire.got.count(b"HTTP/1.1 "))
    assert len(statuses(wire.got)) == 200
    assert most <= FEW


async def test_a_client_whose_requests_wait_in_great_number_is_disconnected_after_an_answer() -> None:
    wire = Memory(EMPTY * 1000)
    await served(wire)
    # The first one did not wait behind another.
    assert len(statuses(wire.got)) == PIPELINED_MAX + 1
    assert wire.got.count(b"connection: close") == 1
    assert wire.finished, "closed without lingering, the socket would discard the answers"


async def test_a_client_may_send_on_and_on() -> None:
    for piece in (len(EMPTY) * 3, 100, 7):
        wire = Memory(EMPTY * 1000, piece)
        await served(wire)
        assert len(statuses(wire.got)) == 1000


@pytest.mark.parametrize("piece", [PIECE_BYTES, 2, 1])
async def test_a_few_blank_lines_before_a_request_are_skipped_and_many_are_refused(piece: int) -> None:
    last = get("/", "Connection: close")
    few = Memory(b"\r\n\r\n" + EMPTY + b"\r\n" + last, piece)
    await served(few)
    assert statuses(few.got) == [503, 404]
    many = Memory(EMPTY + b"\r\n" * 100_000 + last, piece)
    await served(many)
    assert statuses(many.got) == [503, 400]
    assert b"blank lines" in many.got


@pytest.mark.parametrize(("target", "method"), [(END, "POST"), ("/", "PUT")])
async def test_of_a_body_in_many_small_chunks_few_are_read_before_other_tasks_run(target: str, method: str) -> None:
    reads = 0

    class Counting(Memory):
        async def receive(self) -> bytes:
            nonlocal reads
            reads += 1
            return await super().receive()

    chunks = 11_000
    wire = Counting(get(target, "Transfer-Encoding: chunked", "Connection: close", method=method))
    wire._sent = memoryview(bytes(wire._sent) + b"1\r\na\r\n" * chunks + b"0\r\n\r\n")
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    await served(wire, step)
    assert statuses(wire.got)
    # Each read and each few chunks give another task its step.
    assert steps > chunks / 64
    assert reads < 5
