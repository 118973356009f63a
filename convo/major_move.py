"""Moves the data of the embedded PostgreSQL to a newer major version, by convo's own backup and restore.

The programs of one major version cannot serve the data of another. So the programs of the old version, kept beside the
data or found on the system, serve the old folder once more for a backup. A new folder is made and filled, and every row
is compared. Only then do the two folders change places, and the old one is removed when the server has started on the
new one. Below ``data_dir``:

    postgres          the data; ``postgres.new`` while they are filled, ``postgres.MAJOR`` once they are replaced
    postgres.move     the backup, and the file ``verified`` once the new folder holds every row of the old one

A start that was killed before ``verified`` is written goes back: the next one begins anew with the old folder, which
was not changed. After it, the next start goes on. Who goes back to the older program in between, before the exchange,
has written into the old folder: its control file shows it, and the move begins anew.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio
from msgspec import Struct

from convo.embedded import access, cluster, location, orphans, programs
from convo.embedded.location import Location
from convo.embedded.postmaster import Postmaster
from convo.embedded.server import Embedded, open_embedded, size_bytes
from convo.errors import Refused
from convo.observe import log_records
from convo.runtime.deadline import deadline
from convo.store.backup import restore_backup, write_backup
from convo.store.history import HISTORY_FILE
from convo.store.table_sums import read_table_sums
from convo.store.timeline import write_durably

_SECONDS = 3600.0
_MEBIBYTE = 1 << 20
# A backup is never larger than the data, nor is the new folder; and an empty folder has this size.
_SPARE_BYTES = 128 * _MEBIBYTE


class _Move(Struct, frozen=True, kw_only=True):
    """Where everything is, and from which major version the data come."""

    here: Location
    major: str

    @property
    def data_dir(self) -> Path:
        return self.here.folder.parent

    @property
    def new_folder(self) -> Path:
        return self.data_dir / "postgres.new"

    @property
    def aside(self) -> Path:
        return self.data_dir / f"postgres.{self.major}"

    @property
    def work(self) -> Path:
        return _work(self.data_dir)

    @property
    def backup(self) -> Path:
        return self.work / "backup"


class _Verified(Struct, frozen=True, kw_only=True):
    """What the file ``verified`` holds: the old version, and the hash of the old folder's control file."""

    major: str
    control: str


@asynccontextmanager
async def open_moved(data_dir: Path) -> AsyncIterator[Embedded]:
    """Run the embedded PostgreSQL as ``open_embedded`` does, after a move of its data where they are older.

    Raises:
        Refused: as ``open_embedded``; or the move cannot be done: there is no room, or no program of the old version.
    """
    data_dir = data_dir.resolve()
    await _move_if_older(data_dir)
    async with open_embedded(data_dir) as running:
        await _clear_away(data_dir)
        yield running


async def keep_programs(running: Embedded) -> None:
    """Keep a copy of the programs beside the data, for a start of a later version of convo; what fails is logged."""
    try:
        await programs.keep_copy(running.location.programs, location.programs_folder(running.data_folder.parent))
    except OSError as error:
        log_records.programs_not_kept(error=str(error))


def _work(data_dir: Path) -> Path:
    return data_dir / "postgres.move"


async def _move_if_older(data_dir: Path) -> None:
    here = await location.prepare_location(data_dir)
    verified = _read_verified(data_dir)
    if verified is not None and _exchange(_Move(here=here, major=verified.major), verified):
        return
    major = cluster.read_major(here.folder)
    await _drop(data_dir / "postgres.new", _work(data_dir))
    if major is None or not cluster.is_older(major, here.programs):
        return
    move = _Move(here=here, major=major)
    old = await _old_location(move)
    await _check_room(move)
    _work(data_dir).mkdir(mode=0o700)
    sums = await _dump(move, old)
    await _fill(move, sums)
    verified = _mark_verified(move)
    _exchange(move, verified)


async def _old_location(move: _Move) -> Location:
    found = await programs.find_major(move.major, location.programs_folder(move.data_dir))
    if move.here.user is not None:
        found = await programs.runnable_by(move.here.user, found, location.ANNEX)
    return msgspec.structs.replace(move.here, programs=found)


async def _check_room(move: _Move) -> None:
    with deadline("embedded.measure", _SECONDS):
        used = await trio.to_thread.run_sync(size_bytes, move.here.folder, abandon_on_cancel=True)
    needed, free = 2 * used + _SPARE_BYTES, shutil.disk_usage(move.data_dir).free
    log_records.embedded_moves(
        folder=str(move.here.folder),
        from_major=move.major,
        to_version=move.here.programs.version,
        size_bytes=used,
        needed_bytes=needed,
        disk_free_bytes=free,
    )
    if free < needed:
        raise Refused(
            f"the data in {move.here.folder} are of PostgreSQL {move.major} and have to be moved to"
            f" {move.here.programs.version}: that needs {needed // _MEBIBYTE:,} MiB of free disk for a backup and the"
            f" new folder, and there are {free // _MEBIBYTE:,} MiB; make room, then start again. Nothing was changed"
        )


# --- the steps, in order


async def _dump(move: _Move, old: Location) -> str:
    """Serve the old folder with the old programs for a backup; return the sums of its rows."""
    async with _served(old) as url:
        sums = await read_table_sums(url)
        # pg_dump of the server's own build: a later one may write what it does not know (`pg_attver` of 15.20).
        await write_backup(url, move.backup, by=old.programs)
    return sums


async def _fill(move: _Move, sums: str) -> None:
    """Make the new folder, restore the backup into it, and compare every row."""
    new = msgspec.structs.replace(move.here, folder=move.new_folder)
    await cluster.ensure(new)
    async with _served(new) as url:
        await restore_backup(url, move.backup)
        found = await read_table_sums(url)
    if found != sums:
        differ = sorted(set(sums.splitlines()) ^ set(found.splitlines()))
        raise Refused(
            f"the data moved to PostgreSQL {move.here.programs.version} differ from those of {move.major} (table or"
            f" sequence, rows, sum): {'; '.join(differ)}. The old folder {move.here.folder} is as it was; go back to"
            " the convo that made it, and report this"
        )


def _mark_verified(move: _Move) -> _Verified:
    verified = _Verified(major=move.major, control=_control(move.here.folder))
    write_durably(move.work / "verified", msgspec.json.encode(verified).decode())
    return verified


def _exchange(move: _Move, verified: _Verified) -> bool:
    """Put the new folder in the place of the old one; return False where the old one was written to meanwhile."""
    folder = move.here.folder
    if not move.new_folder.exists():
        return cluster.read_major(folder) == move.here.programs.major
    if cluster.read_major(folder) is not None:
        if cluster.read_major(folder) != move.major or _control(folder) != verified.control:
            return False
        _set_aside(move)
    _put_in_place(move)
    return True


def _set_aside(move: _Move) -> None:
    if move.aside.exists():
        raise Refused(f"{move.aside} is in the way of the old data: move it away, then start again")
    move.here.folder.rename(move.aside)
    cluster.sync_folder(move.data_dir)


def _put_in_place(move: _Move) -> None:
    # An empty folder may stand there: a rename takes its place.
    move.new_folder.rename(move.here.folder)
    cluster.sync_folder(move.data_dir)
    # It is another cluster on purpose, and this process has acknowledged nothing yet.
    (move.data_dir / HISTORY_FILE).unlink(missing_ok=True)


async def _clear_away(data_dir: Path) -> None:
    """Remove the old folder and the backup: the server has started on the new folder, which holds every row."""
    verified = _read_verified(data_dir)
    if verified is None:
        return
    await _drop(data_dir / f"postgres.{verified.major}", _work(data_dir))
    log_records.embedded_moved(folder=str(location.data_folder(data_dir)), from_major=verified.major)


# --- what the steps need


@asynccontextmanager
async def _served(here: Location) -> AsyncIterator[str]:
    """Serve a folder for the block, and yield its URL."""
    await orphans.stop_orphans(here.folder)
    await location.give_to_user(here, here.folder)
    postmaster = Postmaster(here)
    try:
        await postmaster.start()
        await access.settle_access(here)
        yield access.login_url(here.folder, here.socket_folder)
    finally:
        with trio.CancelScope(shield=True):
            await postmaster.stop()  # noqa: ASYNC102  (each of its steps has a deadline)


def _read_verified(data_dir: Path) -> _Verified | None:
    try:
        return msgspec.json.decode((_work(data_dir) / "verified").read_bytes(), type=_Verified)
    except FileNotFoundError:
        return None


def _control(folder: Path) -> str:
    # Every start of a server writes it.
    return hashlib.sha256((folder / "global" / "pg_control").read_bytes()).hexdigest()


async def _drop(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            await orphans.stop_orphans(folder)
            with deadline("embedded.drop", _SECONDS):
                await trio.to_thread.run_sync(shutil.rmtree, folder)
