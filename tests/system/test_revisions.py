from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.crash import OF_REVISIONS
from tests.support.making import ended
from tests.support.running import query, running, until_ended

END = "/v1/conversations/end"
SAID = ("Hello!", "Hi!", "Why do dogs bark?", "They talk.", "How far is the moon? I have a cat.", "Far.")
ON = {"intake.revisions": "true", "jobs.backoff_seconds": "0.1", "shutdown.workers_seconds": "0.5"}
QUICK = ("revise.before_commit",)
CRASHES = (*OF_REVISIONS, "lease.after_commit", "settle.before_commit", "settle.after_commit")


def body(turns: int) -> dict[str, Any]:
    return ended("talk-1", said=SAID[:turns])


def score_alone(folder: Path, database: str) -> int:
    """Return the score of the longer log where it is the only one."""
    with running(folder, database, ON) as convo, httpx.Client(base_url=convo.url, timeout=15) as client:
        found = client.post(END, json=body(6) | {"conversation_id": "alone", "user_id": "alone"})
        score: int = until_ended(client, found.headers["location"], 20)["score"]["value"]
    return score


@pytest.mark.parametrize(
    "point", [point if point in QUICK else pytest.param(point, marks=pytest.mark.long) for point in CRASHES]
)
def test_a_revision_moves_the_relationship_once_where_its_process_is_killed(
    point: str, database: str, tmp_path: Path
) -> None:
    wanted = score_alone(tmp_path, database)
    with running(tmp_path, database, ON) as convo, httpx.Client(base_url=convo.url, timeout=15) as client:
        first = client.post(END, json=body(2))
        before = until_ended(client, first.headers["location"], 20)["score"]["value"]
    with running(tmp_path, database, ON, program=("tests.support.crash", point)) as convo:
        with contextlib.suppress(httpx.TransportError):
            httpx.post(convo.url + END, json=body(6), timeout=15)
        assert convo.ended() == -signal.SIGKILL
    with running(tmp_path, database, ON) as convo, httpx.Client(base_url=convo.url, timeout=15) as client:
        again = client.post(END, json=body(6))
        assert (again.status_code, again.json()["revision"]) == (202, 2)
        assert again.headers.get("idempotent-replayed") == (None if point == "revise.before_commit" else "true")
        told = until_ended(client, again.headers["location"], 20)
        assert (told["state"], told["score"]["value"]) == ("done", wanted)
        assert wanted != before
        known = client.get("/v1/users/user-1/relationship").json()
        assert (known["score"], known["conversations"]) == (wanted, 1)
        replayed = client.post(END, json=body(2))
        assert (replayed.json(), replayed.headers["idempotent-replayed"]) == (first.json(), "true")
    assert query(database, "SELECT count(*) FROM conversation WHERE conversation_id = 'talk-1'") == [(2,)]


@pytest.mark.long
def test_a_run_that_is_killed_before_the_revision_came_counts_nothing(database: str, tmp_path: Path) -> None:
    wanted = score_alone(tmp_path, database)
    with running(tmp_path, database, ON, program=("tests.support.crash", "settle.before_commit")) as convo:
        assert httpx.post(convo.url + END, json=body(2), timeout=15).status_code == 202
        assert convo.ended() == -signal.SIGKILL
    with running(tmp_path, database, {**ON, "jobs.workers": "0"}) as convo:
        assert httpx.post(convo.url + END, json=body(6), timeout=15).json()["revision"] == 2
    with running(tmp_path, database, ON) as convo, httpx.Client(base_url=convo.url, timeout=15) as client:
        told = until_ended(client, "/v1/conversations/talk-1", 20)
        assert (told["revision"], told["score"]["value"]) == (2, wanted)
        assert client.get("/v1/conversations/talk-1?revision=1").json()["state"] == "superseded"
        known = client.get("/v1/users/user-1/relationship").json()
        assert (known["score"], known["conversations"]) == (wanted, 1)
