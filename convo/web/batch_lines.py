"""Cuts a body into its lines while it arrives; it holds the piece that arrived last and the line that is not whole yet.

White space before a line is skipped, and with it blank lines, also those that hold only a byte order mark.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from convo.errors import TooLarge
from convo.settings import WebSettings
from convo.web.description.messages import NextPiece

_BLANK = re.compile(rb"[ \t\r\n]*")
_BOM = b"\xef\xbb\xbf"


class BatchLines:
    """The lines of one body.

    ``hold`` is called with how many bytes are held from then on. Where a call of ``next`` is cancelled, the next one
    goes on with the same line.
    """

    def __init__(self, next_piece: NextPiece, hold: Callable[[int], None], settings: WebSettings) -> None:
        self._next_piece = next_piece
        self._hold = hold
        self._settings = settings
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._piece, self._at = b"", 0
        self._bytes = 0
        self._ended = self._over = False
        self._counts_only = False

    def count_only(self) -> None:
        """Hold nothing from now on: each line that follows is empty, and the one that is not whole yet is the first."""
        self._counts_only = True
        self._parts, self._parts_bytes = [b""] * bool(self._parts), 0

    async def next(self) -> bytes | None:
        """Return the next line, which is not blank; ``None`` after the last.

        Raises:
            TooLarge: the body is over the limit.
            BadRequest: it cannot be read.
            Overloaded: there is no room for more of it.
        """
        while not self._ended:
            line = self._cut()
            if line is None:
                await self._more()
            elif self._counts_only or line.rstrip() != _BOM:
                return line
        return None

    def _cut(self) -> bytes | None:
        """Return the line that ends in the present piece, if one does; else keep what is there of one."""
        if not self._parts:
            blank = _BLANK.match(self._piece, self._at)
            self._at = self._at if blank is None else blank.end()
        end = self._piece.find(b"\n", self._at)
        if end < 0:
            self._keep(self._piece[self._at :])
            return None
        self._keep(self._piece[self._at : end])
        self._at = end + 1
        return self._taken()

    def _keep(self, part: bytes) -> None:
        if part:
            self._parts.append(b"" if self._counts_only else part)
            self._parts_bytes += 0 if self._counts_only else len(part)

    def _taken(self) -> bytes:
        line = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._parts_bytes = [], 0
        return line

    async def _more(self) -> None:
        self._piece, self._at = b"", 0
        piece = b"" if self._over else await self._next_piece()
        room = self._settings.raw_bytes_max - self._bytes
        # The lines before the limit are whole; the one on it is not.
        if self._over or len(piece) > room == 0:
            raise _too_large(self._settings)
        self._over = len(piece) > room
        piece = piece[:room] if self._over else piece
        self._bytes += len(piece)
        # After the last piece, the end of the body is the end of the line that has begun.
        self._ended = not piece and not self._parts
        self._piece = piece or b"\n"
        if not self._counts_only:
            self._hold(self._parts_bytes + len(piece))


def _too_large(settings: WebSettings) -> TooLarge:
    limit = settings.raw_bytes_max
    return TooLarge(f"the batch is over web.raw_bytes_max = {limit} bytes; send what follows in another one")
