from __future__ import annotations

import itertools
import json
import os
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from structlog.testing import capture_logs

from convo.conversation.tenant import WHOLE_DEFAULT
from convo.http.asgi import App, AsgiMessage
from convo.http.connection import ClientConnection
from convo.observe import metrics
from convo.web.app import _finishing
from convo.web.description.messages import Head
from tests.support.doors import (
    AtOnce,
    Receive,
    Send,
    Served,
    accept_route,
    answer,
    body_of,
    echo,
    get,
    one_of,
    opened,
    post,
    rest_of,
    short,
    statuses,
)
from tests.support.running import eventually

RESET = struct.pack("ii", 1, 0)


def ended(reason: str) -> float:
    return metrics.connection_ended_total.labels(reason).value


def exceeded(name: str) -> float:
    return metrics.deadline_exceeded_total.labels(name).value


@asynccontextmanager
async def ends_as(reason: str, served: Served) -> AsyncIterator[None]:
    """Check that one connection ends for this reason inside the block or soon after, and that nothing is left of it."""
    before = ended(reason)
    yield
    await eventually(lambda: ended(reason) == before + 1 and not len(served.connections))


def reset(stream: trio.SocketStream) -> None:
    """Break a connection off, as the kernel does for a process that was killed."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    stream.socket.close()


async def stuck(scope: AsgiMessage, receive: Receive, send: Send) -> None:
    await trio.sleep_forever()


async def gushing(scope: AsgiMessage, receive: Receive, send: Send) -> None:
    await answer(send, bytes(64 << 20))


async def drip(stream: trio.SocketStream, pieces: Iterable[bytes], seconds: float) -> None:
    for piece in pieces:
        await stream.send_all(piece)
        await trio.sleep(seconds)


def bytes_of(data: bytes) -> Iterator[bytes]:
    return (bytes([byte]) for byte in data)


# --- phase by phase


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
async def test_an_idle_connection_ends_after_its_keep_alive(used: bool) -> None:  # noqa: FBT001
    async with opened(
        echo, {"connection.keep_alive_seconds": "0.4", "ladder.gateway_keep_alive_seconds": "0.1"}
    ) as served:
        before = exceeded("connection.idle")
        async with ends_as("idle_deadline", served), await served.connect() as stream:
            if used:
                await stream.send_all(get())
                await one_of(stream)
            assert await rest_of(stream) == b""
        assert exceeded("connection.idle") == before + 1


async def test_a_connection_outlives_the_time_of_its_last_request() -> None:
    async with opened() as served, ends_as("drained", served), await served.connect() as stream:
        for number in range(2):
            await stream.send_all(b"".join(post(f"talk-{number}", "Request-Timeout: 0.5")))
            assert statuses((await one_of(stream))[0]) == [202]
            await trio.sleep(0.6)
        served.connections.drain()
        assert await rest_of(stream) == b""


@pytest.mark.parametrize("before", ["0.5", "8"])
async def test_a_second_request_has_all_of_its_time_and_no_more(before: str) -> None:
    async with opened() as served, await served.connect() as stream:
        await stream.send_all(b"".join(post("talk-1", f"Request-Timeout: {before}")))
        assert statuses((await one_of(stream))[0]) == [202]
        # The committer hangs, and nothing else bounds the wait for it.
        served.committer.open, served.committer.wait_seconds = trio.Event(), 0.0
        began = trio.current_time()
        with trio.fail_after(5):
            await stream.send_all(b"".join(post("talk-2", "Request-Timeout: 1")))
            assert statuses(await rest_of(stream)) == [503]
        assert trio.current_time() - began > 0.9


async def test_a_request_that_comes_as_the_last_ones_time_ends_is_answered() -> None:
    async with opened() as served, await served.connect() as stream:
        for number in range(3):
            began = trio.current_time()
            await stream.send_all(b"".join(post(f"talk-{number}", "Request-Timeout: 0.4")))
            assert statuses((await one_of(stream))[0]) == [202]
            await trio.sleep(began + 0.3 - trio.current_time())
            # In one turn of the loop both: the next request, and the deadline.
            with socket.socket(fileno=os.dup(stream.socket.fileno())) as same:
                same.send(b"".join(post(f"late-{number}")))
            time.sleep(0.3)  # noqa: ASYNC251  (so that the turn lasts)
            assert statuses((await one_of(stream))[0]) == [202]


async def test_what_was_sent_before_the_stop_is_answered() -> None:
    async with opened() as served, ends_as("answered", served):
        # Nobody else has a turn until all of it is there.
        sending = socket.create_connection(("127.0.0.1", served.port))
        sending.sendall(b"".join(post("talk-1")))
        served.connections.drain()
        sending.settimeout(0)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(sending)) as stream:
            got = await rest_of(stream)
        assert (statuses(got), b"connection: close" in got) == ([202], True)


async def test_near_the_end_of_the_stop_a_request_is_answered_503_with_its_id() -> None:
    committer = AtOnce()
    committer.open = trio.Event()
    intake = accept_route(short({}), cast("Any", committer))
    intake.readiness.drain()
    _, body = post("talk-1")
    with trio.fail_after(0.5):
        answer = await intake.receive(
            Head(method="POST", path="/", peer="", started=trio.current_time(), content_type="application/json"),
            lambda grow: _read(body, grow),
            WHOLE_DEFAULT,
        )
    assert (answer.status, json.loads(answer.body)["conversation_id"]) == (503, "talk-1")


async def _read(body: bytes, grow: Callable[[int], None]) -> bytes:
    grow(len(body))
    return body


async def test_a_refused_request_renews_the_keep_alive() -> None:
    given = {"connection.keep_alive_seconds": "1", "ladder.gateway_keep_alive_seconds": "0.5"}
    async with opened(echo, given) as served, await served.connect() as stream:
        for _ in range(3):
            await trio.sleep(0.6)
            await stream.send_all(b"".join(post("talk-1", "Request-Timeout: soon")))
            assert statuses((await one_of(stream))[0]) == [400]


@pytest.mark.parametrize("sent", [b"G", get()[:-2], b"\r\n"])
async def test_a_head_that_does_not_come_to_its_end_is_408(sent: bytes) -> None:
    async with opened() as served, ends_as("head_deadline", served), await served.connect() as stream:
        await stream.send_all(sent)
        got = await rest_of(stream)
        assert (statuses(got), body_of(got)["code"]) == ([408], "request_timeout")


async def test_a_head_byte_by_byte_gains_no_time() -> None:
    async with opened() as served, ends_as("head_deadline", served), await served.connect() as stream:
        with pytest.raises(trio.BrokenResourceError):
            await drip(stream, bytes_of(get("/" + "a" * 5000)), 0.02)


POSTS = (post("talk-1"), (get("/", "Content-Length: 500", method="POST"), bytes(500)))


@pytest.mark.parametrize("request_", POSTS, ids=["accept", "app"])
async def test_a_body_that_stops_is_408(request_: tuple[bytes, bytes]) -> None:
    head, body = request_
    before = exceeded("connection.body")
    async with opened() as served, ends_as("body_deadline", served), await served.connect() as stream:
        await stream.send_all(head + body[:-1])
        got = await rest_of(stream)
        assert (statuses(got), body_of(got)["code"]) == ([408], "request_timeout")
        assert served.committer.stored == []
    assert exceeded("connection.body") == before + 1


@pytest.mark.parametrize("request_", POSTS, ids=["accept", "app"])
async def test_a_body_that_is_too_slow_is_408(request_: tuple[bytes, bytes]) -> None:
    head, body = request_
    async with opened() as served, ends_as("body_deadline", served), await served.connect() as stream:
        await stream.send_all(head)
        with pytest.raises(trio.BrokenResourceError):
            await drip(stream, bytes_of(body), 0.05)
        assert served.committer.stored == []


async def test_a_body_that_is_fast_enough_may_take_its_time_and_no_more() -> None:
    rate = {"connection.body_bytes_per_second_min": "100", "connection.body_seconds": "1"}
    async with opened(echo, rate) as served:
        async with await served.connect() as stream:
            await stream.send_all(get("/", "Content-Length: 120", method="POST"))
            for _ in range(6):  # 0.6 s, twice the patience
                await trio.sleep(0.1)
                await stream.send_all(bytes(20))
            assert statuses((await one_of(stream))[0]) == [200]
        async with ends_as("body_deadline", served), await served.connect() as stream:
            await stream.send_all(get("/", "Content-Length: 12000", method="POST"))
            with pytest.raises(trio.BrokenResourceError):
                await drip(stream, itertools.repeat(bytes(20)), 0.1)


BUDGET = {
    "web.request_seconds": "0.9", "connection.body_seconds": "0.9", "connection.head_seconds": "0.9",
    "database.acquire_seconds": "0.1", "database.statement_seconds": "0.1", "connection.body_patience_seconds": "5",
}  # fmt: skip


async def test_an_app_that_does_not_answer_in_its_time_is_answered_for() -> None:
    async with opened(stuck, BUDGET) as served, ends_as("handler_deadline", served):
        got = await served.ask(get())
        assert (statuses(got), body_of(got)["code"]) == ([503], "deadline_exceeded")


async def test_a_commit_that_does_not_come_is_503_with_the_conversations_id() -> None:
    async with opened(echo, BUDGET) as served, await served.connect() as stream:
        served.committer.open = trio.Event()
        await stream.send_all(b"".join(post("talk-1")))
        got, _ = await one_of(stream)
        told = body_of(got)
        assert (told["status"], told["code"], told["conversation_id"]) == (503, "deadline_exceeded", "talk-1")
        served.committer.open.set()
        await stream.send_all(b"".join(post("talk-1")))
        assert statuses((await one_of(stream))[0]) == [202]


async def test_a_clients_own_budget_holds_while_its_body_comes() -> None:
    async with opened(echo, {"connection.body_patience_seconds": "5"}) as served, await served.connect() as stream:
        await stream.send_all(post("talk-1", "Request-Timeout: 0.2")[0])
        got = await rest_of(stream)
        assert (statuses(got), body_of(got)["code"]) == ([503], "deadline_exceeded")


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    async with opened(gushing) as served, await served.connect() as stream:
        async with ends_as("write_deadline", served):
            await stream.send_all(get())
        # It is not left to the kernel to go on trying: what the client has not read is gone, too.
        with pytest.raises(trio.BrokenResourceError):
            await _drained(stream)


async def _drained(stream: trio.SocketStream) -> None:
    while await stream.receive_some(65536):
        pass


async def test_the_apps_last_piece_is_given_our_time_and_not_its_own() -> None:
    # Under stock hypercorn the app's last send is let come to its end, for as long as a request may take.
    app = cast("App", _finishing(gushing, 20))
    async with opened(app) as served, await served.connect() as stream:
        with trio.fail_after(5):
            async with ends_as("write_deadline", served):
                await stream.send_all(get())


async def test_a_client_that_reads_slowly_gets_the_whole_answer() -> None:
    async with opened(gushing) as served, await served.connect() as stream:
        await stream.send_all(get("/", "Connection: close"))
        got = 0
        while piece := await stream.receive_some(4 << 20):
            got += len(piece)
            await trio.sleep(0.005)
        assert got > 64 << 20


async def test_a_refused_client_that_goes_on_sending_is_not_read_for_ever() -> None:
    async with opened() as served, ends_as("refused", served), await served.connect() as stream:
        await stream.send_all(b"nonsense\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await drip(stream, itertools.repeat(bytes(1000)), 0.01)


async def test_waits_are_measured_by_their_phase() -> None:
    def waited() -> list[int]:
        names = ("connection.head", "connection.body", "connection.write", "web.request")
        return [sum(metrics.wait_seconds.labels(name).counts) for name in names]

    async with opened(gushing) as served, await served.connect() as stream:
        before = waited()
        await stream.send_all(b"".join(post("talk-1")))
        await one_of(stream)
        # What was there at once was not waited for.
        assert [now - then for now, then in zip(waited(), before, strict=True)] == [0, 0, 0, 1]
        head, body = post("talk-2", "Connection: close")
        await drip(stream, [head[:9], head[9:], body[:9], body[9:]], 0.05)
        await rest_of(stream)
        large = await served.connect()
        await large.send_all(get("/", "Connection: close"))
        assert sum([len(piece) async for piece in large]) > 64 << 20
        assert [now - then for now, then in zip(waited(), before, strict=True)] == [1, 1, 1, 2]


# --- the client is gone


async def test_an_app_learns_that_its_client_is_gone() -> None:
    heard: list[str] = []
    begun = trio.Event()

    async def waits(scope: AsgiMessage, receive: Receive, send: Send) -> None:
        await receive()
        begun.set()
        heard.append((await receive())["type"])

    async with opened(waits) as served, ends_as("gone", served):
        stream = await served.connect()
        await stream.send_all(get())
        await begun.wait()
        reset(stream)
    assert heard == ["http.disconnect"]


@pytest.mark.parametrize("end", [reset, lambda stream: stream.socket.close()], ids=["reset", "closed"])
async def test_a_client_that_goes_in_the_middle_of_its_body_leaves_nothing(end: Callable[[Any], None]) -> None:
    for head, body in POSTS:
        async with opened() as served:
            stream = await served.connect()
            await stream.send_all(head + body[:-1])
            await trio.sleep(0.05)
            end(stream)
            await eventually(lambda: not len(served.connections))
            assert served.committer.stored == []


@pytest.mark.parametrize("end", [reset, lambda stream: stream.socket.close()], ids=["reset", "closed"])
async def test_a_commit_is_not_torn_by_a_client_that_goes(end: Callable[[Any], None]) -> None:
    async with opened() as served:
        served.committer.open = trio.Event()
        stream = await served.connect()
        await stream.send_all(b"".join(post("talk-1")))
        await served.committer.begun.wait()
        end(stream)
        await trio.sleep(0.1)
        served.committer.open.set()
        await eventually(lambda: not len(served.connections))
        assert served.committer.stored == ["talk-1"]


async def test_a_client_that_goes_while_it_is_answered_is_forgotten() -> None:
    async with opened(gushing) as served, ends_as("gone", served):
        stream = await served.connect()
        await stream.send_all(get())
        await stream.receive_some(10)
        reset(stream)


async def test_a_client_that_goes_before_it_is_accepted_ends_nothing_else() -> None:
    async with opened() as served:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", served.port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        async with await served.connect() as stream:
            await stream.send_all(get())
            assert statuses((await one_of(stream))[0]) == [200]


# --- bugs


@pytest.mark.parametrize("late", [False, True], ids=["before its answer", "in its answer"])
async def test_a_bug_ends_one_connection_and_is_logged_once(late: bool) -> None:  # noqa: FBT001
    async def broken(scope: AsgiMessage, receive: Receive, send: Send) -> None:
        if scope["path"] == "/fine":
            await answer(send, b"fine")
            return
        if late:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ZeroDivisionError

    before = ended("error")
    with capture_logs() as told:
        async with opened(broken) as served, await served.connect() as other:
            for _ in range(20):
                got = await served.ask(get())
                assert statuses(got) == [200 if late else 500]
                assert not got.endswith(b"0\r\n\r\n")
            await eventually(lambda: ended("error") == before + 20)
            await other.send_all(get("/fine"))
            assert (await one_of(other))[0].endswith(b"fine")
    lines = [one for one in told if one["event"] == "connection_failed"]
    assert len(lines) == 1


@pytest.mark.parametrize("place", ["__init__", "turn_away", "linger", "end"])
async def test_a_bug_at_either_end_of_a_connection_is_that_connections_end(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    most = "1" if place == "turn_away" else "100"
    with capture_logs() as told:
        async with opened(echo, {"connection.connections_max": most}) as served, await served.connect() as other:
            await other.send_all(get())
            await one_of(other)
            with monkeypatch.context() as patched:
                patched.setattr(ClientConnection, place, broken)
                for _ in range(3):
                    await served.ask(get("/", "Connection: close"))
            await other.send_all(get())
            assert statuses((await one_of(other))[0]) == [200]
    lines = [one for one in told if one["event"] == "connection_failed"]
    assert len(lines) == 1


async def test_an_app_that_says_nothing_is_answered_for() -> None:
    async def mute(scope: AsgiMessage, receive: Receive, send: Send) -> None:
        await trio.lowlevel.checkpoint()

    async with opened(mute) as served:
        assert statuses(await served.ask(get())) == [500]


async def test_headers_that_hold_a_lines_end_are_not_written() -> None:
    async def splits(scope: AsgiMessage, receive: Receive, send: Send) -> None:
        await answer(send, b"", headers=[(b"x", b"a\r\nSet-Cookie: b")])

    async with opened(splits) as served:
        got = await served.ask(get())
        assert statuses(got) == [500]
        assert b"Set-Cookie" not in got


# --- how many


async def test_beyond_the_limit_a_connection_is_answered_and_closed() -> None:
    async with opened(echo, {"connection.connections_max": "2"}) as served:
        first, _ = await served.connect(), await served.connect()
        await eventually(lambda: len(served.connections) == 2)
        before = ended("full")
        got = await served.ask(get())
        assert (statuses(got), body_of(got)["code"]) == ([503], "overloaded")
        assert b"\r\nRetry-After: 1\r\n" in got
        await first.aclose()
        await eventually(lambda: len(served.connections) == 1)
        assert statuses(await served.ask(get("/", "Connection: close"))) == [200]
        await eventually(lambda: ended("full") == before + 1)
        assert len(served.connections) == 1


async def test_one_address_has_no_more_than_its_share() -> None:
    async with opened(echo, {"connection.connections_per_peer_max": "1"}) as served, await served.connect():
        await eventually(lambda: len(served.connections) == 1)
        assert statuses(await served.ask(get())) == [503]


# --- the stop


async def test_at_the_stop_the_idle_go_at_once_and_the_others_with_their_answer() -> None:
    async with opened() as served:
        served.committer.open = trio.Event()
        idle, fresh, busy, half = [await served.connect() for _ in range(4)]
        await idle.send_all(get())
        await one_of(idle)
        await half.send_all(get()[:-2])
        await busy.send_all(b"".join(post("talk-1")))
        await served.committer.begun.wait()
        served.stop.set()
        assert await rest_of(idle) == await rest_of(fresh) == b""
        with pytest.raises(OSError, match="connect"):
            await served.connect()
        await half.send_all(b"\r\n")
        for got in (await rest_of(half), await _let_go(served, busy)):
            assert statuses(got) in ([200], [202])
            assert b"\r\nconnection: close\r\n" in got
        await served.stopped.wait()


async def _let_go(served: Served, stream: trio.SocketStream) -> bytes:
    served.committer.open.set()
    return await rest_of(stream)


async def test_what_has_come_by_the_stop_is_answered() -> None:
    async with opened() as served, await served.connect() as stream:
        await stream.send_all(get())
        await one_of(stream)
        with socket.socket(fileno=stream.socket.fileno()) as raw:
            raw.send(get())
            served.connections.drain()
            raw.detach()
        assert statuses(await rest_of(stream)) == [200]


async def test_no_client_holds_the_stop_for_longer_than_its_grace() -> None:
    slow = {
        "shutdown.intake_seconds": "0.5", "connection.write_seconds": "1.9", "connection.linger_seconds": "60",
        "connection.head_seconds": "8",
    }  # fmt: skip

    async def either(scope: AsgiMessage, receive: Receive, send: Send) -> None:
        await (stuck if scope["path"] == "/stuck" else gushing)(scope, receive, send)

    async with opened(either, slow) as served:
        streams = [await served.connect() for _ in range(5)]
        for stream, sent in zip(
            streams,
            (get("/stuck"), get("/gushing"), get()[:-2], b"nonsense\r\n\r\n", post("talk-1")[0]),
            strict=True,
        ):
            await stream.send_all(sent)
        await trio.sleep(0.1)
        served.stop.set()
        with trio.fail_after(5):
            await served.stopped.wait()
        assert not len(served.connections)


async def test_a_killed_clients_thousand_connections_are_reclaimed() -> None:
    async with opened() as served:
        done = threading.Event()

        def attack() -> None:
            clients = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(300)]
            for number, client in enumerate(clients):
                client.sendall((b"", b"GE", b"".join(post("talk-1"))[:-1], get())[number % 4])
            done.wait(10)
            for client in clients:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, attack)
            await eventually(lambda: len(served.connections) > 200)
            done.set()
        await eventually(lambda: not len(served.connections))
        assert statuses(await served.ask(get("/", "Connection: close"))) == [200]
