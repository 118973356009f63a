"""Make a data folder once, whole or not at all, and refuse one of another version; it starts no server on it."""

from __future__ import annotations

import os
from pathlib import Path

from convo.errors import Refused
from convo.store.private import orphans, postmaster
from convo.store.private.place import Place, make_data_folder
from convo.store.private.programs import Programs

_INITDB_SECONDS = 120.0


async def ensure(place: Place, *, user: str, database: str) -> None:
    """Make the data folder, with a superuser and a database of these names, unless a good one of our version is there.

    It is made beside its place and moved there when it is whole: what stands in the place was good once.

    Raises:
        Refused: what is there is of another major version, or is no data folder; or it cannot be made.
    """
    if stands(place.folder, place.programs):
        return
    unfinished = place.folder.with_name("postgres.unfinished")
    await orphans.clear(unfinished)
    try:
        make_data_folder(place, unfinished)
        await _make(place, unfinished, user, database)
        unfinished.rename(place.folder)
        _sync(place.folder.parent)
    except OSError as error:
        raise Refused(f"the data folder {place.folder} cannot be made: {error}") from error


def stands(folder: Path, programs: Programs) -> bool:
    """Tell whether a data folder is made there, for programs of this version.

    Raises:
        Refused: what is there is of another major version, or is no data folder.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return False
    try:
        major = (folder / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise Refused(
            f"{folder} holds something, but no PostgreSQL data: move it away, or choose another server.data_dir"
        ) from None
    if major != programs.major:
        raise Refused(
            f"{folder} holds data of PostgreSQL {major}, and the programs at hand ({programs.folder}) are"
            f" of version {programs.version}. Either set database.url to a PostgreSQL {major} that runs on a copy"
            " of it, `convo backup FILE`, move the folder away, and `convo restore FILE`; or go back to the convo that"
            " made it"
        )
    return True


async def _make(place: Place, folder: Path, user: str, database: str) -> None:
    # trust: whoever may enter the socket's folder (mode 0700) is the server's own user, or root.
    how = ["-U", user, "-E", "UTF8", "--locale=C", "--data-checksums", "--auth-local=trust", "--auth-host=reject"]
    await _run(place, folder, "initdb", "-D", postmaster.FOLDER, *how)
    single = ["--single", "-D", postmaster.FOLDER, "postgres"]
    await _run(place, folder, "postgres", *single, text=f"CREATE DATABASE {database};\n".encode())


async def _run(place: Place, folder: Path, program: str, *arguments: str, text: bytes = b"") -> None:
    process = postmaster.launch(place, folder, program, *arguments, text=text)
    code = await postmaster.finish(process, f"embedded.{program}", _INITDB_SECONDS)
    if code != 0:
        raise Refused(f"{program} failed ({code}) on {folder}: {postmaster.last_words(place.log_file)}")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
