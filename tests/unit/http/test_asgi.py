from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import trio
import trio.testing

from convo.errors import BadRequest, ConvoError
from convo.http.asgi import Exchange, asgi_scope
from convo.http.http1 import RequestHead, read_head
from convo.http.request_body import CutShort


def head(line: str = "GET /a%20b?c=d HTTP/1.1", *fields: str) -> RequestHead:
    return read_head("".join(f"{one}\r\n" for one in (line, "Host: convo", *fields)).encode() + b"\r\n", 8192)


class Body:
    """A request's body in pieces; an exception is one that reading raises."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self._pieces = list(pieces)

    @property
    def done(self) -> bool:
        return not self._pieces

    async def piece(self) -> bytes:
        await trio.lowlevel.checkpoint()
        piece = self._pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        return piece


class Stream:
    def __init__(self) -> None:
        self.written = b""
        self.gone = trio.Event()
        self.entered: list[str] = []

    def enter(self, phase: str, until: float) -> None:
        self.entered.append(phase)

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.written += data

    async def until_gone(self) -> None:
        await self.gone.wait()


def exchange(request: RequestHead | None = None, *pieces: bytes | Exception) -> tuple[Exchange, Stream]:
    stream: Any = Stream()
    body: Any = Body(*pieces)
    return Exchange(stream, body, request or head(), Mock(return_value=True)), stream


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def test_a_scope_describes_the_request() -> None:
    scope = asgi_scope(head(), encrypted=True, client="192.0.2.1", server=("127.0.0.1", 80))
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c=d")
    assert (scope["scheme"], scope["client"], scope["server"]) == ("https", ("192.0.2.1", 0), ("127.0.0.1", 80))


async def test_a_body_comes_piece_by_piece() -> None:
    made, _ = exchange(None, b"ab", b"c")
    assert await made.receive() == {"type": "http.request", "body": b"ab", "more_body": True}
    assert await made.receive() == {"type": "http.request", "body": b"c", "more_body": False}


async def test_after_its_body_an_app_waits_until_the_client_is_gone_or_answered() -> None:
    for gone in (True, False):
        made, stream = exchange(None, b"")
        await made.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.receive)
            await trio.testing.wait_all_tasks_blocked()
            if gone:
                stream.gone.set()
            else:
                await made.send(start())
                await made.send(part(b""))


@pytest.mark.parametrize(("error", "kept"), [(CutShort("early"), False), (BadRequest("chunks"), True)])
async def test_a_body_that_cannot_be_read_is_a_disconnect_whose_reason_is_kept(error: Exception, *, kept: bool) -> None:
    made, _ = exchange(None, error)
    assert await made.receive() == {"type": "http.disconnect"}
    assert (made.refusal is error) is kept


async def test_a_whole_answer_has_a_length() -> None:
    made, stream = exchange()
    await made.send(start())
    await made.send(part(b"abc"))
    assert b"\r\ncontent-length: 3\r\n" in stream.written
    assert stream.written.endswith(b"\r\n\r\nabc")
    assert (made.ended, made.keep, made.status) == (True, True, 200)


async def test_an_answer_in_pieces_comes_in_chunks() -> None:
    made, stream = exchange()
    await made.send(start())
    for one in (part(b"ab", more=True), part(b"", more=True), part(b"c")):
        await made.send(one)
    assert stream.written.endswith(b"\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
    # Each piece but the last has a time of its own.
    assert stream.entered == ["stream", "stream"]


async def test_http_1_0_ends_an_answer_in_pieces_with_the_connection() -> None:
    made, stream = exchange(head("GET / HTTP/1.0", "Connection: keep-alive"))
    await made.send(start())
    await made.send(part(b"ab", more=True))
    assert not made.keep
    assert b"connection: close" in stream.written


async def test_an_answer_shorter_than_its_length_ends_the_connection() -> None:
    made, _ = exchange()
    await made.send(start(200, (b"Content-Length", b"5")))
    await made.send(part(b"abc"))
    assert not made.keep


async def test_an_answer_to_head_has_no_body() -> None:
    made, stream = exchange(head("HEAD / HTTP/1.1"))
    await made.send(start())
    await made.send(part(b"abc"))
    assert stream.written.endswith(b"\r\n\r\n")


async def test_a_body_before_a_status_is_an_error_of_the_app() -> None:
    made, _ = exchange()
    with pytest.raises(ConvoError, match="before a status"):
        await made.send(part(b"abc"))
