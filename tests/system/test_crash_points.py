from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.crash import POINTS
from tests.support.faking import fake, until_called
from tests.support.running import Running, ended, query, running, until_ended

END = "/v1/conversations/end"
BODY = ended("crash-1")
QUICK = {"jobs.backoff_seconds": "0.1", "shutdown.workers_seconds": "0.5"}
LATER = {
    *(f"{unit}.after_commit" for unit in ("lease", "part", "release")),
    *("accept.before_insert", "release.before_commit"),
}


def post(convo: Running) -> httpx.Response | None:
    """Post the one conversation; None where the process died before it answered."""
    try:
        return httpx.post(convo.url + END, json=BODY, timeout=15)
    except httpx.TransportError:
        return None


@contextmanager
def until_it_dies_at(point: str, data_dir: Path, database: str) -> Iterator[Running]:
    """Run a convo that kills itself at this point.

    A release needs an analysis that does not end before the stop. A part is stored by itself where it was paid for and
    another one is late.
    """
    with fake("model", "stuck") as stuck, fake("model", "healthy") as healthy:
        remote = {
            "release": {"llm.base_url": stuck, "llm.model": "stuck"},
            "part": {"llm.base_url": healthy, "llm.model": "one", "memory.url": stuck},
        }.get(point.partition(".")[0], {})
        with running(data_dir, database, {**QUICK, **remote}, program=("tests.support.crash", point)) as convo:
            yield convo
            if point.startswith("release."):
                until_called(stuck)
                convo.signal(signal.SIGTERM)
            assert convo.ended() == -signal.SIGKILL


# Before each commit, and after those that a receipt or a result stands behind: each takes two processes.
@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=pytest.mark.long) if point in LATER else point for point in POINTS]
)
def test_a_process_that_dies_there_loses_no_receipt_and_counts_once(point: str, database: str, tmp_path: Path) -> None:
    with until_it_dies_at(point, tmp_path, database) as convo:
        receipt = post(convo)
    with running(tmp_path, database, QUICK) as convo, httpx.Client(base_url=convo.url, timeout=15) as client:
        if receipt is not None:
            assert receipt.status_code == 202
            assert client.get(receipt.headers["location"]).json()["digest"] == receipt.json()["digest"]
        again = client.post(END, json=BODY)
        assert again.status_code == 202
        assert again.headers.get("idempotent-replayed") == (None if point in UNSTORED else "true")
        told = until_ended(client, again.headers["location"], 20)
        assert (told["state"], told["attempts"]) == ("done", 1)
        known = client.get("/v1/users/user-1/relationship").json()
        assert (known["score"], known["conversations"]) == (told["score"]["value"], 1)
    assert counted(database) == [(1, 1, 1, 1)]


UNSTORED = ("accept.before_insert",)


def counted(database: str) -> list[tuple[Any, ...]]:
    statement = """
    SELECT (SELECT count(*) FROM conversation), (SELECT count(*) FROM conversation_log),
           (SELECT count(*) FROM outcome), (SELECT sum(n) FROM ledger WHERE kind = 'done')
    """
    return [tuple(row) for row in query(database, statement)]
