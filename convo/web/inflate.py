"""Decompresses a body by its ``Content-Encoding``, and stops at the size limit and at the bytes granted to it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from io import BytesIO

import zstandard

from convo.errors import BadRequest, UnsupportedMedia
from convo.http.request_body import too_large
from convo.settings import WebSettings

# Bytes are granted in steps of so many: each step of a body in a thread is a call to the loop and back.
GRANT_BYTES = 1 << 20

_PIECE_BYTES = 1 << 16
# The largest window that RFC 9659 allows: it is allocated before any data is read, however small the body.
_ZSTD_WINDOW_BYTES = 8 << 20
_ZLIB_OR_GZIP, _RAW_DEFLATE = zlib.MAX_WBITS | 32, -zlib.MAX_WBITS


def inflate(body: bytes, encoding: str, settings: WebSettings, grow: Callable[[int], None]) -> bytes:
    """Return the body without its ``Content-Encoding``; decompress at most the limit.

    ``grow`` is asked for the bytes before each step: never is there more than it has granted.

    Raises:
        UnsupportedMedia: an encoding other than identity, gzip, deflate or zstd.
        BadRequest: the body does not have this encoding.
        TooLarge: it is over the limit, compressed or decompressed.
        Overloaded: ``grow`` found no room.
    """
    inflated = _inflate(body, encoding, settings.raw_bytes_max, grow)
    if inflated is None:
        raise too_large(settings)
    return inflated


def inflate_up_to(body: bytes, encoding: str, limit: int) -> bytes | None:
    """Return the body without its ``Content-Encoding``; ``None`` where it is longer than ``limit``.

    Raises:
        UnsupportedMedia, BadRequest: as ``inflate``.
    """
    return _inflate(body, encoding, limit, lambda _: None)


def inflated_pieces(body: bytes, encoding: str) -> Iterator[bytes]:
    """Yield the body without its ``Content-Encoding``, piece by piece, at most 64 KiB at a time; a piece may be empty.

    Raises:
        UnsupportedMedia, BadRequest: as ``inflate``.
    """
    try:
        yield from _pieces(body, encoding.strip().lower()) or [body]
    except (zlib.error, zstandard.ZstdError) as error:
        raise _not_so_encoded(error) from error


def _not_so_encoded(error: Exception) -> BadRequest:
    return BadRequest(f"the body does not have its content encoding: {error}")


def _inflate(body: bytes, encoding: str, limit: int, grow: Callable[[int], None]) -> bytes | None:
    pieces = _pieces(body, encoding.strip().lower())
    if pieces is None:
        return body if len(body) <= limit else None
    # BytesIO returns what it holds without a copy, which joining the pieces would make.
    whole = BytesIO()
    granted = 0
    try:
        while True:
            if granted - whole.tell() < _PIECE_BYTES:
                grow(GRANT_BYTES)
                granted += GRANT_BYTES
            piece = next(pieces, None)
            if piece is None:
                return whole.getvalue()
            if whole.tell() + len(piece) > limit:
                return None
            whole.write(piece)
    except (zlib.error, zstandard.ZstdError) as error:
        raise _not_so_encoded(error) from error


def _pieces(body: bytes, encoding: str) -> Iterator[bytes] | None:
    """Return what decompresses a body in pieces of at most ``_PIECE_BYTES``; ``None`` where it is not compressed."""
    match encoding:
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return _zlib_pieces(body, _ZLIB_OR_GZIP)
        case "deflate":
            # By RFC 9110 it has zlib's head. Some clients send none.
            return _zlib_pieces(body, _ZLIB_OR_GZIP if _has_head(body) else _RAW_DEFLATE)
        case "zstd":
            return _zstd_pieces(body)
        case _:
            raise UnsupportedMedia(
                f"content encoding {encoding!r} is not supported; send identity, gzip, deflate or zstd"
            )


def _has_head(body: bytes) -> bool:
    """Return whether a body begins with the head of a zlib stream (RFC 1950), or of a gzip member."""
    return not body or body[:2] == b"\x1f\x8b" or (body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0)


def _zlib_pieces(body: bytes, kind: int) -> Iterator[bytes]:
    """Decompress in pieces: a body may be many tiny members, and each of them copies its unused input."""
    inflater = None
    for start in range(0, len(body), _PIECE_BYTES):
        rest = body[start : start + _PIECE_BYTES]
        while rest:
            if inflater is None or inflater.eof:
                if inflater is not None and kind == _RAW_DEFLATE:
                    raise BadRequest("something follows the end of the compressed body")
                inflater = zlib.decompressobj(kind)
            yield inflater.decompress(rest, _PIECE_BYTES)
            rest = inflater.unused_data or inflater.unconsumed_tail
    while inflater is not None and not inflater.eof:
        piece = inflater.decompress(b"", _PIECE_BYTES)
        if not piece and not inflater.eof:
            raise BadRequest("the compressed body ends in the middle")
        yield piece


def _zstd_pieces(body: bytes) -> Iterator[bytes]:
    # A frame that is cut short gives its beginning without an error; as JSON it is refused, because its end is missing.
    inflater = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    with inflater.stream_reader(body, read_across_frames=True) as reader:
        while piece := reader.read(_PIECE_BYTES):
            yield piece
