from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec

from convo.store import keys
from convo.web.description.routes import ROUTES, Route
from tests.support.making import ask, open_store
from tests.support.ports import free_port
from tests.support.running import ended, serving

END = "/v1/conversations/end"
KEYS = {"auth.keys": "true"}


def bearer(key: str) -> str:
    return f"Bearer {key}"


def path_of(route: Route, **values: str) -> str:
    usual = {"conversation_id": "known-1", "user_id": "user-1", "topic": "operating", "webhook_id": "wh_known"}
    usual |= {"version": "0" * 16, "asset": "style.css"}
    return route.path.format(**{**usual, **values})


async def requested(client: httpx.AsyncClient, route: Route, key: str) -> httpx.Response:
    """Send a request to a route, about a conversation that exists where it is about one.

    What a route erases is a conversation of its own, or a user that nobody else is.
    """
    gone = f"gone-{route.name}" if route.method == "delete" else ""
    path = path_of(route, conversation_id=gone or "known-1", user_id=gone or "user-1")
    body: Any = ended("known-1") if route.takes_conversation or route.takes_batch else None
    if route.takes is not None:
        body = msgspec.to_builtins(route.takes.sample)
    headers = {"Authorization": bearer(key)} if key else {}
    if route.takes_batch:
        headers["Content-Type"] = "application/x-ndjson"
    return await client.request(route.method.upper(), path, json=body, headers=headers)


async def test_every_route_of_the_catalogue_is_served_and_requires_the_scope_that_is_described(
    database: str, tmp_path: Path
) -> None:
    async with open_store(database) as postgres:
        good = {scope: await keys.new(postgres, scope, [scope], 0) for scope in keys.SCOPES}
    # A stream would have no end, and is refused after all that is looked at here.
    settings = {**KEYS, "events.streams_max": "0"}
    async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        described = (await client.get("/openapi.json")).json()["paths"]
        for route in ROUTES:
            # They let in whom the session or the sent key lets in, not a header: see the tests of sessions.
            if route.signs_in:
                continue
            if route.method == "delete":
                headers = {"Authorization": bearer(good["write"])}
                own = ended(f"gone-{route.name}", user_id=f"gone-{route.name}")
                assert (await client.post(END, json=own, headers=headers)).status_code == 202
            security = described[route.path][route.method]["security"]
            required = [scope for one in security for scope in one["key"]]
            found = {scope: (await requested(client, route, key)).status_code for scope, key in good.items()}
            if not required:
                assert not {(await requested(client, route, "")).status_code, *found.values()} & {401, 403, 404, 405}
                continue
            assert (await requested(client, route, "")).status_code == 401, route.name
            assert {scope for scope, status in found.items() if status != 403} == set(required), route.name
            # There is no such endpoint, no stream without events, and no alert.
            if "{webhook_id}" not in route.path and route.name not in ("stream_events", "acknowledge_alert"):
                assert found[required[0]] not in (401, 403, 404, 405), route.name
        assert sum(len(methods) for methods in described.values()) == len(ROUTES)


async def test_a_request_without_a_key_is_refused_before_its_body_is_looked_at(database: str, tmp_path: Path) -> None:
    async with serving(tmp_path, database, KEYS) as url, httpx.AsyncClient(base_url=url) as client:
        refused = await client.post(END, content=b"x" * 100, headers={"Content-Type": "application/json"})
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"


async def test_who_reads_where_a_conversation_is_posted_is_told_of_the_method(database: str, tmp_path: Path) -> None:
    async with serving(tmp_path, database) as url, httpx.AsyncClient(base_url=url) as client:
        found = await client.get(END)
        assert (found.status_code, found.json()["code"]) == (404, "not_found")
        assert found.json()["detail"] == f"there is no conversation 'end'; to send a conversation to {END}, use POST"
        assert "POST" not in (await client.get("/v1/conversations/other")).json()["detail"]
        assert (await client.post(END, json=ended("end"))).status_code == 202
        assert (await client.get(END)).json()["conversation_id"] == "end"


async def test_another_method_than_those_of_a_path_is_405_and_names_them(database: str, tmp_path: Path) -> None:
    methods: dict[str, set[str]] = {}
    for route in ROUTES:
        path = path_of(route)
        methods.setdefault(path, set()).update({"GET", "HEAD"} if route.method == "get" else {route.method.upper()})
    for posted in (END, f"{END.removesuffix('end')}batch"):
        methods[posted] |= methods["/v1/conversations/known-1"]
    async with serving(tmp_path, database) as url, httpx.AsyncClient(base_url=url) as client:
        for path, allowed in methods.items():
            for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - allowed:
                refused = await client.request(method, path)
                assert (refused.status_code, refused.json()["code"]) == (405, "method_not_allowed"), (method, path)
                assert set(refused.headers["allow"].split(", ")) == allowed, path
                assert all(one in refused.json()["detail"] for one in allowed), path


async def test_the_operations_have_an_address_of_their_own_without_keys(database: str, tmp_path: Path) -> None:
    port = free_port()
    settings = {"auth.keys": "true", "server.operations_port": str(port)}
    async with serving(tmp_path, database, settings) as url, httpx.AsyncClient() as client:
        there = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=there) as operators:
            for route in ROUTES:
                answer = await requested(operators, route, "")
                assert answer.status_code == (200 if route.on_operations else 404), route.name
            for method, path in (("POST", "/livez"), ("GET", "/nothing")):
                assert (await operators.request(method, path)).status_code == 404, path
        for path in ("/metrics", "/debug/tasks"):
            assert (await client.get(url + path)).status_code == 401, path
    async with open_store(database) as postgres:
        assert await ask(postgres, "SELECT count(*) FROM conversation") == 0


async def test_a_key_may_have_a_limit_of_its_own(database: str, tmp_path: Path) -> None:
    async with open_store(database) as postgres:
        slow = await keys.new(postgres, "slow", ["write"], 1.0)
        free = await keys.new(postgres, "free", ["write"], 0)
    async with serving(tmp_path, database, KEYS) as url, httpx.AsyncClient(base_url=url) as client:

        async def post(key: str, number: int) -> int:
            answer = await client.post(END, json=ended(f"limit-{number}"), headers={"Authorization": bearer(key)})
            return answer.status_code

        assert [await post(slow, n) for n in range(3)].count(429) >= 1
        assert [await post(free, n) for n in range(3, 9)] == [202] * 6


async def test_wrong_keys_are_limited_by_the_address_that_the_proxy_names(database: str, tmp_path: Path) -> None:
    async with open_store(database) as postgres:
        good = await keys.new(postgres, "robots", ["write", "read"], 0)
    settings = {
        **KEYS,
        "auth.wrong_keys_burst": "2",
        "auth.wrong_keys_per_second": "0.001",
        "server.trusted_proxies": "127.0.0.1",
    }
    async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url) as client:

        async def answered(key: str, address: str, path: str = END) -> httpx.Response:
            headers = {"Authorization": bearer(key), "X-Forwarded-For": address}
            if path == END:
                return await client.post(END, json=ended("keyed-1"), headers=headers)
            return await client.get(path, headers=headers)

        wrong = f"convo_{'0' * 12}_{'x' * 43}"
        shown = [
            (await answered(wrong, "2001:db8::1")).status_code,
            # A route that the framework answers counts in the same limit, and so does another address of the client.
            (await answered("no key", "[2001:db8::2]:4711", "/v1/conversations")).status_code,
        ]
        assert shown == [401, 401]
        for path in (END, "/v1/conversations", "/metrics"):
            refused = await answered(wrong, "2001:DB8:0:0:ffff::%eth0", path)
            assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
            assert int(refused.headers["retry-after"]) > 100
            assert (await answered(good, "2001:db8::1", path)).status_code in (200, 202), path
        assert (await answered(wrong, "2001:db8:0:1::1")).status_code == 401
        assert (await answered(wrong, "64:ff9b::192.0.2.1")).status_code == 401
        assert (await answered(wrong, "192.0.2.1")).status_code == 401
        assert (await answered(wrong, "::ffff:192.0.2.1")).status_code == 429
