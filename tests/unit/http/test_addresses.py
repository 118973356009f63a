from __future__ import annotations

import ipaddress

import pytest

from convo.http.addresses import client_network, owner_network, plain_address, trusted_network


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::1", "::1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("::FFFF:102:304", "1.2.3.4"),
        ("0:0:0:0:0:ffff:1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4%eth0", "1.2.3.4"),
        ("fe80::1%eth0", "fe80::1"),
        ("fe80::1%25eth0", "fe80::1"),
        # What only carries an IPv4 address is not that address: 127.0.0.1 behind a translator is not this machine.
        ("64:ff9b::127.0.0.1", "64:ff9b::7f00:1"),
        ("2002:7f00:1::", "2002:7f00:1::"),
        ("1.2.3", None),
        ("01.2.3.4", None),
        ("unknown", None),
        ("", None),
        ("%eth0", None),
        ("1.2.3.4%eth0", None),
    ],
)
def test_an_address_has_one_form(text: str, plain: str | None) -> None:
    assert plain_address(text) == plain


@pytest.mark.parametrize(
    ("client", "addresses"),
    [
        ("1.2.3.4", ["1.2.3.4", "::ffff:1.2.3.4", "::ffff:102:304", "64:ff9b::1.2.3.4", "64:ff9b::102:304"]),
        ("1.2.3.4", ["2002:102:304::1", "2002:102:304:ffff:1:2:3:4", "2001:0:1:2:3:4:fefd:fcfb"]),
        ("2001:db8:1:2::/64", ["2001:db8:1:2::", "2001:DB8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::1%eth7"]),
        ("fe80::/64", ["fe80::1%eth0", "fe80::2%eth1", "fe80::ffff%anything"]),
        ("64:ff9b:1::102:304", ["64:ff9b:1::102:304"]),
        ("unix", ["unix"]),
        ("", [""]),
    ],
)
def test_all_addresses_of_one_client_are_one(client: str, addresses: list[str]) -> None:
    assert {client_network(one) for one in addresses} == {client}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.2.3.4", "1.2.3.5"),
        ("2001:db8:1:2::1", "2001:db8:1:3::1"),
        ("64:ff9b::1.2.3.4", "64:ff9b::1.2.3.5"),
        ("64:ff9b:1::1.2.3.4", "64:ff9b:1::1.2.3.5"),
        ("2001:0:1:2::1", "2001:0:1:2::2"),
        ("2002:102:304::1", "2002:102:305::1"),
    ],
)
def test_two_clients_are_two(one: str, other: str) -> None:
    assert client_network(one) != client_network(other)


@pytest.mark.parametrize(
    ("client", "owner"),
    [
        ("1.2.3.4", "1.2.3.0/24"),
        ("2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("ab12cd34ef56", "ab12cd34ef56"),
        ("", ""),
    ],
)
def test_a_client_has_a_wider_network(client: str, owner: str) -> None:
    assert owner_network(client) == owner


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.1", "10.0.0.1/32"),
        ("10.0.0.1/8", "10.0.0.0/8"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::1", "::1/128"),
        ("::/0", "::/0"),
    ],
)
def test_a_trusted_network_is_compared_in_the_form_of_the_addresses(text: str, network: str) -> None:
    assert trusted_network(text) == ipaddress.ip_network(network)
