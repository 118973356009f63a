from __future__ import annotations

import pytest

from convo.host_names import host_name, is_loopback, listed_name, origin_host, plain_name


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost:30020", "localhost"),
        ("localhost.:80", "localhost"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]:30020", "::1"),
        ("[0:0:0:0:0:0:0:1]", "::1"),
        ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ("a:", "a"),
        ("localhost.evil.example", "localhost.evil.example"),
    ],
)
def test_a_name_is_read_without_its_port_and_in_one_spelling(authority: str, name: str) -> None:
    assert host_name(authority) == name


@pytest.mark.parametrize(
    "authority",
    ["", ":80", "a b", "a@localhost", "localhost@evil", "localhost/", "localhost:80:80", "::1", "[::1", "a\n"],
)
def test_what_is_no_authority_has_no_name(authority: str) -> None:
    assert host_name(authority) == ""


def test_an_address_has_one_spelling() -> None:
    assert [plain_name(one) for one in ("::FFFF:10.0.0.1", "2001:DB8:0::1", "Convo.Example.")] == [
        "10.0.0.1", "2001:db8::1", "convo.example",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Convo.example.", "convo.example"), ("[::1]", "::1"), ("::1", "::1"), ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1:80", ""), ("a.example:80", ""), ("[::1]:80", ""), ("http://a", ""), ("", ""), ("a b", ""),
    ],
)  # fmt: skip
def test_a_name_of_the_settings_has_no_port(text: str, name: str) -> None:
    assert listed_name(text) == name


@pytest.mark.parametrize(
    ("name", "loops"),
    [
        ("localhost", True), ("127.0.0.1", True), ("127.8.9.10", True), ("::1", True), ("", False),
        ("127.0.0.1.evil.example", False), ("localhost.evil.example", False), ("127.evil.example", False),
        ("0.0.0.0", False), ("10.0.0.1", False), ("127.1", False),
    ],
)  # fmt: skip
def test_only_what_no_name_server_can_point_elsewhere_is_loopback(name: str, *, loops: bool) -> None:
    assert is_loopback(name) is loops


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://LOCALHOST:30020", "localhost:30020"), ("https://a.example", "a.example"),
        ("chrome-extension://abc", "abc"), ("null", ""), ("", ""), ("https://a.example/", ""), ("//a", ""),
        ("http://a@b", ""), ("http://", ""), ("http://a http://b", ""),
    ],
)  # fmt: skip
def test_an_origin_has_a_host_and_no_more(origin: str, host: str) -> None:
    assert origin_host(origin) == host
