from __future__ import annotations

import secrets
from typing import Any

import pytest
import trio
import trio.testing

from convo.errors import KeysUnavailable, TooManyRequests
from convo.web.key_lookup import KeyLookup
from tests.support.key_table import KeyTable

NOTHING: Any = None
NONE_SECONDS = 10.0


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> KeyTable:
    return KeyTable(monkeypatch)


def lookup() -> KeyLookup:
    return KeyLookup(NOTHING, NONE_SECONDS)


def id_of(key: str) -> str:
    return key.split("_")[1]


async def found(asking: KeyLookup, key_id: str) -> str:
    try:
        one = await asking.ask(key_id)
    except (TooManyRequests, KeysUnavailable) as error:
        return type(error).__name__
    return "none" if one is None else one.key.key_id


async def all_found(asking: KeyLookup, key_ids: list[str]) -> list[str]:
    """Ask for all at the same time."""
    answers = dict.fromkeys(range(len(key_ids)), "")

    async def ask(place: int) -> None:
        answers[place] = await found(asking, key_ids[place])

    async with trio.open_nursery() as nursery:
        for place in range(len(key_ids)):
            nursery.start_soon(ask, place)
    return list(answers.values())


async def test_what_the_database_does_not_know_is_not_asked_for_again_for_a_while(
    autojump_clock: trio.testing.MockClock, table: KeyTable
) -> None:
    asking, guess = lookup(), secrets.token_hex(6)
    assert not asking.knows_none(guess, trio.current_time())
    assert await found(asking, guess) == "none"
    await trio.sleep(NONE_SECONDS - 0.001)
    assert asking.knows_none(guess, trio.current_time())
    await trio.sleep(0.001)
    assert not asking.knows_none(guess, trio.current_time())
    await found(asking, guess)
    asking.forget()
    assert not asking.knows_none(guess, trio.current_time())


async def test_many_at_the_same_time_are_few_queries_one_after_the_other(
    autojump_clock: trio.testing.MockClock, table: KeyTable
) -> None:
    asking, key = lookup(), id_of(table.add())
    table.seconds = 0.001
    began = trio.current_time()
    guesses = [secrets.token_hex(6) for _ in range(150)]
    assert await all_found(asking, [*guesses, key, key]) == ["none"] * 150 + [key] * 2
    assert [len(one) for one in table.lookups] == [151]
    for number in range(20):
        await found(asking, secrets.token_hex(6))
        assert trio.current_time() - began == pytest.approx(0.05 * (number + 1) + 0.001)


async def test_a_flood_of_guesses_waits_for_no_place(autojump_clock: trio.testing.MockClock, table: KeyTable) -> None:
    asking = lookup()
    table.seconds = 1.0
    answers = await all_found(asking, [secrets.token_hex(6) for _ in range(1000)])
    assert (answers.count("none"), answers.count("TooManyRequests")) == (200, 800)
    assert sum(len(one) for one in table.lookups) == 200
    assert asking._asked == {}


async def test_the_keys_that_are_known_to_be_none_are_so_many_at_most(
    autojump_clock: trio.testing.MockClock, table: KeyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convo.web.key_lookup._NONE_MAX", 100)
    asking = lookup()
    first, *others = [secrets.token_hex(6) for _ in range(101)]
    await found(asking, first)
    await all_found(asking, others)
    assert len(asking._none_until) == 100
    assert not asking.knows_none(first, trio.current_time())


async def test_a_request_that_is_cancelled_leaves_the_query_to_the_others(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, table: KeyTable
) -> None:
    asking, key = lookup(), id_of(table.add())
    table.seconds = 1.0
    scope = trio.CancelScope()
    answers: list[str] = []

    async def first() -> None:
        with scope:
            await found(asking, key)

    async def second() -> None:
        answers.append(await found(asking, key))

    for request in (first, second):
        nursery.start_soon(request)
        await trio.testing.wait_all_tasks_blocked()
    scope.cancel()
    await trio.sleep(1.05)
    await trio.testing.wait_all_tasks_blocked()
    assert answers == [key]


async def test_requests_that_are_all_cancelled_take_no_place_of_others(
    autojump_clock: trio.testing.MockClock, table: KeyTable
) -> None:
    asking = lookup()
    table.seconds = 1.0
    with trio.move_on_after(0.5):
        await all_found(asking, [secrets.token_hex(6) for _ in range(200)])
    assert asking._asked == {}
    assert await found(asking, secrets.token_hex(6)) == "none"


async def test_a_database_that_does_not_answer_keeps_requests_waiting_once(
    autojump_clock: trio.testing.MockClock, table: KeyTable
) -> None:
    asking = lookup()
    table.away, table.seconds = True, 3.0
    began = trio.current_time()
    assert await all_found(asking, [secrets.token_hex(6) for _ in range(10)]) == ["KeysUnavailable"] * 10
    assert trio.current_time() - began == 3
    assert await found(asking, secrets.token_hex(6)) == "KeysUnavailable"
    assert trio.current_time() - began == 3
    assert len(table.lookups) == 1
    await trio.sleep(1)
    table.away = False
    assert await found(asking, secrets.token_hex(6)) == "none"
