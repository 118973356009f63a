from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from msgspec import Struct

from convo.analysis.job_calls import JobCalls, working_for
from convo.analysis.llm import Model
from convo.analysis.llm_chain import Models
from convo.conversation.model import Conversation, Mood, PartName, Questions
from convo.conversation.owed import DeclaredPart
from convo.dependencies import row_name
from convo.errors import RemoteDenied, RemoteError, RemoteUnavailable
from convo.settings import LlmFallback, LlmSettings, Secret, llm_servers
from tests.support import fakes
from tests.support.fakes import Exchange, FakeServer, Fault, conversation_of
from tests.support.making import told
from tests.support.running import ended, serving

TALK = conversation_of("Hi. How are you?", "Fine, and you?", "Bạn thích gì?", "Noodles.")


class Answer(Struct, frozen=True, kw_only=True):
    """What was found, and who found it."""

    by: str
    finding: Any


class Two:
    """The first model's server, the fallback's, and both clients in a row."""

    def __init__(self, first: FakeServer, backup: FakeServer, models: list[Model]) -> None:
        self.first = first
        self.backup = backup
        self.models = models
        self.row = Models(models)

    async def emotion(self) -> Answer:
        with working_for(JobCalls(1)):
            return await self.asked("emotion", TALK)

    async def asked(self, part: PartName, conversation: Conversation) -> Answer:
        found: list[Answer] = []
        await self.row.find(
            [DeclaredPart(name=part, who="llm")],
            conversation,
            lambda _name, by, finding: found.append(Answer(by=by, finding=finding)),
        )
        return found[0]


@asynccontextmanager
async def two(**settings: object) -> AsyncIterator[Two]:
    usual = {"attempts": 2, "backoff_seconds": 0.01, "backoff_max_seconds": 0.02, "attempt_seconds": 5.0}
    async with fakes.open_model() as first, fakes.open_model() as backup, AsyncExitStack() as stack:
        llm = LlmSettings(
            base_url=f"{first.url}/v1",
            model="first-7b",
            api_key=Secret("sk-first"),
            headers={"x-title": "convo"},
            fallbacks={
                "backup": LlmFallback(base_url=f"{backup.url}/v1", model="backup-1b", api_key=Secret("sk-backup"))
            },
            **{**usual, **settings},  # type: ignore[arg-type]
        )
        made = [Model(section, name=name, random=lambda: 0.0) for name, section in llm_servers(llm).items()]
        yield Two(first, backup, [await stack.enter_async_context(model) for model in made])


async def test_the_first_model_answers_while_it_can() -> None:
    async with two() as servers:
        assert await servers.emotion() == Answer(by="first-7b/prompt-3", finding=Mood(emotion="happy"))
        assert servers.backup.calls == []


@pytest.mark.parametrize(
    "fault",
    [
        fakes.failing("503"),
        fakes.failing("401", "invalid_api_key"),
        fakes.failing("404", "model_not_found"),
        fakes.failing("402", "insufficient_balance"),
        fakes.failing("400", "content_filter"),
        fakes.completing(None, finish_reason="content_filter"),
        fakes.rate_limited("30"),
        fakes.garbage,
        fakes.reset,
        fakes.no_http,
        fakes.completing("no JSON at all"),
    ],
    ids=["503", "key", "model", "credit", "content", "filtered", "429", "web page", "reset", "no http", "no JSON"],
)
async def test_the_fallback_answers_in_its_own_name_where_the_first_fails(fault: Fault) -> None:
    async with two() as servers:
        servers.first.always = fault
        assert await servers.emotion() == Answer(by="backup-1b/prompt-3", finding=Mood(emotion="happy"))
        (call,) = servers.backup.calls
        assert call.json()["model"] == "backup-1b"
        assert call.headers["authorization"] == "Bearer sk-backup"
        assert "x-title" not in call.headers, "what belongs to the first server goes to no other"


async def test_a_conversation_that_both_decline_is_refused_in_the_first_ones_name() -> None:
    async with two() as servers:
        servers.first.always = servers.backup.always = fakes.completing(None, finish_reason="content_filter")
        found = await servers.emotion()
        assert found.by == "first-7b/prompt-3"
        assert isinstance(found.finding, Mood)
        assert "content filter" in found.finding.refused


@pytest.mark.parametrize(
    ("fault", "refused"),
    [
        (fakes.healthy, 0),
        (fakes.failing("503"), 1),
        (fakes.completing(None, finish_reason="content_filter"), 1),
    ],
    ids=["answers", "is out", "declines"],
)
async def test_a_refusal_is_logged_once_and_only_where_it_stands(fault: Fault, refused: int) -> None:
    async with two() as servers:
        servers.first.always = fakes.completing(None, finish_reason="content_filter")
        servers.backup.always = fault
        with told() as events:
            await servers.emotion()
        assert events.count("part_refused") == refused


async def test_a_refusal_stands_where_the_fallback_is_out() -> None:
    async with two() as servers:
        servers.first.always = fakes.completing(None, finish_reason="content_filter")
        servers.backup.always = fakes.failing("503")
        found = await servers.emotion()
        assert (found.by, bool(found.finding.refused)) == ("first-7b/prompt-3", True)


async def test_where_all_are_out_the_error_is_an_outage_that_jobs_wait_for_by_one_name() -> None:
    async with two() as servers:
        servers.first.always = servers.backup.always = fakes.failing("503")
        with pytest.raises(RemoteUnavailable) as caught:
            await servers.emotion()
        assert row_name(caught.value.dependency) == "llm"
        assert [one.dependency for one in caught.value.asked] == ["llm", "llm.backup"]


async def test_another_model_of_the_same_server_is_asked_under_another_key() -> None:
    async with two() as servers:
        servers.first.always = fakes.failing("503")
        await servers.emotion()
        first, backup = (
            {call.headers["idempotency-key"] for call in one.calls} for one in (servers.first, servers.backup)
        )
        assert (len(first), len(backup)) == (1, 1)
        assert all(key.endswith(":backup") for key in backup)
        assert first.isdisjoint(backup)


async def test_each_server_is_asked_in_the_form_that_it_takes_itself() -> None:
    async with two() as servers:
        servers.backup.always = fakes.rejects_json_schema
        servers.first.always = fakes.failing("503")
        await servers.emotion()
        assert "json_object" in servers.models[1].learnt
        assert servers.models[0].learnt == ""
        servers.first.always = fakes.healthy
        servers.models[0].dependency.systemic.forget()
        await servers.asked("questions", TALK)
        assert "json_schema" in servers.models[0].learnt


async def test_a_fallback_that_refuses_names_its_own_settings() -> None:
    async with two() as servers:
        servers.first.always = fakes.failing("503")
        servers.backup.always = fakes.failing("401", "invalid_api_key")
        with pytest.raises(RemoteError):
            await servers.emotion()
        assert servers.models[0].dependency.misconfigured == ""
        found = servers.models[1].dependency.misconfigured
        assert found.startswith("llm.backup: ")
        assert "CONVO_LLM__FALLBACKS__BACKUP__API_KEY" in found
        servers.backup.always = fakes.failing("404", "model_not_found")
        with pytest.raises(RemoteDenied, match=r"^llm\.backup: .* llm\.fallbacks\.backup\.model"):
            await servers.models[1].check()


async def test_an_address_in_an_error_is_no_name_of_a_setting() -> None:
    async def redirecting(exchange: Exchange) -> None:
        await exchange.answer(302, b"", {"location": "https://llm.example.com/v2"})

    async with two() as servers:
        servers.backup.always = redirecting
        with pytest.raises(RemoteDenied, match=r"^llm\.backup: .*https://llm\.example\.com/v2"):
            await servers.models[1].emotion(TALK)


async def test_no_call_is_made_where_the_user_said_nothing() -> None:
    async with two() as servers:
        found = await servers.asked("questions", conversation_of("bot: hello?"))
        assert found == Answer(by="first-7b/prompt-3", finding=Questions(questions=()))
        assert servers.first.calls == servers.backup.calls == []


# --- the whole service


async def test_jobs_wait_while_all_servers_are_out_and_go_on_as_soon_as_one_is_back(
    database: str, tmp_path: Path
) -> None:
    async with fakes.open_model() as first, fakes.open_model() as backup:
        first.always = fakes.stuck
        backup.always = fakes.failing("503")
        settings = {
            "llm.base_url": f"{first.url}/v1",
            "llm.model": "m-1",
            "llm.attempt_seconds": "0.3",
            "llm.attempts": "2",
            "llm.backoff_seconds": "0.02",
            "llm.breaker_failures": "2",
            "llm.breaker_open_seconds": "0.5",
            "llm.fallbacks.backup.base_url": f"{backup.url}/v1",
            "llm.fallbacks.backup.model": "m-2",
            "jobs.backoff_seconds": "0.1",
            "jobs.poll_seconds": "0.05",
            "alerts.evaluate_seconds": "0.1",
        }
        async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
            answer = await client.post("/v1/conversations/end", json=ended("talk-1"))
            link = answer.headers["location"]
            with trio.fail_after(15):
                while (await client.get(link)).json()["waits_for"] != "llm":  # noqa: ASYNC110
                    await trio.sleep(0.05)
                keys: set[str] = set()
                while not keys >= {"LLM_UNAVAILABLE llm", "LLM_UNAVAILABLE llm.backup"}:
                    active = (await client.get("/v1/alerts")).json()["active"]
                    keys = {f"{one['type']} {one['component']}" for one in active}
                    await trio.sleep(0.05)
            why = (await client.get(f"{link}/explain")).json()
            assert why["cause"]["sentence"].startswith("parked: it waits for llm since")
            assert "llm: " in why["here"]
            assert "llm.backup: " in why["here"]
            backup.always = fakes.healthy
            with trio.fail_after(15):
                while (found := (await client.get(link)).json())["state"] != "done":  # noqa: ASYNC110
                    await trio.sleep(0.05)
            assert found["attempts"] == 1, "no attempt was spent on the outage"
            assert {found["parts"][part]["by"] for part in ("questions", "emotion")} == {"m-2/prompt-3"}
