from __future__ import annotations

import pytest

from convo.errors import BadRequest, ConvoError, HeadTooLarge, TargetTooLong, VersionNotSupported
from convo.http import http1

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
    "a target with half an address": head("GET http://[x/livez HTTP/1.1"),
    "a target with a port that is none": head("GET http://x:y/livez HTTP/1.1"),
    "a target with a user": head("GET http://u@x/livez HTTP/1.1"),
    "a target without a host": head("GET http:///livez HTTP/1.1"),
    "a host with half an address": head("GET / HTTP/1.1", "Host: [x", host=False),
    "a host with two ports": head("GET / HTTP/1.1", "Host: a:1:2", host=False),
    "a host that is only a port": head("GET / HTTP/1.1", "Host: :80", host=False),
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
    [
        ("http://other/a?b", b"/a?b"),
        ("http://[::1]:80/a", b"/a"),
        ("HTTPS://other:1/a", b"/a"),
        ("http://other", b"/"),
        ("http://other?b", b"/?b"),
    ],
)
def test_an_absolute_target_is_its_path(target: str, path: bytes) -> None:
    assert read(head(f"GET {target} HTTP/1.1")).target == path


@pytest.mark.parametrize("target", ["http://other:1/a", "HTTP://other:1", "http://other:1?b"])
def test_the_host_of_an_absolute_target_counts_in_the_place_of_the_field(target: str) -> None:
    request = read(head(f"GET {target} HTTP/1.1"))
    assert request.fields[b"host"] == b"other:1"
    assert [value for name, value in request.headers if name == b"host"] == [b"other:1"]


@pytest.mark.parametrize("target", ["http://", "http:///a", "https://?b", "http://me@other/a", "http://a b/"])
def test_an_absolute_target_without_a_host_is_refused(target: str) -> None:
    with pytest.raises(BadRequest):
        read(head(f"GET {target} HTTP/1.1"))


def test_an_absolute_target_is_no_substitute_for_the_host_field() -> None:
    with pytest.raises(BadRequest, match="must have a Host"):
        read(head("GET http://other/a HTTP/1.1", host=False))


@pytest.mark.parametrize(
    "host", ["", "a", "a:", "a:80", "a.b-c_d", "127.0.0.1:1", "[::1]", "[::1]:80", "[fe80::1%eth0]"]
)
def test_a_host_is_a_name_or_an_address_and_perhaps_a_port(host: str) -> None:
    assert read(head("GET / HTTP/1.1", f"Host: {host}", host=False)).fields[b"host"] == host.encode()


def test_options_may_ask_about_the_server_as_a_whole() -> None:
    assert read(head("OPTIONS * HTTP/1.1")).target == b"*"


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
def test_a_client_that_asks_for_it_is_closed(line: str, fields: list[str], *, keeps: bool) -> None:
    assert read(head(line, *fields)).keep_alive is keeps


def test_only_http_1_1_expects_100_continue() -> None:
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


# --- the answer


def test_an_answer_cannot_be_written_by_its_headers() -> None:
    for value in ("a\r\nSet-Cookie: b", "a\nb", "a\rb"):
        with pytest.raises(ConvoError):
            http1.whole(200, [("X", value)], "text/plain", b"", b"")
        with pytest.raises(ConvoError):
            http1.head_of(200, [(b"x", value.encode())], b"")


def test_an_answer_is_written() -> None:
    date = http1.date_line(784111777)
    assert date == (b"date: Sun, 06 Nov 1994 08:49:37 GMT\r\nserver: convo\r\nx-content-type-options: nosniff\r\n")
    written = http1.whole(202, [("Location", "/a")], "application/json", b"{}", date)
    assert written == (
        b"HTTP/1.1 202 Accepted\r\n" + date + b"content-type: application/json\r\ncontent-length: 2\r\n"
        b"Location: /a\r\n\r\n{}"
    )
    assert http1.head_of(299, [(b"a", b"b")], b"") == b"HTTP/1.1 299 \r\na: b\r\n\r\n"
    assert http1.chunk(b"x" * 17) == b"11\r\n" + b"x" * 17 + b"\r\n"


# --- before it begins


def test_a_few_blank_lines_are_counted() -> None:
    for buffer, count in ((b"", 0), (b"GET", 0), (b"\r", 0), (b"\r\nGET", 1), (b"\r\n\r\n\r", 2), (b"\r\n" * 4, 4)):
        assert http1.blank_lines(buffer, 0) == count


@pytest.mark.parametrize(("buffer", "before"), [(b"\r\n" * 5, 0), (b"\r\n" * 1_000_000, 0), (b"\r\n", 4)])
def test_many_blank_lines_are_refused(buffer: bytes, before: int) -> None:
    with pytest.raises(BadRequest, match="blank lines"):
        http1.blank_lines(buffer, before)


def test_a_head_has_at_most_a_hundred_fields() -> None:
    assert len(read(head("GET / HTTP/1.1", *["a:"] * 99)).headers) == 100
    many = head("GET / HTTP/1.1", *["a:"] * 100)
    with pytest.raises(HeadTooLarge, match="100 fields"):
        read(many)
    # Before the rest of it has come, too.
    with pytest.raises(HeadTooLarge, match="100 fields"):
        http1.find_end(many[:-2] + b"a:\r\n", MAX, 8192)


def test_the_members_of_a_tracestate_may_come_in_several_fields() -> None:
    found = read(head("GET / HTTP/1.1", "tracestate: a=1", "TraceState: b=2"))
    assert found.fields[b"tracestate"] == b"a=1,b=2"
