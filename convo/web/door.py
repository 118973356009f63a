"""What every request passes, as plain functions: limits, encodings, the budget, and errors as answers.

It knows no framework: both doors, the Quart app's and the connection's own, call the same functions.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import msgspec
import trio
import zstandard
from msgspec import Struct, structs

from convo.config import WebSettings
from convo.deadline import deadline
from convo.errors import BadRequest, ConvoError, TooLarge, Unavailable, UnsupportedMedia
from convo.observe import events, metrics
from convo.web import answers

JSON = "application/json"
PROBLEM = "application/problem+json"
_RETRY_AFTER_SECONDS = 1.0
_SLOW = 0.8
_PIECE_BYTES = 1 << 16
# What RFC 9659 lets a sender ask for: the window is allocated by its word alone, however small the body.
_ZSTD_WINDOW_BYTES = 8 << 20
# Anything may stand as a method; a metric's label takes only the known ones.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Answer(Struct, frozen=True, kw_only=True):
    """An answer before it meets a framework; ``headers`` come besides the content type and length."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: Sequence[tuple[str, str]] = ()


def problem(error: ConvoError, conversation_id: str | None = None) -> Answer:
    """Turn an error into its answer; ``conversation_id`` where the error itself does not know it."""
    headers: list[tuple[str, str]] = []
    if isinstance(error, Unavailable) or error.retry_after_seconds is not None:
        headers.append(("Retry-After", str(math.ceil(error.retry_after_seconds or _RETRY_AFTER_SECONDS))))
    body = encode(answers.problem(error, conversation_id or error.conversation_id))
    return Answer(status=error.status, body=body, content_type=PROBLEM, headers=headers)


def encode(value: Any) -> bytes:
    """Encode an answer's body."""
    return _ENCODER.encode(value)


_ENCODER = msgspec.json.Encoder()


# --- the body


def check_head(content_type: str, content_length: int | None, settings: WebSettings) -> None:
    """Refuse by the head alone what need not be read.

    Raises:
        UnsupportedMedia: the content type is not JSON.
        TooLarge: the announced body is over the limit.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind != JSON and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMedia(f"content type {content_type!r} is not taken; send {JSON}")
    if content_length is not None and content_length > settings.body_bytes_max:
        raise too_large(settings, content_length)


def too_large(settings: WebSettings, size: int | None = None) -> TooLarge:
    """Return the error for a body over the limit."""
    sent = "" if size is None else f" of {size} bytes"
    return TooLarge(f"a body{sent} is over web.body_bytes_max = {settings.body_bytes_max} bytes")


def inflate(body: bytes, encoding: str, settings: WebSettings) -> bytes:
    """Undo the body's ``Content-Encoding``, never inflating past the limit.

    Raises:
        UnsupportedMedia: an encoding other than identity, gzip, deflate or zstd.
        BadRequest: the body is not what its encoding says.
        TooLarge: it is over the limit, before or after.
    """
    limit = settings.body_bytes_max
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        inflated = body
    elif encoding in ("gzip", "x-gzip", "deflate"):
        inflated = _inflate_zlib(body, limit)
    elif encoding == "zstd":
        inflated = _inflate_zstd(body, limit)
    else:
        raise UnsupportedMedia(f"content encoding {encoding!r} is not taken; send identity, gzip, deflate or zstd")
    if len(inflated) > limit:
        raise too_large(settings)
    return inflated


def _inflate_zlib(body: bytes, limit: int) -> bytes:
    pieces: list[bytes] = []
    room = limit + 1
    try:
        for piece in _zlib_pieces(body):
            pieces.append(piece)
            room -= len(piece)
            if room <= 0:
                break
    except zlib.error as error:
        raise BadRequest(f"the body is not what its content encoding says: {error}") from error
    return b"".join(pieces)


def _zlib_pieces(body: bytes) -> Iterator[bytes]:
    """Inflate piece by piece: a body may be many tiny members, and each copies what it was given and did not need."""
    inflater = None
    for start in range(0, len(body), _PIECE_BYTES):
        rest = body[start : start + _PIECE_BYTES]
        while rest:
            if inflater is None or inflater.eof:
                inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
            yield inflater.decompress(rest, _PIECE_BYTES)
            rest = inflater.unused_data or inflater.unconsumed_tail
    while inflater is not None and not inflater.eof:
        piece = inflater.decompress(b"", _PIECE_BYTES)
        if not piece and not inflater.eof:
            raise BadRequest("the compressed body ends in the middle")
        yield piece


def _inflate_zstd(body: bytes, limit: int) -> bytes:
    try:
        # A frame that is cut short reads as its beginning: as JSON that is refused, for its end is missing.
        inflater = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        with inflater.stream_reader(body, read_across_frames=True) as reader:
            pieces: list[bytes] = []
            room = limit + 1
            while room > 0 and (piece := reader.read(min(room, _PIECE_BYTES))):
                pieces.append(piece)
                room -= len(piece)
            return b"".join(pieces)
    except zstandard.ZstdError as error:
        raise BadRequest("the body is not what its content encoding says") from error


# --- the request as a whole


async def answered(
    route: str, method: str, settings: WebSettings, serve: Callable[[], Awaitable[Answer]], *, started: float
) -> Answer:
    """Serve one request inside its budget, and make an answer of whatever happens; here one request ends."""
    try:
        with deadline("web.request", settings.request_seconds):
            answer = await serve()
    except ConvoError as error:
        answer = problem(error)
    except Exception as error:  # noqa: BLE001  (one request's bug is that request's end, and nobody else's)
        events.request_failed(route=route, method=method, error=error)
        answer = problem(ConvoError("an unexpected error; it is in the log"))
    seconds = trio.current_time() - started
    metrics.requests_total.labels(route, method if method in _METHODS else "other", str(answer.status)).inc()
    if seconds > _SLOW * settings.request_seconds:
        events.slow_request(route=route, method=method, status=answer.status, seconds=seconds)
    if any(name == "Server-Timing" for name, _ in answer.headers):
        return answer
    return structs.replace(answer, headers=[*answer.headers, ("Server-Timing", f"total;dur={seconds * 1000:.2f}")])
