from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import trio
from msgspec import structs

from convo.config import load_settings
from convo.errors import ConfigError, DeadlineExceeded, NotFound, Refused
from convo.store import keys
from convo.store.keys import ApiKey, Expiry
from convo.store.postgres import Connection, Postgres
from tests.support.making import open_dedicated, open_store, rows
from tests.support.ports import free_port
from tests.support.running import ROOT, ended, environment, running

END = "/v1/conversations/end"
LATE = datetime(2999, 1, 1, tzinfo=UTC)
_EXPIRIES: tuple[Expiry, ...] = ("never", LATE, timedelta(hours=1))


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Postgres]:
    async with open_store(database) as opened:
        yield opened


def bearer(key: str) -> str:
    return f"Bearer {key}"


async def good(postgres: Postgres) -> list[ApiKey]:
    read = await keys.read_good(postgres)
    assert read.keys is not None
    return read.keys


# --- keys


async def test_a_key_is_kept_as_a_hash_and_shown_once(postgres: Postgres) -> None:
    key = await keys.new(postgres, "robots", ["write"], 0)
    prefix, key_id, secret = key.split("_", 2)
    assert (prefix, len(key_id)) == ("convo", 12)
    ((kept, name),) = await rows(postgres, "SELECT digest, name FROM api_key")
    assert (kept, name) == (keys.digest_of(secret), "robots")
    assert secret.encode() not in kept
    assert len(secret) >= 43
    (read,) = await good(postgres)
    assert (read.key_id, read.scopes, read.last_used_at) == (key_id, ("write",), None)


async def test_a_revoked_key_is_good_no_longer(postgres: Postgres) -> None:
    key_id = (await keys.new(postgres, "robots", ["write"], 0)).split("_")[1]
    await keys.revoke(postgres, key_id)
    assert await good(postgres) == []
    with pytest.raises(NotFound, match=key_id):
        await keys.revoke(postgres, key_id)


def id_of(key: str) -> str:
    return key.split("_")[1]


async def test_a_key_expires_when_it_was_made_to(postgres: Postgres) -> None:
    never, late, soon = [
        id_of(await keys.new(postgres, "robots", ["write"], 0, expires=expires)) for expires in _EXPIRIES
    ]
    found = {key.key_id: key for key in await good(postgres)}
    assert (found[never].expires_at, found[never].expires_in, found[late].expires_at) == (None, None, LATE)
    assert found[soon].expires_in == pytest.approx(3600, abs=60)
    await rows(postgres, "UPDATE api_key SET expires_at = now() - interval '1 second' WHERE key_id = $1", soon)
    assert {key.key_id for key in await good(postgres)} == {never, late}
    assert await keys.find_good(postgres, [soon]) == []
    assert [key.key_id for key in await keys.find_good(postgres, [soon, late, "unknown"])] == [late]
    (expired,) = [key for key in await keys.not_revoked(postgres) if key.key_id == soon]
    assert expired.expires_in is not None
    assert expired.expires_in < 0


async def test_the_keys_are_read_again_only_after_a_change(postgres: Postgres) -> None:
    mark = (await keys.read_good(postgres)).mark
    assert (await keys.read_good(postgres, mark)).keys is None
    seen = {mark}

    async def changed() -> None:
        nonlocal mark
        read = await keys.read_good(postgres, mark)
        assert read.keys is not None
        assert read.mark not in seen
        seen.add(read.mark)
        mark = read.mark

    first = id_of(await keys.new(postgres, "robots", ["write"], 0))
    await changed()
    second = id_of(await keys.rotate(postgres, first, timedelta(hours=1)))
    await changed()
    await keys.note_used(postgres, [first, second])
    assert (await keys.read_good(postgres, mark)).keys is None, "nothing that a server needs"
    await rows(postgres, "UPDATE api_key SET expires_at = expires_at - interval '1 minute' WHERE key_id = $1", first)
    await changed()
    await keys.revoke(postgres, second)
    await changed()
    await rows(postgres, "UPDATE api_key SET expires_at = now() - interval '1 second' WHERE key_id = $1", first)
    read = await keys.read_good(postgres, mark)
    assert (read.keys, read.mark) == ([], (await keys.read_good(postgres)).mark)


async def test_many_keys_are_read_the_newest_ones_first(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "KEYS_MAX", 600)
    many = "INSERT INTO api_key (key_id, digest, name, scopes, created_at) SELECT n::text, '', 'x', '{}',"
    await rows(postgres, f"{many} now() - n * interval '1 s' FROM generate_series(1, 700) AS n")
    assert [key.key_id for key in await good(postgres)] == [str(number) for number in range(1, 601)]
    mark = (await keys.read_good(postgres)).mark
    await keys.revoke(postgres, "650")
    assert (await keys.read_good(postgres, mark)).mark != mark, "one beyond the limit may have been looked up"


async def test_a_key_that_would_have_expired_already_is_not_made(postgres: Postgres) -> None:
    in_the_past: tuple[Expiry, ...] = (datetime(2020, 1, 1, tzinfo=UTC), timedelta(0))
    for expires in in_the_past:
        with pytest.raises(Refused, match="expired already"):
            await keys.new(postgres, "robots", ["write"], 0, expires=expires)
    assert await keys.not_revoked(postgres) == []


async def test_a_key_is_replaced_and_both_are_good_during_the_overlap(postgres: Postgres) -> None:
    old = id_of(await keys.new(postgres, "robots", ["write"], 2.5))
    new = id_of(await keys.rotate(postgres, old, timedelta(days=1)))
    found = {key.key_id: key for key in await good(postgres)}
    assert found[old].expires_in == pytest.approx(86_400, abs=60)
    assert found[new] == structs.replace(
        found[old],
        key_id=new,
        digest=found[new].digest,
        created_at=found[new].created_at,
        expires_at=None,
        expires_in=None,
        replaces=old,
    )
    assert found[new].digest != found[old].digest
    await keys.rotate(postgres, old, timedelta(days=7), expires="never")
    assert {key.key_id: key for key in await good(postgres)}[old].expires_at == found[old].expires_at, "no later"


async def test_what_replaces_a_key_that_expires_needs_a_decision(postgres: Postgres) -> None:
    old = id_of(await keys.new(postgres, "robots", ["write"], 0, expires=timedelta(days=1)))
    with pytest.raises(Refused, match="decide with --expires"):
        await keys.rotate(postgres, old, timedelta(0))
    assert [key.key_id for key in await good(postgres)] == [old], "nothing was changed"
    new = id_of(await keys.rotate(postgres, old, timedelta(0), expires=timedelta(days=2)))
    assert [key.key_id for key in await good(postgres)] == [new]


@pytest.mark.parametrize("ending", ["unknown", "revoked", "expired"])
async def test_only_a_valid_key_is_replaced(postgres: Postgres, ending: str) -> None:
    key_id = id_of(await keys.new(postgres, "robots", ["write"], 0)) if ending != "unknown" else "unknown"
    if ending == "revoked":
        await keys.revoke(postgres, key_id)
    elif ending == "expired":
        await rows(postgres, "UPDATE api_key SET expires_at = now() - interval '1 second'")
    with pytest.raises(NotFound, match=key_id):
        await keys.rotate(postgres, key_id, timedelta(0))
    assert await good(postgres) == []


async def test_last_use_is_written_once_a_minute_and_waits_for_nobody(postgres: Postgres) -> None:
    first, second = [id_of(await keys.new(postgres, "robots", ["write"], 0)) for _ in range(2)]
    used = "SELECT key_id FROM api_key WHERE last_used_at IS NOT NULL"

    async def hold(connection: Connection) -> None:
        await connection.fetch("SELECT FROM api_key WHERE key_id = $1 FOR UPDATE", first)
        held.set()
        await connection.execute("SELECT pg_sleep(60)")

    held = trio.Event()
    async with trio.open_nursery() as nursery, open_dedicated(postgres) as line:

        async def holding() -> None:
            with suppress(DeadlineExceeded):
                await line.run("db.keys", hold, seconds=60.0)

        nursery.start_soon(holding)
        await held.wait()
        await keys.note_used(postgres, [first, second])
        assert [row[0] for row in await rows(postgres, used)] == [second]
        nursery.cancel_scope.cancel()
    await keys.note_used(postgres, [first, second])
    before = await rows(postgres, "SELECT key_id, last_used_at FROM api_key ORDER BY key_id")
    assert all(at for _, at in before)
    await keys.note_used(postgres, [first, second])
    assert await rows(postgres, "SELECT key_id, last_used_at FROM api_key ORDER BY key_id") == before
    await rows(postgres, "UPDATE api_key SET last_used_at = last_used_at - interval '61 seconds'")
    await keys.note_used(postgres, [first])
    assert len(await rows(postgres, "SELECT FROM api_key WHERE last_used_at > now() - interval '60 seconds'")) == 1


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
    assert (wrong.returncode, "choose from read, write, erase, webhooks, admin" in wrong.stderr) == (1, True)
    assert convo("key", "new", "robots", "--requests-per-second", "nan", database=empty_database).returncode == 1
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
        assert secret not in server.output


@pytest.mark.long
def test_a_key_that_expires_is_replaced_from_the_terminal_while_a_server_runs(
    empty_database: str, tmp_path: Path
) -> None:
    with (
        running(tmp_path, empty_database, {"auth.keys": "true"}) as server,
        httpx.Client(base_url=server.url) as client,
    ):

        def status(key: str) -> int:
            return client.post(END, json=ended("keyed-1"), headers={"Authorization": bearer(key)}).status_code

        old = convo("key", "add", "robots", "--expires", "90d", database=empty_database).stdout.strip()
        assert status(old) == 202, "at once"
        refused = convo("key", "rotate", old.split("_")[1], database=empty_database)
        assert (refused.returncode, "decide with --expires" in refused.stderr) == (1, True)
        rotate = ("key", "rotate", old.split("_")[1], "--overlap", "7d", "--expires", "2999-12-31")
        rotated = convo(*rotate, database=empty_database)
        assert rotated.returncode == 0, rotated.stderr
        new = rotated.stdout.strip()
        assert [status(key) for key in (new, old)] == [202, 202]
        listed = convo("key", "list", database=empty_database).stdout
        assert "2999-12-31" in listed
        assert listed.count(old.split("_")[1]) == 2, "as itself, and as what was replaced"


def test_another_address_than_loopback_needs_keys_or_a_word(tmp_path: Path) -> None:
    open_host = {"CONVO_SERVER__HOST": "0.0.0.0", "CONVO_SERVER__PORT": str(free_port())}
    with pytest.raises(ConfigError, match=r"auth\.keys is off: every client could write and read\. Turn keys on"):
        load_settings(environ=open_host)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        load_settings(environ={"CONVO_SERVER__HOST": host})
    load_settings(environ=open_host | {"CONVO_AUTH__KEYS": "true"})
    load_settings(environ=open_host | {"CONVO_AUTH__OPEN_TO_NETWORK": "true"})
