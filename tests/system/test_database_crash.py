from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx

from tests.conftest import roomy_folder
from tests.support.running import running, until_ended

BODY = {
    "user_id": "crash-user",
    "bot_id": "pika",
    "conversation_log": [{"character": "USER", "content": "I like rain."}, {"character": "BOT", "content": "Me too!"}],
}


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def _postmaster_now(data_dir: Path) -> int | None:
    try:
        return postmaster(data_dir)
    except (OSError, ValueError, IndexError):
        # Between two servers there is no such file, or not all of it.
        return None


def test_a_database_that_dies_under_leases_kills_nobody_and_loses_nothing() -> None:
    with roomy_folder() as folder, running(folder) as convo, httpx.Client(base_url=convo.url, timeout=15) as client:
        taken = []
        for number in range(6):
            body = {**BODY, "conversation_id": f"crash-{number}"}
            if client.post("/v1/conversations/end", json=body).status_code == 202:
                taken.append(body["conversation_id"])
            # In the middle of leases and stored parts, whose commits do not wait for the disk.
            killed = postmaster(folder)
            os.kill(killed, signal.SIGKILL)
            _until_ready(client, folder, killed)
        assert taken
        told = [until_ended(client, f"/v1/conversations/{name}") for name in taken]
        assert convo.process.poll() is None
        scores = sum(conversation["score"]["value"] for conversation in told)
        assert client.get("/v1/users/crash-user/relationship").json()["score"] == scores


def _until_ready(client: httpx.Client, data_dir: Path, killed: int) -> None:
    until = time.monotonic() + 30
    # A session of the killed server answers until it notices; the next server starts when all of them have ended.
    while _postmaster_now(data_dir) in {None, killed}:
        assert time.monotonic() < until, "no other database was started"
        time.sleep(0.05)
    # Not /readyz, which shows the last ping: what counts here is that a read succeeds.
    while client.get("/v1/conversations", params={"limit": "1"}).status_code != 200:
        assert time.monotonic() < until, "the database did not come back"
        time.sleep(0.05)
