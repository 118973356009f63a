from __future__ import annotations

import gzip
import ssl
import traceback
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import zstandard

from convo import __version__
from convo.errors import ConfigError, RemoteDenied, RemoteGarbage, RemoteUnavailable
from convo.outbound import ANSWER_BYTES_MAX, OutboundClient, failure
from tests.support import fakes
from tests.support.doors import certificate
from tests.support.fakes import Exchange, FakeServer, Fault

# httpx and httpcore leave generators of their own to the garbage collector when a call ends early.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with fakes.open_server(lambda call: {"method": call.method}) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[OutboundClient]:
    async with OutboundClient("it", seconds=5.0) as open_one:
        yield open_one


async def test_json_is_posted_with_the_callers_headers_and_no_compression_is_asked_for(
    server: FakeServer, client: OutboundClient
) -> None:
    answer = await client.post(server.url, b'{"a":1}', {"x-mine": "1"})
    (call,) = server.calls
    assert (answer.status, answer.good, answer.body) == (200, True, b'{"method": "POST"}')
    assert (call.body, call.headers["x-mine"], call.headers["content-type"]) == (b'{"a":1}', "1", "application/json")
    assert call.headers["accept-encoding"] == "identity"


async def test_a_header_of_the_callers_stands_in_place_of_ours_however_it_is_written(
    server: FakeServer, client: OutboundClient
) -> None:
    await client.post(server.url, b"{}", {"Content-Type": "application/x", "USER-AGENT": "somebody"})
    await client.get(server.url, {})
    found = [(call.headers["content-type"], call.headers["user-agent"]) for call in server.calls]
    assert found == [("application/x", "somebody"), ("application/json", f"convo/{__version__}")]


async def test_the_name_and_password_in_an_address_are_sent_as_such(server: FakeServer, client: OutboundClient) -> None:
    await client.get(server.url.replace("http://", "http://me%40home:s%3Acret@"), {"authorization": "Bearer other"})
    carried = b64encode(b"me@home:s:cret").decode()
    assert [call.headers["authorization"] for call in server.calls] == [f"Basic {carried}"]


async def test_one_connection_is_used_again_and_calls_at_once_have_one_each(
    server: FakeServer, client: OutboundClient
) -> None:
    for _ in range(3):
        await client.get(server.url, {})
    assert server.connections_opened == 1
    server.always = fakes.slow("0.2")
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(client.get, server.url, {})
    assert server.connections_opened == 20


async def test_calls_that_are_cancelled_anywhere_keep_no_connection_from_later_ones(
    server: FakeServer, client: OutboundClient
) -> None:
    server.always = fakes.slow("0.01")
    for step in range(60):
        with trio.move_on_after(step * 0.0005):
            await client.post(server.url, b"{}", {})
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(client.get, server.url, {})
    assert sum(map(len, client._idle.values())) == 5
    await server.until(lambda seen: seen.open_connections <= 5)


async def test_no_cookie_is_kept(server: FakeServer, client: OutboundClient) -> None:
    async def with_cookie(exchange: Exchange) -> None:
        await exchange.answer(200, b"{}", {"set-cookie": "who=you"})

    server.always = with_cookie
    for _ in range(2):
        await client.get(server.url, {})
    assert "cookie" not in server.calls[1].headers


@pytest.mark.parametrize("scheme", ["", "http://"])
async def test_a_proxy_of_the_environment_is_used_but_for_those_that_it_leaves_out(
    server: FakeServer, client: OutboundClient, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("http_proxy", server.url.replace("http://", scheme))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    await client.get(f"http://model{scheme[:4]}.test/v1", {})
    await client.get(f"{server.url}/near{scheme[:4]}", {})
    # A proxy is asked for the whole address.
    assert [call.path for call in server.calls] == [f"http://model{scheme[:4]}.test/v1", f"/near{scheme[:4]}"]


async def test_a_refusal_comes_back_with_its_code_and_the_wait_that_it_asks_for(
    server: FakeServer, client: OutboundClient
) -> None:
    server.always = fakes.rate_limited("7")
    answer = await client.get(server.url, {})
    assert (answer.status, answer.good, answer.code) == (429, False, "rate_limit_exceeded")
    assert answer.retry_after_seconds == 7.0


async def test_a_redirect_is_an_answer_and_is_not_followed(server: FakeServer, client: OutboundClient) -> None:
    async def elsewhere(exchange: Exchange) -> None:
        await exchange.answer(302, b"", {"location": f"{server.url}/elsewhere"})

    server.always = elsewhere
    assert (await client.get(server.url, {})).status == 302
    assert len(server.calls) == 1


async def test_no_answer_is_read_past_its_bound(server: FakeServer, client: OutboundClient) -> None:
    server.always = fakes.answering("x" * ANSWER_BYTES_MAX)
    assert len((await client.get(server.url, {})).body) == ANSWER_BYTES_MAX
    server.always = fakes.answering("x" * (ANSWER_BYTES_MAX + 1))
    with pytest.raises(RemoteGarbage):
        await client.get(server.url, {})


async def test_with_a_bound_of_nothing_the_status_is_enough(server: FakeServer, client: OutboundClient) -> None:
    server.always = fakes.stuck_after_headers
    with trio.fail_after(5):
        answer = await client.post(server.url, b"{}", {}, answer_bytes_max=0)
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/sekrit", "sekrit", "http://sekrit\0"])
async def test_an_address_that_is_none_is_a_wrong_setting_and_not_quoted(client: OutboundClient, url: str) -> None:
    with pytest.raises(RemoteDenied) as raised:
        await client.post(url, b"{}", {})
    assert "sekrit" not in "".join(traceback.format_exception(raised.value))


async def test_a_connection_that_breaks_is_unavailable(server: FakeServer, client: OutboundClient) -> None:
    server.always = fakes.reset
    with pytest.raises(RemoteUnavailable, match=r"it: the connection failed"):
        await client.get(server.url, {})


async def test_a_redirect_is_a_wrong_address_and_shows_where_it_points_without_secrets(
    server: FakeServer, client: OutboundClient
) -> None:
    async def elsewhere(exchange: Exchange) -> None:
        await exchange.answer(308, b"", {"location": "https://me:sekrit@example.com/v2/memories/?key=sekrit#sekrit"})

    server.always = elsewhere
    error = failure("it", await client.post(server.url, b"{}", {}))
    assert type(error) is RemoteDenied
    assert error.detail == "it: answered 308: a wrong address; it points to https://example.com/v2/memories/"


async def test_the_pause_in_a_body_counts_where_no_header_names_one(server: FakeServer, client: OutboundClient) -> None:
    async def google(exchange: Exchange) -> None:
        await exchange.answer_json(429, [{"error": {"code": 429, "details": [{"retryDelay": "8s"}]}}])

    async def both(exchange: Exchange) -> None:
        await exchange.answer_json(429, {"retry_after": 8}, {"retry-after": "3"})

    server.then(google, both)
    assert (await client.get(server.url, {})).retry_after_seconds == 8.0
    assert (await client.get(server.url, {})).retry_after_seconds == 3.0


# --- compressed answers


def packed(body: bytes, encoding: str) -> Fault:
    async def fault(exchange: Exchange) -> None:
        await exchange.answer(200, body, {"content-encoding": encoding} if encoding else {})

    return fault


BARE = zlib.compressobj(wbits=-zlib.MAX_WBITS)
DEFLATED = BARE.compress(b'{"a": 1}') + BARE.flush()


@pytest.mark.parametrize(
    "fault",
    [
        packed(gzip.compress(b'{"a": 1}'), "gzip"),
        packed(gzip.compress(b'{"a": 1}'), "GZIP"),
        packed(gzip.compress(b'{"a": 1}'), ""),
        packed(zlib.compress(b'{"a": 1}'), "deflate"),
        packed(DEFLATED, "deflate"),
        packed(zstandard.compress(b'{"a": 1}'), "zstd"),
        packed(b'{"a": 1}', "identity"),
    ],
)
async def test_an_answer_that_is_compressed_all_the_same_is_read(
    server: FakeServer, client: OutboundClient, fault: Fault
) -> None:
    server.always = fault
    assert (await client.get(server.url, {})).body == b'{"a": 1}'


@pytest.mark.parametrize(
    "fault",
    [
        packed(gzip.compress(bytes(ANSWER_BYTES_MAX + 1)), "gzip"),
        packed(zlib.compress(bytes(64 << 20)), "deflate"),
        packed(zstandard.compress(bytes(64 << 20)), "zstd"),
        packed(gzip.compress(b'{"a": 1}')[:-9], "gzip"),
        packed(b'{"a": 1}', "gzip"),
        packed(b'{"a": 1}', "zstd"),
        packed(b"whatever", "br"),
    ],
)
async def test_an_answer_that_inflates_past_its_bound_or_not_at_all_is_garbage(
    server: FakeServer, client: OutboundClient, fault: Fault
) -> None:
    server.always = fault
    with pytest.raises(RemoteGarbage):
        await client.get(server.url, {})


# --- certificates


@asynccontextmanager
async def under_tls(server: FakeServer) -> AsyncIterator[str]:
    """Serve under TLS with a certificate that no public authority knows; yield the URL."""
    chain, key, _ = certificate()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    (below,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener = trio.SSLListener(below, context)
    port = below.socket.getsockname()[1]

    async def refuse_nothing(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await server.serve_connection(stream)  # type: ignore[arg-type]
        except (trio.BrokenResourceError, ssl.SSLError):
            return  # the client did not trust it

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, refuse_nothing, [listener])
        yield f"https://localhost:{port}"
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def authority() -> str:
    return certificate()[0]


@pytest.mark.parametrize(("known", "verify"), [(True, True), (False, False)])
async def test_a_private_authority_can_be_trusted_or_certificates_left_unchecked(
    server: FakeServer, authority: str, *, known: bool, verify: bool
) -> None:
    ca_file = authority if known else ""
    async with (
        under_tls(server) as url,
        OutboundClient("it", seconds=5.0, ca_file=ca_file, verify=verify) as client,
    ):
        assert (await client.get(url, {})).status == 200


async def test_a_certificate_of_an_unknown_authority_is_not_taken(server: FakeServer, authority: str) -> None:
    assert authority
    async with under_tls(server) as url, OutboundClient("it", seconds=5.0) as client:
        with pytest.raises(RemoteUnavailable):
            await client.get(url, {})
    assert server.calls == []


def test_a_file_without_certificates_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("no")
    for name in ("empty.pem", "none.pem"):
        with pytest.raises(ConfigError, match="ca_file"):
            OutboundClient("it", seconds=1.0, ca_file=str(tmp_path / name))
