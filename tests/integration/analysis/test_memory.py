from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

import msgspec
import pytest
from msgspec import structs

from convo.analysis.memory import MemoryService, Ticket
from convo.analysis.memory_answers import FACTS_MAX
from convo.conversation.model import KEY_CHARS_MAX, Conversation, Memories, MemoryFact
from convo.errors import RemoteError, RemoteFailedLater, RemoteGarbage, RemotePending
from convo.runtime.deadline import collecting, deadline
from convo.settings import MemorySettings, Secret
from tests.support import fakes
from tests.support.fakes import FakeServer, Fault, conversation_of

TALK = conversation_of("I like tea.", "I like coffee.", "I like long walks!")
Dialect = Literal["extract_facts", "mem0"]
AGAIN = structs.replace(TALK, asked_before=True)
BOTH: list[Dialect] = ["extract_facts", "mem0"]


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with fakes.open_memory() as running:
        yield running


async def remember(
    server: FakeServer, dialect: Dialect = "extract_facts", talk: Conversation = TALK, **others: object
) -> Memories:
    settings = MemorySettings(
        dialect=dialect,
        url=f"{server.url}/",
        **{"attempts": 1, "backoff_seconds": 0.01, "backoff_max_seconds": 0.02, "api_key": Secret("k-1"), **others},  # type: ignore[arg-type]
    )
    async with MemoryService(settings) as service:
        return await service.memories(talk)


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
    assert sorted(call.json()) == ["messages", "metadata", "user_id"]
    assert call.json()["metadata"] == {"conversation_id": "talk-1"}
    assert call.json()["messages"][1] == {"role": "assistant", "content": "I like coffee."}


@pytest.mark.parametrize("dialect", BOTH)
async def test_without_a_key_none_is_sent(server: FakeServer, dialect: Dialect) -> None:
    await remember(server, dialect, api_key=Secret())
    assert not {"authorization", "x-api-key"} & server.calls[0].headers.keys()


@pytest.mark.parametrize("dialect", BOTH)
async def test_a_finding_names_the_dialect(server: FakeServer, dialect: Dialect) -> None:
    settings = MemorySettings(dialect=dialect, url=server.url)
    async with MemoryService(settings) as service:
        assert service.by == f"{dialect}/1"


@pytest.mark.parametrize("dialect", BOTH)
async def test_each_attempt_carries_the_same_key(server: FakeServer, dialect: Dialect) -> None:
    server.then(fakes.failing("503"))
    await remember(server, dialect, attempts=2)
    assert server.keys[:2] == ["talk-1:memories:1:abc"] * 2


async def test_where_the_user_said_nothing_no_call_is_made(server: FakeServer) -> None:
    settings = MemorySettings(url=server.url)
    async with MemoryService(settings) as service:
        assert await service.memories(conversation_of("bot: hi")) == Memories(facts=())
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
    "bad", ["{}", "7", "null", '{"facts": null, "results": null}', '{"facts": [1], "results": ["x"]}']
)
async def test_an_answer_that_does_not_fit_is_a_failed_attempt(server: FakeServer, dialect: Dialect, bad: str) -> None:
    server.then(fakes.answering(bad))
    with pytest.raises(RemoteGarbage):
        await remember(server, dialect)


# --- an answer that was lost


def gets(server: FakeServer) -> list[str]:
    return [call.path for call in server.calls if call.method == "GET"]


async def test_after_an_earlier_run_mem0s_list_tells_which_no_news_it_has(server: FakeServer) -> None:
    first = await remember(server, "mem0")
    again = await remember(server, "mem0", AGAIN)
    assert [fact.operation for fact in again.facts] == ["NONE", "NONE"]
    assert again.listed == tuple(fact.key for fact in first.facts)
    assert not again.uncertain
    assert gets(server) == ["/memories?user_id=user-1"]


async def test_after_an_earlier_run_a_dialect_without_a_list_is_uncertain(server: FakeServer) -> None:
    await remember(server, "extract_facts")
    again = await remember(server, "extract_facts", AGAIN)
    assert (again.listed, again.uncertain) == ((), True)
    assert gets(server) == []


@pytest.mark.parametrize("dialect", BOTH)
async def test_without_any_no_news_an_earlier_run_changes_nothing(server: FakeServer, dialect: Dialect) -> None:
    again = await remember(server, dialect, AGAIN)
    assert [fact.operation for fact in again.facts] == ["ADD", "ADD"]
    assert (again.listed, again.uncertain) == ((), False)


async def test_what_mem0_leaves_out_of_its_second_answer_is_found_by_its_conversation(server: FakeServer) -> None:
    first = await remember(server, "mem0")
    others = conversation_of("I like rain.", conversation_id="talk-2")
    await remember(server, "mem0", others)
    server.then(telling_as_mem0())
    assert await remember(server, "mem0", AGAIN) == first


@pytest.mark.parametrize("metadata", [None, "talk-1", [], {"conversation_id": ["talk-1"]}])
async def test_a_list_whose_metadata_are_something_else_adds_nothing(server: FakeServer, metadata: object) -> None:
    server.then(telling_as_mem0(), telling_as_mem0({"id": "a", "memory": "Likes a", "metadata": metadata}))
    assert await remember(server, "mem0", AGAIN) == Memories(facts=())


@pytest.mark.parametrize("dialect", BOTH)
async def test_no_news_to_a_first_attempt_is_certain(server: FakeServer, dialect: Dialect) -> None:
    await remember(server, dialect)
    again = await remember(server, dialect)
    assert (again.listed, again.uncertain, len(server.calls)) == ((), False, 2)


async def test_an_answer_that_was_lost_on_its_way_is_found_by_the_next_attempt(server: FakeServer) -> None:
    server.then(fakes.answer_lost)
    found = await remember(server, "mem0", attempts=2)
    assert [fact.operation for fact in found.facts] == ["NONE", "NONE"]
    assert found.listed == tuple(fact.key for fact in found.facts)


async def test_an_attempt_that_was_held_back_was_not_answered(server: FakeServer) -> None:
    await remember(server, "extract_facts")
    server.then(fakes.rate_limited("0"))
    again = await remember(server, "extract_facts", attempts=2)
    assert (again.uncertain, len(server.calls)) == (False, 3)


async def test_of_no_news_that_the_list_does_not_show_nothing_is_certain(server: FakeServer) -> None:
    no_news = [{"id": name, "memory": f"Likes {name}", "event": "NONE"} for name in ("a", "b")]
    server.then(telling_as_mem0(*no_news, {"memory": "a", "event": "NONE"}))
    server.then(fakes.answering('[{"id": "a", "memory": "Likes a"}, {"memory": "Likes b"}]'))
    again = await remember(server, "mem0", AGAIN)
    assert (again.listed, again.uncertain) == (("a",), True)


async def test_the_list_is_asked_for_with_the_key_and_an_encoded_user(server: FakeServer) -> None:
    talk = structs.replace(AGAIN, user_id="mia & tom/1")
    await remember(server, "mem0", talk)
    assert gets(server) == ["/memories?user_id=mia%20%26%20tom%2F1"]
    assert server.calls[-1].headers["authorization"] == "Token k-1"


@pytest.mark.parametrize("status", ["404", "405", "401", "503"])
async def test_a_list_that_cannot_be_had_makes_the_part_uncertain_and_does_not_fail_it(
    server: FakeServer, status: str
) -> None:
    await remember(server, "mem0")
    server.then(fakes.healthy, fakes.failing(status))
    again = await remember(server, "mem0", AGAIN)
    assert (again.listed, again.uncertain) == ((), True)


async def test_a_service_without_a_list_does_not_open_its_breaker(server: FakeServer) -> None:
    await remember(server, "mem0")
    settings = MemorySettings(dialect="mem0", url=server.url, attempts=1, breaker_failures=1)
    async with MemoryService(settings) as service:
        server.then(fakes.healthy, fakes.failing("404"))
        await service.memories(AGAIN)
        assert service.dependency.state() == "closed"


async def test_the_list_has_a_deadline_of_its_own(server: FakeServer) -> None:
    await remember(server, "mem0")
    server.then(fakes.healthy, fakes.stuck)
    with collecting() as waits:
        again = await remember(server, "mem0", AGAIN, attempt_seconds=0.3)
    assert again.uncertain
    assert waits["memory.list"] >= 0.3


async def test_a_list_that_could_not_be_read_before_the_jobs_own_deadline_is_not_asked_for(server: FakeServer) -> None:
    await remember(server, "mem0")
    with deadline("analysis.job", 5.0):
        again = await remember(server, "mem0", AGAIN, attempt_seconds=15.0)
    assert again.uncertain
    assert gets(server) == []


# --- an answer that comes later

PENDING = {"message": "queued", "status": "PENDING", "event_id": "e-1"}
FACT = {"id": "m1", "event": "ADD", "data": {"memory": "Likes Fridays"}}
FRIDAYS = (MemoryFact(key="m1", text="Likes Fridays", operation="ADD"),)


def told(value: object) -> Fault:
    return fakes.answering(json.dumps(value))


async def pending(server: FakeServer, talk: Conversation = TALK, **others: Any) -> Conversation:
    """Give the conversation to a service that is at work on it; return it as the next lease reads it."""
    with pytest.raises(RemotePending) as raised:
        await remember(server, "mem0", talk, **others)
    assert raised.value.ticket
    return structs.replace(AGAIN, tickets={"memories": raised.value.ticket})


def posts(server: FakeServer) -> list[str]:
    return [call.path for call in server.calls if call.method == "POST"]


@pytest.mark.parametrize(
    "answer",
    [
        PENDING,
        [PENDING],
        {"results": [PENDING]},
        {"results": [{**PENDING, "status": "pending"}]},
        {**PENDING, "results": []},
        {**PENDING, "results": None},
        {**PENDING, "status": "RUNNING"},
        {"results": [{"event": "PENDING", "event_id": "e-1"}]},
    ],
)
async def test_what_is_pending_is_asked_for_later_and_never_posted_again(server: FakeServer, answer: object) -> None:
    server.then(told(answer))
    later = await pending(server)
    server.then(told({"id": "e-1", "status": "PENDING", "results": []}), told({"id": "e-1", "status": "RUNNING"}))
    later = await pending(server, later)
    later = await pending(server, later)
    server.then(told({"id": "e-1", "status": "SUCCEEDED", "results": [FACT]}))
    assert await remember(server, "mem0", later) == Memories(facts=FRIDAYS)
    assert posts(server) == ["/memories"]
    assert gets(server) == ["/event/e-1/"] * 3


async def test_what_is_pending_is_asked_for_less_and_less_often(server: FakeServer) -> None:
    server.always = told(PENDING)
    waits, talk = [], TALK
    for _ in range(8):
        with pytest.raises(RemotePending) as raised:
            await remember(server, "mem0", talk)
        waits.append(raised.value.later_seconds)
        talk = structs.replace(AGAIN, tickets={"memories": raised.value.ticket or ""})
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60]


async def test_of_several_events_each_is_asked_for_until_it_has_ended(server: FakeServer) -> None:
    server.then(told([FACT, PENDING, {**PENDING, "event_id": "e 2/3"}]))
    later = await pending(server)
    done = {"status": "SUCCEEDED", "results": [{"id": "m2", "memory": "Likes rain", "event": "ADD"}]}
    server.then(told(done), told(PENDING))
    later = await pending(server, later)
    server.then(told({**done, "results": []}))
    found = await remember(server, "mem0", later)
    assert [fact.text for fact in found.facts] == ["Likes Fridays", "Likes rain"]
    assert gets(server) == ["/event/e-1/", "/event/e%202%2F3/", "/event/e%202%2F3/"]


@pytest.mark.parametrize("status", ["FAILED", "error"])
async def test_an_event_that_failed_costs_an_attempt_and_is_forgotten(server: FakeServer, status: str) -> None:
    server.then(told(PENDING))
    later = await pending(server)
    server.then(told({"id": "e-1", "status": status, "results": []}))
    with pytest.raises(RemoteFailedLater) as raised:
        await remember(server, "mem0", later)
    assert (raised.value.outage, raised.value.ticket, raised.value.wait) == (False, "", "memory.event")


async def test_an_event_that_tells_no_facts_has_them_in_the_list(server: FakeServer) -> None:
    server.then(told(PENDING))
    later = await pending(server)
    mine = {"id": "m1", "memory": "Likes Fridays", "metadata": {"conversation_id": "talk-1"}}
    theirs = {"id": "m2", "memory": "Likes rain", "metadata": {"conversation_id": "talk-2"}}
    server.then(told({"status": "SUCCEEDED", "results": None}), told({"results": [mine, theirs]}))
    assert await remember(server, "mem0", later) == Memories(facts=FRIDAYS)


async def test_what_is_pending_without_an_event_is_looked_for_in_the_list(server: FakeServer) -> None:
    server.then(told({"status": "PENDING"}))
    later = await pending(server)
    server.then(told([]))
    later = await pending(server, later)
    server.then(told([{"id": "m1", "memory": "Likes Fridays", "metadata": {"conversation_id": "talk-1"}}]))
    found = await remember(server, "mem0", later)
    assert found.facts == FRIDAYS
    assert posts(server) == ["/memories"]


async def test_a_list_that_stays_empty_makes_the_part_uncertain_in_the_end(server: FakeServer) -> None:
    server.then(told({"status": "PENDING"}))
    later = await pending(server)
    server.always = told([])
    for _ in range(13):
        later = await pending(server, later)
    found = await remember(server, "mem0", later)
    assert (found.facts, found.uncertain) == ((), True)


async def test_a_service_that_is_at_work_is_no_outage_and_no_success(server: FakeServer) -> None:
    server.then(told(PENDING))
    later = await pending(server)
    settings = MemorySettings(dialect="mem0", url=server.url, attempts=1, breaker_failures=1)
    async with MemoryService(settings) as service:
        server.then(told(PENDING))
        with pytest.raises(RemotePending) as raised:
            await service.memories(later)
        assert (service.dependency.state(), raised.value.outage) == ("closed", True)


async def test_an_event_that_is_not_found_is_a_wrong_path_and_keeps_its_ticket(server: FakeServer) -> None:
    server.then(told(PENDING))
    later = await pending(server)
    server.then(fakes.failing("404"))
    with pytest.raises(RemoteError, match="404") as raised:
        await remember(server, "mem0", later)
    assert (raised.value.outage, raised.value.ticket) == (True, None)


async def test_a_dialect_that_cannot_ask_later_fails_on_what_is_pending(server: FakeServer) -> None:
    server.then(telling({"id": 1, "operation": "PENDING"}))
    with pytest.raises(RemoteGarbage):
        await remember(server)


# --- paths


async def called(server: FakeServer, **settings: Any) -> list[tuple[str, str]]:
    """Let a service be called for all that it has: to add, for an event, for the list."""
    server.then(told(PENDING))
    later = await pending(server, **settings)
    server.then(told({"status": "SUCCEEDED"}), told({"results": []}))
    await remember(server, "mem0", later, **settings)
    return [(call.method, call.path) for call in server.calls]


@pytest.mark.parametrize(
    ("version", "add", "listed"),
    [
        ("v1", "/v1/memories/", ("GET", "/v1/memories/?user_id=user-1")),
        ("v2", "/v1/memories/", ("POST", "/v2/memories/?page=1&page_size=100")),
        ("v3", "/v3/memories/add/", ("POST", "/v3/memories/?page=1&page_size=100")),
    ],
)
async def test_the_hosted_service_is_called_by_its_version(
    server: FakeServer, version: str, add: str, listed: tuple[str, str]
) -> None:
    assert await called(server, api_version=version) == [("POST", add), ("GET", "/v1/event/e-1/"), listed]
    if listed[0] == "POST":
        assert server.calls[-1].json() == {"filters": {"user_id": "user-1"}}
    assert server.calls[0].json().get("version") == ("v2" if version == "v2" else None)


async def test_every_path_can_be_set(server: FakeServer) -> None:
    paths = {"add_path": "/a/", "list_path": "/l", "event_path": "/e?id={event_id}"}
    assert await called(server, **paths) == [("POST", "/a/"), ("GET", "/e?id=e-1"), ("GET", "/l?user_id=user-1")]


async def test_the_list_follows_the_path_that_it_shares(server: FakeServer) -> None:
    assert (await called(server, add_path="/memories/"))[::2] == [
        ("POST", "/memories/"),
        ("GET", "/memories/?user_id=user-1"),
    ]


async def test_extract_facts_has_a_path_to_set(server: FakeServer) -> None:
    server.then(telling())
    await remember(server, add_path="/v2/extract")
    assert server.calls[0].path == "/v2/extract"


async def test_all_pages_of_a_list_are_read(server: FakeServer) -> None:
    mine = {"id": "m1", "memory": "Likes Fridays", "metadata": {"conversation_id": "talk-1"}}
    server.then(told({"results": []}), told({"results": [], "next": "page 2"}), told({"results": [mine], "next": None}))
    assert (await remember(server, "mem0", AGAIN, api_version="v3")).facts == FRIDAYS
    assert posts(server)[1:] == [f"/v3/memories/?page={page}&page_size=100" for page in (1, 2)]


async def test_the_hosted_service_without_a_key_is_a_wrong_setting() -> None:
    for key, fault in ((Secret(), "CONVO_MEMORY__API_KEY"), (Secret("k"), "")):
        settings = MemorySettings(dialect="mem0", url="https://api.mem0.ai", api_version="v3", api_key=key)
        async with MemoryService(settings) as service:
            assert fault in service.settings_fault()


async def test_a_version_in_the_address_and_beside_it_is_a_wrong_setting() -> None:
    for url, fault in (("http://x/v1", "memory.url holds a version"), ("http://x/mem0", "")):
        async with MemoryService(MemorySettings(dialect="mem0", url=url, api_version="v1")) as service:
            assert fault in service.settings_fault()
            assert bool(fault) == bool(service.settings_fault())


async def test_an_error_inside_a_good_answer_is_an_outage(server: FakeServer) -> None:
    server.then(told({"error": "upstream"}))
    with pytest.raises(RemoteError, match="with an error inside") as raised:
        await remember(server, "mem0")
    assert raised.value.outage


async def test_what_fails_for_all_shows_the_first_answer_and_no_key(server: FakeServer) -> None:
    settings = MemorySettings(url=server.url, attempts=1, breaker_jobs=3, api_key=Secret("k-secret"))
    server.then(*[fakes.answering(f"<p>  number {number}\n of k-secret </p>") for number in range(3)])
    async with MemoryService(settings) as service:
        for job in range(3):
            with pytest.raises(RemoteGarbage) as raised:
                await service.memories(TALK)
            assert service.dependency.is_at_fault(raised.value, job) == (job == 2)
        assert "it answered 200: <p> number 0 of *** </p>" in service.dependency.described()


def test_a_ticket_is_short_while_nothing_is_known() -> None:
    assert json.loads(msgspec.json.encode(Ticket(events=("e-1",)))) == {"events": ["e-1"]}
