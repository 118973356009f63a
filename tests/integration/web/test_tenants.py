"""The walk of two owners through all routes: nothing crosses, and nothing tells that there is another one.

What the keys of one tenant are answered is taken down before another tenant has anything, and again when it has the
same ids, more of them, and dead letters: it must be the same. A route that this walk does not know fails it.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from convo.store import keys
from convo.web.description.routes import ROUTES
from tests.support.asking import ask
from tests.support.making import open_store
from tests.support.receivers import receiving
from tests.support.running import ended, serving

END = "/v1/conversations/end"
SAID = [{"character": "USER", "content": "I have a dog named Rex. Why do dogs bark?"}]
OWN, HIDDEN, NOBODYS = "talk-1", "secret-1", "nobody-1"
SCOPES = ("read", "write", "erase", "webhooks", "admin")
Request = tuple[str, str, Mapping[str, str]]


def gets(path: str, *queries: Mapping[str, str]) -> list[Request]:
    return [("GET", path, query) for query in queries or ({},)]


def of_ids(method: str, path: str, query: Mapping[str, str] | None = None) -> list[Request]:
    """Ask about an id of one's own, one that only the other tenant has, and one that nobody has."""
    return [(method, path.format(one), query or {}) for one in (OWN, HIDDEN, NOBODYS)]


# By the name of each route that needs a key: what is asked of it.
WALK: Mapping[str, list[Request]] = {
    "end_conversation": [],
    "end_conversations": [],
    "list_conversations": gets(
        "/v1/conversations",
        *({}, {"limit": "1"}, {"user_id": OWN}, {"user_id": HIDDEN}, {"bot_id": OWN}, {"bot_id": HIDDEN}),
        *({"state": state} for state in ("ready", "leased", "done", "dead", "parked")),
        {"bot_id": OWN, "state": "dead"},
    ),
    "read_conversation": of_ids("GET", "/v1/conversations/{}", {"wait": "0.1"}),
    "read_log": [
        *of_ids("GET", "/v1/conversations/{}/log"),
        *of_ids("GET", "/v1/conversations/{}/log", {"as": "sent"}),
    ],
    "explain_conversation": of_ids("GET", "/v1/conversations/{}/explain"),
    "retry_conversation": of_ids("POST", "/v1/conversations/{}/retry"),
    # What is one's own is found again, by a test of its own.
    "reanalyse_conversation": of_ids("POST", "/v1/conversations/{}/reanalyse")[1:],
    "acknowledge_conversation": of_ids("POST", "/v1/conversations/{}/acknowledge"),
    "read_dead_reasons": gets("/v1/dead-letters", {}, {"user_id": OWN}, {"user_id": HIDDEN}, {"bot_id": HIDDEN}),
    "retry_dead_letters": [
        ("POST", "/v1/dead-letters/retry", {"dry_run": "true"}),
        ("POST", "/v1/dead-letters/retry", {"dry_run": "true", "user_id": HIDDEN}),
    ],
    "read_relationship": of_ids("GET", "/v1/users/{}/relationship"),
    "read_relationship_history": [
        *of_ids("GET", "/v1/users/{}/relationship/history"),
        *of_ids("GET", "/v1/users/{}/relationship/history", {"bot_id": OWN, "limit": "1"}),
        *of_ids("GET", "/v1/users/{}/relationship/history", {"bot_id": HIDDEN}),
    ],
    "list_memories": of_ids("GET", "/v1/users/{}/memories"),
    "erase_conversation": of_ids("DELETE", "/v1/conversations/{}", {"dry_run": "true"}),
    "erase_user": of_ids("DELETE", "/v1/users/{}", {"dry_run": "true"}),
    "list_audit_log": gets(
        "/v1/audit-log",
        *({}, {"action": "key_made"}, {"action": "start"}, {"conversation_id": HIDDEN}, {"user_id": HIDDEN}),
    ),
    # Endpoints have ids that the server makes: a test of their own, below, knows those of both.
    "make_webhook": [],
    "list_webhooks": gets("/v1/webhooks"),
    "read_webhook": of_ids("GET", "/v1/webhooks/{}"),
    "change_webhook": [],
    "delete_webhook": of_ids("DELETE", "/v1/webhooks/{}"),
    "rotate_webhook_secret": [],
    "ping_webhook": of_ids("POST", "/v1/webhooks/{}/ping"),
    "list_webhook_attempts": of_ids("GET", "/v1/webhooks/{}/attempts"),
    "replay_webhook": of_ids("POST", "/v1/webhooks/{}/replay"),
    # It has no end: integration/web/test_event_stream.py shows whose events a key gets.
    "stream_events": [],
    # The same: integration/web/test_live.py.
    "stream_live": [],
    "read_figures": gets("/v1/figures"),
    "list_alerts": gets("/v1/alerts"),
    "test_alerts": [("POST", "/v1/alerts/test", {})],
    "acknowledge_alert": [("POST", "/v1/alerts/acknowledge", {})],
    "show_capacity": gets("/v1/capacity"),
    "metrics": gets("/metrics"),
    "tasks": gets("/debug/tasks"),
}
OF_ALL = {"list_alerts", "test_alerts", "acknowledge_alert", "show_capacity", "metrics", "tasks"}
_FIGURES = ("metrics", "tasks", "read_figures", "show_capacity")
# What has the same meaning at every value, or is a time.
_VOLATILE = re.compile(r'"(?:next_cursor)":"[^"]*"|"[a-z_]*_at":"[^"]*"|"at":"[^"]*"|"number":\d+')


def test_the_walk_knows_every_route_that_needs_a_key() -> None:
    assert set(WALK) == {route.name for route in ROUTES if route.scope}
    assert {route.name for route in ROUTES if route.of_all} == OF_ALL


class Owner:
    """A client with a key of one tenant."""

    def __init__(self, client: httpx.AsyncClient, key: str) -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {key}"}

    async def ask(self, request: Request) -> tuple[int, str]:
        """Return the status and the body, without what differs each time."""
        method, path, query = request
        answer = await self._client.request(method, path, params=query, headers=self._headers)
        return answer.status_code, _VOLATILE.sub("*", answer.text)

    async def post(self, conversation_id: str, **fields: Any) -> httpx.Response:
        body = ended(conversation_id, SAID, **fields)
        return await self._client.post(END, json=body, headers=self._headers)

    async def get(self, method: str, path: str, **how: Any) -> httpx.Response:
        return await self._client.request(method, path, headers=self._headers, **how)

    async def send(self, path: str, body: Any, method: str = "POST", kind: str = "application/json") -> httpx.Response:
        content = body if isinstance(body, str) else json.dumps(body)
        headers = {**self._headers, "Content-Type": kind}
        return await self._client.request(method, path, content=content, headers=headers)

    async def done(self, conversation_id: str, **fields: Any) -> None:
        assert (await self.post(conversation_id, **fields)).status_code == 202
        path = f"/v1/conversations/{conversation_id}"
        answer = await self._client.get(path, params={"wait": "5"}, headers=self._headers)
        assert answer.json()["state"] == "done"

    async def fills(self, *names: str) -> None:
        """Have a conversation of each name, with the user and the bot of the same name, and a dead letter."""
        for name in names:
            await self.done(name, user_id=name, bot_id=name)
            await self.done(f"{name}-dead", user_id=name, bot_id=name)

    async def walk(self) -> dict[str, tuple[int, str]]:
        return {f"{name} {one}": await self.ask(one) for name, asked in WALK.items() for one in asked}


@asynccontextmanager
async def owners(database: str, folder: Path, *made: Mapping[str, Any], **settings: str) -> AsyncIterator[list[Owner]]:
    """Serve, with a client for each key."""
    # Looked at during a walk, the dead letters of a moment before would raise an alert on a slow machine.
    told = {"auth.keys": "true", "audit_log.reads": "false", "alerts.look_seconds": "600"}
    told |= {name.replace("__", "."): value for name, value in settings.items()}
    async with open_store(database) as postgres:
        usual = {"name": "owner", "scopes": SCOPES, "requests_per_second": 0}
        found = [await keys.new(postgres, **{**usual, **one}) for one in made]
    async with serving(folder, database, told) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield [Owner(client, key) for key in found]


# What is done is in another table than what is dead.
_DIE = """
WITH dead AS (
    DELETE FROM outcome USING conversation c, tenant
    WHERE c.seq = outcome.seq AND tenant.number = c.tenant AND tenant.name = '{0}' AND c.conversation_id LIKE '%-dead'
    RETURNING c.seq, c.tenant, c.user_id
)
INSERT INTO job (seq, tenant, fair_key, state, attempts, ended_at, last_error)
SELECT seq, tenant, user_id, 'dead', 5, now(), 'no {0}' FROM dead
"""


async def have_dead_letters(database: str, tenant: str) -> None:
    await ask(database, _DIE.format(tenant))


@pytest.mark.parametrize(("one", "other"), [("acme", "beta"), ("acme", "default"), ("default", "acme")])
async def test_nothing_of_one_tenant_reaches_another_on_any_route(
    database: str, tmp_path: Path, one: str, other: str
) -> None:
    made = ({"tenant": one}, {"tenant": other})
    async with owners(database, tmp_path, *made) as (mine, theirs):
        await mine.fills(OWN)
        await have_dead_letters(database, one)
        before = await mine.walk()
        await theirs.fills(OWN, HIDDEN)
        await have_dead_letters(database, other)
        after = await mine.walk()
        # An operator's own figures change, and those are shown to an operator alone.
        assert {name for name, answer in after.items() if answer != before[name]} <= {
            asked
            for asked in after
            if asked.startswith(("metrics", "tasks", "read_figures", "show_capacity")) and one == "default"
        }
        for name, asked in WALK.items():
            for method, path, query in asked:
                if HIDDEN in path:
                    hidden = await mine.ask((method, path, query))
                    nobodys = await mine.ask((method, path.replace(HIDDEN, NOBODYS), query))
                    assert hidden[0] == 404, name
                    assert hidden == (nobodys[0], nobodys[1].replace(NOBODYS, HIDDEN)), name
        # Its id is free here, and its content tells nothing of another one's.
        posted = await mine.post(HIDDEN)
        assert (posted.status_code, "Idempotent-Replayed" in posted.headers) == (202, False)
        assert (await mine.post(HIDDEN, language="en")).status_code == 409
        of_all = [answer for asked, answer in after.items() if asked.split()[0] in OF_ALL]
        # 422: what acknowledges an alert wants a body, which no request of this walk has.
        assert {status for status, _ in of_all} == ({200, 422} if one == "default" else {403})


async def test_what_one_tenant_changes_stays_within_it(database: str, tmp_path: Path) -> None:
    async with owners(database, tmp_path, {"tenant": "acme"}, {"tenant": "beta"}) as (mine, theirs):
        for owner in (mine, theirs):
            await owner.fills(OWN)
        await have_dead_letters(database, "acme")
        await have_dead_letters(database, "beta")
        before = await theirs.walk()
        assert (await mine.ask(("POST", f"/v1/conversations/{OWN}-dead/acknowledge", {})))[0] == 200
        assert (await mine.ask(("POST", "/v1/dead-letters/retry", {})))[0] == 202
        assert (await mine.ask(("DELETE", f"/v1/conversations/{OWN}", {})))[0] == 200
        assert (await mine.ask(("DELETE", f"/v1/users/{OWN}", {})))[0] == 200
        assert (await mine.ask(("GET", f"/v1/conversations/{OWN}", {})))[0] == 410
        assert await theirs.walk() == before
        assert (await mine.post(OWN, user_id=OWN)).status_code == 410
        again = await theirs.post(OWN, user_id=OWN, bot_id=OWN)
        assert (again.status_code, again.headers["Idempotent-Replayed"]) == (202, "true")


async def test_a_key_that_is_bound_to_bots_learns_of_no_other(database: str, tmp_path: Path) -> None:
    scopes = ("read", "write", "erase")
    made = ({"tenant": "acme", "scopes": scopes, "bots": [OWN]}, {"tenant": "acme"})
    async with owners(database, tmp_path, *made) as (bound, whole):
        await bound.fills(OWN)
        await have_dead_letters(database, "acme")
        before = await bound.walk()
        await whole.fills(HIDDEN)
        await have_dead_letters(database, "acme")
        assert await bound.walk() == before
        refused = await bound.post("talk-9", bot_id=HIDDEN)
        assert (refused.status_code, refused.json()["conversation_id"]) == (403, "talk-9")
        assert f"bound to the bots {OWN}" in refused.json()["detail"]
        assert (await whole.ask(("GET", "/v1/conversations/talk-9", {})))[0] == 404
        status, body = await bound.ask(("DELETE", f"/v1/users/{OWN}", {}))
        assert (status, json.loads(body)["code"]) == (403, "forbidden")
        assert (await bound.ask(("DELETE", f"/v1/conversations/{OWN}", {})))[0] == 200


async def test_an_endpoint_is_its_tenants_own_and_gets_only_its_events(database: str, tmp_path: Path) -> None:
    settings = {"events__types": '["conversation.accepted"]', "webhooks__allow_private": "true"}
    made = ({"tenant": "acme"}, {"tenant": "beta"}, {"tenant": "acme", "bots": [OWN], "scopes": ("webhooks",)})
    with receiving() as receiver:
        async with owners(database, tmp_path, *made, **settings) as (mine, theirs, bound):
            registered = await theirs.send("/v1/webhooks", {"url": receiver.url})
            assert registered.status_code == 201
            path = registered.headers["Location"]
            asked = [("GET", path), ("PATCH", path), ("DELETE", path), ("GET", f"{path}/attempts")]
            asked += [("POST", f"{path}/{what}") for what in ("rotate", "ping", "replay")]
            for method, one in asked:
                answer = (
                    await mine.send(one, {}, method) if method in {"PATCH", "POST"} else await mine.get(method, one)
                )
                assert answer.status_code == 404, one
            assert (await mine.get("GET", "/v1/webhooks")).json() == {"webhooks": []}
            assert (await theirs.get("GET", path)).status_code == 200
            assert (await bound.get("GET", "/v1/webhooks")).status_code == 403
            with trio.fail_after(20):
                while (await theirs.get("GET", path)).json()["state"] != "active":  # noqa: ASYNC110
                    await trio.sleep(0.05)
            assert (await mine.post("talk-1")).status_code == 202
            assert (await theirs.post("talk-2")).status_code == 202
            with trio.fail_after(20):
                while not receiver.events():  # noqa: ASYNC110  (a server in a thread rings no bell)
                    await trio.sleep(0.05)
            query = {"params": {"action": "webhook_made"}}
            assert (await mine.get("GET", "/v1/audit-log", **query)).json()["entries"] == []
            assert len((await theirs.get("GET", "/v1/audit-log", **query)).json()["entries"]) == 1
    assert [(one["subject"], one["tenant"]) for one in receiver.events()] == [("talk-2", "beta")]


async def test_a_batch_is_of_the_tenant_of_its_key(database: str, tmp_path: Path) -> None:
    scopes = ("read", "write")
    made = ({"tenant": "acme", "scopes": scopes, "bots": [OWN]}, {"tenant": "default"})
    async with owners(database, tmp_path, *made) as (bound, other):
        bodies = [ended("talk-1", SAID, bot_id=OWN), ended("talk-2", SAID, bot_id=HIDDEN)]
        lines = "\n".join(json.dumps(body) for body in bodies)
        answer = await bound.send("/v1/conversations/batch", lines, kind="application/x-ndjson")
        found = [json.loads(line) for line in answer.text.splitlines()]
        assert [one.get("status", 202) for one in found] == [202, 403]
        assert (await bound.ask(("GET", "/v1/conversations/talk-1", {})))[0] == 200
        assert (await other.ask(("GET", "/v1/conversations/talk-1", {})))[0] == 404


async def test_with_several_tenants_what_shows_all_needs_an_admin_of_the_default_one(
    database: str, tmp_path: Path
) -> None:
    made = ({"tenant": "default", "scopes": ("read",)}, {"tenant": "default"})
    async with owners(database, tmp_path, *made, auth__refresh_seconds="0.2") as (reader, admin):
        for path in ("/metrics", "/v1/alerts"):
            assert (await reader.ask(("GET", path, {})))[0] == 200
        async with open_store(database) as postgres:
            key = await keys.new(postgres, "new", ["read"], 0, tenant="acme")
        assert (await Owner(admin._client, key).ask(("GET", "/v1/conversations", {})))[0] == 200
        for path in ("/metrics", "/v1/alerts"):
            assert (await reader.ask(("GET", path, {})))[0] == 403
            assert (await admin.ask(("GET", path, {})))[0] == 200


async def test_all_keys_of_a_tenant_share_its_limit(database: str, tmp_path: Path) -> None:
    limits = '{"acme": {"requests_per_second": 2}}'
    made = ({"tenant": "acme"}, {"tenant": "acme"}, {"tenant": "beta"})
    async with owners(database, tmp_path, *made, clients__tenants=limits) as (one, two, other):
        statuses = [(await who.ask(("GET", "/v1/conversations", {})))[0] for who in (one, two, one, two)]
        assert statuses.count(429) >= 1
        assert statuses[:2] == [200, 200]
        for _ in range(5):
            assert (await other.ask(("GET", "/v1/conversations", {})))[0] == 200
