from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from convo.store import audit_queue, keys
from convo.store.audit_queue import AuditQueue
from convo.store.postgres import Postgres
from tests.support.audit_rows import audit_rows, audit_rows_soon, hashed_id
from tests.support.fakes import failing, open_model
from tests.support.making import open_store
from tests.support.running import ended, eventually, query, serving

AUDIT_LOG, END = "/v1/audit-log", "/v1/conversations/end"
KEYS = {"auth.keys": "true"}
MARKER = "marker-4711"
SAID = [{"character": "USER", "content": f"I am {MARKER}."}, {"character": "BOT", "content": f"Hello, {MARKER}!"}]
DEAD = {
    **KEYS,
    "jobs.attempts_max": "1",
    "llm.attempts": "1",
    "llm.model": "fake",
    "web.request_seconds": "3600",
    "ladder.gateway_seconds": "3700",
    "server.trusted_proxies": "127.0.0.1",
}
START = ("start", "key_made")


class Keyed:
    """The headers of each scope's key, with an address behind a proxy."""

    def __init__(self, made: dict[str, str]) -> None:
        self.headers = {scope: {"Authorization": f"Bearer {key}"} for scope, key in made.items()}
        self.ids = {scope: key.split("_")[1] for scope, key in made.items()}


async def keyed(database: str) -> Keyed:
    async with open_store(database) as postgres:
        return Keyed({scope: await keys.new(postgres, scope, [scope], 0) for scope in keys.SCOPES})


@asynccontextmanager
async def opened(
    database: str, data_dir: Path, settings: dict[str, str]
) -> AsyncIterator[tuple[httpx.AsyncClient, Keyed]]:
    by = await keyed(database)
    async with serving(data_dir, database, settings) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client, by


async def rows(database: str, *without: str) -> list[dict[str, Any]]:
    return await trio.to_thread.run_sync(audit_rows, database, *without)


async def test_each_form_of_reading_a_log_is_one_row_with_its_key_and_address(database: str, tmp_path: Path) -> None:
    proxied = {**KEYS, "server.trusted_proxies": "127.0.0.1"}
    async with opened(database, tmp_path, proxied) as (client, by):
        await client.post(END, json=ended("talk-1", SAID, user_id="user-9"), headers=by.headers["write"])
        reader = {**by.headers["read"], "X-Forwarded-For": "2001:db8:1:2::7"}
        path = "/v1/conversations/talk-1/log"
        first = await client.get(path, headers=reader)
        sent = await client.get(path, params={"as": "sent"}, headers=reader)
        page = await client.get(path, params={"limit": "1"}, headers=reader)
        same = await client.get(path, headers={**reader, "If-None-Match": first.headers["etag"]})
        assert [one.status_code for one in (first, sent, page, same)] == [200, 200, 200, 304]
        assert MARKER in sent.text
        # What was not read is not noted.
        assert (await client.get("/v1/conversations/unknown/log", headers=reader)).status_code == 404
        assert (await client.get(path, params={"as": "song"}, headers=reader)).status_code == 422
        assert (await client.get(path, headers=by.headers["write"])).status_code == 403
        assert (await client.get("/v1/conversations/talk-1", headers=reader)).status_code == 200
        await audit_rows_soon(database, 4, *START)
    found = await rows(database, *START)
    assert [(row["action"], row["key_id"], row["address"]) for row in found] == 4 * [
        ("log_read", by.ids["read"], "2001:db8:1:2::/64")
    ]
    assert [row["detail"] for row in found] == [None, '{"as": "sent"}', None, None]
    talk = await trio.to_thread.run_sync(hashed_id, database, "conversation", "talk-1")
    user = await trio.to_thread.run_sync(hashed_id, database, "user", "user-9")
    assert {(row["target_kind"], row["target"], row["of_user"]) for row in found} == {("conversation", talk, user)}


async def test_a_dead_letter_is_retried_and_reviewed_with_a_row_each_and_no_text_or_id_stands_in_any(
    database: str, tmp_path: Path
) -> None:
    async with open_model() as model:
        model.always = failing("413", "too_long")
        async with opened(database, tmp_path, {**DEAD, "llm.base_url": model.url}) as (client, by):
            writer, reader = by.headers["write"] | {"X-Forwarded-For": "192.0.2.7"}, by.headers["read"]

            async def until_dead(name: str) -> None:
                answer = await client.get(f"/v1/conversations/{name}", params={"wait": "3000"}, headers=reader)
                assert answer.json()["state"] == "dead"

            for name in ("talk-one", "talk-two"):
                await client.post(END, json=ended(name, SAID, user_id="user-nine"), headers=writer)
                await until_dead(name)
            assert (await client.get("/v1/conversations/talk-one/log", headers=reader)).status_code == 200
            for what, status in (("acknowledge", 200), ("retry", 202)):
                answer = await client.post(f"/v1/conversations/talk-one/{what}", headers=writer)
                assert answer.status_code == status
            await until_dead("talk-one")
            assert (await client.post("/v1/conversations/unknown/retry", headers=writer)).status_code == 404
            for dry_run, reason in (("true", ""), ("false", MARKER), ("false", "413")):
                asked = {"dry_run": dry_run, "reason": reason}
                answer = await client.post("/v1/dead-letters/retry", params=asked, headers=writer)
                assert answer.status_code == 202
            for name in ("talk-one", "talk-two"):
                await until_dead(name)
            await audit_rows_soon(database, 5, *START)
    found = await rows(database, *START)
    assert sorted(row["action"] for row in found) == ["acknowledge", "log_read", "retry", "retry", "retry"]
    assert {(row["key_id"], row["address"]) for row in found if row["action"] != "log_read"} == {
        (by.ids["write"], "192.0.2.7")
    }
    text = str(await trio.to_thread.run_sync(query, database, "SELECT audit_log::text FROM audit_log"))
    for word in (MARKER, "talk-one", "talk-two", "user-nine"):
        assert word not in text
        assert word.encode().hex() not in text


async def test_a_start_is_one_row_with_the_settings_that_differ_and_no_secret(database: str, tmp_path: Path) -> None:
    settings = {
        "jobs.workers": "3",
        "llm.model": "fake",
        "llm.api_key": "sk-sekrit",
        "llm.base_url": "http://127.0.0.1:1",
    }
    async with serving(tmp_path, database, settings):
        (row,) = await rows(database)
    assert await rows(database) == [row]
    assert (row["action"], row["key_id"], row["address"], row["target"]) == ("start", None, None, None)
    detail = json.loads(row["detail"])
    assert detail["settings"]["jobs.workers"] == 3
    assert detail["settings"]["llm.base_url"] == "http://127.0.0.1:1"
    assert set(detail["not_shown"]) == {"llm.api_key", "database.url"}
    assert "sekrit" not in row["detail"]
    assert detail["process"].partition("/")[0]
    assert detail["version"]


async def test_the_log_is_read_by_an_admin_page_by_page_and_by_the_ids_themselves(
    database: str, tmp_path: Path
) -> None:
    async with opened(database, tmp_path, KEYS) as (client, by):
        admin, reader = by.headers["admin"], by.headers["read"]
        for number in (1, 2):
            body = ended(f"talk-{number}", SAID, user_id=f"user-{number}")
            await client.post(END, json=body, headers=by.headers["write"])
        for number in (1, 2, 1):
            await client.get(f"/v1/conversations/talk-{number}/log", headers=reader)
        await audit_rows_soon(database, 3, *START)
        assert (await client.get(AUDIT_LOG, headers=reader)).status_code == 403

        async def asked(**query: str) -> Any:
            answer = await client.get(AUDIT_LOG, params=query, headers=admin)
            assert answer.status_code == 200, answer.text
            return answer.json()

        whole = await asked()
        assert [one["action"] for one in whole["entries"]] == [*3 * ["log_read"], "start", *5 * ["key_made"]]
        assert whole["next_cursor"] is None
        first = await asked(limit="5")
        rest = await asked(limit="5", cursor=first["next_cursor"])
        assert first["entries"] + rest["entries"] == whole["entries"]
        assert len((await asked(conversation_id="talk-1"))["entries"]) == 2
        assert len((await asked(user_id="user-2"))["entries"]) == 1
        assert len((await asked(key_id=by.ids["read"]))["entries"]) == 3
        assert len((await asked(action="start"))["entries"]) == 1
        assert (await asked(since="2200-01-01T00:00:00Z"))["entries"] == []
        (one,) = (await asked(user_id="user-2"))["entries"]
        assert one["target"] == (await trio.to_thread.run_sync(hashed_id, database, "conversation", "talk-2")).hex()
        assert one["address"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "value"),
    [("action", "fly"), ("since", "yesterday"), ("limit", "0"), ("cursor", "x"), ("user_id", "\x00"), ("user", "me")],
)
def test_what_is_no_filter_of_the_audit_log_is_422_with_its_name(client: httpx.Client, name: str, value: str) -> None:
    answer = client.get(AUDIT_LOG, params={name: value})
    assert (answer.status_code, answer.json()["path"]) == (422, name)


async def test_reads_are_refused_while_they_cannot_be_noted_and_noted_once_they_can(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_queue, "ENTRIES_MAX", 2)
    run = Postgres.run
    broken = True

    async def full(self: Postgres, name: str, body: Any, **options: Any) -> Any:
        if name == "db.audit_rows" and broken:
            name, body = "db.audit_rows", _no_room
        return await run(self, name, body, **options)

    async with serving(tmp_path, database) as url, httpx.AsyncClient(base_url=url) as client:
        await client.post(END, json=ended("talk-1"))
        monkeypatch.setattr(Postgres, "run", full)
        path = "/v1/conversations/talk-1/log"
        statuses = [(await client.get(path)).status_code for _ in range(3)]
        assert statuses == [200, 200, 503]
        refused = await client.get(path)
        assert (refused.json()["code"], refused.headers["retry-after"]) == ("overloaded", "5")
        # Nothing else waits for the audit log.
        assert (await client.post(END, json=ended("talk-2"))).status_code == 202
        assert (await client.get("/v1/conversations/talk-1")).status_code == 200
        broken = False
        await audit_rows_soon(database, 2, "start")
        assert (await client.get(path)).status_code == 200
        await audit_rows_soon(database, 3, "start")
    assert len(await rows(database, "start")) == 3


async def _no_room(connection: Any) -> None:
    await connection.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100'; END $$")


async def test_reads_leave_no_row_where_they_are_not_to_be_noted(database: str, tmp_path: Path) -> None:
    off = {"audit_log.reads": "false"}
    async with serving(tmp_path, database, off) as url, httpx.AsyncClient(base_url=url) as client:
        await client.post(END, json=ended("talk-1"))
        assert (await client.get("/v1/conversations/talk-1/log")).status_code == 200
        await trio.sleep(2 * audit_queue.GATHER_SECONDS)
    assert await rows(database, "start") == []


def test_a_cursor_is_the_number_of_the_last_row(client: httpx.Client) -> None:
    cursor = base64.urlsafe_b64encode(b"1").decode().rstrip("=")
    assert client.get(AUDIT_LOG, params={"cursor": cursor}).json()["entries"] == []


async def test_a_database_that_went_back_is_no_new_start_and_its_numbers_are_drawn_anew(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = []
    forget = AuditQueue.forget_numbers

    def noted(self: AuditQueue) -> None:
        forgotten.append(True)
        forget(self)

    monkeypatch.setattr(AuditQueue, "forget_numbers", noted)
    quick = {"jobs.heartbeat_seconds": "0.2", "jobs.lease_seconds": "6"}
    async with serving(tmp_path, database, quick) as url, httpx.AsyncClient(base_url=url) as client:
        await trio.to_thread.run_sync(query, database, "UPDATE history SET generation = 'another'")
        await eventually(lambda: forgotten)
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110
            await trio.sleep(0.02)
        assert (await client.post(END, json=ended("talk-1"))).status_code == 202
        assert (await client.get("/v1/conversations/talk-1/log")).status_code == 200
        await audit_rows_soon(database, 2)
    assert [row["action"] for row in await rows(database)] == ["start", "log_read"]
