from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from convo.conversation.model import CANARY_USER
from convo.observe import metrics
from convo.store import canaries, ledger
from tests.making import Process, ask, open_line, open_process, rows, shift_clock
from tests.running import ended, query, serving

BOOKS = {"accepted": 1, "done": 1}


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def settled(process: Process, conversation_id: str, **fields: Any) -> None:
    await process.accepted(conversation_id, **fields)
    (lease,) = await process.jobs.lease(1)
    await process.settler.settle(await process.analysed(lease))


async def balanced(process: Process) -> bool:
    async with open_line(process.postgres) as line:
        return await ledger.gaps(line) == [] and await ledger.anomalies(line) == []


async def test_an_erased_canary_leaves_nothing_and_the_books_balance(process: Process) -> None:
    await settled(process, "talk-1", user_id="mia")
    await settled(process, "canary-1", user_id=CANARY_USER)
    assert await balanced(process)
    assert await canaries.erase(process.postgres, ["canary-1"]) == 1
    assert await balanced(process)
    assert await ledger.totals(process.postgres) == BOOKS
    for table in ("conversation", "conversation_log", "job", "relationship"):
        assert await ask(process.postgres, f"SELECT count(*) FROM {table}") == 1, table
    assert await rows(process.postgres, "SELECT DISTINCT user_id FROM memory") == [("mia",)]
    assert await ask(process.postgres, "SELECT count(*) FROM part") == 3


async def test_a_canary_that_died_is_erased_and_one_under_way_is_not(process: Process) -> None:
    await process.accepted("canary-1", user_id=CANARY_USER)
    assert await canaries.erase(process.postgres, ["canary-1"]) == 0
    (lease,) = await process.jobs.lease(1)
    for _ in range(process.settings.jobs.attempts_max):
        if await process.jobs.fail(lease, "why", {}, later=0):
            break
        (lease,) = await process.jobs.lease(1)
    assert await canaries.erase(process.postgres, ["canary-1"]) == 1
    assert await balanced(process)
    assert await ledger.totals(process.postgres) == {"accepted": 0, "dead": 0}


async def test_one_of_two_canaries_goes_and_the_others_score_stays(process: Process) -> None:
    await settled(process, "canary-1", user_id=CANARY_USER)
    await settled(process, "canary-2", user_id=CANARY_USER)
    assert await canaries.erase(process.postgres, ["canary-1"]) == 1
    assert await balanced(process)
    assert await rows(process.postgres, "SELECT user_id, conversations FROM relationship") == [(CANARY_USER, 1)]


async def test_what_a_dead_process_left_is_erased_after_an_hour(process: Process) -> None:
    await settled(process, "canary-1", user_id=CANARY_USER)
    assert await canaries.erase(process.postgres, []) == 0
    await shift_clock(process.postgres, "61 minutes")
    assert await canaries.erase(process.postgres, []) == 1


async def test_no_conversation_of_anybody_else_is_ever_erased(process: Process) -> None:
    await settled(process, "talk-1")
    await shift_clock(process.postgres, "2 hours")
    assert await canaries.erase(process.postgres, ["talk-1"]) == 0


async def test_canaries_go_the_whole_way_and_are_in_no_list_and_no_relationship(tmp_path: Path, database: str) -> None:
    returned = metrics.canaries_total.labels("returned")
    before, flown = returned.value, sum(metrics.canary_seconds.counts)
    settings = {"canary.enabled": "true", "canary.interval_seconds": "0.05", "jobs.poll_seconds": "0.05"}
    async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url) as client:
        with trio.fail_after(30):
            while returned.value < before + 3:
                await trio.sleep(0.02)
                assert (await client.get("/v1/conversations")).json()["conversations"] == []
        shown = (await client.get(f"/v1/users/{CANARY_USER}/relationship")).json()
        assert (shown["score"], shown["conversations"], shown["bots"]) == (0, 0, [])
        assert (await client.get(f"/v1/users/{CANARY_USER}/memories")).json()["memories"] == []
    assert sum(metrics.canary_seconds.counts) >= flown + 3
    left = await trio.to_thread.run_sync(query, database, "SELECT count(*) FROM conversation")
    assert left[0]["count"] <= 1


async def test_nobody_may_be_the_canaries_user(tmp_path: Path, database: str) -> None:
    async with serving(tmp_path, database) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/v1/conversations/end", json=ended("c-1", user_id=CANARY_USER))
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["path"]) == (422, "invalid", "$.user_id")
        assert problem["conversation_id"] == "c-1"
