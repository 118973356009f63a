from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from unittest.mock import Mock

import pytest
import trio
import trio.testing
from msgspec import structs
from structlog.testing import capture_logs

from convo import errors
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.observe import log_records, metrics, tracing
from convo.observe.tracing import Recorder
from convo.runtime.deadline import deadline
from convo.settings import AlertsSettings, AuthSettings, ClientsSettings, Settings, WebSettings
from convo.web.authority import Authority
from convo.web.browsers import Browsers
from convo.web.clients import Clients
from convo.web.description.messages import Answer, Head
from convo.web.description.routes import ROUTES
from convo.web.door import Door, RouteRequest, answered, budget_seconds, check_head
from convo.web.readiness import Readiness
from tests.support.making import told

MIB = 1 << 20
SETTINGS = WebSettings(raw_bytes_max=2 * MIB)
WHOLE = Settings(web=SETTINGS)
NOTHING: Any = None


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
    ("asked", "seconds"), [("", 8.0), ("2", 2.0), (" 0.25 ", 0.25), ("8.5", 8.0), ("999999999", 8.0), ("0.001", 0.001)]
)
def test_a_client_can_only_tighten_the_budget(asked: str, seconds: float) -> None:
    assert budget_seconds(head(request_timeout=asked), SETTINGS) == seconds


@pytest.mark.parametrize(
    "asked",
    ["soon", "-1", "1e3", "inf", "nan", "1,5", "٣", "1" * 40, "2s", "0", "00", " 0.000 ", "-0", "-nan", "1e400"],
)
def test_a_budget_that_is_no_number_of_seconds_is_refused(asked: str) -> None:
    with pytest.raises(errors.BadRequest, match="Request-Timeout"):
        budget_seconds(head(request_timeout=asked), SETTINGS)


# --- what every request passes


BY_NAME = {route.name: route for route in ROUTES}


def a_door(*, ready: bool = True, keys: bool = False, **clients: float) -> Door:
    readiness = Readiness()
    if ready:
        readiness.open()
    return Door(
        browsers=Browsers(Settings(auth=AuthSettings(keys=keys))),
        readiness=readiness,
        authority=Authority(AuthSettings(keys=keys), NOTHING),
        clients=Clients(ClientsSettings(**clients)),  # type: ignore[arg-type]
        raw_bytes_max=100,
    )


async def served(_: RouteRequest) -> Answer:
    await trio.lowlevel.checkpoint()
    return Answer(status=200, body=b"")


async def passed(door: Door, name: str, **fields: Any) -> Answer:
    about = fields.pop("about", {})
    return await door.pass_on(
        BY_NAME[name], RouteRequest(head=head(**about), read=NOTHING, next_piece=NOTHING, **fields), served
    )


async def test_what_needs_the_database_waits_for_it_and_all_else_does_not() -> None:
    closed = a_door(ready=False)
    for route in ROUTES:
        if route.needs_database:
            with pytest.raises(errors.Unavailable):
                await passed(closed, route.name)
        else:
            assert (await passed(closed, route.name)).status == 200


async def test_with_keys_every_scope_is_required() -> None:
    locked = a_door(keys=True)
    for route in ROUTES:
        if route.scope:
            with pytest.raises(errors.Unauthorized):
                await passed(locked, route.name)
        else:
            assert (await passed(locked, route.name)).status == 200


async def test_only_a_key_that_is_valid_is_noted_for_the_access_log() -> None:
    class OneKey:
        async def check(self, shown: str, *_: object, **__: object) -> Any:
            await trio.lowlevel.checkpoint()
            if shown != "good":
                raise errors.Unauthorized("no")
            return Mock(key_id="abc", requests_per_second=0, reach=WHOLE_DEFAULT)

    authority: Any = OneKey()
    locked = structs.replace(a_door(keys=True), authority=authority)
    for shown, noted in (("wrong", None), ("good", "abc")):
        with suppress(errors.Unauthorized):
            await passed(locked, "list_conversations", about={"authorization": shown})
        assert log_records.request_key.get() == noted


async def test_an_unknown_method_is_logged_by_no_word_of_the_client(autojump_clock: trio.testing.MockClock) -> None:
    async def slow() -> Answer:
        await trio.sleep(7.9)
        raise ZeroDivisionError

    with capture_logs() as lines:
        await answered("/x", head(method="MY-DOG-IS-CALLED-REX"), WHOLE, slow)
    assert [(line["event"], line["method"]) for line in lines] == [
        ("request_failed", "other"),
        ("slow_request", "other"),
    ]


async def test_the_operations_address_needs_no_key_and_serves_no_other_route() -> None:
    locked = a_door(keys=True, ready=False)
    for route in ROUTES:
        if route.on_operations:
            assert (await passed(locked, route.name, on_operations=True)).status == 200
        else:
            with pytest.raises(errors.NotFound, match="/livez, /metrics, /readyz"):
                await passed(locked, route.name, on_operations=True)


@pytest.mark.parametrize("about", [{"host": "evil.example"}, {"origin": "https://evil.example"}])
async def test_no_route_is_reached_from_a_foreign_page_without_a_key(about: dict[str, str]) -> None:
    for route in ROUTES:
        with pytest.raises((errors.UnknownHost, errors.CrossSite)):
            await passed(a_door(ready=False), route.name, about=about)
        with pytest.raises((errors.UnknownHost, errors.CrossSite)):
            await passed(a_door(keys=True), route.name, about=about, on_operations=True)
        if not route.scope:
            assert (await passed(a_door(keys=True), route.name, about=about)).status == 200


async def test_what_the_database_answers_counts_against_the_clients_limit() -> None:
    limited = a_door(requests_per_second=1.0, requests_burst=2.0)
    answers = [await passed(limited, name) for name in ("end_conversation", "list_conversations")]
    assert all("RateLimit" in dict(answer.headers) for answer in answers)
    with pytest.raises(errors.TooManyRequests):
        await passed(limited, "read_relationship", values={"user_id": "user-1"})
    assert "RateLimit" not in dict((await passed(limited, "metrics")).headers)


@pytest.mark.parametrize("on_operations", [False, True])
async def test_every_route_refuses_a_query_parameter_that_it_does_not_take(on_operations: bool) -> None:  # noqa: FBT001
    for route in ROUTES:
        if on_operations and not route.on_operations:
            continue
        with pytest.raises(errors.Invalid, match="'nobody'"):
            await passed(a_door(), route.name, about={"query": "nobody=1"}, on_operations=on_operations)


async def test_a_route_function_gets_the_parameters_that_the_catalogue_lists() -> None:
    asked: list[RouteRequest] = []

    async def keep(request: RouteRequest) -> Answer:
        asked.append(request)
        return await served(request)

    about = head(query="user_id=ann&state=parked")
    await a_door().pass_on(
        BY_NAME["list_conversations"], RouteRequest(head=about, read=NOTHING, next_piece=NOTHING), keep
    )
    assert asked[0].query == {"user_id": "ann", "state": "parked"}


@pytest.mark.parametrize("name", ["conversation_id", "user_id"])
@pytest.mark.parametrize("value", [".", ".."])
async def test_a_dot_segment_is_no_id(name: str, value: str) -> None:
    route = {"conversation_id": "read_conversation", "user_id": "read_relationship"}[name]
    with pytest.raises(errors.Invalid) as caught:
        await passed(a_door(), route, values={name: value})
    assert caught.value.path == name
    assert (await passed(a_door(), route, values={name: "..."})).status == 200


async def test_a_dot_segment_is_no_page_of_the_handbook_and_no_id_either() -> None:
    assert (await passed(a_door(), "handbook", values={"topic": ".."})).status == 200


@pytest.mark.parametrize(("length", "left"), [(30, 170), (None, 100)])
async def test_a_body_without_a_length_counts_as_the_longest(length: int | None, left: int) -> None:
    limited = a_door(bytes_per_second=1.0, bytes_burst=200.0)
    answer = await passed(limited, "end_conversation", about={"content_length": length})
    assert f"r={left};" in dict(answer.headers)["RateLimit"]


async def test_no_id_contains_nul() -> None:
    with pytest.raises(errors.NotFound, match="NUL"):
        await passed(a_door(), "read_log", values={"conversation_id": "a\x00b"})


async def test_an_error_about_a_conversation_knows_its_id() -> None:
    async def absent(_: RouteRequest) -> Answer:
        raise errors.NotFound

    request = RouteRequest(head=head(), read=NOTHING, next_piece=NOTHING, values={"conversation_id": "talk-1"})
    with pytest.raises(errors.NotFound) as caught:
        await a_door().pass_on(BY_NAME["read_log"], request, absent)
    assert caught.value.conversation_id == "talk-1"


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


async def test_a_slow_request_is_logged_at_eight_tenths_of_its_budget(autojump_clock: trio.testing.MockClock) -> None:
    assert [await slow(seconds, WHOLE) for seconds in (6.25, 6.5)] == [0, 1]


async def test_a_slow_request_is_logged_from_its_threshold_on(autojump_clock: trio.testing.MockClock) -> None:
    settings = Settings(web=SETTINGS, alerts=AlertsSettings(slow_request_seconds=2.0))
    assert [await slow(seconds, settings) for seconds in (1.5, 2.5)] == [0, 1]


async def test_a_request_whose_budget_ran_out_is_logged_as_slow_once(autojump_clock: trio.testing.MockClock) -> None:
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


# --- traces


def recorded(recorder: Recorder) -> list[tuple[str, str, object]]:
    return [(span.name, span.error, span.attributes.get("http.response.status_code")) for span in recorder.take(10)]


async def test_a_request_that_needs_the_database_is_recorded_with_its_answer_and_a_probe_is_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def refused() -> Answer:
        raise errors.DeadlineExceeded("db.read", 3.0)

    recorder = Recorder(sample=1.0, spans_max=10)
    with tracing.recording(recorder):
        for route, serve in (("/v1/conversations", serve_well), ("/livez", serve_well), ("/v1/conversations", refused)):
            await answered(route, head(started=trio.current_time()), WHOLE, serve)
            assert tracing.current_span() is None
    assert recorded(recorder) == [
        ("POST /v1/conversations", "", 200),
        ("POST /v1/conversations", "deadline_exceeded", 503),
    ]


async def test_a_request_whose_client_went_away_is_recorded_as_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    recorder = Recorder(sample=1.0, spans_max=10)
    with tracing.recording(recorder), trio.move_on_after(1.0):
        await answered("/v1/conversations", head(started=trio.current_time()), WHOLE, forever)
    assert recorded(recorder) == [("POST /v1/conversations", "Cancelled", None)]
    assert tracing.current_span() is None
