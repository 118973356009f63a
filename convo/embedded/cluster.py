"""Make the data folder of the embedded PostgreSQL, completely or not at all; refuse one of another version."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from convo.embedded import orphans, postmaster, users
from convo.embedded.access_sql import ADMIN
from convo.embedded.location import Location, give_to_user, make_data_folder
from convo.embedded.programs import Programs
from convo.errors import Refused

_INITDB_SECONDS = 120.0


async def ensure(location: Location) -> None:
    """Make the data folder, unless one of our version is there; ``access.settle_access`` makes role and database.

    It is made under another name and renamed once it is complete. So a folder of the final name was complete once.

    Raises:
        Refused: the folder holds another major version or other files, or it cannot be made.
    """
    made = is_made(location.folder, location.programs)
    unfinished = location.folder.with_name("postgres.unfinished")
    await orphans.stop_orphans(unfinished)
    try:
        if made:
            await give_to_user(location, location.folder)
            return
        await _make(location, unfinished)
        unfinished.rename(location.folder)
        sync_folder(location.folder.parent)
    except OSError as error:
        raise Refused(
            f"the data folder {location.folder} cannot be prepared: {error}; free that path, or give --data-dir another"
        ) from error


def is_made(folder: Path, programs: Programs) -> bool:
    """Return whether ``folder`` is a data folder that these programs can serve.

    Raises:
        Refused: it holds another major version, or other files.
    """
    major = read_major(folder)
    if major not in (None, programs.major):
        can = (
            "`convo serve` moves them to it"
            if is_older(major, programs)
            else "go back to the convo that made it, or restore a backup into a folder of its own"
        )
        raise Refused(
            f"{folder} holds data of PostgreSQL {major}, and the programs at hand ({programs.folder}) are"
            f" of version {programs.version}: {can}"
        )
    return major is not None


def read_major(folder: Path) -> str | None:
    """Read the major version of the data in ``folder``, None where there are none.

    Raises:
        Refused: it holds other files.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        return (folder / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise Refused(
            f"{folder} holds files that are no PostgreSQL data: move it away, or choose another server.data_dir"
        ) from None


def is_older(major: str | None, programs: Programs) -> bool:
    """Return whether data of this major version are older than these programs; both count in whole numbers."""
    return major is not None and major.isdecimal() and int(major) < int(programs.major)


async def _make(location: Location, folder: Path) -> None:
    made_by = location
    if location.user is not None:
        made_by = msgspec.structs.replace(location, user=users.maker(location.user))
    make_data_folder(made_by, folder)
    how = ["-U", ADMIN, "-E", "UTF8", "--locale=C", "--data-checksums", "--auth=reject"]
    process = postmaster.launch(made_by, folder, "initdb", "-D", postmaster.FOLDER, *how)
    code = await postmaster.finish(process, "embedded.initdb", _INITDB_SECONDS)
    if code != 0:
        raise Refused(f"initdb failed ({code}) on {folder}: {postmaster.last_log_lines(location.log_file)}")
    await give_to_user(location, folder)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk: a rename in it then outlives a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
