"""Browsers sign in, behind both doors: our own connection, and Quart's under stock hypercorn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from convo import service
from convo.store import keys
from convo.store.page_sessions import end_page_session, list_page_sessions
from convo.store.postgres import Postgres
from tests.support.both_doors import both_doors
from tests.support.making import open_store, rows
from tests.support.ports import free_port
from tests.support.running import ended, loaded_settings

END, SESSION = "/v1/conversations/end", "/v1/session"
ON = {"auth.keys": "true", "auth.refresh_seconds": "0.3", "observe.log_level": "error"}


@asynccontextmanager
async def doors(
    database: str, folder: Path, patch: pytest.MonkeyPatch, settings: dict[str, str] | None = None
) -> AsyncIterator[list[str]]:
    """Serve behind both doors; yield their addresses."""
    port, stock_port = free_port(), free_port()
    patch.setattr(service, "serve_http", both_doors(stock_port))
    ready = trio.Event()
    async with trio.open_nursery() as nursery:
        loaded = loaded_settings(folder, database, ON if settings is None else settings, port=port)
        nursery.start_soon(service.serve, loaded, lambda _: ready.set())
        with trio.fail_after(30):
            await ready.wait()
        yield [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{stock_port}"]
        nursery.cancel_scope.cancel()


async def a_key(postgres: Postgres, name: str, *scopes: Any, **whose: Any) -> str:
    return await keys.new(postgres, name, scopes or ("read", "write"), 0, **whose)


@asynccontextmanager
async def signed_in(url: str, key: str, **headers: str) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.Response]]:
    """Yield a client that has signed in, and how it was answered."""
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        answer = await client.post(SESSION, json={"key": key}, headers=headers)
        assert answer.status_code == 201, answer.text
        yield client, answer


async def test_a_browser_signs_in_works_and_signs_out(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database) as postgres, doors(database, tmp_path, monkeypatch) as urls:
        key = await a_key(postgres, "operator")
        for number, url in enumerate(urls):
            async with signed_in(url, key) as (client, answer):
                session = answer.json()
                cookie = answer.headers["set-cookie"]
                assert key not in cookie + answer.text
                for word in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age="):
                    assert word in cookie
                assert "Secure" not in cookie
                assert (session["name"], session["tenant"], session["bots"], session["keys"]) == (
                    *("operator", "default", None, True),
                )
                assert (session["scopes"], session["key_id"]) == (["read", "write"], key.split("_")[1])
                assert answer.headers["cache-control"] == "no-store"
                assert (await client.get(SESSION)).json() == session
                # It stands for the key, on a route of the connection's own and on the framework's.
                assert (await client.get("/v1/figures")).json()["whole"] is True
                assert (await client.get("/v1/conversations")).status_code == 200
                # What may change something needs the token.
                body = ended(f"session-{number}")
                for path, content in ((END, body), ("/v1/dead-letters/retry", {})):
                    for headers in ({}, {"X-CSRF-Token": "x"}):
                        refused = await client.post(path, json=content, headers=headers)
                        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
                        assert "X-CSRF-Token" in refused.json()["detail"]
                    taken = await client.post(path, json=content, headers={"X-CSRF-Token": session["csrf"]})
                    assert taken.status_code == 202
                # A scope that the key lacks, the session lacks.
                assert (await client.get("/v1/audit-log")).status_code == 403
                assert (await client.delete(SESSION)).status_code == 403
                gone = await client.delete(SESSION, headers={"X-CSRF-Token": session["csrf"]})
                assert (gone.status_code, gone.json()) == (200, {"ended": True})
                assert "Max-Age=0" in gone.headers["set-cookie"]
                named, _, token = cookie.partition(";")[0].partition("=")
                client.cookies.set(named, token)
                over = await client.get("/v1/conversations")
                assert (over.status_code, over.json()["code"]) == (401, "unauthorized")
                assert "Max-Age=0" in over.headers["set-cookie"]
        noted = await rows(
            postgres, "SELECT action, address FROM audit_log WHERE action LIKE 'session%' ORDER BY number"
        )
        assert noted == [("session_made", "127.0.0.1"), ("session_ended", "127.0.0.1")] * 2


async def test_two_convos_on_one_host_name_do_not_sign_each_other_out(
    database: str, empty_database: str, tmp_path: Path
) -> None:
    async with httpx.AsyncClient(timeout=20) as browser, trio.open_nursery() as nursery:
        urls = []
        for number, url in enumerate((database, empty_database)):
            loaded = loaded_settings(tmp_path / str(number), url, ON, port=free_port())
            ready = trio.Event()
            nursery.start_soon(service.serve, loaded, lambda _, ready=ready: ready.set())
            with trio.fail_after(60):
                await ready.wait()
            urls.append(f"http://127.0.0.1:{loaded.server.port}")
        for url, base in zip((database, empty_database), urls, strict=True):
            async with open_store(url) as postgres:
                key = await a_key(postgres, f"of {base}")
            assert (await browser.post(f"{base}{SESSION}", json={"key": key})).status_code == 201
        assert len(browser.cookies) == 2
        shown = [(await browser.get(f"{base}{SESSION}")).json() for base in urls]
        assert [one["name"] for one in shown] == [f"of {base}" for base in urls]
        gone = await browser.delete(f"{urls[0]}{SESSION}", headers={"X-CSRF-Token": shown[0]["csrf"]})
        assert gone.status_code == 200
        assert [(await browser.get(f"{base}/v1/conversations")).status_code for base in urls] == [401, 200]
        nursery.cancel_scope.cancel()


async def test_a_page_of_another_site_gets_nothing_from_a_session(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database) as postgres, doors(database, tmp_path, monkeypatch) as urls:
        key = await a_key(postgres, "operator")
        for url in urls:
            async with signed_in(url, key, Origin=url) as (client, answer):
                csrf = answer.json()["csrf"]
                for headers in (
                    {"Origin": "https://evil.example"},
                    {"Origin": "http://127.0.0.1:1"},
                    {"Sec-Fetch-Site": "cross-site"},
                ):
                    for path in ("/v1/conversations", "/v1/figures", SESSION):
                        refused = await client.get(path, headers=headers)
                        assert (refused.status_code, refused.json()["code"]) == (403, "cross_site"), path
                    refused = await client.delete(SESSION, headers={**headers, "X-CSRF-Token": csrf})
                    assert refused.json()["code"] == "cross_site"
                    refused = await client.post(SESSION, json={"key": key}, headers=headers)
                    assert refused.json()["code"] == "cross_site"
                ours = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
                assert (await client.get("/v1/conversations", headers=ours)).status_code == 200
                # A program with a key may come from anywhere: no browser adds that by itself.
                bearer = {"Origin": "https://evil.example", "Authorization": f"Bearer {key}"}
                assert (await client.get("/v1/conversations", headers=bearer)).status_code == 200
            async with signed_in(url, key, Origin=url.replace("http", "https")) as (_, answer):
                pass
            assert answer.headers["set-cookie"].endswith("; Secure")


async def test_the_session_of_a_tenants_key_reaches_what_the_key_reaches(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database) as postgres, doors(database, tmp_path, monkeypatch) as urls:
        acme = await a_key(postgres, "acme", "read", "write", "admin", tenant="acme")
        bound = await a_key(postgres, "bound", tenant="acme", bots=["pika"])
        beta = await a_key(postgres, "beta", tenant="beta")
        admin = await a_key(postgres, "admin", "read", "admin")
        reader = await a_key(postgres, "reader", "read")
        async with httpx.AsyncClient(base_url=urls[0], timeout=20) as posting:
            for key, name, bot in ((acme, "a-1", "pika"), (acme, "a-2", "tom"), (beta, "b-1", "pika")):
                headers = {"Authorization": f"Bearer {key}"}
                posted = await posting.post(END, json=ended(name, bot_id=bot), headers=headers)
                assert posted.status_code == 202
        for url in urls:
            for key, tenant, ids in ((acme, "acme", ["a-2", "a-1"]), (bound, "acme", ["a-1"]), (beta, "beta", ["b-1"])):
                async with signed_in(url, key) as (client, answer):
                    assert answer.json()["tenant"] == tenant
                    assert answer.json()["bots"] == (["pika"] if key == bound else None)
                    listed = (await client.get("/v1/conversations")).json()["conversations"]
                    assert [one["conversation_id"] for one in listed] == ids
                    assert (await client.get("/v1/alerts")).status_code == 403
                    figures = (await client.get("/v1/figures")).json()
                    assert (figures["whole"], figures["processes"], figures["samples"]) == (False, [], [])
                    assert figures["queue"] is None
            # With several tenants, what shows all takes the scope admin.
            for key, whole in ((reader, False), (admin, True)):
                async with signed_in(url, key) as (client, _):
                    assert (await client.get("/v1/figures")).json()["whole"] is whole


async def test_wrong_keys_at_the_sign_in_count_as_wrong_keys(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**ON, "auth.wrong_keys_burst": "3", "auth.wrong_keys_per_second": "0.01"}
    async with open_store(database) as postgres, doors(database, tmp_path, monkeypatch, settings) as urls:
        key = await a_key(postgres, "operator")
        async with signed_in(urls[0], key) as (client, _):
            wrong = f"convo_{'0' * 12}_{'A' * 43}"
            answers = [(await client.post(SESSION, json={"key": one})).status_code for one in ("x", wrong, "", wrong)]
            assert answers == [401, 401, 401, 429]
            assert (await client.get("/v1/conversations", headers={"Authorization": "Bearer x"})).status_code == 429
            assert (await client.post(SESSION, json={"key": key})).status_code == 201, "a good one passes"
            for body in ({}, {"key": 1}, {"key": key, "more": 1}):
                assert (await client.post(SESSION, json=body)).status_code == 422


async def test_a_session_that_is_revoked_by_command_or_whose_key_is_revoked_is_refused(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database) as postgres, doors(database, tmp_path, monkeypatch) as urls:
        one, other = await a_key(postgres, "one"), await a_key(postgres, "other")
        async with signed_in(urls[0], one) as (first, _), signed_in(urls[1], other) as (second, _):
            found = {session.key.name: session.session_id for session in await list_page_sessions(postgres)}
            await end_page_session(postgres, found["one"])
            await keys.revoke(postgres, other.split("_")[1])
            with trio.fail_after(10):
                for client in (first, second):
                    while (await client.get("/v1/conversations")).status_code != 401:  # noqa: ASYNC110
                        await trio.sleep(0.05)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"auth.keys": "false"}, "asks for no keys"),
        ({"auth.keys": "true", "auth.session_seconds": "0"}, "auth.session_seconds is 0"),
    ],
)
async def test_where_sessions_are_off_the_sign_in_says_so(
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    why: str,
) -> None:
    async with doors(database, tmp_path, monkeypatch, settings) as urls:
        for url in urls:
            async with httpx.AsyncClient(base_url=url, timeout=20) as client:
                answer = await client.get(SESSION)
                assert answer.json() == {"keys": False} if len(settings) == 1 else answer.status_code == 404
                for refused in (await client.post(SESSION, json={"key": "x"}), await client.delete(SESSION)):
                    assert refused.status_code == 404
                    assert why in refused.json()["detail"]


async def test_without_a_session_the_page_learns_that_one_is_needed(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(database) as postgres, doors(database, tmp_path, monkeypatch) as urls:
        key = await a_key(postgres, "operator")
        for url in urls:
            async with httpx.AsyncClient(base_url=url, timeout=20) as client:
                assert (await client.get(SESSION)).status_code == 401
                assert (await client.get("/v1/figures")).status_code == 401
                bearer = {"Authorization": f"Bearer {key}"}
                assert (await client.get(SESSION, headers=bearer)).status_code == 403
