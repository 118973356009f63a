from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import httpx
import pytest
import trio
from trio.testing import MockClock

from scripts import seed_client
from scripts.seed_client import Api, Tally, await_end, backoff_seconds, post, retry_after_seconds

BODY = {"conversation_id": "one", "user_id": "mia", "bot_id": "pika"}
RECEIPT = httpx.Response(202, json={"conversation_id": "one"})

Answer = httpx.Response | Exception


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


@asynccontextmanager
async def api(server: Callable[[httpx.Request], Awaitable[httpx.Response]], tally: Tally) -> AsyncIterator[Api]:
    transport = httpx.MockTransport(server)  # type: ignore[arg-type]  # its type knows no awaitable but a coroutine
    async with httpx.AsyncClient(base_url="http://convo", transport=transport) as client:
        yield Api(client, 4, tally)


async def posted(server: Callable[[httpx.Request], Awaitable[httpx.Response]]) -> Tally:
    tally = Tally()
    async with api(server, tally) as here:
        await post(here, BODY, tally)
    return tally


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.0)


async def test_tries_are_further_and_further_apart_up_to_a_cap_and_they_end(autojump_clock: MockClock) -> None:
    server = Scripted(httpx.ConnectError("away"))

    tally = await posted(server)

    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert gaps == pytest.approx([0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 5.0])
    assert tally.reasons == {("lost", "ConnectError, 8 times"): 1}
    assert tally.retries == {"ConnectError": 7}


async def test_retry_after_is_obeyed_and_the_same_bytes_are_sent_again(autojump_clock: MockClock) -> None:
    server = Scripted(httpx.Response(429, headers={"retry-after": "7"}, json={"code": "busy"}), RECEIPT)

    tally = await posted(server)

    assert server.times[1] - server.times[0] == 7.0
    assert server.requests[0].content == server.requests[1].content
    assert tally.outcomes == {"accepted": 1}
    assert tally.retries == {"429 busy": 1}


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_what_can_succeed_unchanged_is_tried_again(autojump_clock: MockClock, status: int) -> None:
    assert (await posted(Scripted(httpx.Response(status), RECEIPT))).outcomes == {"accepted": 1}


@pytest.mark.parametrize("status", [200, 301, 400, 401, 404, 408, 409, 413, 415, 422, 500])
async def test_what_cannot_is_refused_at_once_with_its_code(autojump_clock: MockClock, status: int) -> None:
    server = Scripted(httpx.Response(status, json={"code": "because"}), RECEIPT)

    tally = await posted(server)

    assert len(server.requests) == 1
    assert tally.reasons == {("refused", f"{status} because"): 1}
    assert not tally.latencies
    assert not tally.taken


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError(""), httpx.ReadError(""), httpx.ReadTimeout(""), httpx.RemoteProtocolError("")],
    ids=lambda error: type(error).__name__,
)
async def test_a_broken_connection_is_tried_again_with_the_same_id(autojump_clock: MockClock, error: Exception) -> None:
    server = Scripted(error, RECEIPT)

    assert (await posted(server)).outcomes == {"accepted": 1}
    assert server.requests[0].content == server.requests[1].content


async def test_a_server_that_asks_for_too_much_patience_is_left(autojump_clock: MockClock) -> None:
    tally = await posted(Scripted(httpx.Response(503, headers={"retry-after": "3600"}, json={"code": "draining"})))

    assert tally.reasons == {("lost", "503 draining, asked to wait 3600 s"): 1}
    assert trio.current_time() < 1.0


async def test_an_attempt_that_gets_no_answer_ends_and_the_next_one_follows(autojump_clock: MockClock) -> None:
    times: list[float] = []

    async def stuck_once(_request: httpx.Request) -> httpx.Response:
        times.append(trio.current_time())
        if len(times) == 1:
            await trio.sleep_forever()
        return RECEIPT

    tally = await posted(stuck_once)

    assert times[1] - times[0] == pytest.approx(20.125)
    assert tally.outcomes == {"accepted": 1}
    assert tally.latencies == [0.0]


async def test_a_replay_is_told_from_a_first_receipt(autojump_clock: MockClock) -> None:
    replay = httpx.Response(202, headers={"idempotent-replayed": "true"}, json={"conversation_id": "one"})

    assert (await posted(Scripted(replay))).outcomes == {"replayed": 1}


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'"x"', b'{"conversation_id": "other"}', b"\xff"])
async def test_a_202_without_the_receipt_is_not_believed(autojump_clock: MockClock, content: bytes) -> None:
    tally = await posted(Scripted(httpx.Response(202, content=content)))

    assert tally.reasons == {("lost", "202 without a receipt"): 1}


async def test_the_end_is_awaited_by_asking_again_until_it_is_there(autojump_clock: MockClock) -> None:
    server = Scripted(httpx.Response(200, json={"state": "leased"}), httpx.Response(200, json={"state": "done"}))
    tally = Tally()

    async with api(server, tally) as here:
        await await_end(here, "a b", trio.current_time() + 60, tally)

    assert tally.states == {"done": 1}
    assert [str(request.url) for request in server.requests] == ["http://convo/v1/conversations/a%20b?wait=8.00"] * 2
    assert server.times[1] - server.times[0] == 0.25


async def test_a_pending_one_is_asked_until_the_time_is_over_and_once_even_then(autojump_clock: MockClock) -> None:
    server, tally = Scripted(httpx.Response(200, json={"state": "ready"})), Tally()

    async with api(server, tally) as here:
        await await_end(here, "one", trio.current_time() + 1.0, tally)
        asked = len(server.requests)
        await await_end(here, "two", trio.current_time() - 9.0, tally)

    assert tally.states == {"pending": 2}
    assert asked == 5  # at 0, 0.25, 0.5, 0.75 and 1.0
    assert len(server.requests) == asked + 1


async def test_a_404_after_a_202_is_a_loss(autojump_clock: MockClock) -> None:
    tally = Tally()

    async with api(Scripted(httpx.Response(404)), tally) as here:
        await await_end(here, "one", trio.current_time() + 60, tally)

    assert tally.outcomes == {"lost": 1}


async def test_no_more_requests_are_under_way_than_there_are_connections(autojump_clock: MockClock) -> None:
    under_way = most = 0

    async def slow(_request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await trio.sleep(1)
        under_way -= 1
        return RECEIPT

    tally = Tally()
    async with api(slow, tally) as here, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(post, here, BODY, tally)

    assert most == 4
    assert tally.outcomes == {"accepted": 20}


def test_chance_spreads_the_waits_and_never_undercuts_what_was_asked() -> None:
    assert [backoff_seconds(3, None, chance) for chance in (0.0, 0.5)] == [0.5, 0.75]
    assert [backoff_seconds(3, 5.0, chance) for chance in (0.0, 0.5)] == [5.0, 5.25]
    assert backoff_seconds(7, 0.0, 0.0) == seed_client.BACKOFF_MAX_SECONDS / 2


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 12 ", 12.0),
        ("soon", None),
        ("-3", None),
        ("Mon, 02 Mar 2026 08:00:30 GMT", 30.0),
        ("Mon, 02 Mar 2026 07:00:00 GMT", 0.0),
        ("Mon, 02 Mar 2026 08:00:05 -0000", 5.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, datetime(2026, 3, 2, 8, 0, tzinfo=UTC)) == seconds
