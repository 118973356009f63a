from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from convo.embedded.orphans import _users_by_proc, recorded_pid
from tests.conftest import roomy_folder

ROOT = Path(__file__).parents[2]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with roomy_folder() as folder:
        yield folder


@contextmanager
def server(data_dir: Path, *before: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the embedded PostgreSQL in a process of its own; yield that process and the URL."""
    command = [*before, sys.executable, "-m", "tests.support.embedded_server", str(data_dir)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, **options
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("postgresql://")
            yield process, url
        finally:
            process.kill()


def ask(url: str, query: str) -> Any:
    async def on_asyncio() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(query)
        finally:
            connection.terminate()

    return asyncio.run(on_asyncio())


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what another process does, so long that only a lost process is late."""
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    pytest.fail("it did not come about")


def stop(process: subprocess.Popen[str]) -> int:
    assert process.stdin is not None
    process.stdin.close()
    return process.wait()


@linux_only
def test_kill_9_of_the_parent_ends_the_server_and_the_next_start_has_every_commit(data_dir: Path) -> None:
    with server(data_dir) as (process, url):
        ask(url, "CREATE TABLE kept AS SELECT 7 AS n")
        process.kill()
        process.wait()
        wait_until(lambda: not _users_by_proc(data_dir / "postgres"))
    with server(data_dir) as (process, url):
        assert ask(url, "SELECT n FROM kept") == 7
        assert stop(process) == 0


@linux_only
def test_kill_9_of_parent_and_server_at_once_loses_no_commit(data_dir: Path) -> None:
    with server(data_dir) as (process, url):
        ask(url, "CREATE TABLE kept AS SELECT 7 AS n")
        pid = recorded_pid(data_dir / "postgres")
        assert pid is not None
        # The parent is stopped first, so that it cannot stop the server in order.
        process.send_signal(signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
    with server(data_dir) as (process, url):
        assert ask(url, "SELECT n FROM kept") == 7
        assert stop(process) == 0


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(data_dir: Path) -> None:
    with server(data_dir, process_group=0) as (process, url):
        pid = recorded_pid(data_dir / "postgres")
        assert pid is not None
        assert os.getpgid(process.pid) == process.pid
        assert os.getpgid(pid) == pid
        assert stop(process) == 0
        assert url


@linux_only
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux")
def test_an_ordinary_user_has_one_too_and_cannot_take_another_users(data_dir: Path) -> None:
    python = shutil.which("python{}.{}".format(*sys.version_info), path="/usr/bin")
    if python is None:
        pytest.skip("needs a Python like ours that everybody can reach")
    packages = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    closed = [folder for folder in (*ROOT.parents, *packages.parents) if not folder.stat().st_mode & stat.S_IXOTH]
    if closed:  # as a home is, also that of root
        pytest.skip(f"needs a checkout that everybody can reach; {closed[0]} is closed to others")
    # initdb wants a user with a name.
    user = pwd.getpwnam("daemon").pw_uid
    as_user = [
        "setpriv",
        f"--reuid={user}",
        f"--regid={user}",
        "--clear-groups",
        "env",
        f"PYTHONPATH={packages}",
        python,
    ]
    os.chown(data_dir, user, user)
    data_dir.chmod(0o700)
    command = [*as_user, "-m", "tests.support.embedded_server", str(data_dir)]
    made = subprocess.run(command, input="", capture_output=True, text=True, cwd=ROOT, check=False)
    assert made.returncode == 0, made.stderr
    assert re.match(r"postgresql://convo:[0-9a-f]{64}@/convo\?host=", made.stdout)
    assert stat.S_IMODE((data_dir / "postgres.password").stat().st_mode) == 0o600
    assert (data_dir / "postgres").stat().st_uid == user
    os.chown(data_dir / "postgres", 4322, 4322)
    refused = subprocess.run(command, input="", capture_output=True, text=True, cwd=ROOT, check=False)
    assert "belongs to uid 4322" in refused.stderr
