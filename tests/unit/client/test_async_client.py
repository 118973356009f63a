from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
import trio
from trio.testing import MockClock

from convo.client import (
    AsyncClient,
    Attempt,
    ClientError,
    Conflict,
    Invalid,
    NotConvo,
    NotFound,
    NotReached,
    ProblemError,
    Receipt,
    TooLarge,
    TooManyRequests,
    Unavailable,
)
from tests.support.client_answers import conversation, problem, receipt

BODY = {"conversation_id": "one", "user_id": "mia", "bot_id": "pika"}
RECEIPT = httpx.Response(202, json=receipt("one"))

Answer = httpx.Response | Exception
Server = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Scripted:
    """Answers one request after the other as it is told, the last answer for ever, and remembers when and what."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.times: list[float] = []
        self.requests: list[httpx.Request] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.times.append(trio.current_time())
        self.requests.append(request)
        await trio.lowlevel.checkpoint()
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


@asynccontextmanager
async def calling(server: Server, **options: Any) -> AsyncIterator[AsyncClient]:
    transport = httpx.MockTransport(server)  # type: ignore[arg-type]  # its type knows no awaitable but a coroutine
    async with AsyncClient("http://convo", transport=transport, **options) as client:
        yield client


async def posted(server: Server, **options: Any) -> Receipt:
    async with calling(server, **options) as client:
        return await client.post(BODY)


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.0)


# --- one call


async def test_tries_are_further_and_further_apart_and_end_before_the_time_of_the_call(
    autojump_clock: MockClock,
) -> None:
    server = Scripted(httpx.ConnectError("away"))

    with pytest.raises(NotReached, match=r"no answer from http://convo within 17 s, in 8 attempts: ConnectError"):
        await posted(server, call_seconds=17.0)

    assert server.gaps == pytest.approx([0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 5.0])


async def test_retry_after_is_obeyed_and_the_same_bytes_are_sent_again(autojump_clock: MockClock) -> None:
    server = Scripted(httpx.Response(429, headers={"retry-after": "7"}, json=problem(429, "rate_limited")), RECEIPT)

    assert (await posted(server)).conversation_id == "one"

    assert server.gaps == [7.0]
    assert server.requests[0].content == server.requests[1].content


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
async def test_what_can_succeed_unchanged_is_tried_again(autojump_clock: MockClock, status: int) -> None:
    attempts: list[Attempt] = []

    await posted(Scripted(httpx.Response(status), RECEIPT), attempted=attempts.append)

    assert [attempt.status for attempt in attempts] == [status, 202]
    assert [bool(attempt.why) for attempt in attempts] == [True, False]


@pytest.mark.parametrize("status", [301, 400, 401, 404, 409, 413, 415, 422, 500])
async def test_what_cannot_is_refused_at_once_with_its_code(autojump_clock: MockClock, status: int) -> None:
    server = Scripted(httpx.Response(status, json=problem(status, "because")), RECEIPT)

    with pytest.raises(ProblemError) as caught:
        await posted(server)

    assert (caught.value.status, caught.value.code, caught.value.retryable) == (status, "because", False)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError(""), httpx.ReadError(""), httpx.ReadTimeout(""), httpx.RemoteProtocolError("")],
    ids=lambda error: type(error).__name__,
)
async def test_a_broken_connection_is_tried_again_with_the_same_id(autojump_clock: MockClock, error: Exception) -> None:
    server = Scripted(error, RECEIPT)

    await posted(server)

    assert server.requests[0].content == server.requests[1].content


async def test_a_server_that_asks_for_more_patience_than_there_is_is_left_at_once(autojump_clock: MockClock) -> None:
    refused = httpx.Response(503, headers={"retry-after": "3600"}, json=problem(503, "draining"))

    with pytest.raises(Unavailable) as caught:
        await posted(Scripted(refused))

    assert (caught.value.code, caught.value.retryable, caught.value.retry_after_seconds) == ("draining", True, 3600.0)
    assert trio.current_time() < 1.0


async def test_an_attempt_that_gets_no_answer_ends_and_the_next_one_follows(autojump_clock: MockClock) -> None:
    times: list[float] = []

    async def stuck_once(_request: httpx.Request) -> httpx.Response:
        times.append(trio.current_time())
        if len(times) == 1:
            await trio.sleep_forever()
        return RECEIPT

    await posted(stuck_once)

    assert times[1] - times[0] == pytest.approx(20.125)


async def test_the_time_of_a_call_ends_it_whatever_it_waits_for(autojump_clock: MockClock) -> None:
    async def never(_request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError

    began = trio.current_time()
    async with calling(never, connections=1, call_seconds=5.0) as client, trio.open_nursery() as nursery:

        async def one() -> None:
            with pytest.raises(NotReached, match="within 5 s, in 1 attempt: it was still under way"):
                await client.post(BODY)

        nursery.start_soon(one)
        nursery.start_soon(one)  # it waits for the one connection
    assert trio.current_time() - began == 5.0


async def test_a_replay_is_told_from_a_first_receipt(autojump_clock: MockClock) -> None:
    replay = httpx.Response(202, headers={"idempotent-replayed": "true"}, json=receipt("one"))

    assert (await posted(Scripted(replay))).replayed
    assert not (await posted(Scripted(RECEIPT))).replayed


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'"x"', b'{"conversation_id": "one"}', b"\xff"])
async def test_a_202_without_the_receipt_is_not_believed(autojump_clock: MockClock, content: bytes) -> None:
    with pytest.raises(NotConvo, match="http://convo is not convo, or another version"):
        await posted(Scripted(httpx.Response(202, content=content)))


async def test_no_more_requests_are_under_way_than_there_are_connections(autojump_clock: MockClock) -> None:
    under_way = most = 0

    async def slow(_request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await trio.sleep(1)
        under_way -= 1
        return RECEIPT

    async with calling(slow, connections=4) as client, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(client.post, BODY)

    assert most == 4


async def test_the_key_goes_with_every_request_and_an_id_is_one_segment_of_the_path(autojump_clock: MockClock) -> None:
    server = Scripted(httpx.Response(200, json=conversation("a/b", "done")))
    async with calling(server, key="s3cret") as client:
        await client.conversation("a/b ü")
    assert server.requests[0].headers["authorization"] == "Bearer s3cret"
    assert str(server.requests[0].url) == "http://convo/v1/conversations/a%2Fb%20%C3%BC"


# --- waiting, and lists


async def test_the_end_is_awaited_by_asking_again_until_it_is_there(autojump_clock: MockClock) -> None:
    server = Scripted(
        httpx.Response(200, json=conversation("a b", "leased")), httpx.Response(200, json=conversation("a b", "done"))
    )

    async with calling(server) as client:
        found = await client.wait("a b")

    assert found.ended
    assert [str(request.url) for request in server.requests] == ["http://convo/v1/conversations/a%20b?wait=8.00"] * 2
    assert server.gaps == [0.25]


async def test_a_pending_one_is_asked_until_the_time_is_over_and_once_even_then(autojump_clock: MockClock) -> None:
    server = Scripted(httpx.Response(200, json=conversation("one", "ready")))

    async with calling(server) as client:
        assert not (await client.wait("one", 1.0)).ended
        asked = len(server.requests)
        assert not (await client.wait("one", 0.0)).ended

    assert asked == 5  # at 0, 0.25, 0.5, 0.75 and 1.0
    assert len(server.requests) == asked + 1


async def test_a_wait_ends_soon_after_its_time_while_no_server_answers(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    async with calling(Scripted(httpx.ConnectError("away"))) as client:
        with pytest.raises(NotReached):
            await client.wait("one", 10.0)
    assert trio.current_time() - began <= 12.0


async def test_what_is_not_stored_is_an_error_of_its_own(autojump_clock: MockClock) -> None:
    async with calling(Scripted(httpx.Response(404, json=problem(404, "not_found")))) as client:
        with pytest.raises(NotFound):
            await client.wait("one")


async def test_a_list_is_read_page_by_page_also_past_an_empty_one_and_no_further_than_asked(
    autojump_clock: MockClock,
) -> None:
    def page(texts: list[str], cursor: str | None) -> httpx.Response:
        rows = [
            {"text": text, "kind": "fact", "conversation_id": None, "first_seen_at": "2026-03-02T08:00:00Z"}
            for text in texts
        ]
        return httpx.Response(200, json={"user_id": "u", "memories": rows, "next_cursor": cursor})

    server = Scripted(page(["a"], "2"), page([], "3"), page(["b", "c"], None))
    async with calling(server) as client:
        assert [memory.text async for memory in client.memories("u")] == ["a", "b", "c"]
    assert [request.url.params.get("cursor") for request in server.requests] == [None, "2", "3"]

    again = Scripted(page(["a", "b"], "2"))
    async with calling(again) as client:
        async for memory in client.memories("u"):
            assert memory.text == "a"
            break
        assert len(again.requests) == 1
        # A server that gives the same cursor for ever does not hold the client for ever.
        assert [memory.text async for memory in client.memories("u")] == ["a", "b", "a", "b"]


# --- batches


class Batches:
    """Answers each line by ``outcome``, and remembers the lines of each request."""

    def __init__(self, outcome: Callable[[str, int], dict[str, Any] | None]) -> None:
        self.outcome = outcome
        self.sent: list[list[str]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["content-type"] == "application/x-ndjson"
        names = [json.loads(line)["conversation_id"] for line in request.content.split(b"\n")]
        self.sent.append(names)
        found = [self.outcome(name, len(self.sent)) for name in names]
        lines = [json.dumps(one) for one in found if one is not None]
        return httpx.Response(200, content="".join(f"{line}\n" for line in lines))


def bodies(*names: str) -> list[dict[str, str]]:
    return [{**BODY, "conversation_id": name} for name in names]


async def batched(server: Batches, *names: str, **options: Any) -> list[Receipt | ProblemError]:
    async with calling(server, **options) as client:
        return [outcome async for outcome in client.batch(bodies(*names))]


async def test_a_batch_yields_what_became_of_each_in_order(autojump_clock: MockClock) -> None:
    server = Batches(lambda name, _: problem(409, "conflict") if name == "b" else receipt(name, replayed=name == "c"))

    a, b, c = await batched(server, "a", "b", "c")

    assert isinstance(a, Receipt)
    assert (a.conversation_id, a.replayed) == ("a", False)
    assert isinstance(b, Conflict)
    assert isinstance(c, Receipt)
    assert c.replayed
    assert server.sent == [["a", "b", "c"]]


async def test_lines_that_can_succeed_later_are_sent_again_and_no_others(autojump_clock: MockClock) -> None:
    def outcome(name: str, request: int) -> dict[str, Any] | None:
        late = {**problem(503, "deadline_exceeded"), "retry_after_seconds": 3}
        return late if name in ("b", "d") and request < 3 else receipt(name)

    server = Batches(outcome)
    began = trio.current_time()
    found = await batched(server, "a", "b", "c", "d")

    assert [type(one) for one in found] == [Receipt] * 4
    assert server.sent == [["a", "b", "c", "d"], ["b", "d"], ["b", "d"]]
    assert trio.current_time() - began == 6.0


async def test_lines_without_an_answer_are_sent_again(autojump_clock: MockClock) -> None:
    server = Batches(lambda name, request: receipt(name) if name == "a" or request > 1 else None)

    assert [type(one) for one in await batched(server, "a", "b")] == [Receipt] * 2
    assert server.sent == [["a", "b"], ["b"]]


async def test_what_cannot_be_stored_in_time_is_left_as_what_can_be_retried(autojump_clock: MockClock) -> None:
    server = Batches(lambda name, _: receipt(name) if name == "a" else problem(503, "overloaded"))

    a, b = await batched(server, "a", "b", call_seconds=5.0)

    assert isinstance(a, Receipt)
    assert isinstance(b, Unavailable)
    assert b.retryable
    assert trio.current_time() <= 5.0
    with pytest.raises(NotReached, match="1 of 2 lines were answered in time"):
        await batched(Batches(lambda name, _: receipt(name) if name == "a" else None), "a", "b", call_seconds=5.0)


async def test_a_batch_is_split_where_one_request_takes_no_more(autojump_clock: MockClock) -> None:
    server = Batches(lambda name, _: receipt(name))
    names = [f"n-{number}" for number in range(2001)]

    found = await batched(server, *names)

    assert [one.conversation_id for one in found] == names
    assert [len(sent) for sent in server.sent] == [1000, 1000, 1]


async def test_an_answer_that_is_no_answer_to_a_batch_is_not_believed(autojump_clock: MockClock) -> None:
    for content in (b"<html>", b'{"conversation_id":"a"}\n', b"\xff"):
        with pytest.raises(NotConvo):
            async with calling(Scripted(httpx.Response(200, content=content))) as client:
                [outcome async for outcome in client.batch(bodies("a"))]
    more = b"".join(json.dumps(receipt(name)).encode() + b"\n" for name in "ab")
    with pytest.raises(NotConvo, match="2 answers to 1 lines"):
        async with calling(Scripted(httpx.Response(200, content=more))) as client:
            [outcome async for outcome in client.batch(bodies("a"))]


async def test_a_batch_that_is_refused_as_a_whole_says_so(autojump_clock: MockClock) -> None:
    refused = Scripted(httpx.Response(429, headers={"retry-after": "99"}, json=problem(429, "rate_limited")))
    with pytest.raises(TooManyRequests):
        async with calling(refused) as client:
            [outcome async for outcome in client.batch(bodies("a"))]


async def test_a_conversation_that_fits_no_request_is_refused_alone(autojump_clock: MockClock) -> None:
    async def server(request: httpx.Request) -> httpx.Response:
        if len(request.content) > 16 << 20:
            return httpx.Response(413, json=problem(413, "too_large"))
        return httpx.Response(200, json=receipt(json.loads(request.content)["conversation_id"]))

    async with calling(server) as client:
        sent: list[Any] = [*bodies("a"), b" " * (17 << 20), *bodies("b")]
        found = [outcome async for outcome in client.batch(sent)]
    assert [type(outcome) for outcome in found] == [Receipt, TooLarge, Receipt]


# --- its life


async def test_outside_its_block_nothing_is_sent(autojump_clock: MockClock) -> None:
    client = AsyncClient("http://convo", transport=httpx.MockTransport(lambda _: RECEIPT))
    with pytest.raises(ClientError, match="use it inside its `with` block"):
        await client.post(BODY)
    async with client:
        await client.post(BODY)
    with pytest.raises(ClientError, match="use it inside its `with` block"):
        await client.post(BODY)


@pytest.mark.parametrize("url", ["ftp://convo", "convo:30020", "http://x:port"])
async def test_an_address_that_cannot_be_called_is_refused_when_it_is_opened(url: str) -> None:
    with pytest.raises(ClientError, match="the URL"):
        async with AsyncClient(url):
            pass


async def test_a_body_that_is_refused_names_the_field(autojump_clock: MockClock) -> None:
    answer = {**problem(422, "invalid"), "path": "$.user_id", "conversation_id": "one"}
    with pytest.raises(Invalid) as caught:
        await posted(Scripted(httpx.Response(422, json=answer)))
    assert (caught.value.path, caught.value.conversation_id) == ("$.user_id", "one")


def test_it_runs_on_asyncio_too() -> None:
    async def run() -> str:
        transport = httpx.MockTransport(lambda _: RECEIPT)
        async with AsyncClient("http://convo", transport=transport) as client:
            return (await client.post(BODY)).conversation_id

    assert anyio.run(run, backend="asyncio") == "one"
