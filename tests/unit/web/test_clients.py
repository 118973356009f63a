from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing

from convo.errors import TooManyRequests
from convo.settings import ClientsSettings
from convo.web.clients import Clients

ME, YOU = "192.0.2.1", "192.0.2.2"


def limited(**settings: Any) -> Clients:
    return Clients(ClientsSettings(**settings))


def wait(clients: Clients, client: str = ME, bytes_: int = 0) -> float:
    """How long this client is told to wait before its next request."""
    try:
        clients.spend(client, bytes_)
    except TooManyRequests as error:
        return error.retry_after_seconds or math.inf
    return 0.0


async def test_without_limits_no_client_is_counted_and_no_header_is_sent() -> None:
    clients = limited()
    assert [clients.spend(ME, 1 << 40) for _ in range(3)] == [(), (), ()]


async def test_a_burst_is_taken_and_then_the_rate_decides(autojump_clock: trio.testing.MockClock) -> None:
    clients = limited(requests_per_second=2.0, requests_burst=3.0)
    assert [wait(clients) for _ in range(4)] == [0, 0, 0, 0.5]
    await trio.sleep(0.5)
    assert [wait(clients) for _ in range(2)] == [0, 0.5]
    await trio.sleep(60)
    assert [wait(clients) for _ in range(4)] == [0, 0, 0, 0.5]


async def test_a_refused_request_takes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    clients = limited(requests_per_second=1.0, requests_burst=1.0)
    assert [wait(clients) for _ in range(5)] == [0, 1, 1, 1, 1]
    await trio.sleep(1)
    assert wait(clients) == 0


async def test_bytes_are_counted_too_and_a_large_body_is_paid_off(autojump_clock: trio.testing.MockClock) -> None:
    clients = limited(bytes_per_second=100.0, bytes_burst=1000.0)
    assert wait(clients, bytes_=3000) == 0
    assert wait(clients, bytes_=1) == pytest.approx(20.01)
    await trio.sleep(20.02)
    assert wait(clients, bytes_=1) == 0


async def test_one_client_does_not_pay_for_another() -> None:
    clients = limited(requests_per_second=1.0, requests_burst=1.0)
    assert (wait(clients, ME), wait(clients, YOU)) == (0, 0)
    assert wait(clients, ME) > 0


async def test_the_headers_tell_what_is_left(autojump_clock: trio.testing.MockClock) -> None:
    clients = limited(requests_per_second=2.0, requests_burst=10.0, bytes_per_second=100.0, bytes_burst=1000.0)
    policy = '"requests";q=10;w=5, "bytes";q=1000;w=10;qu="content-bytes"'
    assert dict(clients.spend(ME, 300)) == {
        "RateLimit-Policy": policy,
        "RateLimit": '"requests";r=9;t=1, "bytes";r=700;t=3',
    }
    clients.spend(ME, 800)
    with pytest.raises(TooManyRequests, match=r"192\.0\.2\.1 is over its limit of 100 bytes a second") as caught:
        clients.spend(ME, 1)
    assert dict(caught.value.headers)["RateLimit"] == '"requests";r=8;t=1, "bytes";r=0;t=11'


async def test_a_flood_from_other_addresses_does_not_reset_a_client() -> None:
    clients = limited(requests_per_second=1.0, requests_burst=1.0, tracked_max=10)
    assert wait(clients) == 0
    for number in range(1000):
        wait(clients, f"198.51.{number >> 8}.{number & 255}")
    assert wait(clients) > 0


async def test_a_client_is_found_by_any_of_its_addresses() -> None:
    clients = limited(requests_per_second=1.0, requests_burst=1.0)
    clients.spend_at("2001:db8::1", 0)
    for address in ("2001:db8::2", "2001:db8:0:0:ffff::%eth0"):
        with pytest.raises(TooManyRequests, match="2001:db8::/64 is over its limit"):
            clients.spend_at(address, 0)
    clients.spend_at("2001:db8:0:1::1", 0)
    clients.spend_at("192.0.2.1", 0)
    with pytest.raises(TooManyRequests):
        clients.spend_at("64:ff9b::192.0.2.1", 0)
    assert limited().spend_at("192.0.2.1", 0) == ()


async def test_a_client_with_a_share_of_its_own_is_held_to_that(autojump_clock: trio.testing.MockClock) -> None:
    clients = limited(requests_per_second=100.0, requests_burst=100.0)
    headers = dict(clients.spend(ME, 0, 2.0))
    assert headers == {"RateLimit-Policy": '"requests";q=2;w=1', "RateLimit": '"requests";r=1;t=1'}
    clients.spend(ME, 0, 2.0)
    with pytest.raises(TooManyRequests, match="over its limit of 2 requests a second"):
        clients.spend(ME, 0, 2.0)
    await trio.sleep(0.5)
    clients.spend(ME, 0, 2.0)
