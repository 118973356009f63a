"""A request's body as bytes: where it ends, by its length or by its chunks; it knows no socket and no limit of ours.

What could be read in two ways is refused, for that is how requests are smuggled.
"""

from __future__ import annotations

import re

from convo.errors import BadRequest

_CHUNK_LINE_MAX = 256
_TRAILER_MAX = 8192
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class Sized:
    """A body of announced length."""

    __slots__ = ("done", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = not length  # all of it was taken

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Split what came into what belongs to the body and what comes after it."""
        if len(data) <= self.left:
            self.left -= len(data)
            self.done = not self.left
            return data, b""
        piece, rest = data[: self.left], data[self.left :]
        self.left, self.done = 0, True
        return piece, rest


class Chunked:
    """A body in chunks; extensions and trailers are read past."""

    __slots__ = ("_ends", "_kept", "_last", "_left", "_trailer", "done")

    def __init__(self) -> None:
        self.done = False
        self._kept = b""
        self._left = 0
        self._ends = False  # the line end behind a chunk's data comes next
        self._last = False  # the chunk of no bytes was there: trailers come
        self._trailer = 0

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what the chunks held, and what comes after the body.

        Raises:
            BadRequest: these are no chunks.
        """
        data = self._kept + data if self._kept else data
        pieces: list[bytes] = []
        at = 0
        while not self.done and at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                continue
            end = data.find(b"\r\n", at, at + _TRAILER_MAX + 2)
            if end < 0:
                self._check_unfinished(data, at)
                break
            self._take_line(data[at:end])
            at = end + 2
        self._kept = b"" if self.done else data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), data[at:] if self.done else b""

    def _check_unfinished(self, data: bytes, at: int) -> None:
        length = len(data) - at
        room = 1 if self._ends else _TRAILER_MAX if self._last else _CHUNK_LINE_MAX
        if length > room or b"\n" in data[at:] or (self._ends and data[at:] != b"\r"):
            raise BadRequest("the body's chunks cannot be read")

    def _take_line(self, line: bytes) -> None:
        if self._ends:
            self._ends = False
            if line:
                raise BadRequest("a chunk is longer than it says")
        elif self._last:
            self._take_trailer(line)
        else:
            size = _CHUNK.fullmatch(line)
            if size is None or len(line) > _CHUNK_LINE_MAX:
                raise BadRequest("a chunk's size cannot be read")
            self._left = int(size[1], 16)
            self._ends, self._last = self._left > 0, self._left == 0

    def _take_trailer(self, line: bytes) -> None:
        self._trailer += len(line) + 2
        if not line:
            self.done = True
        elif self._trailer > _TRAILER_MAX or not _TRAILER.fullmatch(line):
            raise BadRequest("the trailer behind the body cannot be read")


Body = Sized | Chunked
