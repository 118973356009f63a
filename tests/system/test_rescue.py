from __future__ import annotations

import time
from pathlib import Path

import httpx

from tests.support.faking import fake, script, seen, until_called
from tests.support.running import Running, ended, query, running, until_ended

LEASE_SECONDS = 3.0
# What the promise allows after the lease, and what a busy machine may need besides.
SLACK_SECONDS = 5.0
END = "/v1/conversations/end"


def settings(model: str, lease_seconds: float) -> dict[str, str]:
    return {
        "llm.base_url": model,
        "llm.model": "rescued",
        "llm.attempt_seconds": "30",
        "llm.attempts": "1",
        "jobs.lease_seconds": f"{lease_seconds:g}",
        "jobs.heartbeat_seconds": "0.5",
        "jobs.poll_seconds": "0.2",
        "jobs.workers": "4",
    }


def at_work(convo: Running, model: str, count: int = 4) -> list[str]:
    """Let a process begin analyses that do not end; return the conversations' links."""
    links = []
    for number in range(count):
        answer = httpx.post(convo.url + END, json=ended(f"held-{number}", user_id=f"user-{number}"), timeout=15)
        links.append(answer.headers["location"])
    until_called(model, count)
    return links


def test_what_a_killed_process_held_runs_elsewhere_within_its_lease_and_5_s(database: str, tmp_path: Path) -> None:
    with fake("model", "stuck") as model:
        given = settings(model, LEASE_SECONDS)
        with running(tmp_path / "1", database, given) as convo:
            links = at_work(convo, model)
            script(model, "healthy")
            with running(tmp_path / "2", database, given) as other, httpx.Client(base_url=other.url) as client:
                convo.kill()
                killed = time.monotonic()
                until_called(model, 8)
                assert time.monotonic() - killed < LEASE_SECONDS + SLACK_SECONDS
                for link in links:
                    told = until_ended(client, link)
                    assert (told["state"], told["attempts"]) == ("done", 1)
    assert query(database, "SELECT count(*) FROM run WHERE ending IN ('rescue', 'crash')")[0][0] == 4
    assert query(database, "SELECT count(*) FROM outcome")[0][0] == 4


def test_a_restarted_process_takes_its_own_back_at_once_whatever_the_lease(database: str, tmp_path: Path) -> None:
    with fake("model", "stuck") as model:
        given = settings(model, 600.0)
        with running(tmp_path, database, given) as convo:
            links = at_work(convo, model)
            convo.kill()
        script(model, "healthy")
        with running(tmp_path, database, given) as convo, httpx.Client(base_url=convo.url, timeout=15) as client:
            for link in links:
                assert until_ended(client, link, 30)["state"] == "done"
        assert seen(model)["calls"] == 8
