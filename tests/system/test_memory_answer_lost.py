from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.faking import fake, seen
from tests.support.running import ended, running, until_ended

END = "/v1/conversations/end"
BODY = {
    **ended("lost-1", user_id="mia"),
    "conversation_log": [{"role": "user", "content": "I like long walks."}, {"role": "bot", "content": "Good."}],
}


@pytest.mark.parametrize("dialect", ["mem0", "extract_facts"])
def test_a_kill_between_the_services_answer_and_the_stored_part(dialect: str, database: str, tmp_path: Path) -> None:
    with fake("memory", "healthy") as memory, fake("model", "stuck") as model:
        given = {"memory.url": memory, "memory.dialect": dialect, "jobs.poll_seconds": "0.2"}
        # The model never answers, so the first part to be stored is that of the memory service.
        stuck = {"llm.base_url": model, "llm.model": "stuck"}
        dying = ("tests.support.crash", "part.before_commit")
        with running(tmp_path, database, {**given, **stuck}, program=dying) as convo:
            link = httpx.post(convo.url + END, json=BODY, timeout=15).headers["location"]
            assert convo.ended() == -signal.SIGKILL
        assert sum(key.startswith("lost-1:") for key in seen(memory)["paid"]) == 1
        with running(tmp_path, database, given) as convo, httpx.Client(base_url=convo.url, timeout=15) as client:
            told = until_ended(client, link, 30)
            known = client.get("/v1/users/mia/memories").json()["memories"]
        assert sum(key.startswith("lost-1:") for key in seen(memory)["paid"]) == 2
    assert (told["state"], brief(told), [memory["text"] for memory in known]) == EXPECTED[dialect]


EXPECTED = {
    "mem0": ("done", (["ADD"], 1, False), ["Likes long walks"]),
    # It has no list, so what its first answer was is not known.
    "extract_facts": ("done", (["NONE"], 0, True), []),
}


def brief(told: dict[str, Any]) -> tuple[list[str], int, bool]:
    """Sum up the memories part: the operations, how many were new, and whether that is uncertain."""
    part = told["parts"]["memories"]
    return [memory["operation"] for memory in part["memories"]], part["new"], part["uncertain"]
