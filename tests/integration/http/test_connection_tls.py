from __future__ import annotations

import ssl

import httpx
import pytest
import trio

from tests.integration.http.test_connection_ends import ends_as, gushing
from tests.support.doors import END, Served, certificate, echo, get, one_of, opened, post, rest_of, statuses
from tests.support.running import ended


@pytest.fixture(scope="module", autouse=True)
def _made_before() -> None:
    """Have openssl make the certificate where no loop waits for it."""
    certificate()


def tls(**more: str) -> dict[str, str]:
    cert, key, _ = certificate()
    return {
        "server.certfile": cert,
        "server.keyfile": key,
        **{f"connection.{name}": value for name, value in more.items()},
    }


async def shaken(served: Served, protocols: list[str] | None = None) -> trio.SSLStream[trio.SocketStream]:
    context = ssl.create_default_context(cafile=certificate()[0])
    context.set_alpn_protocols(protocols or ["http/1.1"])
    stream = trio.SSLStream(await served.connect(), context, server_hostname="localhost", https_compatible=True)
    await stream.do_handshake()
    return stream


async def test_requests_are_served_under_tls() -> None:
    trusting = httpx.AsyncClient(verify=certificate()[2])
    async with opened(echo, tls()) as served, trusting as client:
        url = f"https://localhost:{served.port}"
        for number in range(5):
            assert (await client.get(f"{url}/x")).json()["path"] == "/x"
            assert (await client.post(f"{url}{END}", json=ended(f"talk-{number}"))).status_code == 202
        assert (await client.post(url, content=bytes(300_000))).json()["body"] == 300_000
        assert len(served.connections) == 1


async def test_only_http_1_1_is_agreed_on() -> None:
    async with opened(echo, tls()) as served:
        assert (await shaken(served, ["h2", "http/1.1"])).selected_alpn_protocol() == "http/1.1"
        stream = await shaken(served, ["h2"])
        await stream.send_all(get())
        assert statuses((await one_of(stream))[0]) == [200]


async def test_a_handshake_that_does_not_come_to_its_end_is_ended() -> None:
    async with opened(echo, tls(handshake_seconds="0.3")) as served:
        for sent in (b"", b"\x16\x03\x01\x02\x00"):
            async with ends_as("handshake_deadline", served):
                stream = await served.connect()
                await stream.send_all(sent)


async def test_a_handshake_that_is_none_is_that_connections_end() -> None:
    async with opened(echo, tls()) as served:
        async with ends_as("gone", served):
            await served.ask(get())
        assert (await shaken(served)).selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"nonsense\r\n\r\n", 400, "refused"),
        (post("talk-1", "Content-Type: text/plain")[0], 415, "answered"),
        (b"GE", 408, "head_deadline"),
        (post("talk-1")[0], 408, "body_deadline"),
    ],
)
async def test_a_refusal_is_answered_under_tls(sent: bytes, status: int, reason: str) -> None:
    async with opened(echo, tls()) as served, ends_as(reason, served):
        stream = await shaken(served)
        await stream.send_all(sent)
        assert statuses(await rest_of(stream)) == [status]


async def test_a_client_that_does_not_read_is_cut_off_under_tls() -> None:
    async with opened(gushing, tls()) as served, ends_as("write_deadline", served):
        await (await shaken(served)).send_all(get())


async def test_the_idle_go_at_the_stop_under_tls() -> None:
    async with opened(echo, tls()) as served:
        stream = await shaken(served)
        await stream.send_all(get())
        await one_of(stream)
        served.stop.set()
        assert await rest_of(stream) == b""
        await served.stopped.wait()
