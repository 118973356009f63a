"""Choose the folders, the programs and the user of the embedded PostgreSQL, and prepare the folders."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from pathlib import Path

import trio
from msgspec import Struct

from convo.embedded import programs, users
from convo.embedded.programs import Programs, User
from convo.errors import Refused
from convo.runtime.deadline import deadline

_CHOWN_SECONDS = 60.0
ANNEX = Path("/var/cache/convo")
"""For root only: copies of programs and socket folders that PostgreSQL's user cannot reach in their own folders.

All of it can be made again at any time.
"""
# A socket's path holds at most 107 bytes on Linux and 103 on macOS; a comma or a percent sign would need quoting twice.
_SOCKET_PATH_BYTES_MAX = 103
_PLAIN = re.compile(r"[\w./+-]+", re.ASCII)


class Location(Struct, frozen=True, kw_only=True):
    """The files of one embedded PostgreSQL: data, socket, log, programs; and its user, where it is not our own."""

    folder: Path
    socket_folder: Path
    log_file: Path
    programs: Programs
    user: User | None


def data_folder(data_dir: Path) -> Path:
    """Return the folder of the data of ``data_dir``."""
    return data_dir.resolve() / "postgres"


def programs_folder(data_dir: Path) -> Path:
    """Return the folder in which copies of PostgreSQL's programs are kept beside the data of ``data_dir``."""
    return data_dir.resolve() / "programs"


async def prepare_location(data_dir: Path) -> Location:
    """Make the folders around the data, and choose programs and user; leave the data as they are.

    Raises:
        Refused: there is no PostgreSQL to run, or the folders cannot be used.
    """
    data_dir = data_dir.resolve()
    folder = data_folder(data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        user = _user(folder)
        socket_folder = _socket_folder(data_dir, user)
    except OSError as error:
        raise Refused(
            f"server.data_dir {str(data_dir)!r} cannot hold the embedded PostgreSQL: {error}; choose another --data-dir"
        ) from error
    found = await programs.find()
    return Location(
        folder=folder,
        socket_folder=socket_folder,
        log_file=data_dir / "postgres.log",
        programs=await programs.runnable_by(user, found, ANNEX) if user is not None else found,
        user=user,
    )


def _user(folder: Path) -> User | None:
    owner = folder.stat() if folder.exists() else None
    if os.geteuid() == 0:
        return users.user_for(folder, owner)
    if owner and owner.st_uid != os.geteuid():
        raise Refused(
            f"{folder} belongs to uid {owner.st_uid}: another user, or root, started convo on it before. Start it as"
            f" that user again, or change the owner with `sudo chown -R {os.geteuid()} {folder}`"
        )
    return None


async def give_to_user(location: Location, folder: Path) -> None:
    """Give ``folder`` and all that is in it to PostgreSQL's user, where it is not theirs; no server may run on it."""
    user = location.user
    if user is not None and folder.exists() and folder.stat().st_uid != user.uid:
        with deadline("embedded.chown", _CHOWN_SECONDS):
            await trio.to_thread.run_sync(_chown_all, folder, user)


def _chown_all(folder: Path, user: User) -> None:
    for path in (*folder.rglob("*"), folder):
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


def _socket_folder(data_dir: Path, user: User | None) -> Path:
    folder = data_dir / "run"
    if not _can_hold_socket(folder) or (user is not None and not programs.reachable(data_dir, user)):
        folder = _short_folder(data_dir)
    _make_private(folder, user)
    return folder


def _short_folder(data_dir: Path) -> Path:
    """Return a folder with a short path, the same one each time for ``data_dir``."""
    key = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    if os.geteuid() == 0:
        return ANNEX / f"run-{key}"
    return Path(f"/tmp/convo-{os.geteuid()}-{key}")  # noqa: S108  (made with mode 0700, and refused if not ours)


def _can_hold_socket(folder: Path) -> bool:
    path = folder / ".s.PGSQL.5432"
    return len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX and _PLAIN.fullmatch(str(path)) is not None


def _make_private(folder: Path, user: User | None) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.lstat()
    # Another user may have made a folder of this name below /tmp, to read what goes through its socket.
    if not stat.S_ISDIR(facts.st_mode) or (os.geteuid() != 0 and facts.st_uid != os.geteuid()):
        raise Refused(f"{folder} belongs to another user: remove it, or choose another server.data_dir")
    if user is not None:
        os.chown(folder, user.uid, user.gid)
    folder.chmod(0o700)


def make_data_folder(location: Location, folder: Path) -> None:
    """Make an empty folder that belongs to PostgreSQL's user, in the place of what is there."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    if location.user is not None:
        os.chown(folder, location.user.uid, location.user.gid)
