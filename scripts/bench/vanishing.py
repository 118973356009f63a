"""Clients that vanish without a FIN: they live in a network namespace whose link is cut. Needs root and ``ip``.

Run as a program it is one crowd of such clients: ``vanishing.py HOST PORT COUNT LARGE TAIL``; it says ``ready`` when
all have their positions, and stays.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import attacks
from scripts.bench.attacks import Aim

_NAME = f"cvb{os.getpid() % 100_000}"
HOST, _CLIENT = "10.213.77.1", "10.213.77.2"


def impossible() -> str:
    """Say why no namespace can be made here; empty when one can."""
    if os.geteuid() != 0:
        return "not root"
    if shutil.which("ip") is None:
        return "no ip command"
    made = _ip("netns", "add", _NAME)
    if made.returncode:
        return made.stderr.strip()
    _ip("netns", "del", _NAME)
    return ""


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("ip") or "ip"
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


@contextlib.contextmanager
def linked() -> Iterator[None]:
    """Make a namespace and a link to it; our end of the link has the address ``HOST``."""
    here, there = f"{_NAME}a", f"{_NAME}b"
    _ip("netns", "add", _NAME)
    try:
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", _NAME)
        _ip("addr", "add", f"{HOST}/30", "dev", here)
        _ip("link", "set", here, "up")
        _ip("-n", _NAME, "addr", "add", f"{_CLIENT}/30", "dev", there)
        _ip("-n", _NAME, "link", "set", there, "up")
        yield
    finally:
        _ip("link", "del", here)
        _ip("netns", "del", _NAME)


@contextlib.contextmanager
def crowd(aim: Aim, count: int) -> Iterator[None]:
    """Have so many clients take their positions behind the link."""
    command = [sys.executable, __file__, aim.host, str(aim.port), str(count), aim.large, aim.tail]
    inside = [shutil.which("ip") or "ip", "netns", "exec", _NAME, *command]
    process = subprocess.Popen(inside, stdout=subprocess.PIPE)
    try:
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            raise SystemExit("the clients behind the link did not come into position")
        yield
    finally:
        process.kill()
        process.wait()


def cut() -> None:
    """Cut the link: from now on nothing passes, and nobody is told."""
    _ip("-n", _NAME, "link", "set", f"{_NAME}b", "down")


def mend() -> None:
    """Mend the link."""
    _ip("-n", _NAME, "link", "set", f"{_NAME}b", "up")


async def main(*arguments: str) -> None:
    """Take positions of every kind, and stay."""
    host, port, count, large, tail = arguments
    aim = Aim(host=host, port=int(port), large=large, tail=tail, lives=lambda: True)
    async with trio.open_nursery() as nursery:
        for take in (attacks.idle, attacks.slow_body, attacks.slow_head, attacks.unread):
            await nursery.start(attacks.occupy, take, attacks.stay, aim, int(count) // 4)
        print("ready", flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
