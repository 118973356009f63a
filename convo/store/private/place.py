"""Decide where a private PostgreSQL lives and whom it runs as, and make its folders ready; it runs nothing."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from pathlib import Path

import trio
from msgspec import Struct

from convo.deadline import deadline
from convo.errors import Refused
from convo.store.private import programs
from convo.store.private.programs import Programs, User

_NOBODY = 65534
_CHOWN_SECONDS = 60.0
# Root's only: what PostgreSQL's user cannot reach at its own place stands here. It can be made again at any time.
_ANNEX = Path("/var/cache/convo")
# A socket's path holds at most 107 bytes on Linux and 103 on macOS; a comma or a percent sign would need quoting twice.
_SOCKET_PATH_BYTES_MAX = 103
_PLAIN = re.compile(r"[\w./+-]+", re.ASCII)


class Place(Struct, frozen=True, kw_only=True):
    """Where one private PostgreSQL lives: its data, its socket, its log, its programs, and its user if it is not us."""

    folder: Path
    socket_folder: Path
    log_file: Path
    programs: Programs
    user: User | None


def data_folder(data_dir: Path) -> Path:
    """Return where the data of ``data_dir`` live."""
    return data_dir.resolve() / "postgres"


async def prepare(data_dir: Path) -> Place:
    """Make the folders around the data and choose programs and user; the data themselves are not touched.

    Raises:
        Refused: there is no PostgreSQL to run, or the folders are not ours to use.
    """
    data_dir = data_dir.resolve()
    folder = data_folder(data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        user = _user(folder)
        if user is not None:
            await _hand_over(folder, user)
        socket_folder = _socket_folder(data_dir, user)
    except OSError as error:
        raise Refused(f"the folder of the embedded PostgreSQL cannot be made ready: {error}") from error
    found = await programs.find()
    return Place(
        folder=folder,
        socket_folder=socket_folder,
        log_file=data_dir / "postgres.log",
        programs=await programs.runnable_by(user, found, _ANNEX) if user is not None else found,
        user=user,
    )


def _user(folder: Path) -> User | None:
    owner = folder.stat() if folder.exists() else None
    if os.geteuid() == 0:
        return User(owner.st_uid, owner.st_gid or _NOBODY) if owner and owner.st_uid else User(_NOBODY, _NOBODY)
    if owner and owner.st_uid != os.geteuid():
        raise Refused(
            f"{folder} belongs to uid {owner.st_uid} (convo was started as root, or as somebody else, before): start"
            f" it the same way again, or hand the folder over with `sudo chown -R {os.geteuid()} {folder}`"
        )
    return None


async def _hand_over(folder: Path, user: User) -> None:
    # Only root's own: a restored copy, say. What belongs to an ordinary user decides the user instead.
    if folder.exists() and folder.stat().st_uid == 0:
        with deadline("embedded.chown", _CHOWN_SECONDS):
            await trio.to_thread.run_sync(_chown_all, folder, user)


def _chown_all(folder: Path, user: User) -> None:
    for path in (*folder.rglob("*"), folder):
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


def _socket_folder(data_dir: Path, user: User | None) -> Path:
    folder = data_dir / "run"
    if not _serves_a_socket(folder) or (user is not None and not programs.reachable(data_dir, user)):
        folder = _stand_in(data_dir)
    _make_own(folder, user)
    return folder


def _stand_in(data_dir: Path) -> Path:
    """Return a folder with a short path, always the same one for ``data_dir``."""
    key = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    if os.geteuid() == 0:
        return _ANNEX / f"run-{key}"
    return Path(f"/tmp/convo-{os.geteuid()}-{key}")  # noqa: S108  (made with mode 0700, and refused if not ours)


def _serves_a_socket(folder: Path) -> bool:
    path = folder / ".s.PGSQL.5432"
    return len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX and _PLAIN.fullmatch(str(path)) is not None


def _make_own(folder: Path, user: User | None) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.lstat()
    # Whoever was first to make a folder of this name below /tmp could otherwise read what we send through it.
    if not stat.S_ISDIR(facts.st_mode) or (os.geteuid() != 0 and facts.st_uid != os.geteuid()):
        raise Refused(f"{folder} is not a folder of ours: remove it, or choose another server.data_dir")
    if user is not None:
        os.chown(folder, user.uid, user.gid)
    folder.chmod(0o700)


def make_data_folder(place: Place, folder: Path) -> None:
    """Make an empty folder that belongs to PostgreSQL's user, instead of what stands there."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    if place.user is not None:
        os.chown(folder, place.user.uid, place.user.gid)
