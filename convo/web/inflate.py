"""Undoing a body's ``Content-Encoding`` without ever inflating past the limit; it knows no request."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import zstandard

from convo.config import WebSettings
from convo.errors import BadRequest, UnsupportedMedia
from convo.web.door import too_large

_PIECE_BYTES = 1 << 16
# What RFC 9659 lets a sender ask for: the window is allocated by its word alone, however small the body.
_ZSTD_WINDOW_BYTES = 8 << 20


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
