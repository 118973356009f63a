from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.integration.rabbitmq.test_intake import queue_of_conversations, until_declared
from tests.integration.web.test_batch import answers, lines_of
from tests.support.brokers import URL, needs_broker
from tests.support.making import ended, open_store, rows
from tests.support.running import serving

END = "/v1/conversations/end"
SAID = ("Hello!", "Hi!", "Why do dogs bark?", "They talk.", "How far is the moon?", "Far.")


def body(turns: int, conversation_id: str = "talk-1", **fields: Any) -> dict[str, Any]:
    return ended(conversation_id, said=SAID[:turns], **fields)


@asynccontextmanager
async def at(folder: Path, database: str, **settings: str) -> AsyncIterator[httpx.AsyncClient]:
    given = {"intake.revisions": "true", "jobs.workers": "0", **settings}
    async with serving(folder, database, given) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


async def test_a_revision_has_a_receipt_that_leads_to_it_and_any_can_be_read(database: str, tmp_path: Path) -> None:
    async with at(tmp_path, database) as client:
        first, second, third = [await client.post(END, json=body(turns)) for turns in (2, 4, 6)]
        assert "revision" not in first.json()
        assert [(one.json()["revision"], one.json()["turns"]) for one in (second, third)] == [(2, 4), (3, 6)]
        assert second.headers["location"] == "/v1/conversations/talk-1?revision=2"
        for turns, receipt in ((2, first), (4, second), (6, third)):
            again = await client.post(END, json=body(turns))
            assert (again.json(), again.headers["idempotent-replayed"]) == (receipt.json(), "true")
        newest = (await client.get("/v1/conversations/talk-1")).json()
        assert (newest["revision"], newest["turns"], newest["state"]) == (3, 6, "ready")
        found = (await client.get(second.headers["location"])).json()
        assert (found["revision"], found["turns"], found["state"]) == (2, 4, "superseded")
        assert found["links"] == second.json()["links"]
        log = (await client.get(found["links"]["log"])).json()
        assert [turn["text"] for turn in log["turns"]] == list(SAID[:4])
        sent = (await client.get("/v1/conversations/talk-1/log?revision=1&as=sent")).json()
        assert sent == body(2)["conversation_log"]
        listed = (await client.get("/v1/conversations")).json()["conversations"]
        assert [(one["conversation_id"], one["turns"]) for one in listed] == [("talk-1", 6)]


@pytest.mark.parametrize("revision", ["0", "x", "1.5", "-1", ""])
async def test_a_revision_that_is_no_number_is_422(database: str, tmp_path: Path, revision: str) -> None:
    async with at(tmp_path, database) as client:
        for path in ("/v1/conversations/talk-1", "/v1/conversations/talk-1/log"):
            answer = await client.get(path, params={"revision": revision})
            assert (answer.status_code, answer.json()["path"]) == (422, "revision")


async def test_a_revision_that_is_not_there_is_404_and_says_so(database: str, tmp_path: Path) -> None:
    async with at(tmp_path, database) as client:
        await client.post(END, json=body(2))
        answer = await client.get("/v1/conversations/talk-1?revision=2")
        assert (answer.status_code, answer.json()["detail"]) == (404, "conversation 'talk-1' has no revision 2")


async def test_with_the_setting_off_a_longer_log_is_409_whose_detail_names_it(database: str, tmp_path: Path) -> None:
    async with at(tmp_path, database, **{"intake.revisions": "false"}) as client:
        await client.post(END, json=body(2))
        answer = await client.post(END, json=body(4))
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert "intake.revisions" in answer.json()["detail"]


async def test_a_batch_stores_revisions_of_one_id_in_their_order(database: str, tmp_path: Path) -> None:
    async with at(tmp_path, database) as client:
        lines = lines_of(body(2), body(2, "talk-2"), body(4), body(4), body(6), body(2), {**body(6), "user_id": "u-2"})
        response = await client.post(
            "/v1/conversations/batch", content=lines, headers={"Content-Type": "application/x-ndjson"}
        )
        one, other, two, again, three, first, conflict = answers(response)
        assert [found.get("revision") for found in (one, other, two, three)] == [None, None, 2, 3]
        assert again == {**two, "replayed": True}
        assert first == {**one, "replayed": True}
        assert (conflict["status"], "user or bot" in conflict["detail"]) == (409, True)


@needs_broker
async def test_a_queue_stores_revisions_too(database: str, tmp_path: Path) -> None:
    async with queue_of_conversations() as (client, queue):
        settings = {"rabbitmq.url": URL, "rabbitmq.intake_queue": queue}
        async with at(tmp_path, database, **settings):
            await until_declared(client, queue)
            await client.sent(queue, *(json.dumps(body(turns)).encode() for turns in (2, 4, 6, 4)))
            async with open_store(database) as postgres:
                with trio.fail_after(15):
                    while len(await rows(postgres, "SELECT FROM conversation")) < 3:  # noqa: ASYNC110
                        await trio.sleep(0.05)
                found = await rows(postgres, "SELECT turns, revised_by IS NULL FROM conversation ORDER BY seq")
        assert found == [(2, False), (4, False), (6, True)]


async def test_a_wait_goes_on_for_the_newer_revision(database: str, tmp_path: Path) -> None:
    async with at(tmp_path, database) as client:
        await client.post(END, json=body(2))
        found: dict[str, Any] = {}

        async def wait() -> None:
            found.update((await client.get("/v1/conversations/talk-1?wait=3")).json())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.3)
            began = trio.current_time()
            await client.post(END, json=body(4))
        assert trio.current_time() - began > 2
        assert (found["revision"], found["state"]) == (2, "ready")
