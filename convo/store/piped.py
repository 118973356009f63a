"""Programs whose output is read while they run: those that make a backup, and the one that unpacks it.

Open it to change how a program is ended, or which files are backups.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from convo.errors import DeadlineExceeded, Refused
from convo.runtime.deadline import deadline
from convo.store.packing import PACKED

ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}
"""What a program gets of our environment: nothing of it is secret."""
PACKING = (sys.executable, "-P", str(Path(__file__).with_name("packing.py")))
"""The command that packs or unpacks, without which of both."""
_KILL_SECONDS = 5.0
_ARCHIVE = b"PGDMP"


@asynccontextmanager
async def unpacked(file: Path) -> AsyncIterator[int]:
    """Yield a descriptor from which the archive in a backup is read, as pg_dump wrote it.

    Raises:
        Refused: the file is no backup, or cannot be read.
    """
    try:
        opened = os.open(file, os.O_RDONLY)
        first = os.pread(opened, len(_ARCHIVE), 0)
    except OSError as error:
        raise Refused(f"the backup {file} cannot be read: {error.strerror}") from error
    try:
        # Backups of convo 0.1 are not packed.
        if first == _ARCHIVE:
            yield opened
        elif first.startswith(PACKED):
            async with piped([*PACKING, "unpack"], stdin=opened, stderr=subprocess.DEVNULL) as (_, archive):
                yield archive
        else:
            raise Refused(f"{file} is not a backup that `convo backup` made")
    finally:
        os.close(opened)


@asynccontextmanager
async def piped(
    command: list[str], environment: Mapping[str, str] = ENVIRONMENT, **streams: Any
) -> AsyncIterator[tuple[trio.Process, int]]:
    """Run a program for the block; yield it, and a descriptor from which its output is read."""
    reader, writer = os.pipe()
    try:
        try:
            process = await trio.lowlevel.open_process(command, stdout=writer, env=environment, **streams)
        finally:
            os.close(writer)
        try:
            yield process, reader
        finally:
            await kill(process)  # noqa: ASYNC102  (shields itself, with a bound)
    finally:
        os.close(reader)


async def kill(*processes: trio.Process) -> None:
    """End these programs at once, and wait for their end."""
    with suppress(DeadlineExceeded), trio.CancelScope(shield=True), deadline("backup.kill", _KILL_SECONDS):
        for process in processes:
            process.kill()
            await process.wait()
