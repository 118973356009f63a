"""The embedded PostgreSQL of a machine that has none: make its data folder, start it, keep it running, stop it.

The data are in ``data_dir/postgres``. The server listens on a Unix socket in a folder that only its user may enter, and
lets in who knows the password (``access``). It ends with this process, however this process ends. The caller holds the
lock on ``data_dir`` (``runtime.identity``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NoReturn

import trio
from msgspec import Struct

from convo.embedded import access, cluster, location, orphans, programs
from convo.embedded.location import Location
from convo.embedded.postmaster import CONNECTIONS, Postmaster
from convo.errors import ConvoError, DatabaseUnavailable, Refused
from convo.observe import log_records
from convo.runtime.deadline import deadline

__all__ = [
    "CONNECTIONS",
    "Embedded",
    "EmbeddedState",
    "keep_log_short",
    "keep_running",
    "open_embedded",
    "read_state",
    "running_dsn",
    "size_bytes",
    "trim_log",
]

_SOCKET_LINE = 4
_POLL_SECONDS = 0.5
_RESTART_PAUSE_SECONDS = 1.0
_RESTART_PAUSE_MAX_SECONDS = 5.0
_CLOSE_SECONDS = 10.0
_MEASURE_SECONDS = 120.0
_TRIM_SECONDS = 600.0
_LOG_BYTES_MAX = 4 * 1024 * 1024
_LOG_BYTES_KEPT = 256 * 1024


class Embedded(Struct, frozen=True, kw_only=True):
    """A running embedded PostgreSQL: its URL, its folders, its size on the disk, and its process."""

    location: Location
    dsn: str
    socket_folder: Path
    version: str
    data_folder: Path
    size_bytes: int
    disk_free_bytes: int
    log_file: Path
    postmaster: Postmaster

    @property
    def description(self) -> str:
        """The server in one line for a person."""
        return (
            f"embedded PostgreSQL {self.version} in {self.data_folder}"
            f" ({_mebibytes(self.size_bytes)} used, {_mebibytes(self.disk_free_bytes)} free)"
        )


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


class EmbeddedState(Struct, frozen=True, kw_only=True):
    """What there is for an embedded PostgreSQL: its programs' version, whether its data exist, its URL if it runs.

    ``moves_from`` is the older major version of the data that the next ``convo serve`` moves; else None.
    """

    version: str
    data_folder: Path
    made: bool
    dsn: str | None
    moves_from: str | None = None


async def read_state(data_dir: Path) -> EmbeddedState:
    """Read which PostgreSQL would serve ``data_dir``, and whether it runs now; change nothing.

    Raises:
        Refused: there is no PostgreSQL to run, or the data folder cannot be used.
    """
    found = await programs.find()
    folder = location.data_folder(data_dir)
    try:
        major = cluster.read_major(folder)
        if major is not None and cluster.is_older(major, found):
            await programs.find_major(major, location.programs_folder(data_dir))
            return EmbeddedState(version=found.version, data_folder=folder, made=True, dsn=None, moves_from=major)
        made = cluster.is_made(folder, found)
        return EmbeddedState(version=found.version, data_folder=folder, made=made, dsn=running_dsn(data_dir))
    except OSError as error:
        raise Refused(f"the data folder {folder} cannot be read: {error.strerror}") from error


@asynccontextmanager
async def open_embedded(data_dir: Path) -> AsyncIterator[Embedded]:
    """Run the embedded PostgreSQL on ``data_dir/postgres`` while the block runs; make its data first if missing.

    Enter it from the main thread: the kernel ends the server together with the thread that started it.

    Raises:
        Refused: there is no PostgreSQL to run, the data folder cannot be used, or the server does not start.
    """
    began = trio.current_time()
    here = await location.prepare_location(data_dir)
    trim_log(here.log_file)
    replaced_pid = await orphans.stop_orphans(here.folder)
    await cluster.ensure(here)
    postmaster = Postmaster(here)
    try:
        await postmaster.start()
        await access.settle_access(here)
        running = await _describe(here, postmaster)
        _log_start(running, replaced_pid, trio.current_time() - began)
        yield running
    finally:
        began = trio.current_time()
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            await postmaster.stop()
        with suppress(OSError):
            here.socket_folder.rmdir()
        log_records.embedded_stopped(seconds=trio.current_time() - began)


def _log_start(running: Embedded, replaced_pid: int | None, seconds: float) -> None:
    log_records.embedded_started(
        folder=str(running.data_folder),
        size_bytes=running.size_bytes,
        disk_free_bytes=running.disk_free_bytes,
        version=running.version,
        log=str(running.log_file),
        seconds=round(seconds, 3),
        replaced_pid=replaced_pid,
    )


async def _describe(here: Location, postmaster: Postmaster) -> Embedded:
    with deadline("embedded.measure", _MEASURE_SECONDS):
        used_bytes = await trio.to_thread.run_sync(size_bytes, here.folder, abandon_on_cancel=True)
    return Embedded(
        location=here,
        dsn=access.login_url(here.folder, here.socket_folder),
        socket_folder=here.socket_folder,
        version=here.programs.version,
        data_folder=here.folder,
        size_bytes=used_bytes,
        disk_free_bytes=shutil.disk_usage(here.folder).free,
        log_file=here.log_file,
        postmaster=postmaster,
    )


async def keep_running(running: Embedded) -> NoReturn:
    """Start the server again whenever it ends by itself (killed for its memory, its disk full), until cancelled."""
    while True:
        code = await running.postmaster.gone(_POLL_SECONDS)
        gone = DatabaseUnavailable(
            f"the embedded PostgreSQL ended by itself ({code}): {running.postmaster.last_log_lines()}"
        )
        log_records.unexpected(where="embedded", error=gone)
        await _start_again(running)


async def _start_again(running: Embedded) -> None:
    pause = _RESTART_PAUSE_SECONDS
    while True:
        try:
            await orphans.stop_orphans(running.data_folder)
            await running.postmaster.start()
        except ConvoError as error:
            log_records.unexpected(where="embedded", error=error)
        else:
            return
        await trio.sleep(pause)
        pause = min(pause * 2, _RESTART_PAUSE_MAX_SECONDS)


def running_dsn(data_dir: Path) -> str | None:
    """Return the URL of the embedded PostgreSQL that a process runs on ``data_dir`` now, or None."""
    folder = location.data_folder(data_dir)
    pid = orphans.recorded_pid(folder)
    if pid is None or not orphans.is_alive(pid) or not orphans.is_ready(folder, pid):
        return None
    return access.login_url(folder, Path((folder / "postmaster.pid").read_text().splitlines()[_SOCKET_LINE]))


def size_bytes(folder: Path) -> int:
    """Add up the sizes of all files below ``folder``."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            # Files come and go while the server works.
            try:
                total += Path(parent, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


async def keep_log_short(log_file: Path) -> NoReturn:
    """Trim the server's log every ten minutes, until cancelled."""
    while True:
        await trio.sleep(_TRIM_SECONDS)
        try:
            with deadline("embedded.trim", _TRIM_SECONDS):
                await trio.to_thread.run_sync(trim_log, log_file)
        except OSError as error:
            log_records.disk_full(error=f"the log {log_file} cannot be trimmed: {error.strerror}")


def trim_log(log_file: Path) -> None:
    """Empty a log of more than 4 MiB, after a copy of its last 256 KiB to ``.log.old``."""
    if not log_file.exists() or log_file.stat().st_size <= _LOG_BYTES_MAX:
        return
    with log_file.open("r+b") as file:
        file.seek(-_LOG_BYTES_KEPT, os.SEEK_END)
        kept = file.read()
        log_file.with_suffix(".log.old").write_bytes(kept)
        # The server appends: its next line goes to the new end.
        file.truncate(0)
