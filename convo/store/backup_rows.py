"""What a backup says of the objects of logs that it needs, read out of its file without a database.

Open it to read something else out of a backup before it is restored.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import trio
from msgspec import Struct

from convo.embedded import programs
from convo.errors import Refused
from convo.runtime.deadline import deadline
from convo.store.installation_key import InstallationKey
from convo.store.log_objects import LogObject
from convo.store.piped import piped, unpacked

_SECONDS = 24 * 3600.0
_TABLES = ("log_object", "installation_key")


class NeededObjects(Struct, frozen=True, kw_only=True):
    """The objects that logs of a backup refer to, and the fingerprint of its installation, by which they are found."""

    fingerprint: str
    objects: tuple[LogObject, ...]

    @property
    def bytes(self) -> int:
        """How much they hold together."""
        return sum(one.bytes for one in self.objects)


async def read_needed(file: Path) -> NeededObjects:
    """Read which objects a backup needs; it takes as long as the file is large.

    Raises:
        Refused: the file is no backup.
    """
    objects: list[LogObject] = []
    fingerprint = ""
    found = await programs.find()
    wanted = [f"--table={name}" for name in _TABLES]
    command = [str(found.folder / "pg_restore"), "--data-only", "--file=-", *wanted]
    rows = _Rows()
    with deadline("backup.list", _SECONDS):
        async with (
            unpacked(file) as archive,
            piped(command, stdin=archive, stderr=subprocess.DEVNULL) as (process, output),
            trio.lowlevel.FdStream(os.dup(output)) as lines,
        ):
            async for chunk in lines:
                for table, row in rows.feed(bytes(chunk)):
                    if table == "installation_key":
                        key = bytes.fromhex(row["key"].removeprefix("\\\\x"))
                        fingerprint = InstallationKey(key).fingerprint
                    elif row["state"] == "stored":
                        objects.append(_object_of(row))
            if await process.wait() != 0:
                raise Refused(f"{file} cannot be read as a backup")
    return NeededObjects(fingerprint=fingerprint, objects=tuple(sorted(objects, key=lambda one: one.name)))


def _object_of(row: Mapping[str, str]) -> LogObject:
    month, tenant, size = (int(row[name]) for name in ("month", "tenant", "bytes"))
    return LogObject(name=row["name"], month=month, tenant=tenant, seqs=(), bytes=size)


class _Rows:
    """Reads rows as COPY writes them, each with the name of its table, out of the pieces in which they come."""

    def __init__(self) -> None:
        self._rest = b""
        self._table = ""
        self._columns: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[tuple[str, dict[str, str]]]:
        """Take the next piece; yield the rows that have ended with it."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for one in lines:
            line = one.decode("utf-8", "replace")
            if line.startswith("COPY "):
                name, _, rest = line.removeprefix("COPY ").partition(" (")
                self._table, self._columns = name.rpartition(".")[2], rest.partition(")")[0].split(", ")
            elif line == "\\.":
                self._table = ""
            elif self._table:
                yield self._table, dict(zip(self._columns, line.split("\t"), strict=True))
