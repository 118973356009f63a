from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from convo.errors import NotFound
from convo.store import keys, page_sessions
from convo.store.audit_log import Caller
from convo.store.keys import ApiKey
from convo.store.page_sessions import (
    SESSIONS_OF_KEY_MAX,
    MadeSession,
    PageSession,
    end_page_session,
    find_page_sessions,
    list_page_sessions,
    make_page_session,
)
from convo.store.postgres import Postgres
from tests.support.making import ask, open_store, rows

CALLER = Caller(key_id="0123456789ab", address="192.0.2.7")


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Postgres]:
    async with open_store(database) as opened:
        yield opened


async def a_key(postgres: Postgres, name: str = "operator", expires: timedelta | None = None) -> ApiKey:
    made = await keys.new(postgres, name, ["read"], 0, expires=expires or "never", tenant="default")
    (found,) = await keys.find_good(postgres, [made.split("_")[1]])
    return found


async def signed_in(postgres: Postgres, key: ApiKey, seconds: float = 60.0) -> MadeSession:
    made = await make_page_session(postgres, key, seconds, CALLER)
    assert made is not None
    return made


async def found(postgres: Postgres, made: MadeSession) -> PageSession | None:
    session_id = made.session.session_id
    return (await find_page_sessions(postgres, [session_id])).get(session_id)


async def test_a_session_is_kept_as_a_hash_and_stands_for_its_key(postgres: Postgres) -> None:
    key = await a_key(postgres)
    made = await signed_in(postgres, key)
    session_id, _, secret = made.token.partition("_")
    assert (len(session_id), len(secret)) == (12, 43)
    stored = str(await rows(postgres, "SELECT * FROM session"))
    assert secret not in stored
    read = await found(postgres, made)
    assert read is not None
    assert (read.session_id, read.digest, read.key.key_id) == (session_id, keys.digest_of(secret), key.key_id)
    assert 50 < read.expires_in <= 60
    assert [one.session_id for one in await list_page_sessions(postgres)] == [session_id]


@pytest.mark.parametrize("ending", ["revoked", "rotated", "expired", "ended", "over"])
async def test_a_session_ends_with_its_key_at_its_time_and_when_it_is_ended(postgres: Postgres, ending: str) -> None:
    key, other = await a_key(postgres), await a_key(postgres, "other")
    made, kept = await signed_in(postgres, key), await signed_in(postgres, other)
    if ending == "revoked":
        await keys.revoke(postgres, key.key_id)
        assert await ask(postgres, "SELECT count(*) FROM session") == 1, "it need not stay until its time"
    elif ending == "rotated":
        await keys.rotate(postgres, key.key_id, timedelta(0))
    elif ending == "expired":
        await ask(postgres, "UPDATE api_key SET expires_at = convo_now() WHERE key_id = $1", key.key_id)
    elif ending == "ended":
        await end_page_session(postgres, made.session.session_id)
    else:
        await ask(postgres, "UPDATE session SET expires_at = convo_now() WHERE key_id = $1", key.key_id)
    assert await found(postgres, made) is None
    assert [one.session_id for one in await list_page_sessions(postgres)] == [kept.session.session_id]
    with pytest.raises(NotFound, match="convo session list"):
        await end_page_session(postgres, made.session.session_id)


async def test_a_session_lasts_no_longer_than_its_key(postgres: Postgres) -> None:
    key = await a_key(postgres, expires=timedelta(seconds=30))
    made = await signed_in(postgres, key, 3600.0)
    assert made.session.expires_at == key.expires_at
    assert 20 < made.session.expires_in <= 30


async def test_a_key_that_was_revoked_meanwhile_gets_no_session(postgres: Postgres) -> None:
    key = await a_key(postgres)
    await keys.revoke(postgres, key.key_id)
    assert await make_page_session(postgres, key, 60.0, CALLER) is None
    assert await ask(postgres, "SELECT count(*) FROM session") == 0


async def test_a_key_has_so_many_sessions_and_what_is_over_goes(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SESSIONS_OF_KEY_MAX == 100
    monkeypatch.setattr(page_sessions, "SESSIONS_OF_KEY_MAX", 3)
    key, other = await a_key(postgres), await a_key(postgres, "other")
    over = await signed_in(postgres, other)
    await ask(postgres, "UPDATE session SET expires_at = convo_now() - interval '1 second'")
    made = [await signed_in(postgres, key) for _ in range(5)]
    assert [await found(postgres, one) is not None for one in made] == [False, False, True, True, True]
    assert await ask(postgres, "SELECT count(*) FROM session") == 3
    assert await found(postgres, over) is None


async def test_who_signs_in_and_out_is_noted(postgres: Postgres) -> None:
    key = await a_key(postgres)
    made = await signed_in(postgres, key)
    await end_page_session(postgres, made.session.session_id, CALLER)
    noted = "SELECT action, key_id, address, detail ->> 'session_id' FROM audit_log WHERE action LIKE 'session%'"
    assert await rows(postgres, f"{noted} ORDER BY number") == [
        (action, CALLER.key_id, CALLER.address, made.session.session_id) for action in ("session_made", "session_ended")
    ]
