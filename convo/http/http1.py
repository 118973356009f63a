"""Reads the head of an HTTP/1.1 request from bytes, and writes an answer as bytes.

httptools parses, strictly. What it accepts and should not is refused here: a missing Host, two of them, chunks in
HTTP/1.0.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

import httptools
from msgspec import Struct

from convo.errors import BadRequest, ConvoError, HeadTooLarge, TargetTooLong, VersionNotSupported

HeaderFields = list[tuple[bytes, bytes]]

_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) (HTTP/[0-9]\.[0-9])\r\n")
_VERSIONS = {b"HTTP/1.1": "1.1", b"HTTP/1.0": "1.0"}
_AUTHORITY = re.compile(
    rb"(?:[!$&'()*+,;=._~%0-9A-Za-z-]+|\[[0-9A-Fa-f:.]+(?:%[!$&'()*+,;=._~%0-9A-Za-z-]+)?\])(?::[0-9]{0,5})?"
)
# Two servers may each believe another one of these, if there are two: that is how requests are smuggled.
_ONCE = frozenset({b"host", b"content-length", b"transfer-encoding"})
_LISTS = frozenset({b"connection", b"expect", b"forwarded", b"x-forwarded-for", b"tracestate"})
_HEAD_END = b"\r\n\r\n"
# Each field costs a call; a head full of the shortest ones would hold the loop for milliseconds.
_FIELDS_MAX = 100
# Old clients send a line break behind a body; none sends more.
_BLANK_LINES_MAX = 4


class RequestHead(Struct, frozen=True, kw_only=True, gc=False):
    """The head of one request; ``fields`` has the first value of each name, or all values where they form a list.

    ``target`` is in origin form. ``length`` is the body's, ``None`` if it comes in chunks. ``expects`` says that the
    client waits for ``100 Continue`` before it sends the body.
    """

    method: str
    target: bytes
    version: str
    headers: HeaderFields
    fields: dict[bytes, bytes]
    length: int | None
    keep_alive: bool
    expects: bool


class _Fields:
    """Gathers the header fields that httptools finds."""

    __slots__ = ("found", "headers", "repeated")

    def __init__(self) -> None:
        self.headers: HeaderFields = []
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

    def call(self, authority: bytes) -> None:
        """Replace the Host by the one in an absolute target, which counts in its place (RFC 9112 3.2.2)."""
        if authority and b"host" in self.found:
            self.found[b"host"] = authority
            self.headers = [(name, authority if name == b"host" else value) for name, value in self.headers]


def blank_lines(buffer: bytes, before: int) -> int:
    """Return how many blank lines ``buffer`` begins with; ``before`` were skipped before the same request.

    Raises:
        BadRequest: there are more than a few.
    """
    count = 0
    while buffer.startswith(b"\r\n", 2 * count):
        count += 1
        if before + count > _BLANK_LINES_MAX:
            raise BadRequest("there are too many blank lines before the request")
    return count


def find_end(buffer: bytes, head_bytes_max: int, target_bytes_max: int) -> int:
    """Return where the head at the beginning of ``buffer`` ends, or -1 if it has not arrived completely.

    Raises:
        BadRequest: the buffer cannot become a head any more.
        HeadTooLarge, TargetTooLong: it is larger than the limit, or will be; or it has too many fields.
    """
    if not buffer or buffer == b"\r":
        return -1
    end = buffer.find(_HEAD_END)
    if 0 <= end <= head_bytes_max - 4:
        return end + 4
    if end < 0 and len(buffer) < head_bytes_max:
        # Checked at once: a client that ends lines with LF alone would otherwise wait until our deadline for a 400.
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
        VersionNotSupported: it is in another version of HTTP.
        HeadTooLarge, TargetTooLong: it has too many fields, or the target is over the limit.
    """
    line = _LINE.match(raw)
    if line is None:
        raise BadRequest("the request line is not one of HTTP/1.1")
    method, target, version = line.groups()
    if version not in _VERSIONS:
        raise VersionNotSupported(f"{version.decode()} is not supported; send HTTP/1.1")
    _check_target(target, target_bytes_max)
    _check_lines(raw)
    fields = _parse(raw, method)
    if not target.startswith(b"/"):
        target, authority = origin_form(target)
        fields.call(authority)
    return _checked(method.decode(), target, _VERSIONS[version], fields)


def _check_target(target: bytes, target_bytes_max: int) -> None:
    if len(target) > target_bytes_max:
        raise TargetTooLong(f"the target is over connection.target_bytes_max = {target_bytes_max} bytes")


def _check_lines(raw: bytes) -> None:
    lines = raw.count(b"\r\n")
    if raw.count(b"\n") != lines or raw.count(b"\r") != lines:
        raise BadRequest("a line of the head does not end with CR LF")
    if b"\0" in raw:
        raise BadRequest("the head contains a NUL")
    if lines > _FIELDS_MAX + 2:
        raise HeadTooLarge(f"the head has more than {_FIELDS_MAX} fields")
    if b"\r\n " in raw or b"\r\n\t" in raw:
        raise BadRequest("a line of the head continues in the next one")


def _parse(raw: bytes, method: bytes) -> _Fields:
    fields = _Fields()
    try:
        httptools.HttpRequestParser(fields).feed_data(raw)
    except httptools.HttpParserUpgrade:
        # A server may ignore an upgrade: the answer is in HTTP/1.1.
        return fields
    except httptools.HttpParserInvalidMethodError as error:
        # Any token is a valid method, and the app knows which ones it accepts; httptools knows only a fixed list.
        if method == b"GET":
            raise BadRequest(f"the request cannot be read: {error}") from error
        return _parse(b"GET" + raw[len(method) :], b"GET")
    except httptools.HttpParserError as error:
        raise BadRequest(f"the request cannot be read: {error}") from error
    return fields


def origin_form(target: bytes) -> tuple[bytes, bytes]:
    """Return the path and query of an ``http`` address, and the host in it; any other target as it is, with no host.

    Raises:
        BadRequest: the host is none.
    """
    if target.startswith(b"/"):
        return target, b""
    for scheme in (b"http://", b"https://"):
        if target[: len(scheme)].lower() == scheme:
            rest = target[len(scheme) :]
            at = min((place for place in (rest.find(b"/"), rest.find(b"?")) if place >= 0), default=len(rest))
            if not _AUTHORITY.fullmatch(rest[:at]):
                raise BadRequest("the target names no valid host")
            path = rest[at:]
            return path if path.startswith(b"/") else b"/" + path, rest[:at]
    return target, b""


def _checked(method: str, target: bytes, version: str, fields: _Fields) -> RequestHead:
    found = fields.found
    if fields.repeated:
        raise BadRequest(f"{fields.repeated.decode()} is sent twice")
    host = found.get(b"host")
    if host is None and version == "1.1":
        raise BadRequest("an HTTP/1.1 request must have a Host")
    if host and not _is_authority(host):
        raise BadRequest("the Host is not valid")
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


# Clients send few different ones, and the same one each time.
@lru_cache(maxsize=64)
def _is_authority(host: bytes) -> bool:
    return _AUTHORITY.fullmatch(host) is not None


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
        raise BadRequest("HTTP/1.0 has no Transfer-Encoding")
    if coding.lower() != b"chunked":
        raise BadRequest("the only supported Transfer-Encoding is chunked")
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
    """Return the head of an answer; ``date`` is a ``date_line``.

    Raises:
        ConvoError: a header contains a line break, so whoever set it could write the rest of the answer.
    """
    lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, date]
    for name, value in headers:
        if _BROKEN_LINE.search(name) or _BROKEN_LINE.search(value):
            raise ConvoError("a header of the answer contains a line break")
        lines.append(b"%b: %b\r\n" % (name, value))
    lines.append(b"\r\n")
    return b"".join(lines)


def whole(status: int, headers: Sequence[tuple[str, str]], content_type: str, body: bytes, date: bytes) -> bytes:
    """Return a whole answer of ours.

    Raises:
        ConvoError: a header contains a line break.
    """
    text = f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n"
    for name, value in headers:
        text += f"{name}: {value}\r\n"
    if text.count("\n") != len(headers) + 2 or text.count("\r") != len(headers) + 2:
        raise ConvoError("a header of the answer contains a line break")
    return b"".join((_STATUS_LINES[status], date, text.encode("latin-1"), b"\r\n", body))


def streamed(status: int, headers: Sequence[tuple[str, str]], content_type: str, *, chunks: bool) -> bytes:
    """Return the head of an answer that comes in pieces; without ``chunks`` its end is the end of the connection.

    Raises:
        ConvoError: a header contains a line break.
    """
    found = [("content-type", content_type), *headers, ("connection", "close")]
    if chunks:
        found.append(("transfer-encoding", "chunked"))
    pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in found]
    return head_of(status, pairs, date_line(int(time.time())))


@lru_cache(maxsize=1)
def date_line(now: int) -> bytes:
    """Return the header lines of every answer; ``now`` in seconds since 1970."""
    return f"date: {formatdate(now, usegmt=True)}\r\nserver: convo\r\nx-content-type-options: nosniff\r\n".encode()


def chunk(data: bytes) -> bytes:
    """Wrap one piece of a body whose length is not known."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def has_body(method: str, status: int) -> bool:
    """Tell whether an answer to this method, with this status, has a body."""
    return method != "HEAD" and status >= 200 and status not in (204, 304)
