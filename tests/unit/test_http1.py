from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convo.errors import BadRequest, ConvoError, HeadTooLarge, TargetTooLong, VersionNotSupported
from convo.web import http1
from convo.web.http1 import Chunked, Sized

MAX = 16384


def head(line: str = "GET / HTTP/1.1", *fields: str, host: bool = True) -> bytes:
    lines = [line, *(["Host: convo"] if host else []), *fields]
    return "".join(f"{one}\r\n" for one in lines).encode("latin-1") + b"\r\n"


def read(raw: bytes) -> http1.RequestHead:
    return http1.read_head(raw, 8192)


# --- the head


def test_a_head_is_read_as_it_stands() -> None:
    got = read(
        head("POST /a%20b?c=d HTTP/1.1", "Content-Length: 12", "X-One:  two words\t", "CONTENT-TYPE: text/plain")
    )
    assert (got.method, got.target, got.version, got.length) == ("POST", b"/a%20b?c=d", "1.1", 12)
    assert got.headers == [
        (b"host", b"convo"), (b"content-length", b"12"), (b"x-one", b"two words"), (b"content-type", b"text/plain"),
    ]  # fmt: skip
    assert got.fields[b"content-type"] == b"text/plain"
    assert (got.keep_alive, got.expects) == (True, False)


REFUSED = {
    "two lengths that agree": head("POST / HTTP/1.1", "Content-Length: 5", "Content-Length: 5"),
    "two lengths that do not": head("POST / HTTP/1.1", "Content-Length: 5", "Content-Length: 6"),
    "two lengths in one": head("POST / HTTP/1.1", "Content-Length: 5, 5"),
    "a length with a sign": head("POST / HTTP/1.1", "Content-Length: +5"),
    "a negative length": head("POST / HTTP/1.1", "Content-Length: -5"),
    "a hexadecimal length": head("POST / HTTP/1.1", "Content-Length: 0x5"),
    "no length": head("POST / HTTP/1.1", "Content-Length:"),
    "a length of 30 digits": head("POST / HTTP/1.1", "Content-Length: " + "9" * 30),
    "a length and chunks": head("POST / HTTP/1.1", "Content-Length: 5", "Transfer-Encoding: chunked"),
    "chunks and a length": head("POST / HTTP/1.1", "Transfer-Encoding: chunked", "Content-Length: 5"),
    "chunks twice": head("POST / HTTP/1.1", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "chunks twice in one": head("POST / HTTP/1.1", "Transfer-Encoding: chunked, chunked"),
    "chunks not last": head("POST / HTTP/1.1", "Transfer-Encoding: chunked, gzip"),
    "another coding": head("POST / HTTP/1.1", "Transfer-Encoding: gzip"),
    "another coding before chunks": head("POST / HTTP/1.1", "Transfer-Encoding: gzip, chunked"),
    "almost chunked": head("POST / HTTP/1.1", "Transfer-Encoding: xchunked"),
    "chunks in HTTP/1.0": head("POST / HTTP/1.0", "Transfer-Encoding: chunked"),
    "no host": head(host=False),
    "two hosts": head("GET / HTTP/1.1", "Host: convo"),
    "two hosts of one letter": head("GET / HTTP/1.1", "Host: a", "Host: a", host=False),
    "two hosts, both empty": head("GET / HTTP/1.1", "Host:", "Host:", host=False),
    "a host that is none": head("GET / HTTP/1.1", "Host: a b", host=False),
    "a host with a path": head("GET / HTTP/1.1", "Host: a/b", host=False),
    "a folded line": head("GET / HTTP/1.1", "X-One: a", " b"),
    "a folded line with a tab": head("GET / HTTP/1.1", "X-One: a", "\tb"),
    "a bare line feed": b"GET / HTTP/1.1\r\nHost: convo\nX-One: a\r\n\r\n",
    "only bare line feeds in the line": b"GET / HTTP/1.1\nHost: convo\r\n\r\n",
    "a bare carriage return": b"GET / HTTP/1.1\r\nHost: convo\rX-One: a\r\n\r\n",
    "a carriage return in a value": b"GET / HTTP/1.1\r\nHost: convo\r\nX-One: a\rb\r\n\r\n",
    "NUL in a value": head("GET / HTTP/1.1", "X-One: a\0b"),
    "NUL in a name": head("GET / HTTP/1.1", "X-\0One: a"),
    "NUL in the target": head("GET /\0 HTTP/1.1"),
    "a control character": head("GET / HTTP/1.1", "X-One: a\x01b"),
    "a space before the colon": head("GET / HTTP/1.1", "Content-Length : 5"),
    "a line without a colon": head("GET / HTTP/1.1", "nonsense"),
    "a field without a name": head("GET / HTTP/1.1", ": a"),
    "a name that is no token": head("GET / HTTP/1.1", "X(One): a"),
    "two spaces in the line": head("GET  / HTTP/1.1"),
    "a space in the target": head("GET /a b HTTP/1.1"),
    "a target that is no path": head("GET a HTTP/1.1"),
    "no version": head("GET /"),
    "a version without HTTP": head("GET / ICE/1.0"),
    "a version in lower case": head("GET / http/1.1"),
    "a version of two digits": head("GET / HTTP/1.10"),
    "a method that is no token": head("G@T / HTTP/1.1"),
    "a tab in the line": head("GET\t/ HTTP/1.1"),
    "raw UTF-8 in the target": "GET /é HTTP/1.1\r\nHost: convo\r\n\r\n".encode(),
    "an unknown method with a broken field": head("BREW / HTTP/1.1", "X(One): a"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_breaks_http_or_can_be_read_in_two_ways_is_refused(name: str) -> None:
    raw = REFUSED[name]
    with pytest.raises(BadRequest):
        http1.read_head(raw[: http1.find_end(raw, MAX, 8192)], 8192)


@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/3.0"])
def test_another_http_is_not_spoken(version: str) -> None:
    with pytest.raises(VersionNotSupported):
        read(head(f"GET / {version}"))
    with pytest.raises(VersionNotSupported):
        read(b"PRI * HTTP/2.0\r\n\r\n")


@pytest.mark.parametrize("method", ["BREW", "get", "M-SEARCH", "PROPFIND", "!#$%&'*+.^_`|~", "SOURCE"])
def test_any_token_is_a_method(method: str) -> None:
    assert read(head(f"{method} /x HTTP/1.1")).method == method


@pytest.mark.parametrize(
    ("target", "path"),
    [("http://other/a?b", b"/a?b"), ("HTTPS://other:1/a", b"/a"), ("http://other", b"/"), ("http://other?b", b"/?b")],
)
def test_an_absolute_target_is_its_path(target: str, path: bytes) -> None:
    assert read(head(f"GET {target} HTTP/1.1")).target == path


def test_an_upgrade_is_ignored() -> None:
    for field in ("h2c", "websocket"):
        raw = head("POST / HTTP/1.1", "Connection: Upgrade, HTTP2-Settings", f"Upgrade: {field}", "Content-Length: 5")
        assert (read(raw).length, read(raw).keep_alive) == (5, True)
    assert read(head("CONNECT a:80 HTTP/1.1")).method == "CONNECT"


@pytest.mark.parametrize(
    ("line", "fields", "keeps"),
    [
        ("GET / HTTP/1.1", [], True),
        ("GET / HTTP/1.1", ["Connection: close"], False),
        ("GET / HTTP/1.1", ["Connection: Keep-Alive, Close"], False),
        ("GET / HTTP/1.1", ["Connection: x", "Connection: close"], False),
        ("GET / HTTP/1.1", ["Connection: closer"], True),
        ("GET / HTTP/1.0", [], False),
        ("GET / HTTP/1.0", ["Connection: keep-alive"], True),
        ("GET / HTTP/1.0", ["Connection: keep-alive, close"], False),
    ],
)
def test_who_says_so_is_closed(line: str, fields: list[str], *, keeps: bool) -> None:
    assert read(head(line, *fields)).keep_alive is keeps


def test_only_http_1_1_expects_to_be_told_to_go_on() -> None:
    assert read(head("POST / HTTP/1.1", "Expect: 100-Continue")).expects
    assert not read(head("POST / HTTP/1.0", "Expect: 100-continue")).expects
    assert not read(head("POST / HTTP/1.1", "Expect: something")).expects


def test_http_1_0_needs_no_host() -> None:
    assert read(head("GET / HTTP/1.0", host=False)).version == "1.0"


# --- where it ends


def test_a_head_ends_at_its_empty_line() -> None:
    raw = head() + b"body"
    assert raw[http1.find_end(raw, MAX, 8192) :] == b"body"
    assert all(http1.find_end(head()[:cut], MAX, 8192) == -1 for cut in range(len(head())))


@pytest.mark.parametrize("raw", [b"\x16\x03\x01\x02\x00", b"\0", b"\xff\xfe", b" GET", b"GET / HTTP/1.1\nHost: x\n\n"])
def test_what_cannot_become_a_head_is_not_waited_for(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        http1.find_end(raw, MAX, 8192)


def test_a_head_has_a_size_and_so_has_its_target() -> None:
    fits = head("GET / HTTP/1.1", "X-One: " + "a" * (MAX - len(head("GET / HTTP/1.1", "X-One: "))))
    assert http1.find_end(fits, MAX, 8192) == len(fits) == MAX
    for raw in (fits.replace(b"X-One:", b"X-One: "), fits[:-2] + b"a" * MAX, b"GET / HTTP/1.1\r\n" + b"a" * MAX):
        with pytest.raises(HeadTooLarge):
            http1.find_end(raw, MAX, 8192)
    assert read(head("GET /" + "a" * 8191 + " HTTP/1.1")).target[1:] == b"a" * 8191
    with pytest.raises(TargetTooLong):
        read(head("GET /" + "a" * 8192 + " HTTP/1.1"))
    for endless in (b"GET /" + b"a" * MAX, head("GET /" + "a" * MAX + " HTTP/1.1")):
        with pytest.raises(TargetTooLong):
            http1.find_end(endless, MAX, 8192)


# --- the body


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
        Chunked().take(BAD_CHUNKS[name])
    slowly = Chunked()
    with pytest.raises(BadRequest):
        list(map(slowly.take, (bytes([byte]) for byte in BAD_CHUNKS[name])))


def test_many_small_chunks_cost_no_more_than_their_bytes() -> None:
    started = time.monotonic()
    body = Chunked()
    body.take(b"1\r\na\r\n" * 100_000)
    assert time.monotonic() - started < 5


# --- the answer


def test_an_answer_cannot_be_written_by_its_headers() -> None:
    for value in ("a\r\nSet-Cookie: b", "a\nb", "a\rb"):
        with pytest.raises(ConvoError):
            http1.whole(200, [("X", value)], "text/plain", b"", b"")
        with pytest.raises(ConvoError):
            http1.head_of(200, [(b"x", value.encode())], b"")


def test_an_answer_is_written() -> None:
    date = http1.date_line(784111777)
    assert date == b"date: Sun, 06 Nov 1994 08:49:37 GMT\r\nserver: convo\r\n"
    written = http1.whole(202, [("Location", "/a")], "application/json", b"{}", date)
    assert written == (
        b"HTTP/1.1 202 Accepted\r\n" + date + b"content-type: application/json\r\ncontent-length: 2\r\n"
        b"Location: /a\r\n\r\n{}"
    )
    assert http1.head_of(299, [(b"a", b"b")], b"") == b"HTTP/1.1 299 \r\na: b\r\n\r\n"
    assert http1.chunk(b"x" * 17) == b"11\r\n" + b"x" * 17 + b"\r\n"
