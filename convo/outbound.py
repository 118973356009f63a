"""Every HTTP call that convo makes to another service: the client, its limits, and the error for each failure.

The language model, the memory service and the sinks of alerts use it. Each call passes the running task's trace on. It
neither tries again nor opens a deadline: its callers do. It follows no redirect and reads no answer past a bound. No
text of a request, of an answer or of a key goes into an error: only the status, the service's own error code and the
kind of failure.
"""

from __future__ import annotations

import re
import ssl
import zlib
from base64 import b64encode
from collections import defaultdict, deque
from collections.abc import Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from functools import cache, lru_cache
from types import TracebackType
from typing import Self, cast
from urllib.request import getproxies, proxy_bypass

import httpx
import trio
import zstandard
from msgspec import Struct

from convo import __version__
from convo.errors import (
    ConfigError,
    RemoteBusy,
    RemoteDenied,
    RemoteError,
    RemoteGarbage,
    RemoteRefused,
    RemoteUnavailable,
)
from convo.observe import tracing
from convo.outbound_connection import IDLE_SECONDS, OutboundConnection, Place, WireAnswer, request_bytes
from convo.remote_faults import decoded, fault_in
from convo.remote_pauses import body_pause_seconds, retry_after_seconds

ANSWER_BYTES_MAX = 1 << 20
"""No answer is read further than this."""

# The transport's own limits only back the callers' deadlines up: looser by this factor.
_BACKSTOP = 2.0
# Closing the connections of a dependency that does not answer may not hold the stop.
_CLOSE_SECONDS = 1.0
# 409 and 425 are what a server answers while it is still at work on the same key; 498 is Groq's "no capacity".
_PASSING = frozenset({408, 409, 425, 498})
# The key, the account, the address or the model's name is wrong: every call would be refused, whatever it asks.
_DENIED = frozenset({401, 402, 403, 404})
_REDIRECTS = range(300, 400)
_PORTS = {"http": 80, "https": 443}
_PROTOCOLS = ["http/1.1"]
# Compressed answers are not asked for. Those that come all the same are decompressed, up to the bound of an answer.
_HEADERS = {
    "accept": "*/*",
    "content-type": "application/json",
    "accept-encoding": "identity",
    "user-agent": f"convo/{__version__}",
}
_ONE = httpx.Limits(max_connections=1, max_keepalive_connections=1)


class RemoteAnswer(Struct, frozen=True, kw_only=True):
    """What came back: the status, the error code that stands in a refusal, the wait it asks for, the body.

    ``location`` is where a redirect points.
    """

    status: int
    code: str
    retry_after_seconds: float | None
    body: bytes
    location: str = ""

    @property
    def good(self) -> bool:
        """Whether this is a 2xx."""
        return 200 <= self.status < 300


class OutboundClient:
    """The HTTP client of one service, an async context manager; ``name`` is what errors call the service.

    Calls go through connections of our own (``outbound_connection``), those through a proxy of the environment through
    transports of httpx with one connection each. There are as many as calls at once, and no call waits for one: a call
    that is cancelled while it waits costs httpx a slot of its pool for ever. No cookie is kept.

    ``seconds`` is the longest time that a caller gives one call. ``ca_file`` holds authorities that are trusted besides
    the public ones; without ``verify`` no certificate is looked at.

    Raises:
        ConfigError: ``ca_file`` cannot be read.
    """

    def __init__(self, name: str, *, seconds: float, ca_file: str = "", verify: bool = True) -> None:
        self.name = name
        self._trusted = trusted_authorities(name, ca_file, verify=verify)
        self._backstop = seconds * _BACKSTOP
        # Those that nobody uses, by place and by proxy; the one that was used last is used next, so that few are open.
        self._idle: defaultdict[Place, deque[OutboundConnection]] = defaultdict(deque)
        self._idle_proxied: defaultdict[str, list[httpx.AsyncHTTPTransport]] = defaultdict(list)
        self._proxied: list[httpx.AsyncHTTPTransport] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
            for transport in self._proxied:
                await transport.aclose()

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, answer_bytes_max: int = ANSWER_BYTES_MAX
    ) -> RemoteAnswer:
        """Post JSON once, whatever is answered; with a bound of 0 the answer's body is not read at all.

        Raises:
            RemoteUnavailable: the service cannot be reached, or the connection broke.
            RemoteDenied: the address is none.
            RemoteRefused: what we would send is no valid request.
            RemoteGarbage: the answer is larger than its bound, or compressed in a way that cannot be read.
        """
        return await self._send("POST", url, body, headers, answer_bytes_max)

    async def get(
        self, url: str, headers: Mapping[str, str], *, answer_bytes_max: int = ANSWER_BYTES_MAX
    ) -> RemoteAnswer:
        """Get ``url`` once, whatever is answered; with a bound of 0 the answer's body is not read at all.

        Raises:
            RemoteUnavailable, RemoteDenied, RemoteRefused, RemoteGarbage: as ``post``.
        """
        return await self._send("GET", url, None, headers, answer_bytes_max)

    async def delete(self, url: str, headers: Mapping[str, str]) -> RemoteAnswer:
        """Delete what ``url`` names, whatever is answered.

        Raises:
            RemoteUnavailable, RemoteDenied, RemoteRefused, RemoteGarbage: as ``post``.
        """
        return await self._send("DELETE", url, None, headers, ANSWER_BYTES_MAX)

    async def _send(
        self, method: str, url: str, content: bytes | None, headers: Mapping[str, str], bytes_max: int
    ) -> RemoteAnswer:
        try:
            target = _target(url)
            given = {name.lower(): value for name, value in headers.items()}
            sent = {"host": target.host, **_HEADERS, **given, **tracing.trace_headers(), **target.headers}
            with trio.fail_after(self._backstop):
                if target.proxy:
                    answer = await self._through_proxy(target, method, sent, content, bytes_max)
                else:
                    answer = await self._directly(target, method, sent, content, bytes_max)
        # The texts of these can quote a header or the address, and either can hold a key.
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            kind = type(error).__name__
            raise RemoteDenied(
                self.name, f"its address is none ({kind}): it must begin with http:// or https:// and a host"
            ) from None
        except httpx.LocalProtocolError as error:
            raise RemoteRefused(self.name, f"the request cannot be sent ({type(error).__name__})") from None
        except (httpx.HTTPError, trio.TooSlowError) as error:
            raise RemoteUnavailable(self.name, f"the connection failed ({type(error).__name__})") from error
        if len(answer.body) > bytes_max:
            raise RemoteGarbage(self.name, f"the answer is larger than {bytes_max} bytes")
        encoding = answer.headers.get("content-encoding", "")
        return _answer(answer, _inflated(self.name, answer.body, encoding, bytes_max))

    async def _directly(
        self, target: _Target, method: str, headers: Mapping[str, str], content: bytes | None, bytes_max: int
    ) -> WireAnswer:
        request = request_bytes(method, target.path, headers, content)
        idle = self._idle[target.place]
        connection = _usable(idle) or await OutboundConnection.open(target.place, self._trusted)
        try:
            return await connection.exchange(request, bytes_max)
        finally:
            if connection.reusable:
                connection.idle_since = trio.current_time()
                idle.append(connection)
            else:
                connection.close()

    async def _through_proxy(
        self, target: _Target, method: str, headers: Mapping[str, str], content: bytes | None, bytes_max: int
    ) -> WireAnswer:
        idle = self._idle_proxied[target.proxy]
        transport = idle.pop() if idle else self._open_proxied(target.proxy)
        timeout = httpx.Timeout(self._backstop).as_dict()
        request = httpx.Request(method, target.url, headers=headers, content=content, extensions={"timeout": timeout})
        body = bytearray()
        try:
            response = await transport.handle_async_request(request)
            async with aclosing(response):
                if bytes_max:
                    async for chunk in cast("httpx.AsyncByteStream", response.stream):
                        body += chunk
                        if len(body) > bytes_max:
                            break
        finally:
            idle.append(transport)
        return WireAnswer(status=response.status_code, headers=response.headers, body=bytes(body))

    def _open_proxied(self, proxy: str) -> httpx.AsyncHTTPTransport:
        transport = httpx.AsyncHTTPTransport(verify=self._trusted, limits=_ONE, proxy=proxy)
        self._proxied.append(transport)
        return transport


def _usable(idle: deque[OutboundConnection]) -> OutboundConnection | None:
    """Take the connection that was used last, if it can be used; close those that nobody will use again."""
    now = trio.current_time()
    while idle and now > idle[0].idle_since + IDLE_SECONDS:
        idle.popleft().close()
    while idle:
        connection = idle.pop()
        if not connection.is_stale(now):
            return connection
        connection.close()
    return None


class _Target(Struct, frozen=True, kw_only=True):
    """What an address says: where to, through which proxy of the environment (empty for none), and who we are there."""

    url: httpx.URL
    place: Place
    host: str
    path: str
    proxy: str
    headers: Mapping[str, str]


@lru_cache(maxsize=64)
def _target(address: str) -> _Target:
    """Read an address.

    Raises:
        httpx.InvalidURL: it is none.
        httpx.UnsupportedProtocol: it is no address of HTTP.
    """
    url = httpx.URL(address)
    if url.scheme not in _PORTS or not url.host:
        raise httpx.UnsupportedProtocol("it is no address of HTTP")
    proxy = "" if proxy_bypass(url.host) else getproxies().get(url.scheme) or getproxies().get("all") or ""
    headers = {}
    if url.userinfo:
        carried = b64encode(f"{url.username}:{url.password}".encode()).decode()
        headers["authorization"] = f"Basic {carried}"
    return _Target(
        url=url,
        place=Place(host=url.raw_host.decode("ascii"), port=url.port or _PORTS[url.scheme], tls=url.scheme == "https"),
        host=url.netloc.decode("ascii"),
        path=url.raw_path.decode("ascii"),
        proxy=proxy if "://" in proxy or not proxy else f"http://{proxy}",
        headers=headers,
    )


def _answer(answer: WireAnswer, body: bytes) -> RemoteAnswer:
    now = datetime.now(UTC)
    pause = retry_after_seconds(answer.headers, now)
    if 200 <= answer.status < 300:
        return RemoteAnswer(status=answer.status, code="", retry_after_seconds=pause, body=body)
    return RemoteAnswer(
        status=answer.status,
        code=fault_in(body).code,
        retry_after_seconds=body_pause_seconds(decoded(body), now) if pause is None else pause,
        body=body,
        location=_pointed_to(answer.headers.get("location", "")),
    )


def trusted_authorities(name: str, ca_file: str, *, verify: bool) -> ssl.SSLContext:
    """Return whose certificates are trusted: the public authorities and that of ``ca_file``; all without ``verify``.

    Raises:
        ConfigError: ``ca_file`` cannot be read; the text names it as a setting of the section ``name``.
    """
    if not verify:
        return _unverified()
    if not ca_file:
        return _public_authorities()
    context = _authorities()
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{name}: ca_file = {ca_file!r} cannot be read as PEM certificates ({type(error).__name__}); name a file"
            " with the certificate of the authority"
        ) from error
    return context


def _authorities() -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    context.set_alpn_protocols(_PROTOCOLS)
    return context


@cache
def _public_authorities() -> ssl.SSLContext:
    # Reading them takes tenths of a second, more than all else at a start.
    return _authorities()


@cache
def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(_PROTOCOLS)
    return context


# --- answers that are compressed

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def _inflated(name: str, body: bytes, encoding: str, bytes_max: int) -> bytes:
    """Decompress an answer as its head says, or as its first bytes show where the head says nothing.

    Raises:
        RemoteGarbage: it is larger than ``bytes_max`` then, or is not what it claims to be.
    """
    encoding = encoding.strip().lower()
    if not body:
        return body
    try:
        if encoding in ("gzip", "x-gzip", "deflate") or body.startswith(_GZIP):
            inflated = _from_zlib(body, bytes_max)
        elif encoding == "zstd" or body.startswith(_ZSTD):
            with zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(body) as reader:
                inflated = reader.read(bytes_max + 1)
        elif encoding in ("", "identity"):
            return body
        else:
            raise RemoteGarbage(name, "the answer is compressed in a way that was not asked for and cannot be read")
    except (zlib.error, zstandard.ZstdError) as error:
        raise RemoteGarbage(name, f"the answer is not compressed as it claims to be ({encoding})") from error
    if len(inflated) > bytes_max:
        raise RemoteGarbage(name, f"the answer is larger than {bytes_max} bytes")
    return inflated


def _from_zlib(body: bytes, bytes_max: int) -> bytes:
    # Some servers call "deflate" what has no zlib header.
    raw = not body.startswith(_GZIP) and (len(body) < 2 or int.from_bytes(body[:2]) % 31 != 0)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32)
    inflated = inflater.decompress(body, bytes_max + 1)
    if not inflater.eof and len(inflated) <= bytes_max:
        raise zlib.error("it ends in the middle")
    return inflated


# --- what an answer stands for


def failure(name: str, answer: RemoteAnswer) -> RemoteError:
    """Name the failure that a status stands for."""
    detail = f"answered {answer.status}" + (f" ({answer.code})" if answer.code else "")
    if answer.status == 429:
        return RemoteBusy(name, detail, retry_after_seconds=answer.retry_after_seconds)
    if answer.status >= 500 or answer.status in _PASSING:
        return RemoteUnavailable(name, detail, retry_after_seconds=answer.retry_after_seconds)
    if answer.status in _REDIRECTS:
        # Followed, a POST would become a GET, and the key would go to a host that nobody named.
        return RemoteDenied(name, f"{detail}: a wrong address; it points to {answer.location or 'nowhere'}")
    if answer.status in _DENIED:
        return RemoteDenied(name, detail)
    return RemoteRefused(name, detail)


def _pointed_to(location: str) -> str:
    """Return where a redirect points, without a query and a password, which can be secrets; empty for nowhere."""
    bare = re.split(r"[?#]", location, maxsplit=1)[0]
    scheme, mark, rest = bare.rpartition("://")
    shown = f"{scheme}{mark}{rest.rpartition('@')[2]}"
    return shown if re.fullmatch(r"[\x21-\x7e]{1,500}", shown) else ""
