"""HTTP/1.1 as bytes: a request's head and an answer; it knows no socket, no clock and no body.

httptools parses, strictly; what it lets through and should not (stack.md 26) is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from http import HTTPStatus

import httptools
from msgspec import Struct

from convo.errors import BadRequest, ConvoError, HeadTooLarge, TargetTooLong, VersionNotSupported

Headers = list[tuple[bytes, bytes]]

_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) (HTTP/[0-9]\.[0-9])\r\n")
_VERSIONS = {b"HTTP/1.1": "1.1", b"HTTP/1.0": "1.0"}
_HOST = re.compile(rb"[!$&'()*+,;=._~%0-9A-Za-z:\[\]-]*")
# Where these stand twice, the second may be meant for somebody else: that is how requests are smuggled.
_ONCE = frozenset({b"host", b"content-length", b"transfer-encoding"})
_LISTS = frozenset({b"connection", b"expect", b"forwarded", b"x-forwarded-for"})
_HEAD_END = b"\r\n\r\n"


class RequestHead(Struct, frozen=True, kw_only=True, gc=False):
    """The head of one request; ``fields`` has the first value of each name, or all of them where it is a list.

    ``target`` is in origin form. ``length`` is the body's; ``None`` when it comes in chunks.
    """

    method: str
    target: bytes
    version: str
    headers: Headers
    fields: dict[bytes, bytes]
    length: int | None
    keep_alive: bool
    expects: bool


class _Fields:
    """Gathers the header fields that httptools finds."""

    __slots__ = ("found", "headers", "repeated")

    def __init__(self) -> None:
        self.headers: Headers = []
        self.found: dict[bytes, bytes] = {}
        self.repeated = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        name, value = name.lower(), value.strip()
        self.headers.append((name, value))
        if name not in self.found:
            self.found[name] = value
        elif name in _ONCE:
            self.repeated = name
        elif name in _LISTS:
            self.found[name] += b"," + value


def find_end(buffer: bytes, head_bytes_max: int, target_bytes_max: int) -> int:
    """Return where the head ends that ``buffer`` begins with, or -1 when more of it has to come.

    Raises:
        BadRequest: what is there cannot become a head any more.
        HeadTooLarge, TargetTooLong: it is, or is about to become, larger than is taken.
    """
    if not buffer or buffer == b"\r":
        return -1
    end = buffer.find(_HEAD_END)
    if 0 <= end <= head_bytes_max - 4:
        return end + 4
    if end < 0 and len(buffer) < head_bytes_max:
        # Those who end lines their own way would wait for our deadline instead of an answer.
        _check_lines(buffer.removesuffix(b"\r"))
        if not 0x20 < buffer[0] < 0x7F:
            raise BadRequest("the request does not begin with a method")
        return -1
    target = buffer.partition(b"\r\n")[0].partition(b" ")[2]
    _check_target(target.partition(b" ")[0], target_bytes_max)
    raise HeadTooLarge(f"the head is over connection.head_bytes_max = {head_bytes_max} bytes")


def read_head(raw: bytes, target_bytes_max: int) -> RequestHead:
    """Read one whole head.

    Raises:
        BadRequest: it breaks HTTP/1.1, or could be read in two ways.
        VersionNotSupported: it is in another HTTP.
        TargetTooLong: the target is over the limit.
    """
    line = _LINE.match(raw)
    if line is None:
        raise BadRequest("the request line is not one of HTTP/1.1")
    method, target, version = line.groups()
    if version not in _VERSIONS:
        raise VersionNotSupported(f"{version.decode()} is not spoken here, HTTP/1.1 is")
    _check_target(target, target_bytes_max)
    _check_lines(raw)
    fields = _parse(raw, method)
    return _checked(method.decode(), _origin_form(target), _VERSIONS[version], fields)


def _check_target(target: bytes, target_bytes_max: int) -> None:
    if len(target) > target_bytes_max:
        raise TargetTooLong(f"the target is over connection.target_bytes_max = {target_bytes_max} bytes")


def _check_lines(raw: bytes) -> None:
    lines = raw.count(b"\r\n")
    if raw.count(b"\n") != lines or raw.count(b"\r") != lines:
        raise BadRequest("a line of the head does not end with CR LF")
    if b"\0" in raw:
        raise BadRequest("the head holds a NUL")
    if b"\r\n " in raw or b"\r\n\t" in raw:
        raise BadRequest("a line of the head goes on in the next one")


def _parse(raw: bytes, method: bytes) -> _Fields:
    fields = _Fields()
    try:
        httptools.HttpRequestParser(fields).feed_data(raw)
    except httptools.HttpParserUpgrade:
        # Whatever else the client would rather speak: it is answered in HTTP/1.1.
        return fields
    except httptools.HttpParserInvalidMethodError as error:
        # Any token is a method, and the app knows which of them it takes.
        if method == b"GET":
            raise BadRequest(f"the request cannot be read: {error}") from error
        return _parse(b"GET" + raw[len(method) :], b"GET")
    except httptools.HttpParserError as error:
        raise BadRequest(f"the request cannot be read: {error}") from error
    return fields


def _origin_form(target: bytes) -> bytes:
    if target.startswith(b"/"):
        return target
    for scheme in (b"http://", b"https://"):
        if target[: len(scheme)].lower() == scheme:
            rest = target[len(scheme) :]
            at = min((place for place in (rest.find(b"/"), rest.find(b"?")) if place >= 0), default=len(rest))
            path = rest[at:]
            return path if path.startswith(b"/") else b"/" + path
    return target


def _checked(method: str, target: bytes, version: str, fields: _Fields) -> RequestHead:
    found = fields.found
    if fields.repeated:
        raise BadRequest(f"{fields.repeated.decode()} stands there twice")
    host = found.get(b"host")
    if host is None and version == "1.1":
        raise BadRequest("an HTTP/1.1 request names its Host")
    if host and not _HOST.fullmatch(host):
        raise BadRequest("the Host cannot be one")
    length = _length(found, version)
    connection = found.get(b"connection", b"").lower()
    return RequestHead(
        method=method,
        target=target,
        version=version,
        headers=fields.headers,
        fields=found,
        length=length,
        keep_alive=_keeps_alive(connection, version) if connection or version == "1.0" else True,
        expects=version == "1.1" and found.get(b"expect", b"").lower() == b"100-continue",
    )


def _length(found: dict[bytes, bytes], version: str) -> int | None:
    coding = found.get(b"transfer-encoding")
    size = found.get(b"content-length")
    if coding is None:
        if size is None:
            return 0
        if not size.isdigit() or len(size) > 18:
            raise BadRequest("Content-Length is not a number of bytes")
        return int(size)
    if size is not None:
        raise BadRequest("Content-Length and Transfer-Encoding contradict each other")
    if version == "1.0":
        raise BadRequest("HTTP/1.0 knows no Transfer-Encoding")
    if coding.lower() != b"chunked":
        raise BadRequest("of all Transfer-Encodings only chunked is taken")
    return None


def _keeps_alive(connection: bytes, version: str) -> bool:
    asked = {token.strip() for token in connection.split(b",")}
    return b"close" not in asked and (version == "1.1" or b"keep-alive" in asked)


# --- the answer

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
_STATUS_LINES = {one.value: f"HTTP/1.1 {one.value} {one.phrase}\r\n".encode() for one in HTTPStatus}
_BROKEN_LINE = re.compile(rb"[\r\n\0]")


def head_of(status: int, headers: Iterable[tuple[bytes, bytes]], date: bytes) -> bytes:
    """Write the head of an answer; ``date`` is a whole ``date_line``.

    Raises:
        ConvoError: a header holds a line's end, and would let its source write the rest of the answer.
    """
    lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, date]
    for name, value in headers:
        if _BROKEN_LINE.search(name) or _BROKEN_LINE.search(value):
            raise ConvoError("a header of the answer holds a line's end")
        lines.append(b"%b: %b\r\n" % (name, value))
    lines.append(b"\r\n")
    return b"".join(lines)


def whole(status: int, headers: Sequence[tuple[str, str]], content_type: str, body: bytes, date: bytes) -> bytes:
    """Write a whole answer of ours.

    Raises:
        ConvoError: a header holds a line's end.
    """
    text = f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n"
    for name, value in headers:
        text += f"{name}: {value}\r\n"
    if text.count("\n") != len(headers) + 2 or text.count("\r") != len(headers) + 2:
        raise ConvoError("a header of the answer holds a line's end")
    return b"".join((_STATUS_LINES[status], date, text.encode("latin-1"), b"\r\n", body))


def date_line(now: int) -> bytes:
    """Write the lines that stand in every answer; ``now`` in seconds since 1970."""
    return f"date: {formatdate(now, usegmt=True)}\r\nserver: convo\r\n".encode()


def chunk(data: bytes) -> bytes:
    """Wrap one piece of a body whose length nobody knows."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def has_body(method: str, status: int) -> bool:
    """Tell whether such an answer has a body at all."""
    return method != "HEAD" and status >= 200 and status not in (204, 304)
