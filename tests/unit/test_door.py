from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from convo import errors
from convo.config import AlertsSettings, Settings, WebSettings
from convo.deadline import deadline
from convo.observe import metrics
from convo.web.door import Answer, Head, answered, budget_seconds, check_head, problem
from tests.making import told

MIB = 1 << 20
SETTINGS = WebSettings(body_bytes_max=2 * MIB)
WHOLE = Settings(web=SETTINGS)


def head(**fields: Any) -> Head:
    return Head(**{"method": "POST", "path": "/route", "peer": "192.0.2.1", "started": 0.0, **fields})


# --- the head


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", "application/json;"],
)
def test_json_by_any_of_its_names_is_taken(content_type: str) -> None:
    check_head(head(content_type=content_type, content_length=2 * MIB), SETTINGS)
    check_head(head(content_type=content_type, content_length=None), SETTINGS)


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "text/json+json", "application/jsonp", "multipart/form-data"]
)
def test_another_content_type_is_not_taken(content_type: str) -> None:
    with pytest.raises(errors.UnsupportedMedia, match="application/json"):
        check_head(head(content_type=content_type, content_length=10), SETTINGS)


def test_an_announced_body_over_the_limit_is_refused_by_its_head() -> None:
    with pytest.raises(errors.TooLarge, match="a body of 2097153 bytes"):
        check_head(head(content_type="application/json", content_length=2 * MIB + 1), SETTINGS)


@pytest.mark.parametrize(
    ("asked", "seconds"), [("", 8.0), ("2", 2.0), (" 0.25 ", 0.25), ("8.5", 8.0), ("999999999", 8.0), ("0", 0.0)]
)
def test_a_client_can_only_tighten_the_budget(asked: str, seconds: float) -> None:
    assert budget_seconds(head(request_timeout=asked), SETTINGS) == seconds


@pytest.mark.parametrize("asked", ["soon", "-1", "1e3", "inf", "nan", "1,5", "٣", "1" * 40, "2s"])
def test_a_budget_that_is_no_number_of_seconds_is_refused(asked: str) -> None:
    with pytest.raises(errors.BadRequest, match="Request-Timeout"):
        budget_seconds(head(request_timeout=asked), SETTINGS)


# --- errors as answers


def test_a_problem_says_what_where_and_whose() -> None:
    answer = problem(errors.Invalid("must be text", path="$.user_id"), "c-1")
    assert (answer.status, answer.content_type) == (422, "application/problem+json")
    assert json.loads(answer.body) == {
        "type": "/docs#invalid",
        "title": "The request is not valid",
        "status": 422,
        "code": "invalid",
        "detail": "must be text",
        "path": "$.user_id",
        "conversation_id": "c-1",
    }
    assert list(answer.headers) == []


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (errors.DatabaseUnavailable(), "1"),
        (errors.Unavailable(retry_after_seconds=2.1), "3"),
        (errors.DeadlineExceeded("db.accept", 3.0), "1"),
        (errors.Invalid(retry_after_seconds=9), "9"),
    ],
)
def test_what_may_succeed_later_says_when(error: errors.ConvoError, seconds: str) -> None:
    assert ("Retry-After", seconds) in problem(error).headers


# --- the request as a whole


Serve = Callable[[], Awaitable[Answer]]


async def serve_well() -> Answer:
    await trio.sleep(0.25)
    return Answer(status=200, body=b"{}")


def raising(error: Exception) -> Serve:
    async def serve() -> Answer:
        raise error

    return serve


async def ask(serve: Serve, method: str = "GET") -> Answer:
    return await answered("/route", head(method=method, started=trio.current_time()), WHOLE, serve)


async def test_every_answer_says_how_long_it_took(autojump_clock: trio.testing.MockClock) -> None:
    assert list((await ask(serve_well)).headers) == [("Server-Timing", "total;dur=250.00")]


async def test_an_answer_with_timings_of_its_own_keeps_them() -> None:
    async def serve() -> Answer:
        return Answer(status=202, body=b"", headers=[("Server-Timing", "commit;dur=1.00")], timed=True)

    assert list((await ask(serve)).headers) == [("Server-Timing", "commit;dur=1.00")]


async def test_an_error_on_purpose_is_its_own_answer() -> None:
    answer = await ask(raising(errors.NotFound("there is none")))
    assert (answer.status, json.loads(answer.body)["code"]) == (404, "not_found")


async def test_a_bug_is_answered_without_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    answer = await ask(raising(ZeroDivisionError("the secret")))
    assert (answer.status, json.loads(answer.body)["code"]) == (500, "internal")
    assert b"secret" not in answer.body
    assert b"ZeroDivision" not in answer.body


async def test_the_budget_ends_in_503_at_its_very_second(autojump_clock: trio.testing.MockClock) -> None:
    async def serve() -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    started = trio.current_time()
    answer = await ask(serve)
    assert trio.current_time() - started == SETTINGS.request_seconds
    assert (answer.status, json.loads(answer.body)["code"]) == (503, "deadline_exceeded")
    assert "web.request" in json.loads(answer.body)["detail"]


async def forever() -> Answer:
    await trio.sleep_forever()
    raise AssertionError


async def test_the_budget_runs_from_the_first_byte_of_the_head(autojump_clock: trio.testing.MockClock) -> None:
    first_byte = trio.current_time()
    await trio.sleep(3)
    answer = await answered("/route", head(started=first_byte), WHOLE, forever)
    assert trio.current_time() - first_byte == SETTINGS.request_seconds
    assert json.loads(answer.body)["code"] == "deadline_exceeded"


async def test_a_clients_own_budget_names_the_wait_that_used_it_up(autojump_clock: trio.testing.MockClock) -> None:
    async def serve() -> Answer:
        with deadline("db.read", 3.0):
            return await forever()

    started = trio.current_time()
    answer = await answered("/route", head(started=started, request_timeout="1.5"), WHOLE, serve)
    assert trio.current_time() - started == 1.5
    told = json.loads(answer.body)
    assert (answer.status, told["code"]) == (503, "deadline_exceeded")
    assert told["detail"] == "the 1.5 s of web.request ran out in db.read"


async def slow(seconds: float, settings: Settings) -> int:
    """Count how often a request that takes so long is told as slow."""

    async def serve() -> Answer:
        await trio.sleep(seconds)
        return Answer(status=200, body=b"")

    with told() as names:
        await answered("/route", head(started=trio.current_time()), settings, serve)
    return names.count("slow_request")


async def test_a_slow_request_is_told_at_eight_tenths_of_its_budget(autojump_clock: trio.testing.MockClock) -> None:
    assert [await slow(seconds, WHOLE) for seconds in (6.25, 6.5)] == [0, 1]


async def test_a_slow_request_is_told_from_its_threshold_on(autojump_clock: trio.testing.MockClock) -> None:
    settings = Settings(web=SETTINGS, alerts=AlertsSettings(slow_request_seconds=2.0))
    assert [await slow(seconds, settings) for seconds in (1.5, 2.5)] == [0, 1]


async def test_a_request_whose_budget_ran_out_is_told_as_slow_once(autojump_clock: trio.testing.MockClock) -> None:
    assert await slow(9.0, WHOLE) == 1


async def test_a_clients_own_words_are_no_label_of_a_metric() -> None:
    for number in range(50):
        await ask(raising(errors.NotFound()), f"X{number}")
    await ask(raising(errors.NotFound()), "PATCH")
    methods = {labels[1] for labels in metrics.requests_total.cells if labels[0] == "/route"}
    assert methods <= {"GET", "PATCH", "POST", "other"}
    assert "PATCH" in methods


@pytest.mark.parametrize(("request_timeout", "counted"), [("", 1), ("2", 0)])
async def test_a_request_that_ends_on_our_own_budget_is_counted(
    autojump_clock: trio.testing.MockClock, request_timeout: str, counted: int
) -> None:
    async def serve() -> Answer:
        await trio.sleep(100)
        return Answer(status=200, body=b"")

    before = metrics.requests_on_deadline_total.value
    asked = head(started=trio.current_time(), request_timeout=request_timeout)
    answer = await answered("/x", asked, WHOLE, serve)
    assert answer.status == 503
    assert metrics.requests_on_deadline_total.value == before + counted
