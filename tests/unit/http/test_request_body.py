from __future__ import annotations

from typing import Any, cast

import pytest
import trio
import trio.testing

from convo.errors import BadRequest, TooLarge
from convo.http import http1
from convo.http.phases import PhasedStream
from convo.http.request_body import CutShort, RequestBody
from convo.http.wire import ClientGone
from convo.settings import ConnectionSettings, WebSettings

SETTINGS = ConnectionSettings(body_patience_seconds=1.0, body_bytes_per_second_min=10, body_seconds=5.0)


class Sends:
    """A wire on which a client sends one piece after the other, some seconds apart; empty is the end of its side."""

    encrypted = False

    def __init__(self, *pieces: bytes, seconds: float = 0.0) -> None:
        self._pieces = list(pieces)
        self._seconds = seconds
        self.written = b""

    async def receive(self) -> bytes:
        await trio.sleep(self._seconds)
        if not self._pieces:
            raise ClientGone
        return self._pieces.pop(0)

    def send_now(self, data: bytes) -> int:
        self.written += data
        return len(data)


def body_from(wire: Sends, length: int | None, *, expects: bool = False, limit: int = 100) -> RequestBody:
    stream = PhasedStream(cast("Any", wire), SETTINGS)
    body = RequestBody(stream, SETTINGS, WebSettings(raw_bytes_max=limit), trio.current_time)
    body.begin(length, expects=expects)
    return body


async def test_a_whole_body_is_put_together_and_every_piece_is_reported() -> None:
    sizes: list[int] = []
    body = body_from(Sends(b"abc", b"de", b"fg"), 7)
    assert await body.whole(sizes.append) == b"abcdefg"
    assert (sizes, body.done) == ([3, 2, 2], True)


async def test_a_body_over_the_limit_is_refused_before_more_of_it_is_read() -> None:
    wire = Sends(*[b"x" * 60] * 3, b"never read")
    with pytest.raises(TooLarge):
        await body_from(wire, 1000).whole(lambda _: None)
    assert wire._pieces[-1] == b"never read"


@pytest.mark.parametrize("last", [[], [b""]], ids=["broken", "ended"])
async def test_a_body_that_ends_too_early_is_cut_short(last: list[bytes]) -> None:
    with pytest.raises(CutShort):
        await body_from(Sends(b"abc", *last), 7).whole(lambda _: None)


async def test_chunks_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(BadRequest):
        await body_from(Sends(b"nonsense\r\n"), None).whole(lambda _: None)


async def test_100_continue_is_sent_when_the_body_is_first_read() -> None:
    wire = Sends(b"abc", b"defg")
    body = body_from(wire, 7, expects=True)
    assert wire.written == b""
    await body.whole(lambda _: None)
    assert wire.written == http1.CONTINUE


@pytest.mark.parametrize(("size", "comes"), [(1, False), (10, True)])
async def test_a_body_needs_a_rate_once_its_patience_is_over(
    autojump_clock: trio.testing.MockClock, size: int, *, comes: bool
) -> None:
    wire = Sends(*[b"x" * size] * 10, seconds=0.9)
    stream = PhasedStream(cast("Any", wire), SETTINGS)
    body = RequestBody(stream, SETTINGS, WebSettings(), trio.current_time)
    body.begin(5 * size, expects=False)

    async def read() -> None:
        await body.whole(lambda _: None)

    assert await stream.run(read) is comes


async def test_what_the_server_does_between_two_pieces_is_no_time_of_the_clients(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream = PhasedStream(cast("Any", Sends(b"a", b"b", b"c", seconds=0.3)), SETTINGS)
    body = RequestBody(stream, SETTINGS, WebSettings(), trio.current_time)
    body.begin(3, expects=False)
    body.until = trio.current_time() + 60
    pieces: list[bytes] = []

    async def read() -> None:
        # Six seconds of our own beside 0.9 of the client's, which has 1.2.
        while piece := await body.piece():
            pieces.append(piece)
            await trio.sleep(2)

    assert await stream.run(read)
    assert pieces == [b"a", b"b", b"c"]


async def test_what_has_arrived_of_an_unread_body_is_skipped() -> None:
    body = body_from(Sends(), 3)
    body._stream.rest = b"abcGET /"
    assert body.skip()
    assert body._stream.rest == b"GET /"
    unread = body_from(Sends(), 9)
    unread._stream.rest = b"abc"
    assert not unread.skip()
