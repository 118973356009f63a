from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.running import ended, running, until_ended

END = "/v1/conversations/end"
WORDS = ("rain", "river", "mountain", "window", "because", "yesterday", "Bruno", "piano")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small file system, which is soon full."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small disk is mounted on Linux, as root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=755", "tmpfs", folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounts are not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(file: Path, left_bytes: int) -> None:
    """Fill the disk of this file, but for so many bytes."""
    found = os.statvfs(file.parent)
    free = found.f_bavail * found.f_frsize
    with file.open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, free - left_bytes)


def long_talk(number: int) -> dict[str, object]:
    # Random letters: text that can be compressed would not fill the disk.
    letters = random.Random(number)
    log = [
        {"character": "USER" if n % 2 else "BOT", "content": f"{WORDS[n % 8]} {letters.randbytes(200).hex()}"}
        for n in range(60)
    ]
    return ended(f"full-{number}", log, user_id=f"user-{number % 7}")


def test_a_full_disk_refuses_loses_nothing_and_flows_again_when_there_is_space(
    small_disk: Path, tmp_path: Path
) -> None:
    ballast = small_disk / "ballast"
    with running(tmp_path / "data", arguments=["--data-dir", str(small_disk)]) as convo:
        with httpx.Client(base_url=convo.url, timeout=15) as client:
            safe = [post(client, number) for number in range(5)]
            fill(ballast, 1 << 20)
            safe += until_full(client)
            until = time.monotonic() + 5
            refused = number = 0
            while time.monotonic() < until:
                number += 1
                answer = client.post(END, json=long_talk(1000 + number))
                if answer.status_code == 202:
                    safe.append(answer.json()["links"]["self"])
                    continue
                refused += 1
                assert (answer.status_code, "retry-after" in answer.headers) == (503, True), answer.text
                assert client.get("/readyz").status_code == 503
            assert refused > 5
            assert client.get("/livez").status_code == 200
            ballast.unlink()
            until = time.monotonic() + 20
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < until, client.get("/readyz").text
                time.sleep(0.1)
            safe.append(post(client, 5000))
            told = [until_ended(client, link, 25) for link in safe]
            assert {one["state"] for one in told} == {"done"}
            for user in range(7):
                mine = [one["score"]["value"] for one in told if one["user_id"] == f"user-{user}"]
                assert client.get(f"/v1/users/user-{user}/relationship").json()["score"] == sum(mine)
        lines = [line for line in convo.output.splitlines() if '"disk_full"' in line]
        assert 1 <= len(lines) <= 5
        assert convo.stop() == 0


def post(client: httpx.Client, number: int) -> str:
    answer = client.post(END, json=long_talk(number))
    assert answer.status_code == 202, answer.text
    link: str = answer.json()["links"]["self"]
    return link


def until_full(client: httpx.Client) -> list[str]:
    """Post until the disk is full; return the links of what was accepted until then."""
    links: list[str] = []
    for number in range(100, 2000):
        answer = client.post(END, json=long_talk(number))
        if answer.status_code == 503 and answer.json()["code"] == "disk_full":
            return links
        if answer.status_code == 202:
            links.append(answer.json()["links"]["self"])
    pytest.fail("the disk was never full")
