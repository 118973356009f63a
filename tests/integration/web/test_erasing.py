from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import trio

from convo.observe import log_records
from convo.store import keys
from tests.support.audit_rows import audit_rows, hashed_id
from tests.support.fakes import open_model, stuck
from tests.support.making import open_store
from tests.support.running import ended, serving

END = "/v1/conversations/end"
SAID = [{"character": "USER", "content": "I have a dog named Rex. Why do dogs bark?"}]


async def done(client: httpx.AsyncClient, conversation_id: str, **fields: Any) -> None:
    await client.post(END, json=ended(conversation_id, SAID, **fields))
    answer = await client.get(f"/v1/conversations/{conversation_id}", params={"wait": "5"})
    assert answer.json()["state"] == "done"


async def test_an_erased_conversation_is_gone_from_every_answer_and_refused_from_then_on(
    database: str, tmp_path: Path
) -> None:
    async with serving(tmp_path, database) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        await done(client, "talk-1", user_id="mia")
        path = "/v1/conversations/talk-1"
        counted = await client.delete(path, params={"dry_run": "true"})
        assert (counted.status_code, counted.json()["dry_run"], counted.json()["remains"]) == (200, True, [])
        erased = await client.delete(path)
        receipt = erased.json()
        assert (erased.status_code, receipt["repeated"], receipt["kind"]) == (200, False, "conversation")
        assert receipt["removed"] == counted.json()["removed"]
        assert receipt["hmac"] == (await trio.to_thread.run_sync(hashed_id, database, "conversation", "talk-1")).hex()
        assert {"backups", "the write-ahead log"} <= {one["where"] for one in receipt["remains"]}
        again = await client.delete(path)
        assert {**again.json(), "repeated": False} == receipt
        for answer in (
            await client.post(END, json=ended("talk-1", SAID, user_id="mia")),
            await client.get(path),
            await client.get(f"{path}/log"),
            await client.get(f"{path}/explain"),
            await client.post(f"{path}/retry"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (410, "erased"), answer.text
        assert (await client.get("/v1/conversations")).json()["conversations"] == []
        assert (await client.get("/v1/users/mia/memories")).status_code == 404
        assert (await client.delete("/v1/conversations/talk-2")).status_code == 404
        assert (await client.delete(path, params={"dry_run": "maybe"})).status_code == 422


async def test_an_erased_user_is_gone_and_may_come_back(database: str, tmp_path: Path) -> None:
    async with serving(tmp_path, database) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        for n in range(3):
            await done(client, f"mia-{n}", user_id="mia")
        await done(client, "tom-1", user_id="tom")
        answer = await client.delete("/v1/users/mia")
        assert (answer.status_code, answer.json()["removed"]["conversation"]) == (200, 3)
        assert (await client.get("/v1/users/mia/relationship")).status_code == 404
        assert (await client.get("/v1/users/tom/relationship")).status_code == 200
        late = ended("mia-9", SAID, user_id="mia", end_time="2026-01-01T00:00:00Z")
        assert (await client.post(END, json=late)).json()["code"] == "erased"
        await done(client, "mia-10", user_id="mia")
        assert (await client.get("/v1/users/mia/relationship")).json()["conversations"] == 1


async def test_only_a_key_of_the_scope_erase_erases_and_the_audit_log_names_it(database: str, tmp_path: Path) -> None:
    async with open_store(database) as postgres:
        made = {scope: await keys.new(postgres, scope, [scope], 0) for scope in keys.SCOPES}
    by = {scope: {"Authorization": f"Bearer {key}"} for scope, key in made.items()}
    async with (
        serving(tmp_path, database, {"auth.keys": "true"}) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        await client.post(END, json=ended("talk-1", SAID, user_id="mia"), headers=by["write"])
        for scope in ("read", "write", "admin"):
            for path in ("/v1/conversations/talk-1", "/v1/users/mia"):
                assert (await client.delete(path, headers=by[scope])).status_code == 403
        assert (await client.get("/v1/conversations/talk-1", headers=by["erase"])).status_code == 403
        assert (await client.delete("/v1/conversations/talk-1", headers=by["erase"])).status_code == 200
    rows = [row for row in await trio.to_thread.run_sync(audit_rows, database) if row["action"] == "erase"]
    assert [row["key_id"] for row in rows] == [made["erase"].split("_")[1]]


async def test_work_on_an_erased_conversation_stops_at_once_in_the_same_process(database: str, tmp_path: Path) -> None:
    seen: list[Any] = []
    async with open_model() as model:
        model.always = stuck
        settings = {"llm.base_url": model.url, "llm.model": "fake", "llm.api_key": "k"}
        async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            await client.post(END, json=ended("talk-1", SAID))
            await model.until(lambda server: len(server.work) > 0)
            with log_records.record_observers.adding(lambda *record: seen.append(record)):
                # A waiting reader learns of it, too.
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiting, client, seen)
                    await trio.sleep(0.2)
                    erased = await client.delete("/v1/conversations/talk-1")
            assert erased.json()["removed"]["job"] == 1
    assert "lease_lost" in str(seen)
    assert 410 in seen


async def waiting(client: httpx.AsyncClient, seen: list[Any]) -> None:
    answer = await client.get("/v1/conversations/talk-1", params={"wait": "5"})
    seen.append(answer.status_code)
