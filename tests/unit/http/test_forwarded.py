from __future__ import annotations

import pytest

from convo.config import load_settings
from convo.errors import ConfigError
from convo.http.forwarded import Proxies
from convo.settings import ServerSettings

PROXY = "10.0.0.1"


def proxies(trusted: str = "10.0.0.0/8, ::1", **settings: str) -> Proxies:
    return Proxies(ServerSettings(trusted_proxies=trusted, **settings))  # type: ignore[arg-type]


def test_only_the_named_proxies_are_trusted() -> None:
    assert all(proxies().trusts(address) for address in ("10.0.0.1", "10.255.0.1", "::1"))
    assert not any(proxies().trusts(address) for address in ("11.0.0.1", "::2", "", "unix"))
    assert not proxies("").trusts("127.0.0.1")
    assert not proxies().trusts("64:ff9b::10.0.0.1")
    assert proxies("::ffff:10.0.0.0/104").trusts("10.0.0.1")


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
        ("::FFFF:1.2.3.4", "1.2.3.4"),
        ("[::ffff:1.2.3.4]:5678", "1.2.3.4"),
        ("1.2.3.4, ::ffff:10.0.0.2", "1.2.3.4"),
        ("FE80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:80", "fe80::1"),
        ("6.6.6.6, 64:ff9b::10.0.0.2", "64:ff9b::a00:2"),  # no proxy, although it carries the address of one
        ("unknown", PROXY),
        ("6.6.6.6, garbage, 10.0.0.2", "10.0.0.2"),
        ("", PROXY),
        (" , ", PROXY),
    ],
)
def test_the_client_is_the_last_one_that_the_proxies_vouch_for(said: str, client: str) -> None:
    assert proxies().client({b"x-forwarded-for": said.encode()}, PROXY) == client


def test_no_more_addresses_are_read_than_there_can_be_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    found, read = proxies(), list[str]()
    trusts = found.trusts

    def counted(address: str) -> bool:
        read.append(address)
        return trusts(address)

    monkeypatch.setattr(found, "trusts", counted)
    assert found.client({b"x-forwarded-for": b"10.0.0.3," * 1800 + b"10.0.0.2"}, PROXY) == "10.0.0.3"
    assert len(read) == 32


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


def test_the_header_that_is_not_configured_is_ignored() -> None:
    assert proxies().client({b"forwarded": b"for=6.6.6.6"}, PROXY) == PROXY


def test_a_proxy_that_is_no_address_stops_the_start() -> None:
    with pytest.raises(ConfigError, match=r"server\.trusted_proxies = 'nginx' is neither an address"):
        load_settings(environ={"CONVO_SERVER__TRUSTED_PROXIES": "10.0.0.1, nginx"})
    with pytest.raises(ConfigError, match="set both, or neither"):
        load_settings(environ={"CONVO_SERVER__CERTFILE": "/x.pem"})
