from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta

import pytest
import trio

from convo.errors import DatabaseUnavailable, Forbidden, Unauthorized
from convo.settings import AuthSettings
from convo.store import keys
from convo.store.postgres import Connection, Postgres
from convo.web.authority import Authority
from tests.support.making import ask, open_dedicated, open_store

ON = AuthSettings(keys=True, refresh_seconds=0.5)
HERE = "192.0.2.1"


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Postgres]:
    async with open_store(database) as opened:
        yield opened


async def authority(postgres: Postgres) -> Authority:
    made = Authority(ON, postgres)
    await made.refresh_now()
    return made


def bearer(key: str) -> str:
    return f"Bearer {key}"


async def test_a_good_key_does_what_its_scopes_say_and_nothing_else(postgres: Postgres) -> None:
    key = await keys.new(postgres, "robots", ["write", "read"], 0)
    checks = await authority(postgres)
    for needs in ("write", "read"):
        found = await checks.check(bearer(key), needs, HERE)
        assert found is not None
        assert found.name == "robots"
    with pytest.raises(Forbidden, match="has the scopes write, read, not admin"):
        await checks.check(bearer(key), "admin", HERE)
    assert await checks.check("", None, HERE) is None


@pytest.mark.parametrize(
    "shown",
    [
        *("", "{key}", "Basic {key}", "Bearer", "Bearer ", "Bearer {key}x", "Bearer _"),
        *("Bearer convo_000000000000_secret", "Bearer CONVO{rest}"),
    ],
)
async def test_what_is_no_good_key_is_refused(postgres: Postgres, shown: str) -> None:
    key = await keys.new(postgres, "robots", ["write"], 0)
    checks = await authority(postgres)
    with pytest.raises(Unauthorized) as caught:
        await checks.check(shown.format(key=key, rest=key.removeprefix("convo")), "write", HERE)
    assert dict(caught.value.headers) == {"WWW-Authenticate": "Bearer"}
    assert key.split("_", 2)[2] not in str(caught.value)


async def test_the_scheme_may_have_any_case(postgres: Postgres) -> None:
    key = await keys.new(postgres, "robots", ["write"], 0)
    assert await (await authority(postgres)).check(f" BEARER  {key} ", "write", HERE) is not None


async def test_another_keys_secret_is_no_secret(postgres: Postgres) -> None:
    one, other = [await keys.new(postgres, name, ["write"], 0) for name in ("one", "other")]
    mixed = "_".join([*one.split("_")[:2], other.split("_", 2)[2]])
    with pytest.raises(Unauthorized):
        await (await authority(postgres)).check(bearer(mixed), "write", HERE)


async def test_without_keys_everybody_passes(postgres: Postgres) -> None:
    assert await Authority(AuthSettings(), postgres).check("", "admin", HERE) is None


async def test_a_key_made_after_the_last_reading_is_good_at_once(postgres: Postgres) -> None:
    checks = await authority(postgres)
    key = await keys.new(postgres, "robots", ["write"], 0)
    found = await checks.check(bearer(key), "write", HERE)
    assert found is not None
    assert found.name == "robots"


async def test_a_key_that_is_revoked_or_has_expired_is_not_looked_up(postgres: Postgres) -> None:
    checks = await authority(postgres)
    revoked, expired = [await keys.new(postgres, "robots", ["write"], 0) for _ in range(2)]
    await keys.revoke(postgres, revoked.split("_")[1])
    await keys.rotate(postgres, expired.split("_")[1], timedelta(0))
    for key in (revoked, expired):
        with pytest.raises(Unauthorized):
            await checks.check(bearer(key), "write", HERE)


async def test_a_key_expires_by_the_databases_clock(postgres: Postgres) -> None:
    key = await keys.new(postgres, "robots", ["write"], 0, expires=timedelta(seconds=1))
    checks = Authority(AuthSettings(keys=True, refresh_seconds=100.0), postgres)
    await checks.refresh_now()
    assert await checks.check(bearer(key), "write", HERE) is not None
    await trio.sleep(1)
    with pytest.raises(Unauthorized):
        await checks.check(bearer(key), "write", HERE)


async def test_readers_that_hold_every_connection_keep_no_revoked_key_alive(database: str) -> None:
    async def reading(connection: Connection) -> None:
        await connection.execute("SELECT pg_sleep(1.5)")

    async with open_store(database, pool_max=2) as postgres, trio.open_nursery() as nursery:
        key = await keys.new(postgres, "robots", ["write"], 0)
        checks = Authority(AuthSettings(keys=True, refresh_seconds=2.0), postgres)
        await checks.refresh_now()

        async def noisy() -> None:
            while True:
                with suppress(DatabaseUnavailable):
                    await postgres.run("db.read", reading)

        for _ in range(12):
            nursery.start_soon(noisy)
        nursery.start_soon(checks.run)
        await trio.sleep(0.5)
        async with open_dedicated(postgres) as line:
            await line.run("db.keys", lambda connection: connection.execute("UPDATE api_key SET revoked_at = now()"))
        # Where the keys could not be read, it would end with KeysUnavailable.
        with pytest.raises(Unauthorized):
            await used_for_ever(checks, key)
        nursery.cancel_scope.cancel()


async def used_for_ever(checks: Authority, key: str) -> None:
    while True:
        await checks.check(bearer(key), "write", HERE)
        await trio.sleep(0.05)


async def test_last_use_is_noted_and_keys_outlive_an_absent_database(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await keys.new(postgres, "robots", ["write"], 0)
    checks = Authority(AuthSettings(keys=True), postgres)
    await checks.refresh_now()
    await checks.check(bearer(key), "write", HERE)

    async def away(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise DatabaseUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(postgres, "run", away)
        with pytest.raises(DatabaseUnavailable):
            await checks.refresh_now()
        assert await checks.check(bearer(key), "write", HERE) is not None
    await checks.refresh_now()
    assert await ask(postgres, "SELECT last_used_at IS NOT NULL FROM api_key")
