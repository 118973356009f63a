"""HTTP calls to addresses that clients have named: each address is checked where the connection is opened.

Whoever may register an address could otherwise have convo call what only convo can reach: its database, the metadata of
its cloud. A name is resolved here, and the very address that was checked is connected to: a name that means another
address at the second look (DNS rebinding) gains nothing. No redirect is followed, and no proxy of the environment is
used: it would connect in our place.

It neither tries again nor opens a deadline: its callers do. Each call passes the running task's trace on.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, cast

import httpcore
import trio
from msgspec import Struct

from convo.errors import RemoteDenied, RemoteUnavailable
from convo.observe import tracing
from convo.outbound import trusted_authorities
from convo.remote_pauses import retry_after_seconds

HOOK_ANSWER_BYTES_MAX = 4096
"""No answer is read further than this."""

_BACKSTOP = 2.0
_CLOSE_SECONDS = 1.0
# The status says what became of the event. What else is answered is for the log alone, so nobody waits long for it.
_BODY_SECONDS = 1.0
_NAME = "webhook"
# What an IPv6 address can carry an IPv4 address in.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class CheckedAnswer(Struct, frozen=True, kw_only=True):
    """What was answered: the status, the pause that was asked for, and the first bytes of the body."""

    status: int
    retry_after_seconds: float | None
    body: bytes

    @property
    def good(self) -> bool:
        """Whether this is a 2xx."""
        return 200 <= self.status < 300


def is_public(address: IpAddress) -> bool:
    """Return whether an address can be reached from everywhere, also the one that is wrapped in it."""
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            wrapped = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if wrapped is not None:
            return is_public(wrapped)
    return address.is_global and not address.is_multicast


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections to the addresses that a name has, if all of them may be called."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._trio = httpcore.TrioBackend()

    async def connect_tcp(self, host: str, port: int, *words: Any, **named: Any) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        failed: Exception | None = None
        for address in addresses:
            try:
                return await self._trio.connect_tcp(address, port, *words, **named)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore.ConnectError("the name has no address")

    async def _resolve(self, host: str, port: int) -> list[str]:  # no deadline: whoever posts has one
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(f"the name {host!r} cannot be resolved") from error
        addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
        # One that is not public among others is how a check of the first one is got around.
        if not self._allow_private and not all(is_public(_address(one)) for one in addresses):
            raise RemoteDenied(_NAME, f"{host!r} is not a public address, and webhooks.allow_private is off")
        return addresses

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("no address names a socket of this machine")

    async def sleep(self, seconds: float) -> None:
        await self._trio.sleep(seconds)


def _address(text: str) -> IpAddress:
    # A link-local address has its interface behind it.
    return ipaddress.ip_address(text.partition("%")[0])


class CheckedClient:
    """The HTTP client, an async context manager.

    Callers must not call it more than ``connections`` times at once, as ``outbound.OutboundClient``. ``seconds`` is the
    longest time that a caller gives one call.

    Raises:
        ConfigError: ``ca_file`` cannot be read.
    """

    def __init__(
        self, *, connections: int, seconds: float, allow_private: bool, ca_file: str = "", verify: bool = True
    ) -> None:
        self._limits = dict.fromkeys(("connect", "read", "write", "pool"), seconds * _BACKSTOP)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trusted_authorities("webhooks", ca_file, verify=verify),
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=5.0,
            network_backend=_CheckedBackend(allow_private=allow_private),
        )

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
            await self._pool.__aexit__(kind, error, trace)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> CheckedAnswer:  # no deadline: callers do
        """Post once, whatever is answered.

        Raises:
            RemoteUnavailable: the address cannot be reached, or the connection broke.
            RemoteDenied: it must not be called.
        """
        given = {**headers, **tracing.trace_headers()}
        sent = [(name.encode(), value.encode()) for name, value in given.items()]
        try:
            async with self._pool.stream(
                "POST", url, headers=sent, content=body, extensions={"timeout": self._limits}
            ) as response:
                start = await _first_bytes(response.stream)
                found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        except (httpcore.UnsupportedProtocol, httpcore.LocalProtocolError, ValueError) as error:
            raise RemoteDenied(_NAME, f"the request cannot be sent ({type(error).__name__})") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise RemoteUnavailable(_NAME, f"the connection failed ({type(error).__name__})") from error
        pause = retry_after_seconds(found, datetime.now(UTC))
        return CheckedAnswer(status=response.status, retry_after_seconds=pause, body=start)


async def _first_bytes(stream: object) -> bytes:  # no deadline: it has its own, and whoever posts has one
    start = b""
    with trio.move_on_after(_BODY_SECONDS):
        async for piece in cast("AsyncIterable[bytes]", stream):
            start += piece
            if len(start) >= HOOK_ANSWER_BYTES_MAX:
                break
    return start[:HOOK_ANSWER_BYTES_MAX]
