from __future__ import annotations

import secrets

import pytest

from convo.web.session_cookie import SessionCookie

HERE, THERE = SessionCookie("0a1b2c3d"), SessionCookie("ffffffff")


def sent_back(given: tuple[str, str]) -> str:
    """What a browser sends after it was given this cookie."""
    return given[1].partition(";")[0]


def test_two_installations_behind_one_host_name_find_each_its_own_cookie() -> None:
    ids = [secrets.token_hex(6) for _ in range(2)]
    tokens = [f"{one}_{secrets.token_urlsafe(32)}" for one in ids]
    both = "; ".join(
        sent_back(cookie.given(token, 60, secure=False)) for cookie, token in zip((HERE, THERE), tokens, strict=True)
    )
    assert [cookie.find(both) for cookie in (HERE, THERE)] == [tuple(token.split("_", 1)) for token in tokens]
    # What makes a browser drop the one leaves the other.
    assert HERE.forgotten[1].partition("=")[0] != THERE.forgotten[1].partition("=")[0]


@pytest.mark.parametrize("name", ["convo_session", "convo_session_ffffffff", "xconvo_session_0a1b2c3d"])
def test_a_cookie_of_another_name_is_none_of_ours(name: str) -> None:
    token = f"{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
    assert HERE.find(f"{name}={token}") == ("", "")
    assert HERE.find(f"{HERE.name}={token}")[0] == token[:12]
