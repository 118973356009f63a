from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from convo.store.table_sizes import read_surroundings
from tests.support.making import open_store
from tests.support.running import serving

END = "/v1/conversations/end"
QUICK = {"capacity.sample_seconds": "0.1", "capacity.window_seconds": "60"}
SAID = [{"character": "USER", "content": "I like tea. Why is it hot?"}]


def posted(number: int) -> dict[str, Any]:
    return {"conversation_id": f"c-{number:03}", "user_id": "user-1", "bot_id": "bot", "conversation_log": SAID}


async def test_what_a_process_has_done_is_what_it_forecasts_from(database: str, tmp_path: Path) -> None:
    async with serving(tmp_path, database, QUICK) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        for number in range(12):
            assert (await client.post(END, json=posted(number))).status_code == 202

        async def report() -> dict[str, Any]:
            answer = await client.get("/v1/capacity", params={"target": "500/s", "conversations": "1000"})
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            return found

        found = await report()
        while not found["measured"]["accepted"] == found["measured"]["analysed"] == 12:
            await trio.sleep(0.1)
            found = await report()
        assert not found["measured"]["enough"]
        assert "too few" in found["measured"]["note"]
        names = {one["name"] for one in found["resources"]}
        assert {"interpreter", "committer", "pace", "workers"} <= names
        assert found["analyses"]["per_second"] > 0
        assert found["processes"] == 1
        assert found["many"]["analyse_seconds"] == pytest.approx(1000 / found["analyses"]["per_second"])
        assert found["plan"]["processes"] >= 1
        assert found["conversation"]["stored_bytes"] > 100
        assert 0 <= found["load_ratio"] < 100
        assert "convo_load_ratio NaN" not in (await client.get("/metrics")).text
        wrong = await client.get("/v1/capacity", params={"target": "500"})
        assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid")
        assert "write 500/s" in wrong.json()["detail"]
        assert (await client.get("/v1/capacity", params={"conversations": "0"})).status_code == 422


async def test_switched_off_nothing_is_measured_and_that_is_answered(database: str, tmp_path: Path) -> None:
    settings = {"capacity.sample_seconds": "0"}
    async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        answer = await client.get("/v1/capacity")
        assert answer.status_code == 404
        assert "capacity.sample_seconds is 0" in answer.json()["detail"]


async def test_the_database_says_how_much_is_stored_and_how_many_connections_it_has(database: str) -> None:
    async with open_store(database) as postgres:
        found = await read_surroundings(postgres, 10)
    assert (found.processes, found.stored.conversations) == (0, 0)
    assert found.stored.bytes > 100_000, "an empty schema has its indexes"
    assert found.connections == 10 + 14
    assert found.connections_spare > 10
