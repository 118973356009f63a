"""A process whose standard output or error is closed, full, broken or stuck serves on, and counts what is lost."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.doors import END
from tests.support.ports import free_port
from tests.support.running import command, ended, environment

# Lines enough to fill a pipe, so that one that nobody reads is stuck for sure.
QUIET = {"jobs.workers": "0", "observe.access_log": "true", "observe.log_queue_lines": "50"}
REQUESTS = 200
CASES = {
    "stdout closed": ">&-",
    "stderr closed": "2>&-",
    "both closed": ">&- 2>&-",
    "all closed": "<&- >&- 2>&-",
    "stdout full": ">/dev/full",
    "both full": ">/dev/full 2>/dev/full",
    "stdout without a reader": ">&{gone}",
    "both without a reader": ">&{gone} 2>&{gone}",
    "stdout that nobody reads": ">&{stuck}",
    "both that nobody reads": ">&{stuck} 2>&{stuck}",
}
LOST = [name for name in CASES if not name.startswith("stdout")]


@contextmanager
def pipes() -> Iterator[dict[str, int]]:
    """Yield the writing end of a pipe whose reader is gone, and of a full one that nobody reads."""
    gone_reading, gone = os.pipe()
    os.close(gone_reading)
    reading, stuck = os.pipe()
    os.set_blocking(stuck, False)
    try:
        while True:
            os.write(stuck, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(stuck, True)
    try:
        yield {"gone": gone, "stuck": stuck}
    finally:
        for end in (gone, reading, stuck):
            os.close(end)


@contextmanager
def started(folder: Path, database: str, redirected: str, port: object) -> Iterator[subprocess.Popen[bytes]]:
    with pipes() as ends:
        line = f"exec {shlex.join(command(folder))} --port {port} {redirected.format(**ends)}"
        # dash knows only descriptors of one digit.
        process = subprocess.Popen(
            ["bash", "-c", line], env=environment(database, QUIET), pass_fds=tuple(ends.values()),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None, f"it ended with {process.returncode}"
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    pytest.fail("it did not become ready")


# Each starts a process; the others take minutes together.
QUICK = ("both closed", "both full", "both that nobody reads")


@pytest.mark.parametrize("name", [one if one in QUICK else pytest.param(one, marks=pytest.mark.long) for one in CASES])
def test_the_service_goes_on_and_what_is_lost_is_counted(database: str, tmp_path: Path, name: str) -> None:
    port = free_port()
    with started(tmp_path, database, CASES[name], port) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            until_ready(client, process)
            assert client.post(END, json=ended("talk-1")).status_code == 202
            for _ in range(REQUESTS):
                assert client.get("/livez").status_code == 200
            told = client.get("/metrics").text
        lost = int(float(re.findall(r"^convo_log_dropped_total (\S+)$", told, re.MULTILINE)[0]))
        assert (lost > REQUESTS / 2) == (name in LOST)
        # Whatever took the number of a closed one is not written into.
        for number in (0, 1, 2):
            assert not str(Path(f"/proc/{process.pid}/fd/{number}").readlink()).startswith("socket:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize("wrong", ["abc", "0"], ids=["refused", "crashed"])
@pytest.mark.parametrize("name", ["both closed", "both full", "both without a reader", "both that nobody reads"])
def test_a_start_that_fails_ends_in_any_case(tmp_path: Path, name: str, wrong: str) -> None:
    # A port that is none is refused; at this address, Python's own parser fails.
    with started(tmp_path, "postgresql://[half", CASES[name], wrong) as process:
        assert process.wait(60) == 1
