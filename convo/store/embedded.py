"""A private PostgreSQL for a machine that has none: made, started, kept and stopped; it sends the server no SQL.

The data live in ``data_dir/postgres``. The server listens on a Unix socket in a folder that only its user may enter,
and ends with this process, however this process ends. The caller holds ``data_dir`` for itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import trio
from msgspec import Struct

from convo.deadline import deadline
from convo.errors import ConvoError, DatabaseUnavailable, Refused
from convo.observe import events
from convo.store.private import cluster, orphans, place, programs
from convo.store.private.place import Place
from convo.store.private.postmaster import CONNECTIONS, Postmaster

__all__ = ["CONNECTIONS", "Embedded", "Seen", "address", "embedded", "keep", "look", "size_bytes", "trim_log"]

USER = "convo"
DATABASE = "convo"
PORT = 5432
"""No TCP port: the number in the socket's name."""

_SOCKET_LINE = 4
_LOOK_SECONDS = 0.5
_AGAIN_SECONDS = 1.0
_AGAIN_MAX_SECONDS = 5.0
_CLOSE_SECONDS = 10.0
_MEASURE_SECONDS = 120.0
_LOG_BYTES_MAX = 4 * 1024 * 1024
_LOG_BYTES_KEPT = 256 * 1024


class Embedded(Struct, frozen=True, kw_only=True):
    """A running private PostgreSQL: how to reach it, where it lives, what it takes."""

    dsn: str
    socket_folder: Path
    version: str
    data_folder: Path
    size_bytes: int
    disk_free_bytes: int
    programs_folder: Path
    log_file: Path
    postmaster: Postmaster


class Seen(Struct, frozen=True, kw_only=True):
    """What is there for a private PostgreSQL: its programs' version, its data if it has any, its URL while it runs."""

    version: str
    data_folder: Path
    made: bool
    dsn: str | None


async def look(data_dir: Path) -> Seen:
    """See what a private PostgreSQL on ``data_dir`` would be run with, and whether it runs now; nothing is touched.

    Raises:
        Refused: there is no PostgreSQL to run, or the folder is not ours to use.
    """
    found = await programs.find()
    folder = place.data_folder(data_dir)
    try:
        made = cluster.stands(folder, found)
        return Seen(version=found.version, data_folder=folder, made=made, dsn=address(data_dir))
    except OSError as error:
        raise Refused(f"the data folder {folder} cannot be looked at: {error.strerror}") from error


@asynccontextmanager
async def embedded(data_dir: Path) -> AsyncIterator[Embedded]:
    """Run a private PostgreSQL on ``data_dir/postgres`` while the block runs; make it first where there is none.

    To be entered from the main thread: the server is bound to the thread that starts it.

    Raises:
        Refused: there is no PostgreSQL to run, the folder is not ours to use, or the server does not start.
    """
    began = trio.current_time()
    here = await place.prepare(data_dir)
    trim_log(here.log_file)
    replaced_pid = await orphans.clear(here.folder)
    await cluster.ensure(here, user=USER, database=DATABASE)
    postmaster = Postmaster(here)
    try:
        await postmaster.start()
        running = await _describe(here, postmaster)
        _tell(running, replaced_pid, trio.current_time() - began)
        yield running
    finally:
        began = trio.current_time()
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            await postmaster.stop()
        with suppress(OSError):
            here.socket_folder.rmdir()
        events.embedded_stopped(seconds=trio.current_time() - began)


def _tell(running: Embedded, replaced_pid: int | None, seconds: float) -> None:
    events.embedded_started(
        folder=str(running.data_folder),
        size_bytes=running.size_bytes,
        disk_free_bytes=running.disk_free_bytes,
        version=running.version,
        log=str(running.log_file),
        seconds=round(seconds, 3),
        replaced_pid=replaced_pid,
    )


async def _describe(here: Place, postmaster: Postmaster) -> Embedded:
    with deadline("embedded.measure", _MEASURE_SECONDS):
        used_bytes = await trio.to_thread.run_sync(size_bytes, here.folder, abandon_on_cancel=True)
    return Embedded(
        dsn=_dsn(here.socket_folder),
        socket_folder=here.socket_folder,
        version=here.programs.version,
        data_folder=here.folder,
        size_bytes=used_bytes,
        disk_free_bytes=shutil.disk_usage(here.folder).free,
        programs_folder=here.programs.folder,
        log_file=here.log_file,
        postmaster=postmaster,
    )


def _dsn(socket_folder: Path) -> str:
    return f"postgresql://{USER}@/{DATABASE}?host={quote(str(socket_folder), safe='/')}&port={PORT}"


async def keep(running: Embedded) -> NoReturn:
    """Start the server again whenever it ends by itself (its memory taken away, its disk full), for ever."""
    while True:
        code = await running.postmaster.gone(_LOOK_SECONDS)
        gone = DatabaseUnavailable(
            f"the embedded PostgreSQL ended by itself ({code}): {running.postmaster.last_words()}"
        )
        events.unexpected(where="embedded", error=gone)
        await _start_again(running)


async def _start_again(running: Embedded) -> None:
    pause = _AGAIN_SECONDS
    while True:
        try:
            await orphans.clear(running.data_folder)
            await running.postmaster.start()
        except ConvoError as error:
            events.unexpected(where="embedded", error=error)
        else:
            return
        await trio.sleep(pause)
        pause = min(pause * 2, _AGAIN_MAX_SECONDS)


def address(data_dir: Path) -> str | None:
    """Return the URL of the private PostgreSQL that another process runs on ``data_dir`` now, if one does."""
    folder = place.data_folder(data_dir)
    pid = orphans.recorded_pid(folder)
    if pid is None or not orphans.is_alive(pid) or not orphans.is_ready(folder, pid):
        return None
    return _dsn(Path((folder / "postmaster.pid").read_text().splitlines()[_SOCKET_LINE]))


def size_bytes(folder: Path) -> int:
    """Return what the files below ``folder`` hold."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            # Files come and go while the server works.
            try:
                total += Path(parent, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def trim_log(log_file: Path) -> None:
    """Cut the server's log back to its last part once it is past its bound; to be called now and then."""
    if not log_file.exists() or log_file.stat().st_size <= _LOG_BYTES_MAX:
        return
    with log_file.open("r+b") as file:
        file.seek(-_LOG_BYTES_KEPT, os.SEEK_END)
        kept = file.read()
        log_file.with_suffix(".log.old").write_bytes(kept)
        # The server appends: its next line goes to the new end.
        file.truncate(0)
