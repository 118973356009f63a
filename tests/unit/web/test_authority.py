from __future__ import annotations

import math
import secrets
from typing import Any

import pytest
import trio
import trio.testing

from convo.errors import DatabaseUnavailable, KeysUnavailable, TooManyRequests, Unauthorized
from convo.settings import AuthSettings
from convo.web.authority import Authority
from tests.support.key_table import KeyTable
from tests.support.making import told

HERE, THERE = "192.0.2.1", "198.51.100.1"
NOTHING: Any = None


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> KeyTable:
    return KeyTable(monkeypatch)


async def authority(**settings: Any) -> Authority:
    made = Authority(AuthSettings(keys=True, **settings), NOTHING)
    await made.refresh_now()
    return made


async def found(checks: Authority, key: str, address: str = HERE) -> str:
    """What becomes of a request with this key: the name of its error, or "good"."""
    try:
        await checks.check(f"Bearer {key}", "write", address)
    except (Unauthorized, TooManyRequests, KeysUnavailable) as error:
        return type(error).__name__
    return "good"


def guess() -> str:
    return f"convo_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


# --- a revoked key


async def test_a_revoked_key_is_refused_in_time_though_each_reading_is_slow(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: KeyTable
) -> None:
    key = table.add()
    table.seconds = 4.5
    checks = Authority(AuthSettings(keys=True, refresh_seconds=10.0), NOTHING)
    nursery.start_soon(checks.run)
    await trio.sleep(0.1)
    revoked_at = trio.current_time()
    table.revoke(key)
    await trio.sleep(4.5)
    assert await found(checks, key) == "good", "the first reading began before"
    await trio.sleep_until(revoked_at + 10)
    assert await found(checks, key) == "Unauthorized"


async def test_a_reading_that_failed_is_repeated_soon(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: KeyTable
) -> None:
    key = table.add()
    checks = await authority(refresh_seconds=10.0)
    nursery.start_soon(checks.run)
    table.away = True
    await trio.sleep(5.5)
    table.revoke(key)
    table.away = False
    await trio.sleep(1)
    assert await found(checks, key) == "Unauthorized"


async def test_what_cannot_be_noted_does_not_keep_a_revoked_key_alive(
    monkeypatch: pytest.MonkeyPatch, table: KeyTable
) -> None:
    async def stuck(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise DatabaseUnavailable("a lock")

    key = table.add()
    checks = await authority()
    assert await found(checks, key) == "good"
    table.revoke(key)
    with monkeypatch.context() as patch, told() as names:
        patch.setattr("convo.store.keys.note_used", stuck)
        await checks.refresh_now()
    assert names == ["key_use_not_noted"]
    assert await found(checks, key) == "Unauthorized"
    await checks.refresh_now()
    assert table.noted == [{key.split("_")[1]}], "noted later"


# --- keys that could not be read


async def test_keys_are_refused_when_they_were_not_read_for_three_times_as_long(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: KeyTable
) -> None:
    key = table.add()
    checks = await authority(refresh_seconds=10.0)
    table.away = True
    nursery.start_soon(checks.run)
    await trio.sleep(30)
    assert await found(checks, key) == "good"
    with told() as names:
        await trio.sleep(1.5)
    assert names == ["keys_failed", "keys_too_old"] * (len(names) // 2)
    assert names
    with pytest.raises(KeysUnavailable, match=r"for 32 s, more than 3 × auth.refresh_seconds") as caught:
        await checks.check(f"Bearer {key}", "write", HERE)
    assert (caught.value.status, caught.value.retry_after_seconds) == (503, 1.0)
    assert await found(checks, guess()) == "KeysUnavailable", "nobody can know"
    assert [await found(checks, one) for one in ("", "x")] == ["Unauthorized"] * 2, "they are wrong in any case"
    assert table.lookups == []
    table.away = False
    await trio.sleep(1)
    assert await found(checks, key) == "good"


async def test_before_the_first_reading_no_key_is_called_wrong(table: KeyTable) -> None:
    checks = Authority(AuthSettings(keys=True), NOTHING)
    with pytest.raises(KeysUnavailable, match="could not be read from the database yet"):
        await checks.check(f"Bearer {table.add()}", "write", HERE)


async def test_a_database_that_went_back_takes_its_keys_along(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: KeyTable
) -> None:
    key, new = table.add(), guess()
    checks = await authority()
    await found(checks, new)
    table.seconds = 1.0
    nursery.start_soon(checks.refresh_now)
    nursery.start_soon(found, checks, table.add())
    await trio.sleep(0.5)
    checks.forget()
    await trio.sleep(1)
    assert await found(checks, key) == "KeysUnavailable", "the reading that was under way is of the other history"
    await checks.refresh_now()
    assert await found(checks, key) == "good"
    await found(checks, new)
    assert len(table.lookups) == 3, "asked for again"


async def test_of_two_readings_the_later_one_counts_whichever_ends_first(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: KeyTable
) -> None:
    key = table.add()
    checks = await authority()
    table.seconds = 2.0
    nursery.start_soon(checks.refresh_now)
    await trio.sleep(1)
    table.revoke(key)
    table.seconds = 0.0
    await checks.refresh_now()
    await trio.sleep(2)
    assert await found(checks, key) == "Unauthorized"


# --- a new key


async def test_a_new_key_is_good_at_once_and_asked_for_once(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: KeyTable
) -> None:
    checks = await authority(wrong_keys_burst=1.0)
    key, answers = table.add(), []
    table.seconds = 1.0

    async def request() -> None:
        answers.append(await found(checks, key))

    for _ in range(100):
        nursery.start_soon(request)
    await trio.sleep(1)
    await trio.testing.wait_all_tasks_blocked()
    assert answers == ["good"] * 100
    assert await found(checks, key) == "good"
    assert table.lookups == [{key.split("_")[1]}]
    assert await found(checks, guess()) == "Unauthorized", "the good one cost the address nothing"


async def test_a_new_key_that_was_revoked_meanwhile_is_not_kept(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: KeyTable
) -> None:
    checks = await authority()
    key = table.add()
    table.seconds = 2.0
    nursery.start_soon(found, checks, key)
    await trio.sleep(1)
    table.revoke(key)
    table.seconds = 0.0
    await checks.refresh_now()
    await trio.sleep(2)
    assert await found(checks, key) == "Unauthorized"


async def test_a_new_key_that_is_revoked_before_the_next_reading_is_refused_after_it(
    autojump_clock: trio.testing.MockClock, table: KeyTable
) -> None:
    table.add()
    checks = await authority()
    key = table.add()
    assert await found(checks, key) == "good"
    table.revoke(key)
    await checks.refresh_now()
    assert await found(checks, key) == "Unauthorized", "although the keys are those of the last reading"


async def test_a_new_key_stays_known_when_a_reading_under_way_finds_no_change(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: KeyTable
) -> None:
    old = table.add()
    checks = await authority()
    table.seconds = 2.0
    nursery.start_soon(checks.refresh_now)
    await trio.sleep(0.5)
    key = table.add()
    table.seconds = 0.0
    assert await found(checks, key) == "good"
    await trio.sleep(2)
    assert [await found(checks, one) for one in (old, key)] == ["good"] * 2
    table.revoke(key)
    await checks.refresh_now()
    assert [await found(checks, one) for one in (old, key)] == ["good", "Unauthorized"]


async def test_keys_that_did_not_change_are_not_read_again(
    autojump_clock: trio.testing.MockClock, table: KeyTable
) -> None:
    key = table.add()
    checks = await authority(refresh_seconds=10.0)
    for _ in range(5):
        await trio.sleep(20)
        await checks.refresh_now()
        assert await found(checks, key) == "good"
    assert (table.readings, table.unchanged) == (6, 5)


async def test_a_key_is_good_until_it_expires(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: KeyTable
) -> None:
    held, new = await authority(refresh_seconds=100.0), table.add(seconds=7.0)
    assert await found(held, new) == "good"
    read = await authority(refresh_seconds=100.0)
    await trio.sleep(6.9)
    assert [await found(one, new) for one in (held, read)] == ["good"] * 2
    await trio.sleep(0.1)
    assert [await found(one, new) for one in (held, read)] == ["Unauthorized"] * 2


# --- wrong keys


async def test_wrong_keys_are_limited_by_address_before_they_cost_anything(
    autojump_clock: trio.testing.MockClock, table: KeyTable
) -> None:
    key = table.add()
    checks = await authority(wrong_keys_per_second=0.5, wrong_keys_burst=3.0)
    assert [await found(checks, guess()) for _ in range(4)] == ["Unauthorized"] * 3 + ["TooManyRequests"]
    asked = len(table.lookups)
    with pytest.raises(TooManyRequests, match=r"192\.0\.2\.1 has shown too many wrong keys") as caught:
        await checks.check("Bearer x", "write", HERE)
    assert caught.value.retry_after_seconds == pytest.approx(2, abs=0.2)
    assert len(table.lookups) == asked
    assert await found(checks, key) == "good", "a good key passes from the same address"
    assert await found(checks, guess(), THERE) == "Unauthorized"
    await trio.sleep(2)
    assert [await found(checks, guess()) for _ in range(2)] == ["Unauthorized", "TooManyRequests"]


@pytest.mark.parametrize("shown", ["x", "Basic {key}", "Bearer {key}x", "Bearer convo__", "{key}"])
async def test_what_is_no_key_at_all_is_limited_too(table: KeyTable, shown: str) -> None:
    checks = await authority(wrong_keys_burst=1.0)
    shown = shown.format(key=guess())
    with pytest.raises(Unauthorized):
        await checks.check(shown, "write", HERE)
    with pytest.raises(TooManyRequests):
        await checks.check(shown, "write", HERE)
    assert table.lookups == []


async def test_a_request_without_a_key_costs_its_address_nothing(table: KeyTable) -> None:
    checks = await authority(wrong_keys_burst=1.0)
    for _ in range(3):
        with pytest.raises(Unauthorized, match="send a valid key"):
            await checks.check("", "write", HERE)
    assert await found(checks, guess()) == "Unauthorized"


async def test_one_client_is_limited_whichever_address_it_uses(table: KeyTable) -> None:
    checks = await authority(wrong_keys_burst=1.0)
    assert await found(checks, guess(), "2001:db8::1") == "Unauthorized"
    assert await found(checks, guess(), "2001:db8::2%eth0") == "TooManyRequests"


async def test_another_secret_for_a_good_key_costs_the_database_nothing_and_is_limited(table: KeyTable) -> None:
    key = table.add()
    checks = await authority(wrong_keys_burst=2.0)
    wrong = "_".join([*key.split("_")[:2], secrets.token_urlsafe(32)])
    assert [await found(checks, wrong) for _ in range(3)] == ["Unauthorized"] * 2 + ["TooManyRequests"]
    assert table.lookups == []


async def test_wrong_secrets_that_wait_with_others_are_counted_all(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: KeyTable
) -> None:
    checks = await authority(wrong_keys_burst=5.0, wrong_keys_per_second=1.0)
    wrong = guess()
    table.seconds = 1.0
    for _ in range(50):
        nursery.start_soon(found, checks, wrong)
    await trio.sleep(1)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(TooManyRequests) as caught:
        await checks.check(f"Bearer {guess()}", "write", HERE)
    assert caught.value.retry_after_seconds == pytest.approx(45)


async def test_with_keys_off_nothing_is_read(autojump_clock: trio.testing.MockClock, table: KeyTable) -> None:
    checks = Authority(AuthSettings(), NOTHING)
    await checks.run()
    await checks.refresh()
    assert await checks.check("", "admin", HERE) is None
    assert table.readings == 0


async def test_the_keys_are_read_twice_in_the_time(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: KeyTable
) -> None:
    checks = Authority(AuthSettings(keys=True, refresh_seconds=10.0), NOTHING)
    nursery.start_soon(checks.run)
    await trio.sleep(51)
    assert table.readings == 11
    assert math.isfinite(checks._read_at)
