"""Start PostgreSQL's programs so that they end with this process, wait for them, stop them; it knows no SQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from convo.deadline import deadline
from convo.errors import DeadlineExceeded, Refused
from convo.store.private import orphans, programs
from convo.store.private.place import Place

_START_SECONDS = 120.0
_STOP_SECONDS = 6.0
_STOP_AT_ONCE_SECONDS = 2.0
_LOOK_SECONDS = 0.01
_LAST_LINES = 8
_LAST_BYTES = 4096
FOLDER = "{folder}"
"""Stands in a program's arguments for the data folder's name."""

_LAUNCHER = Path(__file__).with_name("launcher.py")
# Nothing of ours reaches the server: no PGOPTIONS, no key, no locale.
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}

CONNECTIONS = {"max_connections": "50", "superuser_reserved_connections": "3"}
"""How many connections the server takes, and how many of them are its superuser's only: a small machine's share."""

# Given on the command line, where they win over anything written into the data folder.
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    # what a receipt stands on
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # a small machine's share
    **CONNECTIONS,
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "jit": "off",
    # parallel queries need more of /dev/shm than a container has
    "max_parallel_workers_per_gather": "0",
    "timezone": "UTC",
    # the log is for the server's own troubles: no statement and no value of a row ever stands in it
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


def launch(place: Place, folder: Path, program: str, *arguments: str, text: bytes = b"") -> subprocess.Popen[bytes]:
    """Start one of PostgreSQL's programs on ``folder`` from the main thread, its output going to the log file.

    The kernel ties the child's life to the *thread* that started it, so this is not done in a worker thread.
    """
    uid, gid = (place.user.uid, place.user.gid) if place.user else (-1, -1)
    starter = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(uid), str(gid)]
    log = os.open(place.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        with _name_for(folder, place) as (name, descriptors):
            command = [str(place.programs.folder / program), *(name if word is FOLDER else word for word in arguments)]
            process = subprocess.Popen(
                [*starter, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=_ENVIRONMENT,
                cwd="/",
                pass_fds=descriptors,
                # ctrl-C in a terminal goes to the whole foreground group, and PostgreSQL is to outlast us a little.
                process_group=0,
            )
    finally:
        os.close(log)
    if process.stdin is not None:
        process.stdin.write(text)
        process.stdin.close()
    return process


@contextmanager
def _name_for(folder: Path, place: Place) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name ``folder`` as PostgreSQL's user can reach it, with the open files that this takes.

    Root's home is closed to everybody else. Instead of opening it, the data folder is handed over as an open file:
    /proc/self/fd/N leads to it past the folders above.
    """
    if place.user is None or programs.reachable(folder, place.user):
        yield str(folder), ()
        return
    if sys.platform != "linux":
        raise Refused(f"uid {place.user.uid}, as which PostgreSQL runs, cannot reach {folder}: choose another data_dir")
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}", (descriptor,)
    finally:
        os.close(descriptor)


async def finish(process: subprocess.Popen[bytes], name: str, seconds: float) -> int:
    """Wait for a program that ends by itself; return its exit code. It is killed when the wait is cut short."""
    try:
        with deadline(name, seconds):
            code = await ended(process, _LOOK_SECONDS)
    finally:
        if process.poll() is None:
            # The group, which holds what it started: initdb does its work in children.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code


async def ended(process: subprocess.Popen[bytes], look_seconds: float) -> int:
    """Wait until ``process`` has ended, looking every ``look_seconds``; return its exit code."""
    while (code := process.poll()) is None:  # noqa: ASYNC110  (nothing rings when a process ends)
        await trio.sleep(look_seconds)
    return code


def last_words(log_file: Path, since_bytes: int = 0) -> str:
    """Return the last lines of the server's log that were written after its first ``since_bytes``."""
    with log_file.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(min(since_bytes, end), end - _LAST_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(line for line in lines[-_LAST_LINES:] if line.strip()) or "it logged nothing"


class Postmaster:
    """PostgreSQL's first process on one data folder: started, perhaps again, and stopped."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None
        self._log_began_bytes = 0

    async def start(self) -> None:
        """Start the server and return when it takes connections; a crash before is recovered from first.

        Nobody else may serve the data folder: ``orphans.clear`` comes before.

        Raises:
            Refused: it ended instead, or took too long; the text holds what it logged.
        """
        self._clear_sockets()
        log_file = self._place.log_file
        self._log_began_bytes = log_file.stat().st_size if log_file.exists() else 0
        wanted = {**_SETTINGS, "unix_socket_directories": str(self._place.socket_folder)}
        settings = [f"--{name}={value}" for name, value in wanted.items()]
        self._process = launch(self._place, self._place.folder, "postgres", "-D", FOLDER, *settings)
        try:
            with deadline("embedded.start", _START_SECONDS):
                await self._until_ready(self._process)
        except DeadlineExceeded as error:
            await self.stop()
            raise Refused(f"{error}; its log ({log_file}): {self.last_words()}") from error

    def _clear_sockets(self) -> None:
        # Nobody serves the data folder any more, and this one is for it alone. PostgreSQL would judge by the pid in the
        # socket's lock file, which may be a stranger's or a zombie's by now.
        for left in self._place.socket_folder.glob(".s.PGSQL.*"):
            left.unlink(missing_ok=True)

    async def _until_ready(self, process: subprocess.Popen[bytes]) -> None:
        while not orphans.is_ready(self._place.folder, process.pid):
            if process.poll() is not None:
                raise Refused(
                    f"the embedded PostgreSQL did not start on {self._place.folder}; its log"
                    f" ({self._place.log_file}): {self.last_words()}"
                )
            await trio.sleep(_LOOK_SECONDS)

    async def gone(self, look_seconds: float) -> int:
        """Wait until the server has ended, looking every ``look_seconds``; return its exit code."""
        if self._process is None:
            raise RuntimeError("it was never started")
        return await ended(self._process, look_seconds)

    def last_words(self) -> str:
        """Return what the server logged last since this start."""
        return last_words(self._place.log_file, self._log_began_bytes)

    async def stop(self) -> None:
        """Stop the server in order, else at once (the next start recovers), else by force; bounded in any case."""
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
                    await ended(process, _LOOK_SECONDS)
            except DeadlineExceeded:
                continue
        if process.poll() is None:
            process.kill()
