"""Every alert by its real cause: a real PostgreSQL, real faults, a real HTTP server that is told, and the end of it."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trio
from standardwebhooks import Webhook

from convo.alerts import ledger_watch
from convo.alerts.shared import SharedState
from convo.errors import DatabaseUnavailable, TransactionLost
from convo.runtime.bridge import open_bridge
from convo.settings import AlertsSettings, DatabaseSettings
from convo.store.postgres import Postgres, open_postgres
from convo.web import accept
from tests.support.fakes import (
    FakeServer,
    failing,
    garbage,
    healthy,
    open_memory,
    open_model,
    open_server,
    rate_limited,
    slow,
    stuck,
)
from tests.support.making import open_store
from tests.support.running import away, ended, holding, query, serving

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
QUICK = {
    "alerts.evaluate_seconds": "0.05",
    "alerts.look_seconds": "0.1",
    "alerts.quiet_seconds": "0.5",
    "alerts.backoff_seconds": "0.1",
    "jobs.poll_seconds": "0.05",
    "jobs.backoff_seconds": "0.05",
}
Told = tuple[str, str, str, str]


class Hook:
    """A real server that is told of alerts; only what its signature vouches for counts."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [Webhook(SECRET).verify(call.body, call.headers) for call in self.server.calls]

    @property
    def told(self) -> list[Told]:
        return [
            (one["type"].removeprefix("alert."), one["data"]["type"], one["data"]["component"], one["data"]["level"])
            for one in self.messages
        ]

    async def until(self, change: str, kind: str, component: str = "") -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [
                message["data"]
                for message, one in zip(self.messages, self.told, strict=True)
                if one[:2] == (change, kind) and component in ("", one[2])
            ]

        await self.server.until(lambda _: bool(found()))
        return found()[0]


@asynccontextmanager
async def watched(folder: Path, database: str, **settings: str) -> AsyncIterator[tuple[httpx.AsyncClient, Hook]]:
    """Run the service with a hook that is told; every ``raised`` is to be told once, and be resolved at the end."""
    async with open_server(lambda _: {}) as server:
        hook = Hook(server)
        sink = {"alerts.webhook_url": f"{server.url}/hook", "alerts.webhook_secret": SECRET}
        with trio.fail_after(50):
            async with (
                # The service shares its loop with the tests, whose own work is no alert.
                serving(folder, database, {"observe.loop_block_seconds": "0", **QUICK, **sink, **settings}) as url,
                httpx.AsyncClient(base_url=url, timeout=30.0) as client,
            ):
                yield client, hook
        raised = [one[1:] for one in hook.told if one[0] == "raised"]
        assert len(raised) == len(set(raised)), "a condition was told twice"


async def post(client: httpx.AsyncClient, *conversation_ids: str) -> None:
    for conversation_id in conversation_ids:
        answer = await client.post("/v1/conversations/end", json=ended(conversation_id))
        assert answer.status_code == 202, answer.text


# --- the database


async def test_a_locked_table_raises_all_that_comes_of_it_and_its_end_resolves_it(
    tmp_path: Path, database: str
) -> None:
    expected: list[Told] = [
        ("raised", "POSTGRES_POOL_EXHAUSTED", "acquire", "CRITICAL"),
        ("raised", "POSTGRES_POOL_EXHAUSTED", "in use", "HIGH"),
        ("raised", "POSTGRES_QUERY_TIMEOUT", "database", "MEDIUM"),
        ("raised", "SLOW_DATABASE_QUERY", "db.read", "LOW"),
        ("raised", "SLOW_REQUEST", "GET /v1/conversations/<conversation_id>", "HIGH"),
        ("raised", "DEADLINE_BURN", "requests", "HIGH"),
    ]
    settings = {
        "database.pool_max": "2",
        "database.acquire_seconds": "0.2",
        "database.statement_seconds": "1.2",
        "alerts.slow_request_seconds": "1.0",
        "alerts.slow_query_seconds": "1.0",
        "alerts.pool_busy_seconds": "0.3",
        "alerts.burn_seconds": "1",
        "jobs.workers": "0",
    }
    async with watched(tmp_path, database, **settings) as (client, hook):

        async def ask_on() -> None:
            while True:
                await client.get("/v1/conversations/nobody")

        async with holding(database, "LOCK TABLE conversation IN ACCESS EXCLUSIVE MODE"), trio.open_nursery() as asking:
            for _ in range(4):
                asking.start_soon(ask_on)
            for _, kind, component, _ in expected:
                await hook.until("raised", kind, component)
            asking.cancel_scope.cancel()
        assert set(expected) <= set(hook.told)
        for _, kind, component, _ in expected:
            await hook.until("resolved", kind, component)
        shown = (await client.get("/v1/alerts")).json()
        assert shown["active"] == []
        assert {one["type"] for one in shown["recent"]} >= {kind for _, kind, _, _ in expected}


async def test_a_database_that_is_away_is_notified_and_its_return(
    tmp_path: Path, postgres_url: str, database: str
) -> None:
    async with watched(tmp_path, database) as (client, hook):
        async with away(postgres_url, database):
            alert = await hook.until("raised", "POSTGRES_UNAVAILABLE")
            # It is shown while the database is away.
            shown = (await client.get("/v1/alerts")).json()
            assert "POSTGRES_UNAVAILABLE" in [one["type"] for one in shown["active"]]
        assert alert["level"] == "CRITICAL"
        await hook.until("resolved", "POSTGRES_UNAVAILABLE")


async def test_a_disk_that_fills_up_is_notified_and_that_it_is_freed(tmp_path: Path, database: str) -> None:
    half = 256 << 20
    least = shutil.disk_usage(tmp_path).free - half
    big = tmp_path / "big"
    async with watched(tmp_path / "data", database, **{"alerts.disk_free_bytes": str(least)}) as (_, hook):
        with big.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 2 * half)
        alert = await hook.until("raised", "DISK_LOW", "data_dir")
        assert alert["evidence"]["figures"]["free_bytes"] < least
        big.unlink()
        await hook.until("resolved", "DISK_LOW", "data_dir")


# --- the model and the memory service


REMOTES = [("llm", open_model, "HIGH"), ("memory", open_memory, "MEDIUM")]


def remote(name: str, url: str, **more: str) -> dict[str, str]:
    where = {"llm.base_url": url, "llm.model": "m"} if name == "llm" else {"memory.url": url}
    quick = {"attempt_seconds": "0.3", "attempts": "2", "backoff_seconds": "0.05", "breaker_failures": "3"}
    return where | {f"{name}.{key}": value for key, value in {**quick, **more}.items()}


@pytest.mark.parametrize(("name", "opened", "level"), REMOTES)
async def test_a_stuck_dependency_times_out_then_is_unavailable_until_it_is_back(
    tmp_path: Path, database: str, name: str, opened: Callable[[], Any], level: str
) -> None:
    async with opened() as server:
        settings = remote(name, server.url, breaker_open_seconds="1")
        async with watched(tmp_path, database, **settings) as (client, hook):
            server.always = stuck
            await post(client, "c-1", "c-2", "c-3")
            assert (await hook.until("raised", f"{name.upper()}_TIMEOUT"))["level"] == level
            assert (await hook.until("raised", f"{name.upper()}_UNAVAILABLE"))["level"] == "HIGH"
            server.always = healthy
            await hook.until("resolved", f"{name.upper()}_UNAVAILABLE")
            await hook.until("resolved", f"{name.upper()}_TIMEOUT")


@pytest.mark.parametrize(("name", "opened", "level"), REMOTES)
async def test_a_dependency_that_asks_for_a_pause_is_notified(
    tmp_path: Path, database: str, name: str, opened: Callable[[], Any], level: str
) -> None:
    async with opened() as server, watched(tmp_path, database, **remote(name, server.url)) as (client, hook):
        server.then(rate_limited("1"), rate_limited("1"))
        await post(client, "c-1")
        assert (await hook.until("raised", f"{name.upper()}_RATE_LIMIT"))["level"] == level
        await hook.until("resolved", f"{name.upper()}_RATE_LIMIT")


# --- jobs


async def test_an_old_backlog_is_notified_with_its_forecast_and_when_it_is_drained(
    tmp_path: Path, database: str
) -> None:
    async with open_model() as model:
        model.always = slow("0.25")
        settings = remote("llm", model.url, attempt_seconds="5") | {
            "alerts.backlog_seconds": "0.5",
            "jobs.workers": "1",
        }
        async with watched(tmp_path, database, **settings) as (client, hook):
            await post(client, *(f"c-{number}" for number in range(8)))
            alert = await hook.until("raised", "BACKLOG_OLD")
            evidence = alert["evidence"]
            assert evidence["figures"]["oldest_seconds"] >= 0.5
            assert evidence["figures"]["ready"] >= 1
            assert "ended_per_second" in evidence["figures"]
            assert evidence["explain"] == [f"/v1/conversations/{name}/explain" for name in evidence["ids"]]
            assert set(evidence["ids"]) <= {f"c-{number}" for number in range(8)}
            await hook.until("resolved", "BACKLOG_OLD")


@pytest.mark.parametrize("review", ["retry", "acknowledge"])
async def test_a_dead_letter_is_notified_until_it_is_reviewed(tmp_path: Path, database: str, review: str) -> None:
    async with open_model() as model:
        settings = remote("llm", model.url) | {"jobs.attempts_max": "1"}
        async with watched(tmp_path, database, **settings) as (client, hook):
            model.always = garbage
            await post(client, "c-1")
            alert = await hook.until("raised", "DEAD_LETTER")
            assert (alert["level"], alert["evidence"]["ids"]) == ("CRITICAL", ["c-1"])
            model.always = healthy
            answer = await client.post(f"/v1/conversations/c-1/{review}")
            assert answer.status_code == (202 if review == "retry" else 200)
            await hook.until("resolved", "DEAD_LETTER")
            state = (await client.get("/v1/conversations/c-1", params={"wait": "5"})).json()["state"]
            assert state == ("done" if review == "retry" else "dead")


async def test_only_a_dead_letter_can_be_acknowledged(tmp_path: Path, database: str) -> None:
    async with watched(tmp_path, database, **{"jobs.workers": "0"}) as (client, _):
        await post(client, "c-1")
        answer = await client.post("/v1/conversations/c-1/acknowledge")
        assert (answer.status_code, answer.json()["code"]) == (409, "not_dead")
        assert (await client.post("/v1/conversations/nobody/acknowledge")).status_code == 404


# --- the books, silence, the loop


async def test_a_row_deleted_by_hand_is_a_gap_until_the_books_balance(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_watch, "_INTERVAL_SECONDS", 0.2)
    async with watched(tmp_path, database, **{"jobs.workers": "0"}) as (client, hook):
        await post(client, "c-1", "c-2")
        await trio.to_thread.run_sync(query, database, "DELETE FROM job WHERE seq = (SELECT min(seq) FROM job)")
        alert = await hook.until("raised", "LEDGER_GAP")
        assert alert["level"] == "CRITICAL"
        assert "2 booked, 1 found" in alert["evidence"]["figures"].values()
        again = "INSERT INTO job (seq, fair_key) SELECT seq, user_id FROM conversation ON CONFLICT DO NOTHING"
        await trio.to_thread.run_sync(query, database, again)
        await hook.until("resolved", "LEDGER_GAP")


async def test_silence_is_notified_until_somebody_speaks(tmp_path: Path, database: str) -> None:
    async with watched(tmp_path, database, **{"alerts.silence_seconds": "1"}) as (client, hook):
        assert (await hook.until("raised", "SILENCE"))["level"] == "MEDIUM"
        await post(client, "c-1")
        await hook.until("resolved", "SILENCE")


@pytest.mark.blocks_loop(reason="that it is told of is what is tested")
async def test_a_blocked_loop_is_notified_with_its_place_and_conversation(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = accept._receipt

    def planted(*arguments: Any) -> Any:
        # Of the processor's time: what a busy machine takes away in between is no block of the code's.
        until = time.thread_time() + 0.8
        while time.thread_time() < until:
            pass
        return receipt(*arguments)

    async with watched(tmp_path, database, **{"observe.loop_block_seconds": "0.3"}) as (client, hook):
        monkeypatch.setattr(accept, "_receipt", planted)
        await post(client, "c-1")
        monkeypatch.setattr(accept, "_receipt", receipt)
        alert = await hook.until("raised", "LOOP_BLOCKED")
        assert alert["level"] == "HIGH"
        assert alert["evidence"]["figures"]["seconds"] >= 0.8
        assert "test_shared.py" in alert["evidence"]["figures"]["stack"]
        assert " planted" in alert["evidence"]["figures"]["stack"]
        assert alert["evidence"]["explain"] == ["/v1/conversations/c-1/explain"]
        await hook.until("resolved", "LOOP_BLOCKED")


# --- the canary


async def test_a_canary_that_does_not_come_through_is_notified_until_one_does(tmp_path: Path, database: str) -> None:
    async with open_model() as model:
        settings = remote("llm", model.url, breaker_open_seconds="0.5") | {
            "canary.enabled": "true",
            "canary.interval_seconds": "0.3",
            "canary.within_seconds": "2",
        }
        model.always = stuck
        async with watched(tmp_path, database, **settings) as (client, hook):
            alert = await hook.until("raised", "CANARY_MISSING")
            assert alert["evidence"]["ids"][0].startswith("canary-")
            model.always = healthy
            await hook.until("resolved", "CANARY_MISSING")
            assert (await client.get("/v1/conversations")).json()["conversations"] == []


# --- who is told


async def test_every_sink_takes_the_test_or_says_why_not(tmp_path: Path, database: str) -> None:
    async with open_server(lambda _: {}) as slack, open_server(lambda _: {}) as chat:
        chat.always = failing("401")
        settings = {
            "alerts.slack_url": f"{slack.url}/services/T/sekrit",
            "alerts.google_chat_url": f"{chat.url}/v1/spaces/sekrit",
        }
        async with watched(tmp_path, database, **settings) as (client, hook):
            answer = await client.post("/v1/alerts/test")
            assert answer.json()["sinks"] == [
                {"sink": "log", "ok": True, "detail": None},
                {"sink": "webhook", "ok": True, "detail": None},
                {"sink": "slack", "ok": True, "detail": None},
                {"sink": "google_chat", "ok": False, "detail": "google_chat: answered 401"},
            ]
            assert hook.told == [("test", "TEST", "alerts", "LOW")]
            assert "TEST" in slack.calls[0].json()["text"]
            assert "sekrit" not in (await client.get("/v1/alerts")).text + answer.text


async def test_a_sink_that_is_stuck_holds_up_nothing(tmp_path: Path, database: str) -> None:
    async with open_server(lambda _: {}) as slack:
        slack.always = stuck
        settings = {"alerts.slack_url": slack.url, "alerts.silence_seconds": "1", "alerts.deliver_seconds": "1"}
        async with watched(tmp_path, database, **settings) as (client, hook):
            await hook.until("raised", "SILENCE")
            await slack.until(lambda server: len(server.calls) > 0)
            await post(client, "c-1")
            await hook.until("resolved", "SILENCE")


@asynccontextmanager
async def looking(postgres: Postgres, **settings: float) -> AsyncIterator[SharedState]:
    shared = SharedState(postgres, AlertsSettings(**settings))  # type: ignore[arg-type]
    try:
        yield shared
    finally:
        with trio.move_on_after(5, shield=True):
            await shared.close()


async def test_one_process_leads_until_it_is_gone_and_then_another(database: str) -> None:
    async with open_store(database) as postgres, looking(postgres) as second:
        async with looking(postgres) as first:
            for _ in range(3):
                assert [await one.lead() for one in (first, second)] == [True, False]
        await _until(second.lead)


async def test_a_process_that_hangs_loses_the_lead_and_knows_it(database: str) -> None:
    async with (
        open_store(database) as postgres,
        looking(postgres) as second,
        looking(postgres, look_seconds=0.02) as first,
    ):
        assert await first.lead()
        await _until(second.lead)
        with suppress(TransactionLost):
            assert not await first.lead()
        assert not await first.lead()


async def _until(true: Callable[[], Any]) -> None:
    with trio.fail_after(10):
        while not await true():  # noqa: ASYNC110  (the server tells nobody that a session ended)
            await trio.sleep(0.01)


async def test_a_session_with_the_pid_of_the_one_that_led_does_not_lead(database: str) -> None:
    name = urlsplit(database).path.removeprefix("/")
    # After a restart of a database's container the same small pids come again: here every session has the same.
    await trio.to_thread.run_sync(query, database, "CREATE SCHEMA small")
    same = "CREATE FUNCTION small.pg_backend_pid() RETURNS integer LANGUAGE sql AS 'SELECT 42'"
    await trio.to_thread.run_sync(query, database, same)
    await trio.to_thread.run_sync(query, database, f"ALTER DATABASE {name} SET search_path = small, pg_catalog, public")
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'convo first'"
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, database, DatabaseSettings(), name="first") as postgres,
        open_postgres(bridge, database, DatabaseSettings(), name="second") as other_postgres,
    ):
        first = SharedState(postgres, AlertsSettings())
        second = SharedState(other_postgres, AlertsSettings())
        assert [await first.lead(), await first.lead(), await second.lead()] == [True, True, False]
        await trio.to_thread.run_sync(query, database, end)
        while not await second.lead():  # noqa: ASYNC110  (another session has to end)
            await trio.sleep(0.01)
        with suppress(TransactionLost, DatabaseUnavailable):
            await first.lead()
        assert [await first.lead(), await second.lead()] == [False, True]
        await first.close()
        await second.close()
