from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from standardwebhooks import Webhook

from convo.conversation.tenant import DEFAULT, Tenant
from convo.errors import TooMany
from convo.event_types import EVENT_TYPES
from convo.standard_webhooks import new_secret
from convo.store import webhooks
from convo.store.audit_log import NO_CALLER
from convo.store.deliveries import lease_webhooks
from convo.store.webhooks import WEBHOOKS_IN_ALL, WebhookDraft, make_webhook
from tests.support.making import ask, open_store, shift_clock
from tests.support.receivers import GOOD, Got, Receiver, Reply, receiving
from tests.support.running import ended, serving

END = "/v1/conversations/end"
ON = {"events.types": json.dumps(list(EVENT_TYPES)), "webhooks.allow_private": "true"}
ACCEPTED = {**ON, "events.types": '["conversation.accepted"]', "jobs.workers": "0"}


@asynccontextmanager
async def client_of(folder: Path, database: str, settings: Mapping[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(folder, database, settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


async def registered(client: httpx.AsyncClient, receiver: Receiver, path: str = "", **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/webhooks", json={"url": receiver.url + path, **fields})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def posted(client: httpx.AsyncClient, *names: str, user_id: str = "user-1", **fields: Any) -> None:
    for name in names:
        assert (await client.post(END, json=ended(name, user_id=user_id, **fields))).status_code == 202


async def until(holds: Callable[[], bool], seconds: float = 15) -> None:
    with trio.fail_after(seconds):
        while not holds():  # noqa: ASYNC110  (a server in a thread rings no bell)
            await trio.sleep(0.02)


async def state(client: httpx.AsyncClient, made: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"/v1/webhooks/{made['id']}")).json()
    return found


async def in_state(client: httpx.AsyncClient, made: Mapping[str, Any], wanted: str) -> None:
    with trio.fail_after(15):
        while (await state(client, made))["state"] != wanted:  # noqa: ASYNC110
            await trio.sleep(0.05)


def subjects(found: list[dict[str, Any]]) -> list[str]:
    return [one["subject"] for one in found]


async def test_an_endpoint_is_pinged_and_then_gets_every_event_once_signed_and_in_order(
    database: str, tmp_path: Path
) -> None:
    with receiving() as receiver:
        async with client_of(tmp_path, database, ON) as client:
            made = await registered(client, receiver)
            await in_state(client, made, "active")
            await posted(client, "talk-1")
            await until(lambda: len(receiver.events()) >= 5)
            await trio.sleep(0.5)
    ping, *rest = receiver.got
    assert ping.event["type"] == "webhook.ping"
    for one in receiver.got:
        Webhook(made["secret"]).verify(one.body, dict(one.headers))
        assert one.headers["webhook-id"] == one.event["id"]
        assert one.headers["content-type"] == "application/cloudevents+json"
    found = [one.event for one in rest]
    assert [one["type"] for one in found] == [
        "conversation.accepted",
        *["part.done"] * 3,
        "conversation.analysed",
    ]
    assert [one["sequence"] for one in found] == [1, 2, 3, 4, 5]
    first = found[0]
    assert {name: first[name] for name in ("specversion", "source", "subject", "tenant", "datacontenttype")} == {
        "specversion": "1.0",
        "source": "/convo",
        "subject": "talk-1",
        "tenant": "default",
        "datacontenttype": "application/json",
    }
    assert {name: first["data"][name] for name in ("conversation_id", "user_id")} == {
        "conversation_id": "talk-1",
        "user_id": "user-1",
    }


async def test_an_endpoint_gets_only_its_types_and_its_bots(database: str, tmp_path: Path) -> None:
    with receiving() as receiver:
        async with client_of(tmp_path, database, ON) as client:
            made = await registered(client, receiver, types=["conversation.analysed"], bots=["pika"])
            await in_state(client, made, "active")
            await posted(client, "talk-1", bot_id="other")
            await posted(client, "talk-2", bot_id="pika")
            await until(lambda: bool(receiver.events()))
            await trio.sleep(0.3)
    assert [(one["type"], one["subject"]) for one in receiver.events()] == [("conversation.analysed", "talk-2")]


async def test_nothing_is_sent_before_a_ping_is_answered_and_all_of_it_afterwards(
    database: str, tmp_path: Path
) -> None:
    up = False
    with receiving(lambda _: GOOD if up else Reply(status=503)) as receiver:
        async with client_of(tmp_path, database, ACCEPTED) as client:
            made = await registered(client, receiver)
            await until(lambda: len(receiver.got) >= 1)
            await posted(client, "talk-1")
            await trio.sleep(0.5)
            assert receiver.events() == []
            assert (await state(client, made))["state"] == "new"
            up = True
            answer = (await client.post(f"/v1/webhooks/{made['id']}/ping")).json()
            assert (answer["good"], answer["status"]) == (True, 204)
            await until(lambda: bool(receiver.events()))


async def test_the_next_event_of_a_user_waits_for_the_one_before_and_other_users_do_not(
    database: str, tmp_path: Path
) -> None:
    tries = itertools.count()

    def answer(got: Got) -> Reply:
        return Reply(status=500) if got.event.get("subject") == "mia-1" and next(tries) < 2 else GOOD

    with receiving(answer) as receiver:
        async with client_of(tmp_path, database, ACCEPTED) as client:
            made = await registered(client, receiver)
            await in_state(client, made, "active")
            await posted(client, "mia-1", "mia-2", user_id="mia")
            await posted(client, "tom-1", user_id="tom")
            await until(lambda: "mia-2" in subjects(receiver.events()))
            attempts = (await client.get(f"/v1/webhooks/{made['id']}/attempts")).json()["attempts"]
    found = subjects(receiver.events())
    assert found.index("tom-1") < found.index("mia-2")
    assert [one for one in found if one != "tom-1"] == ["mia-1", "mia-1", "mia-1", "mia-2"]
    ids = {one["id"] for one in receiver.events() if one["subject"] == "mia-1"}
    assert len(ids) == 1
    failed = [one for one in attempts if one["error"]]
    assert {(one["event_id"], one["status"], one["error"]) for one in failed} == {(*ids, 500, "answered 500")}


async def test_an_event_that_cannot_be_delivered_steps_aside_after_a_while(database: str, tmp_path: Path) -> None:
    with receiving(lambda got: Reply(status=400) if got.event.get("subject") == "mia-1" else GOOD) as receiver:
        settings = {**ACCEPTED, "events.hold_seconds": "1", "webhooks.attempt_seconds": "0.9"}
        async with client_of(tmp_path, database, settings) as client:
            made = await registered(client, receiver)
            await in_state(client, made, "active")
            await posted(client, "mia-1", "mia-2", user_id="mia")
            await until(lambda: "mia-2" in subjects(receiver.events()))
            with trio.fail_after(10):
                while (await state(client, made))["confirmed"] < 2:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            async with open_store(database) as postgres:
                assert await ask(postgres, "SELECT attempts FROM webhook_aside") == 1
                receiver.answer = lambda _: GOOD
                before = len(receiver.events())
                await ask(postgres, "UPDATE webhook_aside SET due_at = convo_now()")
                await until(lambda: len(receiver.events()) > before)
                await trio.sleep(0.5)
                assert await ask(postgres, "SELECT count(*) FROM webhook_aside") == 0
    assert subjects(receiver.events())[-1] == "mia-1"


async def test_a_pause_that_an_endpoint_asks_for_is_kept(database: str, tmp_path: Path) -> None:
    tries = itertools.count()

    def answer(got: Got) -> Reply:
        if got.event["type"] != "webhook.ping" and next(tries) == 0:
            return Reply(status=429, headers={"Retry-After": "3"})
        return GOOD

    with receiving(answer) as receiver:
        async with client_of(tmp_path, database, ACCEPTED) as client:
            made = await registered(client, receiver)
            await in_state(client, made, "active")
            await posted(client, "talk-1")
            await until(lambda: bool(receiver.events()))
            await trio.sleep(0.5)
            await posted(client, "talk-2", user_id="tom")
            await until(lambda: len(receiver.events()) >= 3)
    first, second, *_ = [one.at for one in receiver.got if one.event["type"] != "webhook.ping"]
    assert second - first >= 2.9


@pytest.mark.parametrize("fault", [Reply(hangs=True), Reply(drips=True)], ids=["hangs", "drips"])
async def test_an_endpoint_that_does_not_answer_holds_no_other_up(fault: Reply, database: str, tmp_path: Path) -> None:
    def slow(got: Got) -> Reply:
        return GOOD if got.event["type"] == "webhook.ping" else fault

    with receiving(slow) as stuck, receiving() as quick:
        async with client_of(tmp_path, database, {**ACCEPTED, "webhooks.attempt_seconds": "5"}) as client:
            for made in [await registered(client, one) for one in (stuck, quick)]:
                await in_state(client, made, "active")
            for n in range(40):
                await posted(client, f"talk-{n}", user_id=f"user-{n}")
            await until(lambda: len(quick.events()) == 40, 4)
            assert len(stuck.events()) <= 8
            stuck.let_go.set()


async def test_redirects_are_not_followed(database: str, tmp_path: Path) -> None:
    with receiving() as secret, receiving() as receiver:
        receiver.answer = lambda _: Reply(status=307, headers={"Location": secret.url})
        async with client_of(tmp_path, database, ACCEPTED) as client:
            made = await registered(client, receiver)
            answer = (await client.post(f"/v1/webhooks/{made['id']}/ping")).json()
    assert (answer["good"], answer["status"]) == (False, 307)
    assert secret.got == []


async def test_private_addresses_are_refused_where_they_are_not_allowed(database: str, tmp_path: Path) -> None:
    with receiving() as receiver:
        async with client_of(tmp_path, database, {**ACCEPTED, "webhooks.allow_private": "false"}) as client:
            for url in (receiver.url, receiver.url.replace("127.0.0.1", "localhost")):
                made = (await client.post("/v1/webhooks", json={"url": url})).json()
                answer = (await client.post(f"/v1/webhooks/{made['id']}/ping")).json()
                assert (answer["good"], answer["status"]) == (False, None)
                assert "is not a public address" in answer["error"]
    assert receiver.got == []


async def test_a_body_is_read_to_four_kilobytes_and_logged_to_its_first_bytes(database: str, tmp_path: Path) -> None:
    with receiving(lambda _: Reply(status=500, body=b"no room " * 1_000_000)) as receiver:
        async with client_of(tmp_path, database, ACCEPTED) as client:
            made = await registered(client, receiver)
            answer = (await client.post(f"/v1/webhooks/{made['id']}/ping")).json()
            assert len(answer["answer"]) == 4096
            (attempt, *_) = (await client.get(f"/v1/webhooks/{made['id']}/attempts")).json()["attempts"]
            assert attempt["answer"] == ("no room " * 63)[:500]


async def test_for_a_day_events_are_signed_with_two_secrets(database: str, tmp_path: Path) -> None:
    old = new_secret()
    with receiving() as receiver:
        async with client_of(tmp_path, database, ACCEPTED) as client:
            made = await registered(client, receiver, secret=old)
            assert made["secret"] == old
            await in_state(client, made, "active")
            new = (await client.post(f"/v1/webhooks/{made['id']}/secret", json={})).json()["secret"]
            assert new != old
            await posted(client, "talk-1")
            await until(lambda: bool(receiver.events()))
            async with open_store(database) as postgres:
                await shift_clock(postgres, "25 hours")
            # The endpoint is leased anew by then, and read again.
            await trio.sleep(3.0)
            await posted(client, "talk-2")
            await until(lambda: len(receiver.events()) == 2)
    both, alone = [one for one in receiver.got if one.event["type"] != "webhook.ping"]
    for secret in (old, new):
        Webhook(secret).verify(both.body, dict(both.headers))
    Webhook(new).verify(alone.body, dict(alone.headers))
    assert " " not in alone.headers["webhook-signature"]


async def test_an_endpoint_is_switched_off_after_five_days_of_failure_and_goes_on_where_it_was(
    database: str, tmp_path: Path
) -> None:
    up = True
    with receiving(lambda _: GOOD if up else Reply(status=500)) as receiver:
        async with client_of(tmp_path, database, ACCEPTED) as client:
            made = await registered(client, receiver)
            await in_state(client, made, "active")
            up = False
            await posted(client, "talk-1")
            await until(lambda: bool(receiver.events()))
            await trio.sleep(0.5)
            async with open_store(database) as postgres:
                await shift_clock(postgres, "121 hours")
            await in_state(client, made, "off")
            assert "has failed" in (await state(client, made))["reason"]
            with trio.fail_after(10):
                while "WEBHOOK_OFF" not in {  # noqa: ASYNC110
                    one["type"] for one in (await client.get("/v1/alerts")).json()["active"]
                }:
                    await trio.sleep(0.1)
            up = True
            before = len(receiver.events())
            assert (await client.patch(f"/v1/webhooks/{made['id']}", json={"active": True})).json()["state"] == "new"
            await until(lambda: len(receiver.events()) > before)
    assert set(subjects(receiver.events())) == {"talk-1"}


async def test_events_are_sent_again_by_id_by_type_and_by_time(database: str, tmp_path: Path) -> None:
    with receiving() as receiver:
        async with client_of(tmp_path, database, ON) as client:
            made = await registered(client, receiver)
            await in_state(client, made, "active")
            await posted(client, "talk-1", "talk-2")
            await until(lambda: len(receiver.events()) >= 10)
            with trio.fail_after(10):
                while (await state(client, made))["confirmed"] < 10:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            again = f"/v1/webhooks/{made['id']}/replay"
            before = receiver.first()
            one = await client.post(again, params={"event": before[3]["id"]})
            assert (one.status_code, one.json()["events"]) == (202, 1)
            await until(lambda: len(receiver.events()) == 11)
            assert receiver.events()[-1] == before[3]
            kind = await client.post(again, params={"type": "conversation.accepted"})
            assert kind.json()["events"] == 2
            await until(lambda: len(receiver.events()) == 13)
            assert subjects(receiver.events()[-2:]) == ["talk-1", "talk-2"]
            none = await client.post(again, params={"since": "2100-01-01T00:00:00Z"})
            every = await client.post(again, params={"since": "2020-01-01T00:00:00Z"})
            assert (none.json()["events"], every.json()["events"]) == (0, 10)
            await until(lambda: len(receiver.events()) == 23)
            missing = await client.post(again, params={"event": "1-00000000000000"})
            assert missing.status_code == 404
    assert len(receiver.first()) == 10


async def test_what_was_erased_is_sent_as_an_empty_stub_of_the_same_id(database: str, tmp_path: Path) -> None:
    up = False
    with receiving(lambda got: GOOD if up or got.event["type"] == "webhook.ping" else Reply(status=500)) as receiver:
        async with client_of(tmp_path, database, {**ON, "jobs.workers": "0"}) as client:
            made = await registered(client, receiver)
            await in_state(client, made, "active")
            await posted(client, "talk-1")
            await until(lambda: bool(receiver.events()))
            (sent, *_) = receiver.events()
            assert (await client.delete("/v1/conversations/talk-1")).status_code == 200
            up = True
            await until(lambda: any(one["type"] == "conversation.erased" for one in receiver.events()), 20)
            await until(lambda: any("data" not in one for one in receiver.events()), 20)
    stub = next(one for one in receiver.events() if "data" not in one)
    assert (stub["id"], stub["type"]) == (sent["id"], "conversation.accepted")
    assert "subject" not in stub
    erased = next(one for one in receiver.events() if one["type"] == "conversation.erased")
    assert erased["data"] == {"conversation_id": "talk-1", "user_id": "user-1"}


async def test_a_deleted_endpoint_gets_nothing_any_more(database: str, tmp_path: Path) -> None:
    with receiving() as receiver:
        async with client_of(tmp_path, database, ACCEPTED) as client:
            made = await registered(client, receiver)
            await in_state(client, made, "active")
            assert (await client.delete(f"/v1/webhooks/{made['id']}")).json() == {"id": made["id"]}
            await trio.sleep(0.3)
            await posted(client, "talk-1")
            await trio.sleep(1.0)
            assert (await client.get(f"/v1/webhooks/{made['id']}")).status_code == 404
    assert receiver.events() == []


async def test_how_many_endpoints_a_tenant_has_is_no_matter_of_the_others(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "WEBHOOKS_MAX", 2)
    monkeypatch.setattr(webhooks, "WEBHOOKS_IN_ALL", 3)
    draft, other = WebhookDraft(url="http://receiver.example/"), Tenant(number=1, name="other")
    async with open_store(database) as postgres:
        for tenant in (DEFAULT, DEFAULT, other):
            await make_webhook(postgres, tenant, draft, NO_CALLER)
        with pytest.raises(TooMany, match="a tenant has at most 2 endpoints"):
            await make_webhook(postgres, DEFAULT, draft, NO_CALLER)
        with pytest.raises(TooMany, match="an installation 3"):
            await make_webhook(postgres, other, draft, NO_CALLER)


async def test_one_process_delivers_to_as_many_endpoints_as_there_can_be(database: str) -> None:
    async with open_store(database) as postgres:
        await ask(
            postgres,
            "INSERT INTO webhook (webhook_id, url, types, bots, secret, tenant, state, cursor)"
            " SELECT 'wh_' || n, 'http://receiver.example/', '{}', '{}', 's', n % 20, 'active', 0"
            f" FROM generate_series(1, {WEBHOOKS_IN_ALL}) AS n",
        )
        assert len(await lease_webhooks(postgres, "here.start")) == WEBHOOKS_IN_ALL
