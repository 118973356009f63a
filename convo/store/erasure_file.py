"""The file in which a process keeps the list of erasures, so that a restore on its host can erase again.

Open it to change the form of the file. It holds HMACs alone, a line for each thing that was erased, each with its own
checksum. Lines are added at the end. A crash while one is written leaves a torn last line, which is cut off. A file is
of one installation, whose fingerprint is in its name: so one data folder may serve another database for a while.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, cast

from msgspec import Struct

from convo.errors import Refused

ListedKind = Literal["conversation", "user", "memory"]

FORM = 1
_PREFIX = "erasures-"
_NAME = re.compile(r"erasures-[0-9a-f]{16}\Z")
_HEAD = re.compile(r"convo-erasures ([0-9]{1,9}) ([0-9a-f]{16})\Z")
_LINE = re.compile(r"(conversation|user|memory) ([0-9a-f]{32}) ([0-9]{1,19}) ([0-9a-f]{32}|-) ([0-9a-f]{8})\Z")


class Listed(Struct, frozen=True, kw_only=True):
    """One thing that was erased.

    ``number`` is when its erasure began, in microseconds since 1970, and of a memory up to which ``seq`` it is barred.
    ``other`` is the HMAC of the hash of a conversation's id, where it is known, and of a memory that of its key; then
    ``hmac`` is its user's.
    """

    kind: ListedKind
    hmac: bytes
    number: int
    other: bytes = b""

    @property
    def key(self) -> tuple[str, bytes, bytes]:
        """What the same thing is recognised by."""
        return self.kind, self.hmac, self.other if self.kind == "memory" else b""


class ErasureList(Struct, frozen=True, kw_only=True):
    """The list of one installation, as one file or one database has it; ``place`` names that for a person."""

    place: str
    installation: str
    listed: Mapping[tuple[str, bytes, bytes], Listed]


class ErasureFileDamaged(Refused):
    """A line of the file is not as it was written; ``good`` is what the other lines hold."""

    def __init__(self, detail: str, good: ErasureList | None) -> None:
        super().__init__(detail)
        self.good = good


class ErasureFileNewer(Refused):
    """A later version of convo wrote the file in a form that this one does not know."""


def path_of(folder: Path, installation: str) -> Path:
    """Return where the list of an installation is kept in a data folder."""
    return folder / f"{_PREFIX}{installation}"


def read_all(folder: Path) -> list[ErasureList]:
    """Read the lists of all installations in a data folder; it blocks.

    Raises:
        Refused: one of them is damaged, of a newer form, or cannot be read.
    """
    return [read_file(file) for file in sorted(folder.glob(f"{_PREFIX}*")) if _NAME.match(file.name)]


def read_file(file: Path) -> ErasureList:
    """Read one file; it blocks.

    Raises:
        ErasureFileDamaged, ErasureFileNewer: as they say.
        Refused: it cannot be read.
    """
    try:
        *lines, _torn = file.read_bytes().split(b"\n")
    except OSError as error:
        raise Refused(f"the list of erasures {file} cannot be read: {error.strerror}") from error
    head = _HEAD.match(lines[0].decode("ascii", "replace")) if lines else None
    if head is None:
        raise ErasureFileDamaged(_damaged(file, 1), None)
    if int(head[1]) > FORM:
        raise ErasureFileNewer(
            f"the list of erasures {file} has form {head[1]}, and this program knows form {FORM}: use the convo that"
            " wrote it"
        )
    listed: dict[tuple[str, bytes, bytes], Listed] = {}
    bad = 0
    for number, line in enumerate(lines[1:], 2):
        one = _parsed(line)
        if one is None:
            bad = bad or number
        elif one.key not in listed or listed[one.key].number < one.number:
            listed[one.key] = one
    found = ErasureList(place=str(file), installation=head[2], listed=listed)
    if bad:
        raise ErasureFileDamaged(_damaged(file, bad), found)
    return found


def _damaged(file: Path, line: int) -> str:
    return (
        f"line {line} of the list of erasures {file} is damaged: put the file of another host in its place, or start a"
        " convo on this folder and the database that the list is of, which writes it anew"
    )


def append_listed(file: Path, listed: Iterable[Listed]) -> None:
    """Add lines to a file that ``write_file`` made, durably; it blocks. A torn last line is cut off.

    Raises:
        OSError: it cannot be written; what was there stays whole.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
    try:
        whole = _whole_bytes(descriptor)
        try:
            os.ftruncate(descriptor, whole)
            os.lseek(descriptor, whole, os.SEEK_SET)
            _write_all(descriptor, b"".join(map(_line, listed)))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, whole)
            raise
    finally:
        os.close(descriptor)


def write_file(file: Path, installation: str, listed: Iterable[Listed]) -> None:
    """Write a file anew, so that a crash leaves the old one or the new one; it blocks.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        _write_all(descriptor, f"convo-erasures {FORM} {installation}\n".encode())
        _write_all(descriptor, b"".join(map(_line, listed)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    unfinished.replace(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _line(one: Listed) -> bytes:
    words = f"{one.kind} {one.hmac.hex()} {one.number} {one.other.hex() or '-'}"
    return f"{words} {zlib.crc32(words.encode()):08x}\n".encode()


def _parsed(line: bytes) -> Listed | None:
    found = _LINE.match(line.decode("ascii", "replace"))
    if found is None or int(found[5], 16) != zlib.crc32(line[:-9]):
        return None
    other = b"" if found[4] == "-" else bytes.fromhex(found[4])
    return Listed(kind=cast("ListedKind", found[1]), hmac=bytes.fromhex(found[2]), number=int(found[3]), other=other)


def _whole_bytes(descriptor: int) -> int:
    """Return up to where the file holds whole lines."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 256, max(0, size - 256))
    return size - (len(tail) - tail.rfind(b"\n") - 1)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def in_chunks(listed: Iterable[Listed], rows: int) -> Iterator[list[Listed]]:
    """Divide them into lists of at most so many."""
    chunk: list[Listed] = []
    for one in listed:
        chunk.append(one)
        if len(chunk) == rows:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
