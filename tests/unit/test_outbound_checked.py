from __future__ import annotations

import ipaddress
import socket
from typing import Any

import httpcore
import pytest
import trio

from convo.errors import RemoteDenied, RemoteUnavailable
from convo.outbound_checked import CheckedClient, is_public


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
        # An IPv4 address inside an IPv6 one: mapped, by 6to4, by NAT64.
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe"),
    ],
)
def test_an_address_that_not_everybody_reaches_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"]
)
def test_an_address_that_everybody_reaches_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


class Names:
    """A resolver whose name means one address after the other."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        self._answers = list(answers)
        self.connected: list[str] = []

    async def getaddrinfo(self, _host: object, port: int, **_: object) -> list[Any]:
        await trio.lowlevel.checkpoint()
        addresses = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    async def connect_tcp(self, host: str, *_: object, **__: object) -> httpcore.AsyncNetworkStream:
        await trio.lowlevel.checkpoint()
        self.connected.append(host)
        raise httpcore.ConnectError("nobody listens")


@pytest.fixture
def names(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Names:
    found = Names(*request.param)
    monkeypatch.setattr(trio.socket, "getaddrinfo", found.getaddrinfo)
    monkeypatch.setattr(
        httpcore.TrioBackend, "connect_tcp", lambda _, *words, **more: found.connect_tcp(*words, **more)
    )
    return found


async def post(*, allow_private: bool = False) -> None:
    async with CheckedClient(connections=1, seconds=1.0, allow_private=allow_private) as client:
        with trio.fail_after(5):
            await client.post("http://receiver.example/", b"{}", {})


@pytest.mark.parametrize("names", [(("1.1.1.1",), ("127.0.0.1",))], indirect=True)
async def test_what_is_connected_to_is_the_address_that_was_checked(names: Names) -> None:
    with pytest.raises(RemoteUnavailable):
        await post()
    assert names.connected == ["1.1.1.1"]


@pytest.mark.parametrize("names", [(("1.1.1.1", "127.0.0.1"),), (("127.0.0.1",),)], indirect=True)
async def test_a_name_with_an_address_that_is_not_public_is_not_connected_to_at_all(names: Names) -> None:
    with pytest.raises(RemoteDenied, match=r"'receiver.example' is not a public address"):
        await post()
    assert names.connected == []


@pytest.mark.parametrize("names", [(("127.0.0.1", "::1"),)], indirect=True)
async def test_where_it_is_allowed_each_private_address_is_tried(names: Names) -> None:
    with pytest.raises(RemoteUnavailable):
        await post(allow_private=True)
    assert names.connected == ["127.0.0.1", "::1"]


async def test_no_proxy_of_the_environment_connects_in_our_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with pytest.raises(RemoteDenied, match="is not a public address"):
        async with CheckedClient(connections=1, seconds=1.0, allow_private=False) as client:
            await client.post("http://127.0.0.1:9/", b"{}", {})


@pytest.mark.parametrize("url", ["ftp://receiver.example/", "http://receiver.example/\x01", "nothing"])
async def test_what_cannot_be_sent_is_refused(url: str) -> None:
    async with CheckedClient(connections=1, seconds=1.0, allow_private=True) as client:
        with pytest.raises((RemoteDenied, RemoteUnavailable)):
            await client.post(url, b"{}", {})
