from __future__ import annotations

from pathlib import Path

import httpx
import trio

from convo.conversation.model import CANARY_USER
from convo.observe import metrics
from tests.support.running import ended, query, serving

BOOKS = {"accepted": 1, "done": 1}


async def test_canaries_go_the_whole_way_and_are_in_no_list_and_no_relationship(tmp_path: Path, database: str) -> None:
    returned = metrics.canaries_total.labels("returned")
    before, flown = returned.value, sum(metrics.canary_seconds.counts)
    settings = {"canary.enabled": "true", "canary.interval_seconds": "0.05", "jobs.poll_seconds": "0.05"}
    async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url) as client:
        with trio.fail_after(30):
            while returned.value < before + 3:
                await trio.sleep(0.02)
                assert (await client.get("/v1/conversations")).json()["conversations"] == []
        for what in ("relationship", "memories"):
            assert (await client.get(f"/v1/users/{CANARY_USER}/{what}")).status_code == 404
    assert sum(metrics.canary_seconds.counts) >= flown + 3
    left = await trio.to_thread.run_sync(query, database, "SELECT count(*) FROM conversation")
    assert left[0]["count"] <= 1


async def test_nobody_may_be_the_canaries_user(tmp_path: Path, database: str) -> None:
    async with serving(tmp_path, database) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/v1/conversations/end", json=ended("c-1", user_id=CANARY_USER))
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["path"]) == (422, "invalid", "$.user_id")
        assert problem["conversation_id"] == "c-1"
