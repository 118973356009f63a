from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from convo.analysis.job_calls import PaidCall
from convo.analysis.llm_usage import Tokens
from convo.errors import DatabaseUnavailable
from convo.observe import metrics
from convo.pipeline import spending
from convo.pipeline.spending import Spending
from convo.settings import NANO
from convo.store import costs
from tests.support import fakes
from tests.support.fakes import Call, Exchange, FakeServer
from tests.support.making import ask, lease, open_process, rows, shift_clock, told
from tests.support.running import ended, serving

PRICES = {"llm.price_in": "1000", "llm.price_out": "2000"}
"""Of a thousandth for a token sent: 700 tokens cost 0.7."""


def settings_for(model: FakeServer, **more: str) -> dict[str, str]:
    usual = {"llm.base_url": f"{model.url}/v1", "llm.model": "m-1", "llm.attempts": "1", "jobs.workers": "2"}
    return {**usual, "jobs.poll_seconds": "0.05", "jobs.backoff_seconds": "0.1", "jobs.heartbeat_seconds": "0.2"} | more


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=15) as client:
        yield client


async def post(client: httpx.AsyncClient, conversation_id: str, **fields: Any) -> str:
    answer = await client.post("/v1/conversations/end", json=ended(conversation_id, **fields))
    assert answer.status_code == 202, answer.text
    link: str = answer.headers["location"]
    return link


def posts(model: FakeServer) -> list[Call]:
    """Return the calls for conversations."""
    return [call for call in model.work if call.method == "POST"]


async def shown(client: httpx.AsyncClient, link: str, key: str, value: object) -> dict[str, Any]:
    """Read a conversation with its cost until a field of it is as wanted."""
    with trio.fail_after(15):
        while True:
            found: dict[str, Any] = (await client.get(link, params={"cost": "1"})).json()
            if found[key] == value:
                return found
            await trio.sleep(0.02)


async def test_what_a_conversation_cost_is_shown_by_part_when_it_is_done(database: str, tmp_path: Path) -> None:
    async with fakes.open_model() as model:
        model.always = fakes.charging("700", "20", "500")
        settings = settings_for(model, **PRICES, **{"llm.price_cached": "100"})
        async with serving(tmp_path, database, settings) as url, client_of(url) as client:
            link = await post(client, "talk-1")
            found = await shown(client, link, "state", "done")
            once = 0.2 + 0.05 + 0.04
            assert found["cost"]["price"] == pytest.approx(once, abs=1e-9)
            assert (found["cost"]["tokens_in"], found["cost"]["tokens_out"]) == (700, 20)
            assert (found["cost"]["tokens_cached"], found["cost"]["complete"]) == (500, True)
            by_part = {part["part"]: part for part in found["cost"]["parts"]}
            assert set(by_part) == {"questions", "emotion"}
            assert by_part["emotion"] == {
                "part": "emotion",
                "by": "m-1/prompt-3",
                "calls": 1,
                "unknown_calls": 0,
                "unpriced_calls": 0,
                "tokens_in": 350,
                "tokens_out": 10,
                "tokens_cached": 250,
                "price": pytest.approx(once / 2),
            }
            assert "cost" not in (await client.get(link)).json()
            assert (await client.get(link, params={"cost": "yes"})).status_code == 422
            scraped = (await client.get("/metrics")).text
    assert re.search(r'convo_llm_tokens_total\{kind="cached",part="emotion",server="llm"\} \d', scraped)
    assert re.search(r'convo_llm_bot_price_total\{bot="[^"]+",tenant="default"\} 0\.\d', scraped)
    assert "convo_llm_spent_today 0.29" in scraped


async def test_answers_that_cannot_be_used_are_paid_for_and_errors_are_not(database: str, tmp_path: Path) -> None:
    nonsense = '{"choices":[{"message":{"content":"no"}}],"usage":{"prompt_tokens":10,"completion_tokens":5}}'
    # By turns, for each attempt at the job.
    faults = [fakes.answering(nonsense), fakes.failing("500")]

    async def at_first(exchange: Exchange) -> None:
        asked = exchange.call.method == "POST" and b"Thank you!" not in exchange.call.body
        await (faults.pop(0) if asked and faults else fakes.charging("700", "20"))(exchange)

    async with fakes.open_model() as model:
        model.always = at_first
        async with serving(tmp_path, database, settings_for(model, **PRICES)) as url, client_of(url) as client:
            found = await shown(client, await post(client, "talk-1"), "state", "done")
    assert [part["calls"] for part in found["cost"]["parts"]] == [2, 2]
    assert len(posts(model)) == 3
    assert (found["cost"]["tokens_in"], found["cost"]["tokens_out"]) == (710, 25)


async def test_tokens_that_a_server_does_not_name_are_unknown(database: str, tmp_path: Path) -> None:
    async with (
        fakes.open_model() as model,
        serving(tmp_path, database, settings_for(model, **PRICES)) as url,
        client_of(url) as client,
    ):
        found = await shown(client, await post(client, "talk-1"), "state", "done")
    cost = found["cost"]
    assert (cost["price"], cost["tokens_in"], cost["complete"]) == (0.0, None, False)
    assert [part["unknown_calls"] for part in cost["parts"]] == [1, 1]


async def test_a_fallback_has_prices_of_its_own_and_stands_in_by(database: str, tmp_path: Path) -> None:
    async with fakes.open_model() as first, fakes.open_model() as backup:
        first.always = fakes.failing("503")
        backup.always = fakes.charging("700", "20")
        more = {
            "llm.fallbacks.backup.base_url": f"{backup.url}/v1",
            "llm.fallbacks.backup.model": "m-2",
            "llm.fallbacks.backup.api_key": "sk-2",
        }
        settings = settings_for(first, **PRICES, **more)
        async with serving(tmp_path, database, settings) as url, client_of(url) as client:
            found = await shown(client, await post(client, "talk-1"), "state", "done")
            ready = (await client.get("/readyz")).json()
        assert {part["by"] for part in found["parts"].values()} == {"m-2/prompt-3", "local/2"}
        assert {part["by"] for part in found["cost"]["parts"]} == {"m-2/prompt-3"}
        assert [part["unpriced_calls"] for part in found["cost"]["parts"]] == [1, 1]
        assert (found["cost"]["price"], found["cost"]["complete"]) == (0.0, False)
        assert set(ready["dependencies"]) == {"database", "llm", "llm.backup"}
        assert "json_schema" in ready["dependencies"]["llm.backup"]["takes"]
        assert all(call.headers["authorization"] == "Bearer sk-2" for call in backup.work)


async def test_a_spent_budget_parks_jobs_without_an_attempt_until_the_next_day(database: str, tmp_path: Path) -> None:
    async with fakes.open_model() as model, open_process(database) as other:
        model.always = fakes.charging("700", "0")
        settings = settings_for(model, **PRICES, **{"llm.daily_budget": "0.6", "alerts.evaluate_seconds": "0.1"})
        async with serving(tmp_path, database, settings) as url, client_of(url) as client:
            await shown(client, await post(client, "talk-1"), "state", "done")
            asked = len(posts(model))
            link = await post(client, "talk-2")
            found = await shown(client, link, "waits_for", "llm")
            assert (found["state"], found["attempts"]) == ("ready", 0)
            why = (await client.get(f"{link}/explain")).json()
            assert why["cause"]["kind"] == "parked"
            assert "llm.daily_budget = 0.6 is spent: 0.7000" in why["cause"]["sentence"]
            assert "no attempt is spent" in why["cause"]["sentence"]
            assert "until 00:00 UTC" in why["here"]
            (warning,) = (await client.get("/readyz")).json()["warnings"]
            assert warning.startswith("LLM_BUDGET_SPENT: llm.daily_budget = 0.6 is spent")
            with trio.fail_after(10):
                while "LLM_BUDGET_SPENT" not in (await client.get("/v1/alerts")).text:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            await trio.sleep(1)
            assert len(posts(model)) == asked, "nothing is called"
            assert await ask(other.postgres, "SELECT count(*) FROM run WHERE ending = 'park'") == 1
            left = (await costs.read_day(other.postgres)).seconds_left
            await shift_clock(other.postgres, f"{left + 1} seconds")
            found = await shown(client, link, "state", "done")
            assert (found["attempts"], found["cost"]["tokens_in"]) == (1, 700)


async def test_all_processes_on_a_database_share_the_sum_and_a_higher_budget_goes_on(
    database: str, tmp_path: Path
) -> None:
    async with fakes.open_model() as model:
        model.always = fakes.charging("700", "0")
        first = settings_for(model, **PRICES, **{"llm.daily_budget": "0.6"})
        async with serving(tmp_path / "one", database, first) as url, client_of(url) as client:
            await shown(client, await post(client, "talk-1"), "state", "done")
        asked = len(posts(model))
        async with serving(tmp_path / "two", database, first) as url, client_of(url) as client:
            link = await post(client, "talk-2")
            await shown(client, link, "waits_for", "llm")
            assert len(posts(model)) == asked, "another process has spent it"
        raised = first | {"llm.daily_budget": "100"}
        async with serving(tmp_path / "three", database, raised) as url, client_of(url) as client:
            found = await shown(client, link, "state", "done")
            assert found["attempts"] == 1


# --- what cannot be stored, and metrics that stay few


def paid(nano: int = 5_000) -> PaidCall:
    return PaidCall(server="llm", by="m/1", parts=("questions",), tokens=Tokens(sent=7, answered=1), nano=nano)


async def test_what_cannot_be_stored_is_stored_with_the_next(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_process(database) as process, trio.open_nursery() as nursery:
        await process.accepted("talk-1")
        one = await process.leased()
        spent = Spending(process.postgres, None, 60.0)
        await nursery.start(spent.run_group)
        run = process.postgres.run

        async def away(*_: object, **__: object) -> None:
            await trio.lowlevel.checkpoint()
            raise DatabaseUnavailable("it is away")

        calls = spent.calls_of(one)
        calls.note(paid())
        monkeypatch.setattr(process.postgres, "run", away)
        with told() as events:
            await spent.store(calls)
        assert "costs_not_stored" in events
        monkeypatch.setattr(process.postgres, "run", run)
        await spent.store(calls)
        await spent.store(calls)
        assert await rows(process.postgres, "SELECT part, nano FROM part_cost") == [("questions", 5_000)]
        nursery.cancel_scope.cancel()


async def test_what_a_cancelled_worker_had_not_stored_is_stored_with_the_next(database: str) -> None:
    async with open_process(database) as process, trio.open_nursery() as nursery:
        await process.accepted("talk-1")
        one = await process.leased()
        spent = Spending(process.postgres, None, 60.0)
        calls = spent.calls_of(one)
        calls.note(paid())
        with trio.move_on_after(0.05):
            # Nobody stores yet.
            await spent.store(calls)
        await nursery.start(spent.run_group)
        await spent.store(calls)
        assert await rows(process.postgres, "SELECT part, nano FROM part_cost") == [("questions", 5_000)]
        nursery.cancel_scope.cancel()


async def test_a_call_for_several_parts_is_shared_out_among_them(database: str) -> None:
    async with open_process(database) as process, trio.open_nursery() as nursery:
        await process.accepted("talk-1")
        one = await process.leased()
        spent = Spending(process.postgres, None, 60.0)
        await nursery.start(spent.run_group)
        calls = spent.calls_of(one)
        calls.note(
            PaidCall(
                server="llm", by="m/1", parts=("questions", "emotion"), tokens=Tokens(sent=7, answered=2), nano=5_001
            )
        )
        await spent.store(calls)
        found = await rows(process.postgres, "SELECT part, tokens_in, tokens_out, nano FROM part_cost ORDER BY nano")
        assert found == [("emotion", 3, 1, 2_500), ("questions", 4, 1, 2_501)]
        nursery.cancel_scope.cancel()


async def test_past_a_hundred_bots_the_others_share_their_metrics(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spending, "BOTS_MAX", 2)
    async with open_process(database) as process, trio.open_nursery() as nursery:
        spent = Spending(process.postgres, None, 60.0)
        await nursery.start(spent.run_group)
        for bot in ("few-1", "few-2", "few-3", "few-4", "few-1"):
            calls = spent.calls_of(lease(bot_id=bot))
            calls.note(paid(NANO))
            await spent.store(calls)
        nursery.cancel_scope.cancel()
    cells = metrics.llm_bot_price_total.cells
    assert [cells["default", bot].value for bot in ("few-1", "few-2")] == [2.0, 1.0]
    assert ("default", "few-3") not in cells
    assert cells["other", "other"].value >= 2.0
