"""Finds the end of a request's body among the bytes of a connection, by its length or by its chunks.

A body that could be read in two ways is refused: that is how requests are smuggled past a proxy.
"""

from __future__ import annotations

import re

from convo.errors import BadRequest

_CHUNK_LINE_MAX = 256
_TRAILER_MAX = 8192
# Lines and pieces that one call takes, so that the caller can let others run before the next: 64 KiB may hold 11,000
# chunks.
_STEPS_MAX = 64
# How much longer than necessary the lines of all chunks may be. A chunk earns some, and more by its data: as in Go.
_EXCESS_BYTES_MAX, _EXCESS_BYTES_FREE = 16_384, 16
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class Sized:
    """A body of announced length."""

    __slots__ = ("done", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = not length  # the whole body was taken

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Split the bytes into those of the body and those after it."""
        if len(data) <= self.left:
            self.left -= len(data)
            self.done = not self.left
            return data, b""
        piece, rest = data[: self.left], data[self.left :]
        self.left, self.done = 0, True
        return piece, rest


class Chunked:
    """A body in chunks; extensions and trailers are skipped."""

    __slots__ = ("_ends", "_excess", "_kept", "_last", "_left", "_trailer", "done")

    def __init__(self) -> None:
        self.done = False
        self._kept = b""
        self._left = 0
        self._ends = False  # the line break after a chunk's data comes next
        self._last = False  # the empty chunk was read: trailers come next
        self._trailer = 0
        self._excess = 0

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Split the bytes into the chunks' data and the rest: what comes after the body, or chunks for another call.

        Raises:
            BadRequest: the bytes are not valid chunks.
        """
        data = self._kept + data if self._kept else data
        pieces: list[bytes] = []
        self._kept = b""
        at = 0
        for _ in range(_STEPS_MAX):
            if self.done or at == len(data):
                break
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                continue
            end = data.find(b"\r\n", at, at + _TRAILER_MAX + 2)
            if end < 0:
                self._check_unfinished(data, at)
                self._kept = data[at:]
                at = len(data)
                break
            self._take_line(data[at:end])
            at = end + 2
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), data[at:]

    def _check_unfinished(self, data: bytes, at: int) -> None:
        length = len(data) - at
        room = 1 if self._ends else _TRAILER_MAX if self._last else _CHUNK_LINE_MAX
        if length > room or b"\n" in data[at:] or (self._ends and data[at:] != b"\r"):
            raise BadRequest("the body's chunks cannot be read")

    def _take_line(self, line: bytes) -> None:
        if self._ends:
            self._ends = False
            if line:
                raise BadRequest("a chunk is longer than its size")
        elif self._last:
            self._take_trailer(line)
        else:
            size = _CHUNK.fullmatch(line)
            if size is None or len(line) > _CHUNK_LINE_MAX:
                raise BadRequest("a chunk's size cannot be read")
            self._left = int(size[1], 16)
            self._ends, self._last = self._left > 0, self._left == 0
            self._excess = max(0, self._excess + len(line) - _EXCESS_BYTES_FREE - 2 * self._left)
            if self._excess > _EXCESS_BYTES_MAX:
                raise BadRequest("the body's chunks are mostly extensions")

    def _take_trailer(self, line: bytes) -> None:
        self._trailer += len(line) + 2
        if not line:
            self.done = True
        elif self._trailer > _TRAILER_MAX or not _TRAILER.fullmatch(line):
            raise BadRequest("the trailer after the body cannot be read")


BodyFraming = Sized | Chunked
