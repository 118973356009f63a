"""Two real PostgreSQL clusters, a primary and its standby, which tests of a failover kill, freeze and promote.

A test that asks for them is skipped, with the reason, where PostgreSQL's own programs are missing.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from convo.embedded import launcher
from convo.embedded import programs as embedded_programs
from tests.conftest import roomy_folder
from tests.support.ports import free_port
from tests.support.running import query

NEEDED = ("initdb", "pg_basebackup", "postgres")
_START_SECONDS = 30.0
_NOBODY = 65534
_SETTINGS = """
listen_addresses = '127.0.0.1'
shared_buffers = 16MB
max_connections = 60
wal_retrieve_retry_interval = 200ms
wal_receiver_status_interval = 1s
wal_keep_size = 256MB
"""


class Cluster:
    """One data folder and its server, which runs as an unprivileged user and is only touched by its processes' pids."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Its host and port, as they stand in a URL."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The URL of this server alone."""
        return f"postgresql://postgres@{self.address}/postgres"

    def make(self) -> None:
        """Make an empty cluster."""
        self._run("initdb", "-D", self.folder, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        self.configure(_SETTINGS)

    def copy(self, primary: Cluster) -> None:
        """Make this the standby of a running primary."""
        self._run("pg_basebackup", "-D", self.folder, "-d", primary.url, "-c", "fast", "-X", "stream", "-R")
        # What makes the primary wait for standbys stands in the file that was copied.
        self.configure("synchronous_standby_names = ''")

    def configure(self, lines: str) -> None:
        """Add lines to the configuration; a running server reads them at its next start, or in ``reload``."""
        with (self.folder / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write(f"{lines}\n")

    def reload(self, lines: str) -> None:
        """Add lines to the configuration of a running server, and let it read them."""
        self.configure(lines)
        self.sql("SELECT pg_reload_conf()")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        arguments = ("-D", self.folder, "-p", str(self.port), "-k", str(self.folder))
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_launcher(), self._programs / "postgres", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.until("SELECT true")

    def sql(self, statement: str, *values: object) -> Any:
        """Ask this very server, and return the first value."""
        found = query(self.url, statement, *values)
        return found[0][0] if found else None

    def until(self, statement: str) -> None:
        """Wait until a statement returns true."""
        until = time.monotonic() + _START_SECONDS
        while True:
            with suppress(OSError, asyncpg.PostgresError):
                if self.sql(statement):
                    return
            if time.monotonic() > until:
                said = (self.folder.parent / f"{self.folder.name}.log").read_text("utf-8", "replace")
                pytest.fail(f"{statement!r} does not come true:\n{said[-4000:]}")
            time.sleep(0.02)

    def promote(self) -> None:
        """Make a standby a primary, on a timeline of its own."""
        self.sql("SELECT pg_promote(true, 20)")

    def freeze(self) -> None:
        """Stop every process of the server where it stands, as a machine that hangs."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self._signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """End every process of the server at once, as a power cut does."""
        if self._process is None:
            return
        children = _children(self._process.pid)
        self._signal_all(signal.SIGKILL)
        self._process.wait()
        self._process = None
        until = time.monotonic() + _START_SECONDS
        while any(map(_lives, children)) and time.monotonic() < until:
            time.sleep(0.01)
        # The server's own check of the pid in it takes whoever bears that number now for itself.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._process is not None
        # The postmaster first: it must not start anything anew.
        for pid in (self._process.pid, *_children(self._process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments], capture_output=True, text=True, check=False, **_demoted()
        )
        if done.returncode:
            pytest.fail(f"{program} failed: {done.stderr or done.stdout}")


class Pair:
    """A primary and its streaming standby."""

    def __init__(self, primary: Cluster, standby: Cluster) -> None:
        self.primary = primary
        self.standby = standby

    @property
    def url(self) -> str:
        """The URL of both, the first primary first, for whoever wants the one that takes writes."""
        hosts = f"{self.primary.address},{self.standby.address}"
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def fail_over(self) -> None:
        """Kill the primary, and promote the standby."""
        self.primary.kill()
        self.standby.promote()

    def until_streaming(self) -> None:
        """Wait until the primary counts on its standby."""
        self.primary.until("SELECT bool_or(state = 'streaming') FROM pg_stat_replication")


@contextmanager
def clusters(settings: str = "synchronous_standby_names = '*'\nsynchronous_commit = remote_apply") -> Iterator[Pair]:
    """Run a primary with these settings and its standby; all of their processes have ended afterwards."""
    programs = find_programs()
    with roomy_folder() as folder:
        if not os.geteuid():
            os.chown(folder, _NOBODY, _NOBODY)
        pair = Pair(Cluster(programs, folder / "first"), Cluster(programs, folder / "second"))
        try:
            pair.primary.make()
            pair.primary.start()
            pair.standby.copy(pair.primary)
            pair.standby.start()
            pair.primary.reload(settings)
            pair.until_streaming()
            yield pair
        finally:
            pair.primary.kill()
            pair.standby.kill()


def find_programs() -> Path:
    """Return the folder of the newest programs that make, copy and run a cluster; skip the test where there is none."""
    for folder in _candidates():
        if all((folder / name).exists() for name in NEEDED) and _runs(folder):
            return folder
    pytest.skip(f"no folder of PostgreSQL's programs holds {', '.join(NEEDED)}: install postgresql for this test")


def _candidates() -> Sequence[Path]:
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    found = shutil.which("pg_basebackup")
    return [*reversed(system), *([Path(found).resolve().parent] if found else []), *embedded_programs._candidates()]


def _runs(folder: Path) -> bool:
    with suppress(OSError):
        # As whom it will be run: its folder may be closed to that one.
        return not subprocess.run(
            [folder / "pg_basebackup", "-V"], capture_output=True, check=False, **_demoted()
        ).returncode
    return False


def _demoted() -> dict[str, Any]:
    return {} if os.geteuid() else {"user": _NOBODY, "group": _NOBODY, "extra_groups": [], "umask": 0o077}


def _lives(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        # Whoever inherited it may take seconds to ask for its exit code; its files and its memory are free by then.
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0] != "Z"
    return False


def _launcher() -> list[str]:
    """Return the command that starts a program as an unprivileged user, and lets it end when the tests are killed."""
    user = "-1" if os.geteuid() else str(_NOBODY)
    return [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), user, user]


def _children(pid: int) -> list[int]:
    if sys.platform != "linux":
        pytest.skip("the processes of a server are found in /proc, which this system does not have")
    with suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    return []
