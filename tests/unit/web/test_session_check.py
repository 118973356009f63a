from __future__ import annotations

import secrets
from typing import Any

import pytest
import trio
import trio.testing

from convo.errors import Forbidden, KeysUnavailable, TooManyRequests, Unauthorized
from convo.settings import AuthSettings
from convo.web.authority import Authority
from convo.web.session_check import SentSession, csrf_token
from convo.web.session_cookie import SessionCookie
from tests.support.key_table import KeyTable
from tests.support.session_table import SessionTable

HERE = "192.0.2.1"
NOTHING: Any = None


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> KeyTable:
    return KeyTable(monkeypatch)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, keys: KeyTable) -> SessionTable:
    return SessionTable(monkeypatch)


async def authority(**settings: Any) -> Authority:
    made = Authority(AuthSettings(keys=True, **settings), NOTHING)
    await made.refresh_now()
    return made


def sent(cookie: str, csrf: str = "", *, changes: bool = False) -> SentSession:
    return SentSession(cookie=cookie, csrf=csrf, changes=changes)


async def found(checks: Authority, session: SentSession, address: str = HERE) -> str:
    """What becomes of a request with this session: the name of its error, or of its key."""
    try:
        key = await checks.check("", "read", address, session=session)
    except (Unauthorized, Forbidden, TooManyRequests, KeysUnavailable) as error:
        return type(error).__name__
    return "" if key is None else key.name


def secret_of(cookie: str) -> str:
    return SessionCookie().find(cookie)[1]


def guess() -> str:
    return f"convo_session={secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


async def test_a_session_stands_for_its_key_and_is_asked_for_once(
    autojump_clock: trio.testing.MockClock, table: SessionTable
) -> None:
    checks, cookie = await authority(), table.add()
    other = f"theme=dark; {cookie}; lang=vi"
    assert [await found(checks, sent(one)) for one in (cookie, other, cookie)] == ["operator"] * 3
    assert len(table.asked) == 1


@pytest.mark.parametrize("cookie", ["", "theme=dark", "convo_session=", "convo_session=abc", "xconvo_session={0}"])
async def test_a_request_without_our_cookie_has_no_session(
    autojump_clock: trio.testing.MockClock, table: SessionTable, cookie: str
) -> None:
    checks = await authority()
    value = table.add().partition("=")[2]
    assert await found(checks, sent(cookie.format(value))) == "Unauthorized"
    assert table.asked == []


async def test_what_may_change_something_needs_the_csrf_token_of_the_same_session(
    autojump_clock: trio.testing.MockClock, table: SessionTable
) -> None:
    checks, cookie, other = await authority(), table.add(), table.add()
    right, wrong = csrf_token(secret_of(cookie)), csrf_token(secret_of(other))
    assert [await found(checks, sent(cookie, csrf, changes=True)) for csrf in (right, wrong, "", "ü")] == [
        "operator",
        *["Forbidden"] * 3,
    ]
    assert secret_of(cookie) not in right


async def test_a_session_that_was_ended_elsewhere_is_refused_in_time(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: SessionTable
) -> None:
    checks, cookie, kept = await authority(refresh_seconds=10.0), table.add(), table.add()
    nursery.start_soon(checks.run)
    assert await found(checks, sent(cookie)) == await found(checks, sent(kept)) == "operator"
    table.end(cookie)
    await trio.sleep(10)
    assert [await found(checks, sent(one)) for one in (cookie, kept)] == ["Unauthorized", "operator"]


async def test_a_session_ends_at_its_time(autojump_clock: trio.testing.MockClock, table: SessionTable) -> None:
    checks, cookie = await authority(refresh_seconds=1000.0), table.add(60.0)
    assert await found(checks, sent(cookie)) == "operator"
    await trio.sleep(59.5)
    assert await found(checks, sent(cookie)) == "operator"
    await trio.sleep(0.5)
    assert await found(checks, sent(cookie)) == "Unauthorized"


async def test_a_browser_is_told_to_drop_the_cookie_of_a_session_that_is_over(
    autojump_clock: trio.testing.MockClock, table: SessionTable
) -> None:
    checks = await authority()
    with pytest.raises(Unauthorized, match="sign in again") as caught:
        await checks.check("", "read", HERE, session=sent(guess()))
    assert checks.sessions.cookie.forgotten in caught.value.headers


async def test_guesses_are_limited_by_address_and_a_held_session_passes(
    autojump_clock: trio.testing.MockClock, table: SessionTable
) -> None:
    checks = await authority(wrong_keys_burst=3.0, wrong_keys_per_second=1.0)
    cookie = table.add()
    assert await found(checks, sent(cookie)) == "operator"
    made_up = [cookie[:-1] + ("A" if cookie[-1] != "A" else "B"), guess(), guess(), guess(), guess()]
    answers = [await found(checks, sent(one)) for one in made_up]
    assert answers == [*["Unauthorized"] * 3, *["TooManyRequests"] * 2]
    assert await found(checks, sent(cookie)) == "operator"
    assert len(table.asked) == 3, "what is over the limit costs the database nothing"


async def test_sessions_are_refused_when_they_were_not_read_for_too_long(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: SessionTable
) -> None:
    checks, cookie = await authority(refresh_seconds=10.0), table.add()
    nursery.start_soon(checks.run)
    assert await found(checks, sent(cookie)) == "operator"
    # The keys can be read, the sessions cannot.
    table.away = True
    await trio.sleep(29)
    assert await found(checks, sent(cookie)) == "operator"
    await trio.sleep(10)
    assert await found(checks, sent(cookie)) == "KeysUnavailable"
    table.away = False
    await trio.sleep(1.5)
    assert await found(checks, sent(cookie)) == "operator"


async def test_a_database_that_went_back_takes_its_sessions_along(
    autojump_clock: trio.testing.MockClock, table: SessionTable
) -> None:
    checks, cookie = await authority(), table.add()
    assert await found(checks, sent(cookie)) == "operator"
    table.end(cookie)
    checks.forget()
    assert await found(checks, sent(cookie)) == "KeysUnavailable"
    await checks.refresh_now()
    assert await found(checks, sent(cookie)) == "Unauthorized"


async def test_an_authorization_counts_and_the_cookie_beside_it_does_not(
    autojump_clock: trio.testing.MockClock, keys: KeyTable, table: SessionTable
) -> None:
    key = keys.add()
    checks = await authority()
    found_key = await checks.check(f"Bearer {key}", "write", HERE, session=sent(table.add(), changes=True))
    assert found_key is not None
    assert found_key.name == "robots"
    with pytest.raises(Unauthorized):
        await checks.check("Bearer wrong", "write", HERE, session=sent(table.add()))
    assert table.asked == []


async def test_where_no_sessions_are_made_none_is_good(
    autojump_clock: trio.testing.MockClock, table: SessionTable
) -> None:
    checks = await authority(session_seconds=0.0)
    assert await found(checks, sent(table.add())) == "Unauthorized"
    assert table.asked == []


def test_no_script_and_no_other_site_gets_the_cookie() -> None:
    given = SessionCookie().given
    name, value = given("id_secret", 60.9, secure=False)
    assert (name, value) == ("Set-Cookie", "convo_session=id_secret; Path=/; Max-Age=60; HttpOnly; SameSite=Strict")
    assert given("id_secret", 60.9, secure=True)[1] == f"{value}; Secure"
