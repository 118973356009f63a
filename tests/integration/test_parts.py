"""Declared parts from the accept to the answer: a whole service, a model, and a service of a part's owner."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from convo.standard_webhooks import signed, signing_key
from tests.support import fakes
from tests.support.fakes import Call, FakeServer
from tests.support.running import ended, query, serving

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
TIER = {"type": "object", "properties": {"tier": {"enum": ["gold", "basic"]}}, "required": ["tier"]}
NO_TIER = '{"questions": [], "emotion": "happy"}'
QUICK = {
    "llm.attempts": "1",
    "llm.breaker_failures": "1000",
    "jobs.backoff_seconds": "0.05",
    "jobs.backoff_max_seconds": "0.05",
    "jobs.poll_seconds": "0.05",
    "jobs.attempts_max": "3",
}


@asynccontextmanager
async def convo(folder: Path, database: str, model: FakeServer, **settings: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run a service with a model; settings by name, with two underscores for a dot."""
    given = {name.replace("__", ".", 1): value for name, value in settings.items()}
    usual = {"llm.base_url": f"{model.url}/v1", "llm.model": "m"}
    async with (
        serving(folder, database, QUICK | usual | given) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client


async def analysed(client: httpx.AsyncClient, conversation_id: str = "talk-1", **fields: Any) -> dict[str, Any]:
    """Send a conversation and wait until it is done."""
    answer = await client.post("/v1/conversations/end", json=ended(conversation_id, **fields))
    assert answer.status_code == 202, answer.text
    return await until_done(client, conversation_id)


async def until_done(client: httpx.AsyncClient, conversation_id: str = "talk-1") -> dict[str, Any]:
    with trio.fail_after(20):
        while True:
            view = (await client.get(f"/v1/conversations/{conversation_id}", params={"wait": "5"})).json()
            if view["state"] in ("done", "dead"):
                return dict(view)


async def shown_until(client: httpx.AsyncClient, part: str, state: str) -> dict[str, Any]:
    """Wait until a part of the conversation is in a state."""
    with trio.fail_after(20):
        while True:
            view = (await client.get("/v1/conversations/talk-1")).json()
            if view["parts"][part]["state"] == state:
                return dict(view)
            await trio.sleep(0.02)


def asked(model: FakeServer) -> list[Call]:
    """Return the calls about conversations, in their order; a start makes one of its own."""
    return [call for call in model.calls if "record" in call.body.decode()]


@pytest.fixture
async def model() -> AsyncIterator[FakeServer]:
    async with fakes.open_model() as running:
        yield running


def crm(call: Call) -> object:
    """Answer a signed request as the service of a part; a wrong signature is none."""
    if call.method == "GET":
        return {}
    body = call.body
    headers = signed(call.headers["webhook-id"], int(call.headers["webhook-timestamp"]), body, [signing_key(SECRET)])
    assert call.headers["webhook-signature"] == headers["webhook-signature"]
    turns = json.loads(body)["conversation"]["turns"]
    return {"tier": "gold" if len(turns) > 1 else "basic"}


async def test_declared_parts_are_found_with_the_default_ones_in_one_call(
    model: FakeServer, database: str, tmp_path: Path
) -> None:
    parts = {
        "parts__summary__required": "true",
        "parts__rubric__criteria": '{"polite": "The bot stays polite.", "solved": "The user got it."}',
        "parts__rubric__points": '{"field": "solved", "each": 10}',
    }
    async with convo(tmp_path, database, model, **parts) as client:
        view = await analysed(client)
        explained = (await client.get("/v1/conversations/talk-1/explain")).json()
    assert len(asked(model)) == 1
    found = view["parts"]
    assert list(found) == ["questions", "emotion", "memories", "rubric", "summary"]
    assert {part["state"] for part in found.values()} == {"done"}
    assert found["summary"]["answer"] == {"summary": "said"}
    assert found["rubric"]["answer"]["solved"] == {"grade": 4, "reason": "said"}
    assert found["summary"]["by"] == f"m/{found['summary']['version']}"
    assert found["emotion"]["by"] == "m/prompt-3"
    assert len({part["version"] for part in found.values()}) == 5
    assert view["score"]["breakdown"]["parts"] == {"rubric": {"counted": 4, "points": 40}}
    plain = sum(one["points"] for name, one in view["score"]["breakdown"].items() if name != "parts")
    assert view["score"]["value"] == plain + 40
    assert explained["cause"]["kind"] == "done"


async def test_a_service_finds_its_part_and_knows_by_the_signature_who_asks(
    model: FakeServer, database: str, tmp_path: Path
) -> None:
    async with fakes.open_server(crm) as service:
        parts = {
            "parts__crm__who": "http",
            "parts__crm__url": f"{service.url}/analyse",
            "parts__crm__secret": SECRET,
            "parts__crm__schema": json.dumps(TIER),
            "parts__crm__required": "true",
            "parts__crm__points": '{"field": "tier", "values": {"gold": 20}}',
        }
        async with convo(tmp_path, database, model, **parts) as client:
            view = await analysed(client)
    (call,) = [call for call in service.calls if call.method == "POST"]
    assert call.path == "/analyse"
    sent = call.json()
    assert (sent["part"], sent["version"]) == ("crm", view["parts"]["crm"]["version"])
    assert sent["conversation"]["conversation_id"] == "talk-1"
    assert [turn["speaker"] for turn in sent["conversation"]["turns"]] == ["bot", "user", "bot"]
    assert view["parts"]["crm"]["answer"] == {"tier": "gold"}
    assert view["score"]["breakdown"]["parts"]["crm"] == {"counted": "gold", "points": 20}


async def test_an_answer_that_fits_in_some_parts_is_kept_and_only_the_rest_is_asked_again(
    model: FakeServer, database: str, tmp_path: Path
) -> None:
    parts = {"parts__summary__required": "true", "llm__attempts": "2", "llm__backoff_seconds": "0.01"}
    async with convo(tmp_path, database, model, **parts) as client:
        model.then(fakes.completing('{"questions": ["Why?"], "emotion": "sad", "summary": {"summary": 7}}'))
        view = await analysed(client)
    first, second = asked(model)
    names = [call.json()["response_format"]["json_schema"]["schema"]["required"] for call in (first, second)]
    assert names == [["questions", "emotion", "summary"], ["summary"]]
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]
    assert view["parts"]["emotion"]["emotion"] == "sad"
    assert view["parts"]["summary"]["answer"] == {"summary": "said"}
    assert view["attempts"] == 1


async def test_a_part_that_no_score_waits_for_is_found_later_and_changes_no_score(
    model: FakeServer, database: str, tmp_path: Path
) -> None:
    parts = {
        "parts__tier__prompt": "Which tier?",
        "parts__tier__schema": json.dumps(TIER),
        "parts__tier__points": '{"field": "tier", "values": {"gold": 20}}',
    }
    async with convo(tmp_path, database, model, **parts) as client:
        model.then(fakes.completing(NO_TIER), fakes.completing(NO_TIER))
        view = await analysed(client)
        later = await shown_until(client, "tier", "done")
    assert view["score"]["breakdown"]["parts"] == {"tier": {"counted": None, "points": 0}}
    assert later["parts"]["tier"]["answer"] == {"tier": "gold"}
    assert later["score"] == view["score"]
    rows = await trio.to_thread.run_sync(query, database, "SELECT state FROM part_job")
    assert [row["state"] for row in rows] == ["done"]


async def test_a_part_that_never_fits_fails_by_itself(model: FakeServer, database: str, tmp_path: Path) -> None:
    model.always = fakes.completing('{"questions": [], "emotion": "happy", "tier": {"tier": "silver"}}')
    parts = {"parts__tier__prompt": "Which tier?", "parts__tier__schema": json.dumps(TIER)}
    async with convo(tmp_path, database, model, **parts) as client:
        view = await analysed(client)
        failed = await shown_until(client, "tier", "failed")
    assert view["state"] == "done"
    assert "does not fit" in failed["parts"]["tier"]["error"]
    assert failed["parts"]["tier"]["answer"] is None


async def test_conditions_decide_at_the_accept_and_a_part_that_is_not_owed_says_why(
    model: FakeServer, database: str, tmp_path: Path
) -> None:
    parts = {
        "parts__summary__when": '{"bots": ["shop"], "min_user_turns": 1}',
        "parts__memories__when": '{"min_turns": 4}',
    }
    async with convo(tmp_path, database, model, **parts) as client:
        other = await analysed(client)
        shop = await analysed(client, "talk-2", bot_id="shop")
    assert other["parts"]["summary"]["state"] == "skipped"
    assert other["parts"]["summary"]["error"] == "it is of another bot"
    assert other["parts"]["memories"]["state"] == "skipped"
    assert other["score"]["final"]
    assert shop["parts"]["summary"]["state"] == "done"


async def test_what_is_owed_stays_when_the_file_changes(model: FakeServer, database: str, tmp_path: Path) -> None:
    parts = {"parts__tier__prompt": "Which tier?", "parts__tier__schema": json.dumps(TIER)}
    async with convo(tmp_path, database, model, jobs__workers="0", **parts) as client:
        await client.post("/v1/conversations/end", json=ended("talk-1"))
        waiting = (await client.get("/v1/conversations/talk-1")).json()
    assert waiting["parts"]["tier"]["state"] == "waiting"
    async with convo(tmp_path, database, model) as client:
        view = await shown_until(client, "tier", "done")
        plain = await analysed(client, "talk-2")
    assert view["parts"]["tier"]["version"] == waiting["parts"]["tier"]["version"]
    first, second = asked(model)
    assert "Which tier?" in first.body.decode()
    assert "Which tier?" not in second.body.decode()
    assert list(plain["parts"]) == ["questions", "emotion", "memories"]


async def test_a_process_without_the_service_leaves_the_job_to_one_that_has_it_and_says_so(
    model: FakeServer, database: str, tmp_path: Path
) -> None:
    parts = {
        "parts__crm__who": "http",
        "parts__crm__url": "http://127.0.0.1:1/analyse",
        "parts__crm__secret": SECRET,
        "parts__crm__schema": json.dumps(TIER),
        "parts__crm__required": "true",
    }
    async with convo(tmp_path, database, model, jobs__workers="0", **parts) as client:
        await client.post("/v1/conversations/end", json=ended("talk-1"))
        version = (await client.get("/v1/conversations/talk-1")).json()["parts"]["crm"]["version"]
    async with convo(tmp_path, database, model) as client:
        await analysed(client, "talk-2")
        view = (await client.get("/v1/conversations/talk-1")).json()
        explained = (await client.get("/v1/conversations/talk-1/explain")).json()
    assert (view["state"], view["attempts"], view["waits_for"]) == ("ready", 0, f"part.crm@{version}")
    assert "no process that takes jobs has it" in explained["cause"]["sentence"]


async def test_what_is_still_to_be_found_and_who_is_missing_stands_in_explain_and_in_the_alerts(
    model: FakeServer, database: str, tmp_path: Path
) -> None:
    parts = {
        "parts__crm__who": "http",
        "parts__crm__url": "http://127.0.0.1:1/analyse",
        "parts__crm__secret": SECRET,
        "parts__crm__schema": json.dumps(TIER),
    }
    async with convo(tmp_path, database, model, jobs__workers="0", **parts) as client:
        await client.post("/v1/conversations/end", json=ended("talk-1"))
        version = (await client.get("/v1/conversations/talk-1")).json()["parts"]["crm"]["version"]
    quick = {"alerts__quiet_seconds": "0.1", "alerts__look_seconds": "0.1", "alerts__evaluate_seconds": "0.1"}
    async with convo(tmp_path, database, model, **quick) as client:
        await until_done(client)
        explained = (await client.get("/v1/conversations/talk-1/explain")).json()
        with trio.fail_after(20):
            alerts = ""
            while "NOBODY_SERVES" not in alerts:
                await trio.sleep(0.05)
                alerts = (await client.get("/v1/alerts")).text
    assert (
        f"still to be found, behind live work: crm (no process has part.crm@{version})"
        in (explained["cause"]["sentence"])
    )
    assert f"part.crm@{version}" in alerts
