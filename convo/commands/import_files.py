"""Reads the files of an import line by line, plain, ``.gz`` or ``.zst``, and makes of a line what is posted.

A line is the body of a ``POST /v1/conversations/end``, or a row of the service that convo replaces: there the log may
be a text that holds JSON, and the only time may be ``created_at``.
"""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import zstandard
from msgspec import Struct

from convo.errors import Refused

STANDARD_INPUT = "-"
LINE_BYTES_MAX = 16 << 20

_LOG_NAMES = ("conversation_log", "conversation_logs")
_TIMES = ("start_time", "end_time")
_BOM = b"\xef\xbb\xbf"


class ImportLine(Struct, frozen=True, kw_only=True, gc=False):
    """One line that is not blank: its number in its file, what is posted, and how much of the file was read then."""

    number: int
    body: bytes
    read_bytes: int


def size_of(name: str) -> int:
    """Return the length of a file in bytes, 0 for the standard input.

    Raises:
        Refused: it cannot be read.
    """
    if name == STANDARD_INPUT:
        return 0
    try:
        return Path(name).stat().st_size
    except OSError as error:
        raise _unreadable(name, error) from error


def read_lines(name: str, done: int = 0) -> Iterator[ImportLine]:
    """Yield the lines of a file that are not blank, after the first ``done`` lines.

    Raises:
        Refused: the file cannot be read.
    """
    try:
        with _opened(name) as (raw, text):
            number = 0
            while line := text.readline(LINE_BYTES_MAX + 2):
                number += 1
                rest = line
                while len(rest) >= LINE_BYTES_MAX and not rest.endswith(b"\n"):
                    rest = text.readline(LINE_BYTES_MAX)  # what is too long is refused by its beginning
                bare = line.removeprefix(_BOM).strip()
                if bare and number > done:
                    yield ImportLine(number=number, body=body_of(bare), read_bytes=raw.tell() if raw.seekable() else 0)
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise _unreadable(name, error) from error


@contextmanager
def _opened(name: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    if name == STANDARD_INPUT:
        yield sys.stdin.buffer, sys.stdin.buffer
        return
    with Path(name).open("rb") as raw:
        if name.endswith(".gz"):
            yield raw, cast("BinaryIO", gzip.GzipFile(fileobj=raw))
        elif name.endswith(".zst"):
            plain = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            yield raw, cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", plain)))
        else:
            yield raw, raw


def _unreadable(name: str, error: Exception) -> Refused:
    return Refused(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}")


def body_of(line: bytes) -> bytes:
    """Return what is posted for a line: the line itself, unless it is a row that has to be put into the form."""
    try:
        row = _ROW.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return line  # the server says what is wrong with it
    changed: dict[str, Any] = {}
    for name in _LOG_NAMES:
        if bytes(row.get(name, b"")).startswith(b'"'):
            changed[name] = _unpacked(row[name])
    if "created_at" in row and not any(name in row for name in _TIMES):
        changed["end_time"] = row["created_at"]
    if not changed:
        return line
    return msgspec.json.encode({**row, **changed})


_ROW = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _unpacked(text: msgspec.Raw) -> msgspec.Raw:
    """Return the JSON that a JSON text holds; the text itself where it holds none."""
    try:
        inside = msgspec.json.decode(text, type=str).encode()
        msgspec.json.decode(inside, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeError):
        return text
    return msgspec.Raw(inside)
