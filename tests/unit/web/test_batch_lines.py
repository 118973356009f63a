from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from convo.errors import Overloaded, TooLarge
from convo.settings import WebSettings
from convo.web.batch_lines import BatchLines

BOM = b"\xef\xbb\xbf"


class Pieces:
    """A body that arrives piece by piece, and what is held of it."""

    def __init__(self, *pieces: bytes, room: int = 1 << 30) -> None:
        self.left = list(pieces)
        self.held: list[int] = []
        self.room = room

    async def next_piece(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.left.pop(0) if self.left else b""

    def hold(self, bytes_: int) -> None:
        if bytes_ > self.room:
            raise Overloaded("full")
        self.held.append(bytes_)

    def lines(self, settings: WebSettings | None = None) -> BatchLines:
        return BatchLines(self.next_piece, self.hold, settings or WebSettings())


async def read(lines: BatchLines) -> list[bytes]:
    found = []
    while (line := await lines.next()) is not None:
        found.append(line)
    assert await lines.next() is None
    return found


def split(body: bytes, size: int) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", []),
        (b"\n\r\n \t\n", []),
        (b'{"a":1}', [b'{"a":1}']),
        (b"one\ntwo\n", [b"one", b"two"]),
        (b"one\ntwo", [b"one", b"two"]),
        (b"one\r\n\r\n\n  two\r\n", [b"one\r", b"two\r"]),
        (BOM + b"one\ntwo", [BOM + b"one", b"two"]),
        (BOM + b"\none", [b"one"]),
        (BOM, []),
        ("a\u2028b\nc".encode(), ["a\u2028b".encode(), b"c"]),
        (b"a\rb\nc", [b"a\rb", b"c"]),
    ],
)
async def test_a_body_is_cut_at_its_line_breaks_however_it_arrives(
    body: bytes, expected: Sequence[bytes], size: int
) -> None:
    assert await read(Pieces(*split(body, size)).lines()) == expected


async def test_only_the_last_piece_and_the_line_that_has_begun_are_held() -> None:
    pieces = Pieces(*[b"x" * 90 + b"\n" + b"y" * 9] * 50)
    lines = pieces.lines()
    found = await read(lines)
    assert [len(line) for line in found] == [90, *[99] * 49, 9]
    assert max(pieces.held) == 109


async def test_a_line_that_does_not_end_is_held_up_to_the_limit() -> None:
    lines = Pieces(*[b"x" * 100] * 11).lines(WebSettings(raw_bytes_max=1000))
    with pytest.raises(TooLarge, match=r"over web\.raw_bytes_max = 1000 bytes; send what follows in another one"):
        await lines.next()


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
async def test_the_lines_before_the_limit_are_given_however_they_arrive(size: int) -> None:
    lines = Pieces(*split(b"123456789\n" * 20, size)).lines(WebSettings(raw_bytes_max=105))
    assert [await lines.next() for _ in range(10)] == [b"123456789"] * 10
    with pytest.raises(TooLarge):
        await lines.next()
    assert await read(Pieces(*split(b"123456789\n" * 10, size)).lines(WebSettings(raw_bytes_max=100)))


async def test_without_room_the_rest_is_only_counted_and_no_line_is_lost() -> None:
    body = b"".join(b"line-%d\n" % number for number in range(100))
    pieces = Pieces(*split(body, 64), room=100)
    lines = pieces.lines()
    first = [await lines.next() for _ in range(10)]
    pieces.room = 0
    with pytest.raises(Overloaded):
        await read(lines)
    lines.count_only()
    counted = await read(lines)
    assert len(first) + len(counted) < 100  # those between were given before there was no room
    assert set(counted) == {b""}


@pytest.mark.parametrize("given", [0, 1, 7, 29, 30])
async def test_every_line_is_given_or_counted(given: int) -> None:
    body = b"\n".join(b"line-%d" % number for number in range(30)) + b"\n\n"
    lines = Pieces(*split(body, 16)).lines()
    for _ in range(given):
        assert await lines.next()
    lines.count_only()
    assert len(await read(lines)) == 30 - given


async def test_a_cancelled_call_is_taken_up_where_it_was() -> None:
    send, receive = trio.open_memory_channel[bytes](0)
    lines = BatchLines(receive.receive, lambda _: None, WebSettings())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.send, b"one, ")
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_blocked, scope)
            await lines.next()
        nursery.start_soon(send.send, b"and its end\n")
        assert await lines.next() == b"one, and its end"


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()
