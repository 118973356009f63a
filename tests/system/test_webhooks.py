from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.receivers import GOOD, Got, Receiver, Reply, receiving
from tests.support.running import ended, running

END = "/v1/conversations/end"
SETTINGS = {
    "events.types": '["conversation.accepted"]',
    "webhooks.allow_private": "true",
    "jobs.workers": "0",
}
USERS, EACH = 8, 25


def until(holds: Callable[[], bool], seconds: float) -> None:
    last = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < last, "it did not come"
        time.sleep(0.05)


def registered(url: str, receiver: Receiver) -> Mapping[str, Any]:
    made: Mapping[str, Any] = httpx.post(f"{url}/v1/webhooks", json={"url": receiver.url}).json()
    until(lambda: httpx.get(f"{url}/v1/webhooks/{made['id']}").json()["state"] == "active", 10)
    return made


def posted(url: str) -> None:
    with httpx.Client(base_url=url, timeout=30) as client:
        for n in range(EACH):
            for user in range(USERS):
                body = ended(f"user-{user}-{n:03}", user_id=f"user-{user}")
                assert client.post(END, json=body).status_code == 202


def in_order(receiver: Receiver) -> bool:
    """Tell whether the events of each user came in their order, repetitions aside."""
    subjects = [one["subject"] for one in receiver.first()]
    return all(
        of_user == sorted(of_user)
        for user in range(USERS)
        for of_user in [[one for one in subjects if one.startswith(f"user-{user}-")]]
    )


@pytest.mark.parametrize(
    "elsewhere",
    [pytest.param(False, id="restarted"), pytest.param(True, id="taken over", marks=pytest.mark.long)],
)
def test_after_a_kill_nothing_is_lost_and_the_order_of_a_user_is_kept(
    elsewhere: bool,  # noqa: FBT001
    database: str,
    tmp_path: Path,
) -> None:
    def slowly(_: Got) -> Reply:
        time.sleep(0.2)
        return GOOD

    with receiving(slowly) as receiver:
        with running(tmp_path / "one", database, SETTINGS) as first:
            registered(first.url, receiver)
            posted(first.url)
            until(lambda: len(receiver.events()) >= USERS * EACH // 4, 20)
            first.kill()
        assert len(receiver.first()) < USERS * EACH, "it was killed too late"
        with running(tmp_path / ("two" if elsewhere else "one"), database, SETTINGS):
            # Elsewhere nobody knows that it is dead: its lease has to end.
            until(lambda: len(receiver.first()) == USERS * EACH, 40 if elsewhere else 15)
    assert {one["subject"] for one in receiver.first()} == {
        f"user-{user}-{n:03}" for user in range(USERS) for n in range(EACH)
    }
    assert in_order(receiver)
    ids = {(one["id"], one["subject"]) for one in receiver.events()}
    assert len(ids) == USERS * EACH


def test_a_stop_gives_the_endpoints_back_at_once(database: str, tmp_path: Path) -> None:
    with (
        receiving() as receiver,
        running(tmp_path / "one", database, SETTINGS) as first,
        running(tmp_path / "two", database, SETTINGS) as other,
    ):
        registered(first.url, receiver)
        assert first.stop() == 0
        httpx.post(other.url + END, json=ended("late-1"))
        until(lambda: len(receiver.events()) == 1, 10)
