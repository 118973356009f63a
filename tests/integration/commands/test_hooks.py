from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from convo.commands.cli import main
from tests.conftest import _database
from tests.support.receivers import Receiver, Reply, receiving
from tests.support.running import Running, ended, running

SETTINGS = {
    "events.types": '["conversation.accepted", "conversation.dead"]',
    "webhooks.allow_private": "true",
    "jobs.workers": "0",
}


@pytest.fixture(scope="module")
def convo(postgres_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server for all of them: each test removes the endpoints that it makes."""
    with (
        _database(postgres_url, template) as url,
        running(tmp_path_factory.mktemp("hooks"), url, SETTINGS) as started,
    ):
        yield started


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


def test_an_endpoint_is_made_listed_changed_pinged_and_removed(
    convo: Running, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    def ran(*words: str, code: int = 0) -> Any:
        assert main(["webhook", *words, "--url", convo.url, "--json"]) == code, capsys.readouterr()
        return json.loads(capsys.readouterr().out)

    made = ran("new", receiver.url, "--types", "conversation.accepted", "--bots", "pika, other")
    assert made["secret"].startswith("whsec_")
    assert (made["types"], made["bots"]) == (["conversation.accepted"], ["pika", "other"])
    assert ran("ping", made["id"])["good"]
    (listed,) = ran("list")["webhooks"]
    assert (listed["id"], listed["state"], "secret" in listed) == (made["id"], "active", False)
    changed = ran("change", made["id"], "--types", "all", "--bots", "all", "--off")
    assert (changed["types"], changed["bots"], changed["state"]) == ([], [], "off")
    assert ran("change", made["id"], "--on")["state"] == "new"
    assert ran("rotate", made["id"])["secret"] != made["secret"]
    until_active(ran, made["id"])
    assert httpx.post(f"{convo.url}/v1/conversations/end", json=ended("talk-1")).status_code == 202
    attempts = delivered(ran, made["id"])
    assert ran("replay", made["id"], "--event", attempts[0]["event_id"]) == {"events": 1, "next_cursor": None}
    assert ran("replay", made["id"], "--since", "1h", "--until", "2100-01-01") == {"events": 1, "next_cursor": None}
    receiver.answer = lambda _: Reply(status=500)
    assert not ran("ping", made["id"], code=1)["good"]
    assert ran("delete", made["id"]) == {"id": made["id"]}
    assert ran("list")["webhooks"] == []


def until_active(ran: Any, webhook_id: str) -> None:
    last = time.monotonic() + 15
    while ran("list")["webhooks"][0]["state"] != "active":
        assert time.monotonic() < last, webhook_id
        time.sleep(0.1)


def delivered(ran: Any, webhook_id: str) -> list[dict[str, Any]]:
    last = time.monotonic() + 15
    while True:
        attempts: list[dict[str, Any]] = ran("attempts", webhook_id)["attempts"]
        if not attempts[0]["event_id"].startswith("ping_"):
            return attempts
        assert time.monotonic() < last
        time.sleep(0.1)


def test_a_person_gets_tables_and_the_secret_once(
    convo: Running, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--url", convo.url]
    assert main(["webhook", "list", *at]) == 0
    assert capsys.readouterr().out == "none\n"
    assert main(["webhook", "new", receiver.url, *at]) == 0
    made = capsys.readouterr().out
    assert "whsec_" in made
    assert main(["webhook", "list", *at]) == 0
    shown = capsys.readouterr().out
    assert receiver.url in shown
    assert "whsec_" not in shown
    assert main(["webhook", "delete", re.findall(r"\bwh_\w+", made)[0], *at]) == 0


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["new", "ftp://receiver.example/"], "must be an http:// or https:// address"),
        (["new", "http://user:secret@receiver.example/"], "without a login"),
        (["new", "http://receiver.example/", "--types", "conversation.analysed"], "add it to events.types"),
        (["new", "http://receiver.example/", "--types", "conversation.eaten"], "Invalid enum value"),
        (["new", "http://receiver.example/", "--secret", "sekrit"], "whsec_ and the base64"),
        (["ping", "wh_nobody"], "there is no webhook"),
        (["replay", "wh_nobody", "--event", "x"], "is not the id of an event"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    words: list[str], fault: str, convo: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["webhook", *words, "--url", convo.url]) in (1, 4)
    shown = capsys.readouterr().err
    assert fault in shown
    assert "sekrit" not in shown
    assert "user:secret" not in shown


def test_without_events_no_endpoint_is_made(database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path, database, {"jobs.workers": "0"}) as convo:
        assert main(["webhook", "new", "http://receiver.example/", "--url", convo.url]) == 1
    assert "events.types chooses none" in capsys.readouterr().err
