from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Literal

import pytest

from convo.analysis.memory import FACTS_MAX, KEY_CHARS_MAX, MemoryService
from convo.analysis.remote import open_client
from convo.config import MemorySettings, Secret
from convo.conversation.model import Memories, MemoryFact
from convo.errors import RemoteGarbage
from tests import fakes
from tests.fakes import FakeServer, Fault, conversation_of

TALK = conversation_of("I like tea.", "I like coffee.", "I like long walks!")
Dialect = Literal["extract_facts", "mem0"]
BOTH: list[Dialect] = ["extract_facts", "mem0"]


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with fakes.open_memory() as running:
        yield running


async def remember(server: FakeServer, dialect: Dialect = "extract_facts", **others: object) -> Memories:
    settings = MemorySettings(
        dialect=dialect,
        url=f"{server.url}/",
        **{"attempts": 1, "backoff_seconds": 0.01, "backoff_max_seconds": 0.02, "api_key": Secret("k-1"), **others},  # type: ignore[arg-type]
    )
    async with open_client(settings) as client:
        return await MemoryService(client, settings).memories(TALK)


def telling(*facts: Mapping[str, object]) -> Fault:
    return fakes.answering(json.dumps({"facts": facts}))


def telling_as_mem0(*results: Mapping[str, object]) -> Fault:
    return fakes.answering(json.dumps({"results": results, "relations": []}))


@pytest.mark.parametrize("dialect", BOTH)
async def test_what_the_user_likes_is_remembered_and_no_news_the_second_time(
    server: FakeServer, dialect: Dialect
) -> None:
    first = (await remember(server, dialect)).facts
    second = (await remember(server, dialect)).facts
    assert [fact.text for fact in first] == ["Likes tea", "Likes long walks"]
    assert [fact.operation for fact in first] == ["ADD", "ADD"]
    assert [fact.operation for fact in second] == ["NONE", "NONE"]
    assert [fact.key for fact in first] == [fact.key for fact in second]


async def test_extract_facts_is_called_in_its_own_words(server: FakeServer) -> None:
    await remember(server)
    (call,) = server.calls
    assert (call.method, call.path) == ("POST", "/extract_facts")
    assert call.headers["authorization"] == "Bearer k-1"
    assert call.json() == {
        "user_id": "user-1",
        "conversation_id": "talk-1",
        "conversation": [
            {"role": "user", "content": "I like tea."},
            {"role": "assistant", "content": "I like coffee."},
            {"role": "user", "content": "I like long walks!"},
        ],
    }


async def test_mem0_is_called_in_its_own_words(server: FakeServer) -> None:
    await remember(server, "mem0")
    (call,) = server.calls
    assert (call.method, call.path) == ("POST", "/memories")
    assert (call.headers["authorization"], call.headers["x-api-key"]) == ("Token k-1", "k-1")
    assert sorted(call.json()) == ["messages", "user_id"]
    assert call.json()["messages"][1] == {"role": "assistant", "content": "I like coffee."}


@pytest.mark.parametrize("dialect", BOTH)
async def test_without_a_key_none_is_sent(server: FakeServer, dialect: Dialect) -> None:
    await remember(server, dialect, api_key=Secret())
    assert not {"authorization", "x-api-key"} & server.calls[0].headers.keys()


@pytest.mark.parametrize("dialect", BOTH)
async def test_a_finding_names_the_dialect(server: FakeServer, dialect: Dialect) -> None:
    settings = MemorySettings(dialect=dialect, url=server.url)
    async with open_client(settings) as client:
        assert MemoryService(client, settings).by == f"{dialect}/1"


@pytest.mark.parametrize("dialect", BOTH)
async def test_each_attempt_carries_the_same_key(server: FakeServer, dialect: Dialect) -> None:
    server.then(fakes.failing("503"))
    await remember(server, dialect, attempts=2)
    assert server.keys == ["talk-1:memories:1:abc"] * 2


async def test_where_the_user_said_nothing_no_call_is_made(server: FakeServer) -> None:
    settings = MemorySettings(url=server.url)
    async with open_client(settings) as client:
        assert await MemoryService(client, settings).memories(conversation_of("bot: hi")) == Memories(facts=())
    assert server.calls == []


async def test_operations_that_are_not_known_are_no_news(server: FakeServer) -> None:
    operations = ["ADD", "add", None, "UPDATE", "DELETE", "NONE", "PENDING", ""]
    server.then(telling(*[{"id": n, "fact_value": "x", "operation": word} for n, word in enumerate(operations)]))
    found = [fact.operation for fact in (await remember(server)).facts]
    assert found == ["ADD", "ADD", "NONE", "UPDATE", "DELETE", "NONE", "NONE", "NONE"]


async def test_of_one_key_the_first_stands(server: FakeServer) -> None:
    server.then(
        telling_as_mem0(
            {"id": "a", "memory": "Likes tea", "event": "ADD"},
            {"id": "b", "memory": "Likes tea", "event": "ADD"},
            {"id": "a", "memory": "Likes green tea", "event": "UPDATE"},
        )
    )
    assert (await remember(server, "mem0")).facts == (
        MemoryFact(key="a", text="Likes tea", operation="ADD"),
        MemoryFact(key="b", text="Likes tea", operation="ADD"),
    )


async def test_without_an_id_the_text_is_the_key_however_it_is_spelt(server: FakeServer) -> None:
    server.then(
        telling(
            {"fact_value": "Thích  phở", "operation": "ADD"},
            {"fact_value": "thi\u0301ch PHỞ", "operation": "ADD"},
            {"id": "", "fact_value": "thích phở\0", "operation": "ADD"},
        )
    )
    assert (await remember(server)).facts == (MemoryFact(key="thích phở", text="Thích  phở", operation="ADD"),)


async def test_keys_are_bounded_and_stay_different(server: FakeServer) -> None:
    server.then(telling(*[{"fact_value": "x" * 1_000 + end, "operation": "ADD"} for end in "ab"]))
    keys = [fact.key for fact in (await remember(server)).facts]
    assert len(set(keys)) == 2
    assert max(map(len, keys)) <= KEY_CHARS_MAX


async def test_a_fact_without_a_text_is_left_out_unless_it_says_what_to_delete(server: FakeServer) -> None:
    server.then(
        telling(
            {"id": 1, "fact_value": " ", "operation": "ADD"},
            {"id": 2, "fact_value": None, "operation": "DELETE"},
            {"id": 3, "operation": "NONE"},
            {"operation": "DELETE"},
        )
    )
    assert (await remember(server)).facts == (MemoryFact(key="2", text="", operation="DELETE"),)


async def test_a_service_that_finds_too_much_is_bounded(server: FakeServer) -> None:
    server.then(telling(*[{"id": n, "fact_value": "x" * 9, "operation": "ADD"} for n in range(FACTS_MAX + 9)]))
    assert len((await remember(server)).facts) == FACTS_MAX


async def test_a_count_beside_the_facts_changes_nothing(server: FakeServer) -> None:
    server.then(fakes.answering('{"count": 7, "facts": []}'))
    assert await remember(server) == Memories(facts=())


@pytest.mark.parametrize("dialect", BOTH)
@pytest.mark.parametrize(
    "bad", ["{}", "[]", "null", '{"facts": null, "results": null}', '{"facts": [1], "results": ["x"]}']
)
async def test_an_answer_that_does_not_fit_is_a_failed_attempt(server: FakeServer, dialect: Dialect, bad: str) -> None:
    server.then(fakes.answering(bad))
    with pytest.raises(RemoteGarbage):
        await remember(server, dialect)
