"""What a backup says of the objects of logs that it needs, read out of its file without a database.

Open it to read something else out of a backup before it is restored.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import trio
from msgspec import Struct

from convo.embedded import programs
from convo.errors import Refused
from convo.runtime.deadline import deadline
from convo.store.installation_key import InstallationKey
from convo.store.log_objects import LogObject
from convo.store.piped import ENVIRONMENT, kill, unpacked

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
    with deadline("backup.list", _SECONDS):
        async for table, row in _rows(file):
            if table == "installation_key":
                fingerprint = InstallationKey(bytes.fromhex(row["key"].removeprefix("\\\\x"))).fingerprint
            elif row["state"] == "stored":
                month, tenant, size = (int(row[name]) for name in ("month", "tenant", "bytes"))
                objects.append(LogObject(name=row["name"], month=month, tenant=tenant, seqs=(), bytes=size))
    return NeededObjects(fingerprint=fingerprint, objects=tuple(sorted(objects, key=lambda one: one.name)))


async def _rows(file: Path) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """Yield the rows of these tables, as COPY writes them, each with the name of its table."""
    table, columns = "", list[str]()
    async for line in _lines(file):
        if line.startswith("COPY "):
            name, _, rest = line.removeprefix("COPY ").partition(" (")
            table, columns = name.rpartition(".")[2], rest.partition(")")[0].split(", ")
        elif line == "\\.":
            table = ""
        elif table:
            yield table, dict(zip(columns, line.split("\t"), strict=True))


async def _lines(file: Path) -> AsyncIterator[str]:
    found = await programs.find()
    wanted = [f"--table={name}" for name in _TABLES]
    command = [str(found.folder / "pg_restore"), "--data-only", "--file=-", *wanted]
    async with unpacked(file) as archive:
        process = await trio.lowlevel.open_process(command, stdin=archive, stdout=-1, stderr=-3, env=ENVIRONMENT)
        assert process.stdout is not None  # noqa: S101  (it was asked for)
        try:
            rest = b""
            async for chunk in process.stdout:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line.decode("utf-8", "replace")
            if await process.wait() != 0:
                raise Refused(f"{file} cannot be read as a backup")
        finally:
            await kill(process)  # noqa: ASYNC102  (shields itself, with a bound)
