from __future__ import annotations

import re
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio

from convo.errors import RemoteGarbage, RemoteRefused, RemoteUnavailable
from convo.outbound import OutboundClient
from convo.outbound_connection import IDLE_SECONDS, request_bytes

HI = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
LATE = 0.02


class ByteServer:
    """Answers each request of a connection with the next bytes of its list, in pieces, and closes when that is over."""

    def __init__(self, *connections: Sequence[Sequence[bytes]]) -> None:
        self._connections = list(connections)
        self.requests: list[bytes] = []
        self.opened = 0
        self.url = ""

    async def serve(self, stream: trio.SocketStream) -> None:
        self.opened += 1
        for pieces in self._connections.pop(0):
            request = b""
            while not _is_whole(request):
                received = await stream.receive_some()
                if not received:
                    return
                request += received
            self.requests.append(bytes(request))
            for piece in pieces:
                await stream.send_all(piece)
                await trio.sleep(LATE)


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


@pytest.fixture
async def client() -> AsyncIterator[OutboundClient]:
    async with OutboundClient("it", seconds=1.0) as client:
        yield client


@asynccontextmanager
async def answering(*connections: Sequence[Sequence[bytes]]) -> AsyncIterator[ByteServer]:
    server = ByteServer(*connections)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1"))
        server.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        yield server
        nursery.cancel_scope.cancel()


# --- the request


def test_a_request_is_its_line_its_headers_and_its_body() -> None:
    assert request_bytes("POST", "/a?b=c", {"host": "it", "x": ""}, b"hi") == (
        b"POST /a?b=c HTTP/1.1\r\nhost: it\r\nx: \r\ncontent-length: 2\r\n\r\nhi"
    )
    assert request_bytes("GET", "/", {"host": "it"}, None) == b"GET / HTTP/1.1\r\nhost: it\r\n\r\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", "a\r\nb: c"),
        ("x", "a\nb"),
        ("x", "a\r\n\r\nGET"),
        ("x", "\0"),
        ("x", "ä"),
        ("a b", "x"),
        ("", "x"),
        ("ä", "x"),
    ],
)
def test_what_no_header_can_hold_is_not_sent(name: str, value: str) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        request_bytes("GET", "/", {"host": "it", name: value}, None)


async def test_a_header_that_cannot_be_sent_is_refused_and_not_quoted(client: OutboundClient) -> None:
    headers = {"authorization": "sek" + "rit\r\nx: y"}
    async with answering() as server:
        with pytest.raises(RemoteRefused) as raised:
            await client.get(server.url, headers)
        assert server.opened == 0
    assert "sekrit" not in "".join(traceback.format_exception(raised.value))


# --- answers as servers send them


@pytest.mark.parametrize(
    "answer",
    [
        HI,
        HI.replace(b"\r\n", b"\n"),
        HI.replace(b" OK", b""),
        HI.replace(b" OK", b" "),
        HI.replace(b"\r\n\r\n", b"\r\nX: a\r\n b\r\n\r\n"),
        HI.replace(b"\r\n\r\n", b"\r\nX: \xe9\r\n\r\n"),
        HI.replace(b"\r\n\r\n", b"\r\nUpgrade: h2,h2c\r\nConnection: Upgrade\r\n\r\n"),
        HI.replace(b"\r\n\r\n", b"\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 900) for n in range(100)) + b"\r\n"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + HI,
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 9\r\n\r\n" + HI,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\nh\r\n1 \r\ni\r\n0\r\nX: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece_bytes", [100_000, 7])
async def test_an_answer_in_any_form_is_read_and_its_connection_used_again(
    client: OutboundClient, answer: bytes, piece_bytes: int
) -> None:
    pieces = [answer[at : at + piece_bytes] for at in range(0, min(len(answer), 300), piece_bytes)]
    if piece_bytes < len(answer):
        pieces += [answer[len(pieces) * piece_bytes :]]
    async with answering([pieces, [HI]]) as server:
        assert (await client.post(server.url, b"{}", {})).body == b"hi"
        assert (await client.get(server.url, {})).body == b"hi"
        assert server.opened == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\n\r\nhi",
        HI + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nothers",
        HI + b"rubbish",
        HI + HI[:10],
    ],
)
async def test_after_an_answer_that_ends_its_connection_the_next_call_opens_another(
    client: OutboundClient, answer: bytes
) -> None:
    async with answering([[answer]], [[HI]]) as server:
        assert (await client.post(server.url, b"{}", {})).body == b"hi"
        await trio.sleep(2 * LATE)
        assert (await client.post(server.url, b"{}", {})).body == b"hi"
        assert server.opened == 2


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_ends_with_its_head(client: OutboundClient, status: int) -> None:
    async with answering([[b"HTTP/1.1 %d It\r\nX: y\r\n\r\n" % status], [HI]]) as server:
        answer = await client.delete(server.url, {})
        assert (answer.status, answer.body) == (status, b"")


async def test_headers_of_one_name_are_one_and_those_of_an_interim_answer_are_none(client: OutboundClient) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nRetry-After: 9\r\n\r\n"
    late = b"HTTP/1.1 503 No\r\nRETRY-AFTER: 7\r\nX: a\r\nX: b\r\nContent-Length: 0\r\n\r\n"
    async with answering([[early, late]]) as server:
        answer = await client.get(server.url, {})
        assert (answer.status, answer.retry_after_seconds) == (503, 7.0)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhi",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n" + b"X: y\r\n" * 60_000 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000 + HI,
        HI.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 300_000 + b"\r\n\r\n"),
    ],
)  # fmt: skip
async def test_what_is_no_answer_or_not_all_of_one_is_an_outage_and_is_asked_once(
    client: OutboundClient, answer: bytes
) -> None:
    async with answering([[answer]]) as server:
        with pytest.raises(RemoteUnavailable, match=r"it: the connection failed \((RemoteProtocol|Read)Error\)"):
            await client.post(server.url, b"{}", {})
        assert (server.opened, len(server.requests)) == (1, 1)


async def test_an_answer_past_its_bound_is_read_no_further_and_its_connection_closed(client: OutboundClient) -> None:
    async with answering([[b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 11]], [[HI]]) as server:
        with pytest.raises(RemoteGarbage):
            await client.post(server.url, b"{}", {}, answer_bytes_max=10)
        assert (await client.post(server.url, b"{}", {})).body == b"hi"


async def test_an_answer_that_comes_before_all_was_sent_is_read(client: OutboundClient) -> None:
    """A server that refuses a large body does so at once, and closes."""
    refusal = b"HTTP/1.1 413 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        await stream.send_all(refusal)
        await stream.send_eof()
        while await stream.receive_some():
            pass

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, refuse, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        assert (await client.post(url, b"x" * 8_000_000, {})).status == 413
        nursery.cancel_scope.cancel()


# --- connections


async def test_nobody_gets_the_answer_to_a_call_that_was_cancelled(client: OutboundClient) -> None:
    async with answering([[b"", b"", HI]], [[HI.replace(b"hi", b"yo")]]) as server:
        with trio.move_on_after(LATE):
            await client.post(server.url, b"{}", {})
        assert (await client.post(server.url, b"{}", {})).body == b"yo"


async def test_a_connection_that_its_server_has_closed_is_not_used(client: OutboundClient) -> None:
    async with answering([[HI]], [[HI]]) as server:
        for _ in range(2):
            assert (await client.post(server.url, b"{}", {})).good
            await trio.sleep(3 * LATE)
        assert (server.opened, len(server.requests)) == (2, 2)


async def test_a_connection_that_nobody_used_for_a_while_is_closed(
    client: OutboundClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering([[HI], [HI]], [[HI]]) as server:
        assert (await client.post(server.url, b"{}", {})).good
        now = trio.current_time()
        monkeypatch.setattr(trio, "current_time", lambda: now + IDLE_SECONDS + 1)
        assert (await client.post(server.url, b"{}", {})).good
        assert server.opened == 2


async def test_two_addresses_of_one_client_share_no_connection(client: OutboundClient) -> None:
    async with answering([[HI]]) as one, answering([[HI]]) as other:
        for server in (one, other):
            assert (await client.post(server.url, b"{}", {})).good
        assert (one.opened, other.opened) == (1, 1)


async def test_a_server_that_never_answers_is_left_by_itself_at_last() -> None:
    async with OutboundClient("it", seconds=0.1) as client, answering([[HI[:17], *[b"X: y\r\n"] * 99]]) as server:
        with pytest.raises(RemoteUnavailable, match="TooSlowError"):
            await client.post(server.url, b"{}", {})


async def test_nobody_who_listens_is_an_outage(client: OutboundClient) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(RemoteUnavailable, match="ConnectError"):
        await client.post(f"http://127.0.0.1:{port}", b"{}", {})


async def test_a_name_that_none_can_be_is_an_outage(client: OutboundClient) -> None:
    with pytest.raises(RemoteUnavailable, match="ConnectError"):
        await client.post(f"http://{'a' * 70}.test", b"{}", {})


async def test_what_speaks_no_tls_is_an_outage_under_https(client: OutboundClient) -> None:
    async def speak_first(stream: trio.SocketStream) -> None:
        await stream.send_all(HI)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, speak_first, 0, host="127.0.0.1"))
        with pytest.raises(RemoteUnavailable, match="ConnectError") as raised:
            await client.post(f"https://127.0.0.1:{listener.socket.getsockname()[1]}", b"{}", {})
        nursery.cancel_scope.cancel()
    assert isinstance(raised.value.__cause__, httpx.ConnectError)
