from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convo.errors import BadRequest
from convo.http.framing import Chunked, Sized


def test_a_sized_body_leaves_what_comes_after_it() -> None:
    body = Sized(5)
    assert body.take(b"abc") == (b"abc", b"")
    assert body.take(b"defgh") == (b"de", b"fgh")
    assert body.done


def chunked(pieces: list[bytes], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces if piece)
    return chunks + b"0\r\n" + trailer + b"\r\n"


@given(
    pieces=st.lists(st.binary(max_size=40), max_size=6),
    extension=st.sampled_from([b"", b";a", b';a="b c"', b";" + b"x" * 200]),
    trailer=st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: b\r\nC:\r\n"]),
    cuts=st.lists(st.integers(0, 500), max_size=8),
)
def test_chunks_are_undone_however_they_come(
    pieces: list[bytes], extension: bytes, trailer: bytes, cuts: list[int]
) -> None:
    raw = chunked(pieces, extension, trailer) + b"GET /next"
    body, got, rest = Chunked(), b"", b""
    at = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    for start, end in itertools.pairwise(at):
        if body.done:
            rest += raw[start:end]
            continue
        piece, rest = body.take(raw[start:end])
        got += piece
    assert (body.done, got, rest) == (True, b"".join(pieces), b"GET /next")


BAD_CHUNKS = {
    "no size": b"\r\n\r\n",
    "a size that is none": b"g\r\na\r\n",
    "a signed size": b"+1\r\na\r\n",
    "a negative size": b"-1\r\na\r\n",
    "a size with 0x": b"0x1\r\na\r\n",
    "a size with a space before": b" 1\r\na\r\n",
    "a size with a space behind": b"1 \r\na\r\n",
    "a size with an underscore": b"1_0\r\na\r\n",
    "a size of 16 digits": b"1000000000000000\r\na\r\n",
    "a bare line feed behind the size": b"1\na\r\n0\r\n\r\n",
    "a bare carriage return in an extension": b"1;a\rb\r\na\r\n",
    "a NUL in an extension": b"1;a\0\r\na\r\n",
    "an endless extension": b"1;" + b"a" * 300,
    "more than it says": b"1\r\nab\r\n",
    "a bare line feed behind the data": b"1\r\na\n0\r\n\r\n",
    "an endless trailer": b"0\r\n" + b"a: b\r\n" * 2000,
    "an endless trailer line": b"0\r\na:" + b"b" * 9000,
    "a trailer that is none": b"0\r\nnonsense\r\n\r\n",
    "a folded trailer": b"0\r\na: b\r\n c\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_what_is_no_chunk_is_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        whole(BAD_CHUNKS[name])
    slowly = Chunked()
    with pytest.raises(BadRequest):
        list(map(slowly.take, (bytes([byte]) for byte in BAD_CHUNKS[name])))


def whole(raw: bytes) -> tuple[bytes, int]:
    """Take all of it as a connection does; return the data, and how many calls that took."""
    body, got, calls = Chunked(), b"", 0
    while raw and not body.done:
        piece, raw = body.take(raw)
        got += piece
        calls += 1
    return got, calls


def test_one_call_takes_few_of_many_small_chunks() -> None:
    for extension in (b"", b";a=b"):
        got, calls = whole(chunked([b"a"] * 10_000, extension))
        assert got == b"a" * 10_000
        assert calls > 10_000 / 64


def test_one_call_takes_few_of_many_trailers() -> None:
    assert whole(chunked([b"a"], trailer=b"a:\r\n" * 2000))[1] > 2000 / 64 - 1


def test_large_chunks_are_taken_in_one_call() -> None:
    pieces = [bytes([number]) * 4096 for number in range(16)]
    assert whole(chunked(pieces)) == (b"".join(pieces), 1)


@pytest.mark.parametrize(("pieces", "extension", "fine"), [
    ([b"a"] * 50, b";" + b"x" * 200, True),  # 10 KB of them
    ([b"a"] * 100, b";" + b"x" * 200, False),  # 20 KB of them
    ([b"a" * 8192] * 500, b";chunk-signature=" + b"f" * 64, True),  # as object stores are written to
    ([b"a"] * 100_000, b"", True),
])  # fmt: skip
def test_extensions_that_outweigh_the_data_are_refused(pieces: list[bytes], extension: bytes, *, fine: bool) -> None:
    raw = chunked(pieces, extension)
    if fine:
        assert whole(raw)[0] == b"".join(pieces)
    else:
        with pytest.raises(BadRequest, match="extensions"):
            whole(raw)
