from __future__ import annotations

import re
import traceback
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from convo.analysis.llm import Model
from convo.analysis.remote import idempotency_key
from convo.errors import (
    ConfigError,
    DeadlineExceeded,
    RemoteBusy,
    RemoteDenied,
    RemoteError,
    RemoteGarbage,
    RemoteRefused,
    RemoteTimeout,
    RemoteUnavailable,
)
from convo.settings import LlmSettings, Secret
from tests.support import fakes
from tests.support.fakes import FakeServer, Fault, conversation_of

# httpx and httpcore leave generators of their own to the garbage collector when a call ends early.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")

TALK = conversation_of("Do you know the secret of Blauberg?", "No.")


def settings_for(url: str, **others: object) -> LlmSettings:
    settings = {"attempts": 1, "backoff_seconds": 0.01, "backoff_max_seconds": 0.02, "attempt_seconds": 30.0, **others}
    return LlmSettings(base_url=url, model="m-1", **settings)  # type: ignore[arg-type]


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with fakes.open_model() as running:
        yield running


async def failure_of(settings: LlmSettings) -> RemoteError:
    async with Model(settings) as model:
        with pytest.raises(RemoteError) as raised:
            await model.questions(TALK)
    return raised.value


def _http(status: int) -> Fault:
    return fakes.failing(str(status), "some_code")


# A 400 or 422 is asked again in other forms, and refused in each.
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (fakes.rate_limited("7"), RemoteBusy),
        *[(_http(status), RemoteUnavailable) for status in (408, 409, 425, 498, 500, 502, 503, 504, 529)],
        *[(_http(status), RemoteRefused) for status in (400, 413, 422)],
        *[(_http(status), RemoteDenied) for status in (301, 307, 308, 401, 402, 403, 404, 405, 410)],
        (fakes.garbage, RemoteGarbage),
        (fakes.not_utf8, RemoteGarbage),
        (fakes.deeply_nested, RemoteGarbage),
        (fakes.wrong_schema, RemoteGarbage),
        (fakes.huge, RemoteGarbage),
        (fakes.compressed, RemoteGarbage),
        (fakes.answering(""), RemoteGarbage),
        (fakes.reset, RemoteUnavailable),
        (fakes.reset_in_the_body, RemoteUnavailable),
        (fakes.no_http, RemoteUnavailable),
    ],
)
async def test_every_failure_has_its_kind(server: FakeServer, fault: Fault, kind: type[RemoteError]) -> None:
    server.always = fault
    error = await failure_of(settings_for(server.url))
    assert type(error) is kind
    assert error.dependency == "llm"


@pytest.mark.parametrize("fault", [fakes.stuck, fakes.stuck_after_headers, fakes.slow_drip("0.05")])
async def test_an_attempt_that_takes_too_long_is_a_timeout(server: FakeServer, fault: Fault) -> None:
    server.always = fault
    error = await failure_of(settings_for(server.url, attempt_seconds=0.3))
    assert type(error) is RemoteTimeout
    assert error.outage
    assert isinstance(error.__cause__, DeadlineExceeded)
    assert error.__cause__.name == "llm.parts"


@pytest.mark.parametrize("fault", [fakes.healthy, fakes.failing("500"), fakes.failing("401"), fakes.huge])
async def test_a_service_that_answers_anything_is_there(server: FakeServer, fault: Fault) -> None:
    server.always = fault
    async with Model(settings_for(server.url)) as model:
        await model.ping()
    assert [(call.method, call.path) for call in server.calls] == [("GET", "/models")]


async def test_a_ping_takes_no_place_from_the_calls_and_needs_none(server: FakeServer) -> None:
    server.always = fakes.healthy
    async with Model(settings_for(server.url, concurrency=1)) as model, model.dependency.slot():
        await model.ping()
    assert len(server.calls) == 1


async def test_a_check_takes_no_place_from_the_calls_and_needs_none(server: FakeServer) -> None:
    server.always = fakes.healthy
    async with Model(settings_for(server.url, concurrency=1)) as model, model.dependency.slot():
        with trio.fail_after(5):
            await model.check()


async def test_a_ping_does_not_read_the_body(nursery: trio.Nursery) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(65_536)
        # The rest never comes: whoever waits for it does not return.
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 900000\r\n\r\n\x1f\x8b")
        await trio.sleep_forever()

    (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    _, port = listener.socket.getsockname()
    async with Model(settings_for(f"http://127.0.0.1:{port}")) as model:
        for _ in range(3):
            await model.ping()


@pytest.mark.parametrize("fault", [fakes.reset, fakes.stuck])
async def test_a_service_that_does_not_answer_is_not_there(
    server: FakeServer, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convo.analysis.remote._PING_SECONDS", 0.3)
    server.always = fault
    async with Model(settings_for(server.url)) as model:
        with pytest.raises(RemoteUnavailable):
            await model.ping()


async def test_a_check_ends_with_the_time_of_one_attempt(server: FakeServer) -> None:
    server.always = fakes.stuck
    async with Model(settings_for(server.url, attempt_seconds=0.3)) as model:
        with pytest.raises(RemoteUnavailable, match=r"llm\.check took longer than its 0\.3 s"):
            await model.check()


@pytest.mark.parametrize(("status", "kind"), [("401", RemoteDenied), ("402", RemoteDenied), ("503", RemoteUnavailable)])
async def test_a_check_fails_where_calls_would_not_get_through(
    server: FakeServer, status: str, kind: type[RemoteError]
) -> None:
    server.always = fakes.failing(status)
    async with Model(settings_for(server.url)) as model:
        with pytest.raises(RemoteError) as raised:
            await model.check()
    assert type(raised.value) is kind


async def test_a_check_reads_no_answer_without_end(server: FakeServer) -> None:
    server.always = fakes.huge
    async with Model(settings_for(server.url)) as model:
        with pytest.raises(RemoteGarbage, match="the answer is larger than"):
            await model.check()


async def test_nobody_listening_is_unavailable() -> None:
    async with fakes.open_model() as server:
        url = server.url
    assert type(await failure_of(settings_for(url))) is RemoteUnavailable


async def test_a_name_that_does_not_resolve_is_unavailable() -> None:
    assert type(await failure_of(settings_for("http://nowhere.invalid"))) is RemoteUnavailable


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "nonsense", "http://\0"])
async def test_an_address_that_is_none_is_a_wrong_setting(url: str) -> None:
    assert type(await failure_of(settings_for(url))) is RemoteDenied


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8080/v1", "http:///v1", "http://[::1"])
async def test_an_address_that_is_none_is_known_without_a_call_and_not_quoted(url: str) -> None:
    async with Model(settings_for(url)) as model:
        model.inspect()
        assert model.dependency.misconfigured == "llm: llm.base_url must begin with http:// or https:// and a host"
        assert model.dependency.misconfigured in model.dependency.described()


async def test_a_refused_key_is_known_at_the_start(server: FakeServer) -> None:
    async with Model(settings_for(server.url)) as model:
        model.inspect()
        await model.check_at_start()
        assert model.dependency.misconfigured == ""
        server.always = fakes.failing("401")
        await model.check_at_start()
        assert "401" in model.dependency.misconfigured


async def test_a_server_that_refuses_every_form_of_a_call_is_known_at_the_start(server: FakeServer) -> None:
    server.always = fakes.failing("400")
    async with Model(settings_for(server.url)) as model:
        await model.check_at_start()
        assert "answered 400" in model.dependency.misconfigured


@pytest.mark.parametrize("fault", [fakes.failing("503"), fakes.reset])
async def test_trouble_at_the_start_is_no_wrong_setting(server: FakeServer, fault: Fault) -> None:
    server.always = fault
    async with Model(settings_for(server.url)) as model:
        await model.check_at_start()
        assert model.dependency.misconfigured == ""


async def test_a_busy_server_is_obeyed(server: FakeServer) -> None:
    server.always = fakes.rate_limited("7")
    assert (await failure_of(settings_for(server.url))).retry_after_seconds == 7.0


async def test_what_can_help_is_tried_again_with_the_same_key(server: FakeServer) -> None:
    server.then(fakes.failing("503"), fakes.garbage)
    settings = settings_for(server.url, attempts=3)
    async with Model(settings) as model:
        found = await model.questions(TALK)
    assert found.questions == ("Do you know the secret of Blauberg?",)
    assert len(server.keys) == 3
    assert len(set(server.keys)) == 1


async def test_what_cannot_help_is_not_tried_again(server: FakeServer) -> None:
    server.always = fakes.failing("401")
    await failure_of(settings_for(server.url, attempts=3))
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "fault",
    [fakes.failing("400", "Blauberg is secret"), fakes.failing("500"), fakes.answering("Blauberg"), fakes.wrong_schema],
)
async def test_no_text_and_no_key_stands_in_an_error(server: FakeServer, fault: Fault) -> None:
    server.always = fault
    error = await failure_of(settings_for(server.url, api_key=Secret("sk-very-private")))
    logged = "".join(traceback.format_exception(error)) + repr(error)
    assert "Blauberg" not in logged
    assert "sk-very-private" not in logged


async def test_an_error_names_the_status_and_the_dependencys_own_code(server: FakeServer) -> None:
    server.always = fakes.failing("401", "invalid_api_key")
    assert str(await failure_of(settings_for(server.url))) == (
        "llm: answered 401 (invalid_api_key): it refuses the key of CONVO_LLM__API_KEY"
    )


async def test_a_key_that_cannot_stand_in_a_header_is_reported_without_showing_it() -> None:
    settings = settings_for("http://127.0.0.1:1", api_key=Secret("sk-private\n"))
    with pytest.raises(ConfigError) as raised:
        Model(settings)
    assert "private" not in str(raised.value)


async def test_a_header_that_cannot_be_sent_is_not_quoted(server: FakeServer) -> None:
    settings = settings_for(server.url, headers={"x-place": "Blauberg\n"})
    async with Model(settings) as model:
        with pytest.raises(RemoteRefused) as raised:
            await model.questions(TALK)
    assert "Blauberg" not in "".join(traceback.format_exception(raised.value))
    assert server.calls == []


async def test_the_answer_of_an_endless_server_is_not_read_to_its_end(server: FakeServer) -> None:
    server.always = fakes.huge
    assert type(await failure_of(settings_for(server.url))) is RemoteGarbage
    with trio.fail_after(10):
        await server.until(lambda seen: seen.open_connections == 0)


@pytest.mark.parametrize("fault", [fakes.stuck, fakes.stuck_after_headers, fakes.slow_drip("0.01")])
async def test_a_cancelled_call_closes_its_socket(server: FakeServer, fault: Fault) -> None:
    server.always = fault
    settings = settings_for(server.url)
    async with Model(settings) as model, trio.open_nursery() as nursery:
        nursery.start_soon(model.questions, TALK)
        await server.until(lambda seen: len(seen.calls) == 1)
        assert server.open_connections == 1
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(10):
            # The client is still open here: it is the call that lets go of the socket.
            await server.until(lambda seen: seen.open_connections == 0)


async def test_a_call_that_ran_out_of_time_closes_its_socket(server: FakeServer) -> None:
    server.always = fakes.stuck
    settings = settings_for(server.url, attempt_seconds=0.2)
    async with Model(settings) as model:
        with pytest.raises(RemoteUnavailable):
            await model.questions(TALK)
        with trio.fail_after(10):
            await server.until(lambda seen: seen.open_connections == 0)


async def test_calls_beyond_the_concurrency_wait_outside_the_deadline(server: FakeServer) -> None:
    server.always = fakes.slow("0.3")
    settings = settings_for(server.url, attempt_seconds=0.7, concurrency=1)
    async with Model(settings) as model, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(model.questions, TALK)
    assert len(server.calls) == 4


@pytest.mark.parametrize("conversation_id", ["abc", "Gespräch 1", "hội thoại:số/7?", "🎈" * 255, 'a"b\\c%'])
async def test_any_conversation_id_makes_a_key_in_ascii(server: FakeServer, conversation_id: str) -> None:
    talk = conversation_of("why?", conversation_id=conversation_id)
    settings = settings_for(server.url)
    async with Model(settings) as model:
        await model.questions(talk)
    (key,) = server.keys
    assert re.fullmatch(r"[!-9;-~]+:[0-9a-f]{40}", key)
    assert idempotency_key(talk, "memories").isascii()


def test_the_limit_of_the_client_is_looser_than_an_attempt() -> None:
    assert Model(settings_for("http://127.0.0.1:1"))._client._backstop == 60.0
