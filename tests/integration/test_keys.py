from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio

from convo.config import AuthSettings, load
from convo.errors import ConfigError, DatabaseUnavailable, Forbidden, NotFound, Unauthorized
from convo.store import keys
from convo.store.postgres import Postgres
from convo.web.authority import Authority
from convo.web.catalog import OPERATIONS
from tests.making import ask, open_store, rows
from tests.running import ROOT, ended, environment, free_port, running, serving

END = "/v1/conversations/end"
ON = AuthSettings(keys=True, refresh_seconds=0.05)


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Postgres]:
    async with open_store(database) as opened:
        yield opened


async def authority(postgres: Postgres) -> Authority:
    made = Authority(ON, postgres)
    await made.refresh()
    return made


def bearer(key: str) -> str:
    return f"Bearer {key}"


# --- keys


async def test_a_key_is_kept_as_a_hash_and_shown_once(postgres: Postgres) -> None:
    key = await keys.new(postgres, "robots", ["write"], 0)
    prefix, key_id, secret = key.split("_", 2)
    assert (prefix, len(key_id)) == ("convo", 12)
    ((kept, name),) = await rows(postgres, "SELECT digest, name FROM api_key")
    assert (kept, name) == (keys.digest_of(secret), "robots")
    assert secret.encode() not in kept
    assert len(secret) >= 43
    (read,) = await keys.good(postgres)
    assert (read.key_id, read.scopes, read.last_used_at) == (key_id, ("write",), None)


async def test_a_revoked_key_is_good_no_longer(postgres: Postgres) -> None:
    key_id = (await keys.new(postgres, "robots", ["write"], 0)).split("_")[1]
    await keys.revoke(postgres, key_id)
    assert await keys.good(postgres) == []
    with pytest.raises(NotFound, match=key_id):
        await keys.revoke(postgres, key_id)


# --- authority


async def test_a_good_key_does_what_its_scopes_say_and_nothing_else(postgres: Postgres) -> None:
    key = await keys.new(postgres, "robots", ["write", "read"], 0)
    house = await authority(postgres)
    for needs in ("write", "read"):
        found = house.check(bearer(key), needs)
        assert found is not None
        assert found.name == "robots"
    with pytest.raises(Forbidden, match="has the scopes write, read, not admin"):
        house.check(bearer(key), "admin")
    assert house.check("", None) is None


@pytest.mark.parametrize(
    "shown",
    ["", "{key}", "Basic {key}", "Bearer", "Bearer ", "Bearer {key}x", "Bearer convo_000000000000_secret", "Bearer _"],
)
async def test_what_is_no_good_key_is_refused(postgres: Postgres, shown: str) -> None:
    key = await keys.new(postgres, "robots", ["write"], 0)
    house = await authority(postgres)
    with pytest.raises(Unauthorized) as caught:
        house.check(shown.format(key=key), "write")
    assert dict(caught.value.headers) == {"WWW-Authenticate": "Bearer"}
    assert key.split("_", 2)[2] not in str(caught.value)


async def test_another_keys_secret_is_no_secret(postgres: Postgres) -> None:
    one, other = [await keys.new(postgres, name, ["write"], 0) for name in ("one", "other")]
    mixed = "_".join([*one.split("_")[:2], other.split("_", 2)[2]])
    with pytest.raises(Unauthorized):
        (await authority(postgres)).check(bearer(mixed), "write")


async def test_without_keys_everybody_passes(postgres: Postgres) -> None:
    assert Authority(AuthSettings(), postgres).check("", "admin") is None


async def test_last_use_is_noted_and_keys_outlive_an_absent_database(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await keys.new(postgres, "robots", ["write"], 0)
    house = await authority(postgres)
    house.check(bearer(key), "write")

    async def away(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise DatabaseUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(postgres, "run", away)
        with pytest.raises(DatabaseUnavailable):
            await house.refresh()
        assert house.check(bearer(key), "write") is not None
    await house.refresh()
    assert await ask(postgres, "SELECT last_used_at IS NOT NULL FROM api_key")


# --- through the doors


async def test_every_route_of_both_doors_asks_for_its_scope(database: str, tmp_path: Path) -> None:
    async with open_store(database) as postgres:
        good = {scope: await keys.new(postgres, scope, [scope], 0) for scope in keys.SCOPES}
    settings = {"auth.keys": "true", "auth.refresh_seconds": "0.05"}
    async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url) as client:
        await trio.sleep(0.3)  # the keys are read a moment after the start
        for operation in OPERATIONS:
            path = operation.path.replace("{conversation_id}", "talk-1").replace("{user_id}", "user-1")
            body = {"json": ended("keyed-1")} if operation.takes_conversation else {}

            async def status(key: str, operation: object = operation, path: str = path, body: object = body) -> int:
                headers = {"Authorization": bearer(key)} if key else {}
                method = operation.method.upper()  # type: ignore[attr-defined]
                return (await client.request(method, path, headers=headers, **body)).status_code  # type: ignore[arg-type]

            if operation.scope is None:
                assert await status("") not in (401, 403), path
                continue
            assert await status("") == 401, path
            for scope, key in good.items():
                assert (await status(key) == 403) == (scope != operation.scope), (path, scope)
        refused = await client.post(END, content=b"x" * 100, headers={"Content-Type": "application/json"})
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"


async def test_a_key_may_have_a_limit_of_its_own(database: str, tmp_path: Path) -> None:
    async with open_store(database) as postgres:
        slow = await keys.new(postgres, "slow", ["write"], 1.0)
        free = await keys.new(postgres, "free", ["write"], 0)
    settings = {"auth.keys": "true", "auth.refresh_seconds": "0.05"}
    async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url) as client:
        await trio.sleep(0.3)

        async def post(key: str, number: int) -> int:
            answer = await client.post(END, json=ended(f"limit-{number}"), headers={"Authorization": bearer(key)})
            return answer.status_code

        assert [await post(slow, n) for n in range(3)].count(429) >= 1
        assert [await post(free, n) for n in range(3, 9)] == [202] * 6


# --- from the terminal, and at the start


def convo(*arguments: str, database: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "convo", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(database), capture_output=True, text=True, timeout=60, check=False
    )


def test_a_key_is_made_listed_and_revoked_from_the_terminal(empty_database: str, tmp_path: Path) -> None:
    made = convo("key", "new", "robots", "--scopes", "write", database=empty_database)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    key_id, secret = key.split("_", 2)[1:]
    listed = convo("key", "list", database=empty_database)
    assert key_id in listed.stdout
    assert "robots" in listed.stdout
    assert secret not in listed.stdout + listed.stderr
    wrong = convo("key", "new", "robots", "--scopes", "write,fly", database=empty_database)
    assert (wrong.returncode, "holds what is no scope" in wrong.stderr) == (1, True)
    settings = {"auth.keys": "true", "auth.refresh_seconds": "0.1"}
    with running(tmp_path, empty_database, settings) as server, httpx.Client(base_url=server.url) as client:
        headers = {"Authorization": bearer(key)}

        def until(status: int) -> None:
            for _ in range(200):
                if client.post(END, json=ended("keyed-1"), headers=headers).status_code == status:
                    return
            pytest.fail(f"never {status}")

        until(202)
        assert convo("key", "revoke", key_id, database=empty_database).returncode == 0
        until(401)
        assert secret not in server.said


def test_another_address_than_loopback_needs_keys_or_a_word(tmp_path: Path) -> None:
    open_host = {"CONVO_SERVER__HOST": "0.0.0.0", "CONVO_SERVER__PORT": str(free_port())}
    with pytest.raises(ConfigError, match=r"auth\.keys is off: anybody could post and read\. Turn keys on"):
        load(environ=open_host)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        load(environ={"CONVO_SERVER__HOST": host})
    load(environ=open_host | {"CONVO_AUTH__KEYS": "true"})
    load(environ=open_host | {"CONVO_AUTH__OPEN_TO_NETWORK": "true"})
