"""The fake dependencies of ``tests/support/fakes.py`` as processes of their own, and what is said to them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

_ROOT = Path(__file__).parents[2]


@contextmanager
def fake(kind: str, *always: str) -> Iterator[str]:
    """Run a ``model`` or a ``memory`` service that meets every call with this fault; yield its URL."""
    line = [sys.executable, "-m", "tests.support.fakes", kind, "--always", *always]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=_ROOT, process_group=0) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def seen(url: str) -> dict[str, Any]:
    """Ask a fake what it saw."""
    answer: dict[str, Any] = httpx.get(f"{url}/_fake", timeout=60).json()
    return answer


def script(url: str, *always: str) -> None:
    """Let a fake meet every call with this fault from now on."""
    httpx.post(f"{url}/_fake", json={"always": always}, timeout=60).raise_for_status()


def until_called(url: str, count: int = 1) -> None:
    """Wait until a fake was called so often."""
    until = time.monotonic() + 60
    while (calls := seen(url)["calls"]) < count:
        assert time.monotonic() < until, f"only {calls} calls"
        time.sleep(0.02)
