from __future__ import annotations

import json
import tracemalloc
from typing import Any

import httpx
import pytest
import trio

from convo.conversation.tenant import Reach
from convo.http.asgi import AsgiMessage
from convo.web.description.messages import Answer, Head, Read
from tests.support.doors import (
    END,
    Receive,
    Send,
    Served,
    answer,
    body_of,
    echo,
    get,
    one_of,
    opened,
    post,
    rest_of,
    statuses,
)


async def asked(served: Served, *sent: bytes) -> bytes:
    """Ask over a connection of its own and return the first answer, whether or not the connection stays."""
    async with await served.connect() as stream:
        for piece in sent:
            await stream.send_all(piece)
        return (await one_of(stream))[0]


# --- one request after another


async def test_a_connection_takes_request_after_request() -> None:
    async with opened() as served, await served.connect() as stream:
        for number in range(20):
            await stream.send_all(get(f"/{number}?a=b%20c"))
            got, rest = await one_of(stream)
            assert (body_of(got)["path"], body_of(got)["query"], rest) == (f"/{number}", "a=b%20c", b"")
            head, body = post(f"talk-{number}")
            await stream.send_all(head + body)
            got, rest = await one_of(stream)
            assert (statuses(got), body_of(got)["conversation_id"]) == ([202], f"talk-{number}")
        assert len(served.connections) == 1


async def test_what_comes_at_once_is_answered_in_order() -> None:
    order = ["/1", "talk-1", "/2", "talk-2", "/3"]
    sent = b"".join(get(one) if one.startswith("/") else b"".join(post(one)) for one in order)
    sent += get("/last", "Connection: close")
    async with opened() as served:
        for pieces in ([sent], [sent[:700], sent[700:]], [sent[at : at + 7] for at in range(0, len(sent), 7)]):
            got, found = await served.ask(*pieces), []
            while got:
                head, _, got = got.partition(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                told, got = json.loads(got[:size]), got[size:]
                found.append(told.get("path") or told["conversation_id"])
            assert found == [*order, "/last"]


async def test_more_than_one_can_hold_comes_at_once_and_is_answered() -> None:
    async with opened() as served, await served.connect() as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, get("/x" + "y" * 4000) * 200 + get("/", "Connection: close"))
            got = await rest_of(stream)
        assert statuses(got) == [200] * 201


@pytest.mark.parametrize("fields", [["Connection: close"], ["Connection: Keep-Alive, close"]])
async def test_a_client_that_asks_for_it_is_closed_after_the_answer(fields: list[str]) -> None:
    async with opened() as served:
        for sent in (get("/", *fields), b"".join(post("talk-1", *fields))):
            got = await served.ask(sent)
            assert b"\r\nconnection: close\r\n" in got.lower()


async def test_http_1_0_is_closed_unless_it_asks_to_stay() -> None:
    async with opened() as served:
        for request in (get("/", version="HTTP/1.0"), b"".join(post("t-1")).replace(b"HTTP/1.1", b"HTTP/1.0")):
            assert b"\r\nconnection: close\r\n" in (await served.ask(request)).lower()
            stays = request.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n", 1)
            async with await served.connect() as stream:
                for _ in range(3):
                    await stream.send_all(stays)
                    assert b"\r\nconnection: keep-alive\r\n" in (await one_of(stream))[0].lower()


async def test_every_answer_has_a_date_a_server_and_its_timing() -> None:
    async with opened() as served:
        for sent in (get(), b"".join(post("talk-1")), b"nonsense\r\n\r\n"):
            head = (await asked(served, sent)).partition(b"\r\n\r\n")[0].lower()
            assert b"\r\ndate: " in head
            assert b"\r\nserver: convo\r\n" in head
            assert b"\r\nserver-timing: " in head or sent == get()


async def test_an_upgrade_is_answered_in_http_1_1() -> None:
    async with opened() as served:
        for kind in ("h2c", "websocket"):
            fields = ["Connection: Upgrade, HTTP2-Settings", f"Upgrade: {kind}", "HTTP2-Settings: A"]
            got = await served.ask(get("/one", *fields), get("/two", "Connection: close"))
            assert statuses(got) == [200, 200]
        head, body = post("talk-1", "Connection: Upgrade", "Upgrade: h2c")
        assert statuses(await asked(served, head + body)) == [202]


# --- bodies


async def test_a_body_comes_through_whole_however_it_is_sent() -> None:
    size = 300_000
    plain = get("/", f"Content-Length: {size}", "Connection: close", method="POST")
    chunks = get("/", "Transfer-Encoding: chunked", "Connection: close", method="PUT")
    chunked = b"".join(b"%x\r\n%b\r\n" % (step, b"x" * step) for step in [1, 299_999]) + b"0\r\n\r\n"
    async with opened() as served:
        for sent in (plain + b"x" * size, chunks + chunked):
            assert body_of(await served.ask(sent))["body"] == size
            assert body_of(await served.ask(sent[:90], sent[90:200], sent[200:]))["body"] == size


async def test_a_conversation_comes_in_chunks_or_in_bytes() -> None:
    async with opened() as served:
        head, body = post("talk-1", "Transfer-Encoding: chunked")
        chunks = (
            b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\nA: b\r\n\r\n"
        )
        async with await served.connect() as stream:
            for piece in (head, chunks[:3], chunks[3:12], chunks[12:-3], chunks[-3:]):
                await stream.send_all(piece)
                await trio.sleep(0.01)
            assert statuses((await one_of(stream))[0]) == [202]
            head, body = post("talk-2")
            for byte in head + body:
                await stream.send_all(bytes([byte]))
            assert statuses((await one_of(stream))[0]) == [202]
        assert served.committer.stored == ["talk-1", "talk-2"]


async def test_a_body_that_no_app_reads_is_not_read_into_memory() -> None:
    async def deaf(scope: AsgiMessage, receive: Receive, send: Send) -> None:
        await trio.sleep_forever()

    async with opened(deaf) as served, await served.connect() as stream:
        with trio.move_on_after(0.5) as moved_on:
            await stream.send_all(get("/", "Content-Length: 100000000", method="POST") + bytes(100_000_000))
        assert moved_on.cancelled_caught


async def test_a_body_is_in_memory_once() -> None:
    size = 2 << 20
    peaks = []

    class Reads:
        async def receive(self, _head: Head, read: Read, _reach: Reach) -> Answer:
            tracemalloc.start()
            try:
                assert len(await read(lambda _: None)) == size
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
            return Answer(status=202, body=b"")

    reads: Any = Reads()
    async with opened(intake=reads) as served:
        head, body = post("talk-1", body=bytes(size))
        assert statuses(await asked(served, head, body)) == [202]
    # One piece on its way, and the room that a growing buffer keeps.
    assert peaks[0] < size * 1.3


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (["Content-Type: text/plain"], 415),
        (["Content-Length: 30000000", "Content-Type: application/json"], 413),
        (["Content-Type: application/json", "Content-Length: 10", "Request-Timeout: soon"], 400),
    ],
)
async def test_100_continue_is_not_sent_for_a_body_that_will_be_refused(fields: list[str], status: int) -> None:
    size = [] if any("Length" in field for field in fields) else ["Content-Length: 10"]
    async with opened() as served:
        got = await served.ask(get(END, *fields, *size, "Expect: 100-continue", method="POST"), then_end=True)
        assert statuses(got) == [status]
        assert b"\r\nconnection: close\r\n" in got.lower()


async def test_100_continue_is_sent_only_if_there_is_room_for_the_body() -> None:
    async with opened(echo, {"intake.in_flight_max": "1"}) as served, trio.open_nursery() as nursery:
        served.committer.open = trio.Event()
        nursery.start_soon(served.ask, b"".join(post("talk-1", "Connection: close")))
        await served.committer.begun.wait()
        assert statuses(await served.ask(post("talk-2", "Expect: 100-continue")[0], then_end=True)) == [503]
        served.committer.open.set()


async def test_a_refused_request_that_has_arrived_whole_keeps_its_connection() -> None:
    async with opened(echo, {"intake.in_flight_max": "1"}) as served, await served.connect() as stream:
        async with trio.open_nursery() as nursery:
            served.committer.open = trio.Event()
            nursery.start_soon(served.ask, b"".join(post("talk-1", "Connection: close")))
            await served.committer.begun.wait()
            for name in ("talk-2", "talk-3"):
                await stream.send_all(b"".join(post(name)))
                got, _ = await one_of(stream)
                assert statuses(got) == [503]
                assert b"\r\nconnection: close" not in got.lower()
            served.committer.open.set()
        await stream.send_all(b"".join(post("talk-4")))
        assert statuses((await one_of(stream))[0]) == [202]


async def test_100_continue_is_sent_for_a_body_that_will_be_read() -> None:
    async with opened() as served:
        for head, body, status in (
            (*post("talk-1", "Expect: 100-continue"), 202),
            (get("/", "Content-Length: 3", "Expect: 100-continue", method="POST"), b"abc", 200),
        ):
            async with await served.connect() as stream:
                await stream.send_all(head)
                told = await stream.receive_some()
                assert told == b"HTTP/1.1 100 Continue\r\n\r\n"
                await stream.send_all(body)
                assert statuses((await one_of(stream))[0]) == [status]
                await stream.send_all(head + body)  # who does not wait is not told
                assert statuses((await one_of(stream))[0]) == [status]


# --- answers


async def streaming(scope: AsgiMessage, receive: Receive, send: Send) -> None:
    await answer(send, b"one", b"two" * 20_000, b"three")


WHOLE = b"one" + b"two" * 20_000 + b"three"


async def test_an_answer_of_unknown_length_comes_in_chunks() -> None:
    async with opened(streaming) as served:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as client:
            for _ in range(3):
                got = await client.get("/")
                assert (got.headers["transfer-encoding"], got.content) == ("chunked", WHOLE)
        old = get("/", "Connection: keep-alive", version="HTTP/1.0")
        head, _, body = (await served.ask(old)).partition(b"\r\n\r\n")
        assert b"chunked" not in head
        assert body == WHOLE


async def test_a_head_is_answered_without_a_body() -> None:
    for app in (echo, streaming):
        async with opened(app) as served:
            got = await served.ask(get(method="HEAD"), get(method="HEAD", version="HTTP/1.0"))
            assert statuses(got) == [200, 200]
            assert got.endswith(b"\r\n\r\n")
            assert got.count(b"\r\n\r\n") == 2


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_has_no_body_has_none(status: int) -> None:
    async def empty(scope: AsgiMessage, receive: Receive, send: Send) -> None:
        await answer(send, b"none of this", status=status)

    async with opened(empty) as served:
        got = await served.ask(get(), get("/", "Connection: close"))
        assert statuses(got) == [status, status]
        assert b"none of this" not in got


async def test_an_answer_shorter_than_promised_ends_the_connection() -> None:
    async def liar(scope: AsgiMessage, receive: Receive, send: Send) -> None:
        await answer(send, b"abc", headers=[(b"content-length", b"10")])

    async with opened(liar) as served:
        assert (await served.ask(get(), get())).endswith(b"\r\n\r\nabc")


async def test_a_client_that_ends_its_side_after_the_request_gets_the_answer() -> None:
    async def slow(scope: AsgiMessage, receive: Receive, send: Send) -> None:
        await trio.sleep(0.2)
        async with trio.open_nursery() as nursery:
            # As Quart-Trio does: whoever is told that the client is gone does not answer.
            nursery.start_soon(_cancelled_by_disconnect, nursery, receive)
            await trio.sleep(0.2)
            await answer(send, b"here")
            nursery.cancel_scope.cancel()

    async with opened(slow) as served:
        assert (await served.ask(get(), then_end=True)).endswith(b"here")
        served.committer.open = trio.Event()
        async with await served.connect() as stream:
            await stream.send_all(b"".join(post("talk-1")))
            await stream.send_eof()
            await served.committer.begun.wait()
            await trio.sleep(0.1)
            served.committer.open.set()
            assert statuses(await rest_of(stream)) == [202]


async def _cancelled_by_disconnect(nursery: trio.Nursery, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    nursery.cancel_scope.cancel()


# --- what is refused


WIRE = {
    "nonsense": (b"nonsense\r\n\r\n", 400),
    "two lengths": (get("/", "Content-Length: 1", "Content-Length: 1", method="POST"), 400),
    "a length and chunks": (get("/", "Content-Length: 1", "Transfer-Encoding: chunked", method="POST"), 400),
    "two hosts": (get("/", "Host: other"), 400),
    "chunks in HTTP/1.0": (get("/", "Transfer-Encoding: chunked", method="POST", version="HTTP/1.0"), 400),
    "bare line feeds": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a bad chunk": (get("/", "Transfer-Encoding: chunked", method="POST") + b"x\r\n", 400),
    "a bad chunk of a conversation": (post("talk-1", "Transfer-Encoding: chunked")[0] + b"-1\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "a long head": (get("/", "X-One: " + "a" * 17_000), 431),
    "an endless head": (get()[:-2] + b"X: y\r\n" * 5000, 431),
    "a long target": (get("/" + "a" * 8192), 414),
    "an endless target": (b"GET /" + b"a" * 20_000, 414),
}


@pytest.mark.parametrize("name", WIRE)
async def test_what_is_no_http_is_a_problem_and_a_close(name: str) -> None:
    sent, status = WIRE[name]
    smuggled = get("/smuggled") if not name.startswith("a bad chunk") else b""
    async with opened() as served:
        got = await served.ask(sent + smuggled)
        assert statuses(got) == [status]
        assert b"\r\ncontent-type: application/problem+json\r\n" in got
        assert b"\r\nconnection: close\r\n" in got
        assert body_of(got)["status"] == status
        assert statuses(await asked(served, get())) == [200]


async def test_a_client_that_still_sends_when_refused_gets_the_answer() -> None:
    async with opened() as served, await served.connect() as stream:
        await stream.send_all(get(END, "Content-Length: 9000000", "Content-Type: text/plain", method="POST"))
        for _ in range(20):
            await stream.send_all(bytes(100_000))
            await trio.sleep(0.001)
        assert statuses(await rest_of(stream)) == [415]


# --- who is behind a proxy


async def test_only_a_trusted_proxy_names_its_client() -> None:
    sent = get("/", "X-Forwarded-For: 6.6.6.6, 1.2.3.4", "Connection: close")
    async with opened() as served:
        assert body_of(await served.ask(sent))["client"] == "127.0.0.1"
    async with opened(echo, {"server.trusted_proxies": "127.0.0.0/8"}) as served:
        assert body_of(await served.ask(sent))["client"] == "1.2.3.4"


async def test_a_clients_share_is_its_own_behind_a_proxy() -> None:
    limits = {"clients.requests_per_second": "0.01", "clients.requests_burst": "1"}
    async with opened(echo, {"server.trusted_proxies": "127.0.0.1", **limits}) as served:
        for client, status in (("1.1.1.1", 202), ("2.2.2.2", 202), ("1.1.1.1", 429)):
            head, body = post(f"talk-{client}", f"X-Forwarded-For: {client}")
            assert statuses(await asked(served, head + body)) == [status]
