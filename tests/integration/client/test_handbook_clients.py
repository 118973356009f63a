"""The clients of the handbook in Node and Java, run as they are printed there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import trio

from convo import handbook
from tests.support.faulty_server import FaultyServer, serving

BODY = {"conversation_id": "one", "user_id": "mia", "bot_id": "pika"}
LINES_MAX = 40


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", handbook.page("clients"), re.MULTILINE | re.DOTALL)
    assert len(found.splitlines()) <= LINES_MAX
    return str(found)


def command(language: str, folder: Path) -> list[str]:
    program, name = {"js": ("node", "post.mjs"), "java": ("java", "Post.java")}[language]
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not on this machine")
    (folder / name).write_text(block(language))
    return [path, str(folder / name)]


async def run(server: FaultyServer, language: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    environment = {"PATH": "/usr/bin:/bin", "CONVO_URL": server.url, "CONVO_KEY": "s3cret"}
    start = partial(
        trio.run_process, command(language, folder), stdin=json.dumps(BODY).encode(), env=environment, check=False
    )
    with trio.fail_after(60):
        return await start(capture_stdout=True, capture_stderr=True)


@pytest.mark.parametrize("language", ["js", "java"])
async def test_it_outlives_what_passes_with_the_same_id_and_prints_the_receipt(language: str, tmp_path: Path) -> None:
    async with serving() as server:
        server.faults = ["away", "reset", "busy"]
        done = await run(server, language, tmp_path)

    assert done.returncode == 0, done.stderr
    status, _, receipt = done.stdout.decode().partition(" ")
    assert (status, json.loads(receipt)["conversation_id"]) == ("202", "one")
    assert server.posts == ["one"] * 4
    assert server.keys == {"Bearer s3cret"}


@pytest.mark.parametrize("language", ["js", "java"])
async def test_it_stops_at_what_is_refused_for_good(language: str, tmp_path: Path) -> None:
    async with serving() as server:
        server.stored["one"] = b"other content"
        done = await run(server, language, tmp_path)

    assert done.stdout.startswith(b"409 ")
    assert server.posts == ["one"]
