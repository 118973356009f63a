from __future__ import annotations

import pytest

from convo.config import ServerSettings, load
from convo.errors import ConfigError
from convo.web.forwarded import Proxies, plain_address

PROXY = "10.0.0.1"


def proxies(trusted: str = "10.0.0.0/8, ::1", **settings: str) -> Proxies:
    return Proxies(ServerSettings(trusted_proxies=trusted, **settings))  # type: ignore[arg-type]


def test_only_the_named_proxies_are_trusted() -> None:
    assert all(proxies().trusts(address) for address in ("10.0.0.1", "10.255.0.1", "::1"))
    assert not any(proxies().trusts(address) for address in ("11.0.0.1", "::2", "", "unix"))
    assert not proxies("").trusts("127.0.0.1")


@pytest.mark.parametrize(
    ("said", "client"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("6.6.6.6, 1.2.3.4", "1.2.3.4"),  # what stands further left is the client's own invention
        ("10.0.0.9, 1.2.3.4", "1.2.3.4"),
        ("1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ("6.6.6.6, 1.2.3.4, 10.0.0.2, 10.0.0.3", "1.2.3.4"),
        ("10.0.0.4, 10.0.0.2", "10.0.0.4"),
        ("1.2.3.4:5678", "1.2.3.4"),
        ("[2001:db8::1]:5678", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("unknown", PROXY),
        ("6.6.6.6, garbage, 10.0.0.2", "10.0.0.2"),
        ("", PROXY),
        (" , ", PROXY),
    ],
)
def test_the_client_is_the_last_one_that_the_proxies_vouch_for(said: str, client: str) -> None:
    assert proxies().client({b"x-forwarded-for": said.encode()}, PROXY) == client


@pytest.mark.parametrize(
    ("said", "client"),
    [
        ("for=1.2.3.4", "1.2.3.4"),
        ('proto=https;For="[2001:db8::1]:1234";by=x', "2001:db8::1"),
        ("for=6.6.6.6, for=1.2.3.4;proto=http, for=10.0.0.2", "1.2.3.4"),
        ("for=_hidden", PROXY),
        ("xfor=1.2.3.4", PROXY),
        ("by=1.2.3.4", PROXY),
    ],
)
def test_where_the_proxies_write_forwarded_it_is_read(said: str, client: str) -> None:
    fields = {b"forwarded": said.encode(), b"x-forwarded-for": b"6.6.6.6"}
    assert proxies(forwarded_header="forwarded").client(fields, PROXY) == client


def test_the_other_header_is_believed_from_nobody() -> None:
    assert proxies().client({b"forwarded": b"for=6.6.6.6"}, PROXY) == PROXY


def test_an_address_through_an_ipv6_socket_is_what_it_is() -> None:
    assert [plain_address(one) for one in ("::ffff:1.2.3.4", "::1", "1.2.3.4")] == ["1.2.3.4", "::1", "1.2.3.4"]


def test_a_proxy_that_is_no_address_stops_the_start() -> None:
    with pytest.raises(ConfigError, match=r"server\.trusted_proxies = 'nginx' is no address"):
        load(environ={"CONVO_SERVER__TRUSTED_PROXIES": "10.0.0.1, nginx"})
    with pytest.raises(ConfigError, match="belong together"):
        load(environ={"CONVO_SERVER__CERTFILE": "/x.pem"})
