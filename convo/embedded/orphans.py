"""End the PostgreSQL processes that still serve a data folder after the convo that started them has died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import trio

from convo.errors import DeadlineExceeded, Refused
from convo.runtime.deadline import deadline

_FAST_SECONDS = 20.0
_AT_ONCE_SECONDS = 10.0
_POLL_SECONDS = 0.05
_USERS_SECONDS = 10.0
_STATUS_LINE = 7


async def stop_orphans(folder: Path) -> int | None:
    """Stop every PostgreSQL process on ``folder``, and no other; return the pid of the server, if there was one.

    The caller holds the lock on the folder: no other process starts a server on it meanwhile.

    Raises:
        Refused: a process does not end.
    """
    pid = recorded_pid(folder)
    found = await _users(folder)
    if found:
        await _stop(folder, pid)
    if pid is not None and is_alive(pid):
        # The pid belongs to another program by now, or to a zombie. PostgreSQL would refuse to start because of it.
        (folder / "postmaster.pid").unlink(missing_ok=True)
    return pid if pid in found else None


def recorded_pid(folder: Path) -> int | None:
    """Return the pid of the server that started last on ``folder``, unless it has removed its pid file at its end."""
    try:
        return int((folder / "postmaster.pid").read_text().split("\n", maxsplit=1)[0])
    except (FileNotFoundError, ValueError):
        return None


def is_ready(folder: Path, pid: int) -> bool:
    """Return whether the server ``pid`` on ``folder`` takes connections, as its pid file says."""
    try:
        lines = (folder / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > _STATUS_LINE and lines[0] == str(pid) and lines[_STATUS_LINE].strip() == "ready"


async def _stop(folder: Path, postmaster: int | None) -> None:
    for name, how, seconds in (
        ("embedded.orphan", signal.SIGINT, _FAST_SECONDS),
        ("embedded.orphan_at_once", signal.SIGQUIT, _AT_ONCE_SECONDS),
    ):
        try:
            with deadline(name, seconds):
                await _signal_until_gone(folder, postmaster, how)
        except DeadlineExceeded:
            continue
        return
    raise Refused(
        f"PostgreSQL processes of an earlier start run on {folder} and do not end: pids {await _users(folder)}."
        " Stop them, then start again"
    )


async def _signal_until_gone(folder: Path, postmaster: int | None, how: signal.Signals) -> None:
    signalled: set[int] = set()
    while users := await _users(folder):
        # A postmaster ends its own children in order; without one each child needs a signal.
        for pid in {postmaster} & set(users) or set(users):
            if pid is not None and pid not in signalled:
                signalled.add(pid)
                _send_signal(pid, how)
        await trio.sleep(_POLL_SECONDS)


def _send_signal(pid: int, how: signal.Signals) -> None:
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise Refused(
            f"the PostgreSQL of an earlier start runs as another user, pid {pid}: stop it, then start again"
        ) from error


def is_alive(pid: int) -> bool:
    """Return whether a process of this pid exists, of whichever program."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def _users(folder: Path) -> list[int]:
    find = _users_by_proc if sys.platform == "linux" else _users_by_ps
    with deadline("embedded.look", _USERS_SECONDS):
        return await trio.to_thread.run_sync(find, folder.resolve(), abandon_on_cancel=True)


def _users_by_proc(folder: Path) -> list[int]:
    # Every PostgreSQL process has its data folder as its working folder. A zombie or an ended process has none.
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _serves(entry, folder)]


def _serves(entry: Path, folder: Path) -> bool:
    try:
        return (
            (entry / "cwd").readlink() == folder
            and (entry / "comm").read_text().startswith("postgres")
            and int(entry.name) != os.getpid()
        )
    except OSError:
        return False


def _users_by_ps(folder: Path) -> list[int]:
    listed = subprocess.run(["/bin/ps", "-axo", "pid=,command="], capture_output=True, text=True, check=True)
    lines = (line.split(maxsplit=1) for line in listed.stdout.splitlines())
    return [int(pid) for pid, command in lines if f"postgres -D {folder} " in command]
