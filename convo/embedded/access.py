"""Who may log in to the embedded PostgreSQL: convo by a password, and nobody else; its superuser only in ``superuser``.

convo's role owns the schema ``public`` of its database and nothing else: it can neither read files nor run programs on
the server, whatever a client, a fault or a backup makes it do. The password is in ``data_dir/postgres.password``, which
only the user of this process can read. The superuser has no password: while ``superuser`` is open, the server lets the
user of this process in by peer, and at all other times nobody.
"""

from __future__ import annotations

import os
import pwd
import secrets
import signal
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import trio

from convo.embedded import access_sql, orphans
from convo.embedded.access_sql import ADMIN, DATABASE_NAME, NEW, UPGRADER, USER
from convo.embedded.location import Location
from convo.embedded.programs import User
from convo.errors import Refused
from convo.runtime.deadline import deadline

PORT = 5432
"""The number in the socket's name; the server has no TCP port."""

_SECONDS = 600.0
_RELOAD_SECONDS = 20.0
_POLL_SECONDS = 0.02
_LINES_SHOWN = 5
_MAP = "convo"
_RULE = f"local {DATABASE_NAME},{NEW} {USER} scram-sha-256\n"


# --- the password


def read_password(folder: Path) -> str | None:
    """Return the password of convo's role on the data in ``folder``; None where there is none that we can trust.

    It is trusted where no other user could have written or read it.
    """
    try:
        descriptor = os.open(_password_file(folder), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
        facts = os.fstat(descriptor)
        private = stat.S_ISREG(facts.st_mode) and not stat.S_IMODE(facts.st_mode) & 0o077
        return (file.read().strip() or None) if private and facts.st_uid == os.geteuid() else None


def make_password(folder: Path) -> str:
    """Return the password of convo's role on the data in ``folder``; make one where there is none."""
    password = read_password(folder)
    if password is None:
        password = secrets.token_hex(32)
        _write(_password_file(folder), f"{password}\n", None)
    return password


def _password_file(folder: Path) -> Path:
    return folder.with_name("postgres.password")


def login_url(folder: Path, socket_folder: Path, database: str = DATABASE_NAME) -> str:
    """Return the URL by which convo logs in; it holds the password, where there is one."""
    password = read_password(folder)
    login = f"{USER}:{password}" if password else USER
    return f"postgresql://{login}@/{database}?host={quote(str(socket_folder), safe='/')}&port={PORT}"


# --- the server's rules


def admit_convo(location: Location) -> None:
    """Write the rules by which only convo's role is let in, by its password."""
    _write_rules(location, _RULE)


def _admit_superuser(location: Location) -> None:
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise Refused(
            f"the user that runs convo (uid {os.geteuid()}) has no name, so PostgreSQL cannot know it: add it to"
            " /etc/passwd, or set database.url"
        ) from None
    roles = (ADMIN, UPGRADER, USER)
    _write(location.folder / "pg_ident.conf", "".join(f'{_MAP} "{name}" {role}\n' for role in roles), location.user)
    _write_rules(location, f"local all {','.join(roles)} peer map={_MAP}\n")


def _write_rules(location: Location, rule: str) -> None:
    note = "# Written by convo at each start. Everybody whom no line names is refused.\n"
    _write(location.folder / "pg_hba.conf", note + rule, location.user)


def _write(file: Path, text: str, user: User | None) -> None:
    """Write a file that only its owner can read, and put it in its place in one step, unless it is there already.

    Raises:
        Refused: it cannot be written.
    """
    # A server that ended because its disk is full is started again and again: that must need no room.
    if _read_own(file) == text:
        return
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        # Root writes into a folder of another user: a link that was put there is not followed.
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            if user is not None:
                os.fchown(descriptor, user.uid, user.gid)
            os.fsync(descriptor)
        unfinished.replace(file)
    except OSError as error:
        raise Refused(f"{file} cannot be written: {error.strerror}") from error


def _read_own(file: Path) -> str | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as opened:
        return opened.read()


# --- the roles


async def settle_access(location: Location) -> None:
    """Make convo's role and database in a running server, or bring those of an earlier version to what they must be.

    Nothing is changed where all is as it must be, and no superuser logs in then.

    Raises:
        Refused: the server does not let us; the text holds its message.
    """
    password = make_password(location.folder)
    if await _is_settled(location):
        return
    async with superuser(location) as name:
        if name == USER:
            # Before there was a role of convo's own, convo was the superuser of its server.
            await _run(location, USER, "postgres", access_sql.MAKE_UPGRADER)
            await _run(location, UPGRADER, DATABASE_NAME, access_sql.UPGRADE)
        await _run(location, ADMIN, "postgres", access_sql.make_role(password))
        await _run(location, ADMIN, DATABASE_NAME, access_sql.OWN_SCHEMA)


async def _is_settled(location: Location) -> bool:
    done = await _psql(location, USER, DATABASE_NAME, access_sql.IS_SETTLED)
    return done.returncode == 0 and done.stdout.strip() == b"t"


@asynccontextmanager
async def superuser(location: Location) -> AsyncIterator[str]:
    """Let the user of this process log in as a superuser while the block runs; yield the superuser's name.

    Raises:
        Refused: the server does not take the rules.
        DeadlineExceeded: the server does not take them in time.
    """
    _admit_superuser(location)
    try:
        _reload(location.folder)
        with deadline("embedded.rules", _RELOAD_SECONDS):
            while (name := await _superuser_name(location)) is None:  # noqa: ASYNC110  (psql sets no event)
                await trio.sleep(_POLL_SECONDS)
        yield name
    finally:
        admit_convo(location)
        _reload(location.folder)
    with deadline("embedded.rules", _RELOAD_SECONDS):
        while await _superuser_name(location) is not None:  # noqa: ASYNC110  (the same)
            await trio.sleep(_POLL_SECONDS)


async def _superuser_name(location: Location) -> str | None:
    for name in (ADMIN, USER):
        if (await _psql(location, name, "postgres", "SELECT 1;", password=False)).returncode == 0:
            return name
    return None


def _reload(folder: Path) -> None:
    pid = orphans.recorded_pid(folder)
    if pid is not None and orphans.is_alive(pid):
        os.kill(pid, signal.SIGHUP)


async def run_as_superuser(location: Location, sql: str) -> None:
    """Run statements, each in a transaction of its own, in convo's database of a running server.

    Raises:
        Refused: the server does not let us; the text holds its message.
    """
    async with superuser(location):
        await _run(location, ADMIN, DATABASE_NAME, sql)


# --- a database beside convo's own


@asynccontextmanager
async def new_database(location: Location) -> AsyncIterator[str]:
    """Make an empty database, and yield its URL; when the block ends well, it takes the place of convo's in one step.

    When the block fails, convo's database is as it was.

    Raises:
        Refused: somebody uses convo's database, or the server does not let us.
    """
    async with superuser(location):
        await _run(location, ADMIN, "postgres", access_sql.DROP_OTHERS + access_sql.MAKE_NEW)
        await _run(location, ADMIN, NEW, access_sql.OWN_SCHEMA)
    filled = False
    try:
        yield login_url(location.folder, location.socket_folder, NEW)
        filled = True
    finally:
        # Every wait inside has a deadline of its own.
        with trio.CancelScope(shield=True):
            await _finish_new(location, filled=filled)  # noqa: ASYNC102


async def _finish_new(location: Location, *, filled: bool) -> None:
    async with superuser(location):
        try:
            if filled:
                await _run(location, ADMIN, "postgres", access_sql.SWAP)
        finally:
            await _run(location, ADMIN, "postgres", access_sql.DROP_OTHERS)  # noqa: ASYNC102


# --- psql


async def _run(location: Location, role: str, database: str, sql: str) -> None:
    done = await _psql(location, role, database, sql, password=False)
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()[-_LINES_SHOWN:]
        raise Refused(f"the embedded PostgreSQL on {location.folder} refused a change: {'; '.join(lines)}")


async def _psql(
    location: Location, role: str, database: str, sql: str, *, password: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """Run statements with psql; the password never stands among the arguments, which every user can read."""
    # What stands in the database may be somebody else's making: no name of it is found before the server's own.
    environment = {"LC_ALL": "C", "PATH": os.defpath, "PGOPTIONS": "-c search_path=pg_catalog"}
    # A password of this user's own file must not answer the question who is let in without one.
    environment |= {
        "PGPASSFILE": os.devnull,
        "PGPASSWORD": (read_password(location.folder) if password else None) or "",
    }
    command = [str(location.programs.folder / "psql"), "--no-psqlrc", "--no-password", "--quiet", "-A", "-t"]
    command += ["--set=ON_ERROR_STOP=1", f"--host={location.socket_folder}", f"--port={PORT}"]
    command += [f"--username={role}", f"--dbname={database}"]
    with deadline("embedded.psql", _SECONDS):
        return await trio.run_process(
            command, stdin=sql.encode(), capture_stdout=True, capture_stderr=True, check=False, env=environment
        )
