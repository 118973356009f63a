"""Start PostgreSQL's programs so that they end with this process, wait for them, and stop them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from convo.embedded import access, orphans, programs
from convo.embedded.location import Location
from convo.errors import DeadlineExceeded, Refused
from convo.runtime.deadline import deadline

_START_SECONDS = 120.0
_STOP_SECONDS = 6.0
_STOP_AT_ONCE_SECONDS = 2.0
_POLL_SECONDS = 0.01
_LAST_LINES = 8
_LAST_BYTES = 4096
FOLDER = "{folder}"
"""The placeholder of the data folder's path in a program's arguments."""

_LAUNCHER = Path(__file__).with_name("launcher.py")
# No variable of this process reaches the server: no PGOPTIONS, no key, no locale.
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}

CONNECTIONS = {"max_connections": "50", "superuser_reserved_connections": "3"}
"""The connections that the server takes, and those of them that only its superuser gets; for a small machine."""

# Given on the command line, where they override every file of the data folder.
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    # what makes a receipt true
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # for a small machine
    **CONNECTIONS,
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "jit": "off",
    # parallel queries need more of /dev/shm than a container has
    "max_parallel_workers_per_gather": "0",
    "timezone": "UTC",
    # the log is for faults of the server: it never holds a statement or a value of a row
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


def launch(location: Location, folder: Path, program: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start one of PostgreSQL's programs on ``folder`` from the main thread, with its output in the log file.

    The kernel ends the child with the *thread* that started it, so a worker thread must not call this.
    """
    uid, gid = (location.user.uid, location.user.gid) if location.user else (-1, -1)
    starter = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(uid), str(gid)]
    log = os.open(location.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        with _path_for(folder, location) as (name, descriptors):
            command = [
                str(location.programs.folder / program),
                *(name if word is FOLDER else word for word in arguments),
            ]
            process = subprocess.Popen(
                [*starter, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_ENVIRONMENT,
                cwd="/",
                pass_fds=descriptors,
                # ctrl-C in a terminal reaches the whole foreground group, but PostgreSQL must end after convo.
                process_group=0,
            )
    finally:
        os.close(log)
    return process


@contextmanager
def _path_for(folder: Path, location: Location) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield a path of ``folder`` that PostgreSQL's user can open, and the open files that the path needs.

    No other user can enter root's home. So the data folder is passed to the program as an open file:
    /proc/self/fd/N leads to it without the folders above.
    """
    if location.user is None or programs.reachable(folder, location.user):
        yield str(folder), ()
        return
    if sys.platform != "linux":
        raise Refused(
            f"PostgreSQL runs as uid {location.user.uid}, which cannot reach {folder}: choose another server.data_dir"
        )
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}", (descriptor,)
    finally:
        os.close(descriptor)


async def finish(process: subprocess.Popen[bytes], name: str, seconds: float) -> int:
    """Wait for a program that ends by itself and return its exit code; kill it when the wait is cancelled."""
    try:
        with deadline(name, seconds):
            code = await ended(process, _POLL_SECONDS)
    finally:
        if process.poll() is None:
            # The whole group: initdb does its work in children.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code


async def ended(process: subprocess.Popen[bytes], poll_seconds: float) -> int:
    """Wait until ``process`` has ended, with a check every ``poll_seconds``; return its exit code."""
    while (code := process.poll()) is None:  # noqa: ASYNC110  (the end of a process sets no event)
        await trio.sleep(poll_seconds)
    return code


def last_log_lines(log_file: Path, since_bytes: int = 0) -> str:
    """Return the last lines of the server's log after its first ``since_bytes``."""
    with log_file.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(min(since_bytes, end), end - _LAST_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(line for line in lines[-_LAST_LINES:] if line.strip()) or "nothing was logged"


class Postmaster:
    """The server process on one data folder: its start, its end, its restart."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._process: subprocess.Popen[bytes] | None = None
        self._log_began_bytes = 0

    async def start(self) -> None:
        """Start the server and return when it takes connections, after its recovery from an earlier crash.

        No other process may serve the data folder: call ``orphans.stop_orphans`` before.

        Raises:
            Refused: it ended, or took too long; the text quotes its log.
        """
        self._clear_sockets()
        access.admit_convo(self._location)
        log_file = self._location.log_file
        self._log_began_bytes = log_file.stat().st_size if log_file.exists() else 0
        wanted = {**_SETTINGS, "unix_socket_directories": str(self._location.socket_folder)}
        settings = [f"--{name}={value}" for name, value in wanted.items()]
        self._process = launch(self._location, self._location.folder, "postgres", "-D", FOLDER, *settings)
        try:
            with deadline("embedded.start", _START_SECONDS):
                await self._until_ready(self._process)
        except DeadlineExceeded as error:
            await self.stop()
            raise Refused(f"the embedded PostgreSQL: {error}; its log ({log_file}): {self.last_log_lines()}") from error

    def _clear_sockets(self) -> None:
        # No process serves the data folder any more, and the socket folder has no other use. PostgreSQL would trust the
        # pid in the socket's lock file, which may belong to another program or to a zombie by now.
        for left in self._location.socket_folder.glob(".s.PGSQL.*"):
            left.unlink(missing_ok=True)

    async def _until_ready(self, process: subprocess.Popen[bytes]) -> None:
        while not orphans.is_ready(self._location.folder, process.pid):
            if process.poll() is not None:
                raise Refused(
                    f"the embedded PostgreSQL did not start on {self._location.folder}; its log"
                    f" ({self._location.log_file}): {self.last_log_lines()}"
                )
            await trio.sleep(_POLL_SECONDS)

    async def gone(self, poll_seconds: float) -> int:
        """Wait until the server has ended, with a check every ``poll_seconds``; return its exit code."""
        if self._process is None:
            raise RuntimeError("start() was not called")
        return await ended(self._process, poll_seconds)  # no deadline: it lasts as long as the server

    def last_log_lines(self) -> str:
        """Return the last lines of the log since this start."""
        return last_log_lines(self._location.log_file, self._log_began_bytes)

    async def stop(self) -> None:
        """Stop the server in order, else at once (the next start recovers), else kill it; each step has a deadline."""
        process = self._process
        if process is None:
            return
        for name, how, seconds in (
            ("embedded.stop", signal.SIGINT, _STOP_SECONDS),
            ("embedded.stop_at_once", signal.SIGQUIT, _STOP_AT_ONCE_SECONDS),
        ):
            if process.poll() is not None:
                return
            process.send_signal(how)
            try:
                with deadline(name, seconds):
                    await ended(process, _POLL_SECONDS)
            except DeadlineExceeded:
                continue
        if process.poll() is None:
            process.kill()
