"""What a browser can do with a whole service, for a page of another site and for one of our own."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from convo.store import keys
from tests.support.asking import ask
from tests.support.doors import END
from tests.support.making import open_store
from tests.support.ports import free_port
from tests.support.running import ended, serving

PAGE = "https://admin.example.com"
EVIL = "https://evil.example"
SIMPLE = {"Origin": EVIL, "Sec-Fetch-Site": "cross-site", "Content-Type": "application/json"}


async def test_without_keys_a_page_of_another_site_neither_writes_nor_reads(database: str, tmp_path: Path) -> None:
    async with serving(tmp_path, database, {"jobs.workers": "0"}) as url, httpx.AsyncClient(base_url=url) as client:
        posted = await client.post(END, json=ended("csrf-1"), headers=SIMPLE)
        assert (posted.status_code, posted.json()["code"]) == (403, "cross_site")
        assert "server.cors_origins" in posted.json()["detail"]
        for path in ("/v1/conversations", "/v1/alerts", "/metrics", "/debug/tasks", "/readyz", "/docs", "/nothing"):
            found = {
                (await client.get(path, headers=fields)).json()["code"]
                for fields in ({"Origin": EVIL}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"})
            }
            assert found == {"cross_site"}, path
            forged = {"X-Forwarded-Host": "localhost", "Forwarded": "host=localhost", "Origin": "http://evil.example"}
            rebound = await client.get(path, headers=forged | {"Host": "evil.example", "Sec-Fetch-Site": "same-origin"})
            assert (rebound.status_code, rebound.json()["code"]) == (403, "unknown_host"), path
        preflight = await client.options(END, headers={"Origin": EVIL, "Access-Control-Request-Method": "POST"})
        assert preflight.status_code == 403
        assert not [name for name in (*posted.headers, *preflight.headers) if name.startswith("access-control")]
        assert (await client.post(END, json=ended("server-1"))).status_code == 202
    assert await ask(database, "SELECT array_agg(conversation_id) FROM conversation") == [["server-1"]]


async def test_with_keys_a_page_has_none_and_names_are_the_gateways(database: str, tmp_path: Path) -> None:
    settings = {"auth.keys": "true", "jobs.workers": "0"}
    async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.post(END, json=ended("csrf-1"), headers=SIMPLE)).status_code == 401
        answer = await client.get("/livez", headers={"Host": "convo.example.com", "Origin": EVIL})
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers


async def test_the_operations_are_read_by_no_page_with_keys_either(database: str, tmp_path: Path) -> None:
    port = free_port()
    settings = {"auth.keys": "true", "server.operations_port": str(port), "server.cors_origins": PAGE}
    async with serving(tmp_path, database, settings), httpx.AsyncClient() as client:
        for path in ("/metrics", "/debug/tasks", "/livez", "/readyz"):
            there = f"http://127.0.0.1:{port}{path}"
            assert (await client.get(there)).status_code == 200
            for fields in ({"Host": "evil.example"}, {"Origin": EVIL}, {"Origin": PAGE}):
                assert (await client.get(there, headers=fields)).status_code == 403, (path, fields)


async def test_a_page_of_an_allowed_origin_uses_a_key(database: str, tmp_path: Path) -> None:
    settings = {"auth.keys": "true", "server.cors_origins": PAGE, "server.hosts": "convo.example.com"}
    async with open_store(database) as postgres:
        key = await keys.new(postgres, "admin", ["write", "read"], 0)
    async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url) as client:
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        preflight = await client.options(END, headers={"Origin": PAGE, **asks})
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, PAGE)
        assert preflight.headers["access-control-allow-methods"] == "DELETE, GET, HEAD, POST"
        assert {"Authorization", "Content-Type"} <= set(preflight.headers["access-control-allow-headers"].split(", "))
        page = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site", "Host": "convo.example.com"}
        told = page | {"Authorization": f"Bearer {key}"}
        for status, answer in (
            (202, await client.post(END, json=ended("page-1"), headers=told)),
            (200, await client.get("/v1/conversations/page-1", headers=told)),
            (422, await client.post(END, json={}, headers=told)),
            (404, await client.get("/nothing", headers=told)),
            (401, await client.post(END, json=ended("page-2"), headers=page)),
        ):
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert answer.headers["vary"] == "Origin"
        for origin in (EVIL, "null"):
            other = await client.options(END, headers={"Origin": origin, **asks})
            assert (other.status_code, other.headers["vary"]) == (405, "Origin")
            assert "access-control-allow-origin" not in other.headers
        assert (await client.get("/livez", headers={"Host": "evil.example"})).status_code == 403


@pytest.mark.parametrize("path", ["/docs", "/docs/ladder", "/livez", "/nothing", "/v1/conversations", END])
async def test_no_answer_is_taken_for_another_type_and_no_page_is_framed(
    path: str, database: str, tmp_path: Path
) -> None:
    async with serving(tmp_path, database, {"jobs.workers": "0"}) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await (client.post(path, json=ended("one")) if path == END else client.get(path))
        assert answer.headers["x-content-type-options"] == "nosniff"
        if not path.startswith("/docs"):
            return
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert re.fullmatch(r"'sha256-[\w+/]+='", policy["script-src"])
        assert answer.headers["x-frame-options"] == "DENY"
