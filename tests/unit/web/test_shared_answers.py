from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from convo.errors import Invalid, Overloaded
from convo.web import queries
from convo.web.description.messages import Answer
from convo.web.shared_answers import SharedAnswers


class Slow:
    """Takes a second to read, and counts how often it is read."""

    def __init__(self) -> None:
        self.read = 0
        self.away = False

    async def __call__(self) -> Answer:
        self.read += 1
        number = self.read
        await trio.sleep(1)
        if self.away:
            raise Overloaded("away")
        return Answer(status=200, body=b"%d" % number)


async def asked(shared: SharedAnswers, make: Slow, times: int, as_of: int | None, key: Any = "list") -> list[bytes]:
    found: list[bytes] = []

    async def ask() -> None:
        try:
            found.append((await shared.answer(key, as_of, make)).body)
        except Overloaded:
            found.append(b"away")

    async with trio.open_nursery() as nursery:
        for _ in range(times):
            nursery.start_soon(ask)
    return found


def made(last: int = 100) -> SharedAnswers:
    return SharedAnswers(lambda: last)


async def test_twenty_who_were_told_of_the_same_event_get_one_answer(autojump_clock: trio.testing.MockClock) -> None:
    shared, slow = made(), Slow()
    assert await asked(shared, slow, 20, 7) == [b"1"] * 20
    assert await asked(shared, slow, 1, 6) == [b"1"]
    assert await asked(shared, slow, 1, 8) == [b"2"]
    assert slow.read == 2


@pytest.mark.parametrize("as_of", [None, 101])
async def test_who_says_no_event_that_there_is_gets_an_answer_of_its_own(
    autojump_clock: trio.testing.MockClock, as_of: int | None
) -> None:
    shared, slow = made(), Slow()
    await asked(shared, slow, 1, 7)
    assert sorted(await asked(shared, slow, 2, as_of)) == [b"2", b"3"]
    assert await asked(shared, slow, 1, 7) == [b"1"]


async def test_an_answer_is_for_one_key_and_for_five_seconds_and_until_something_is_erased(
    autojump_clock: trio.testing.MockClock,
) -> None:
    shared, slow = made(), Slow()
    await asked(shared, slow, 1, 7)
    assert await asked(shared, slow, 1, 7, "another reach") == [b"2"]
    await trio.sleep(2.9)
    assert await asked(shared, slow, 1, 7) == [b"1"]
    await trio.sleep(0.2)
    assert await asked(shared, slow, 1, 7) == [b"3"]
    shared.forget()
    assert await asked(shared, slow, 1, 7) == [b"4"]


async def test_what_was_erased_while_it_was_read_is_shared_with_nobody_who_comes_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    shared, slow = made(), Slow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked, shared, slow, 1, 7)
        await trio.sleep(0.5)
        shared.forget()
    assert await asked(shared, slow, 1, 7) == [b"2"]


async def test_a_failure_is_shared_with_nobody(autojump_clock: trio.testing.MockClock) -> None:
    shared, slow = made(), Slow()
    slow.away = True
    assert await asked(shared, slow, 3, 7) == [b"away"] * 3
    assert slow.read == 3


async def test_who_makes_it_may_be_gone_before_it_is_there(autojump_clock: trio.testing.MockClock) -> None:
    shared, slow = made(), Slow()
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as client:
                client.start_soon(asked, shared, slow, 1, 7)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(asked, shared, slow, 2, 7)
    assert slow.read == 2


async def test_few_answers_are_kept(autojump_clock: trio.testing.MockClock) -> None:
    shared, slow = made(), Slow()
    for n in range(33):
        await asked(shared, slow, 1, 7, n)
    assert len(shared._kept) == 32


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1" * 19, "1.5"])
def test_as_of_is_the_number_of_an_event(text: str) -> None:
    with pytest.raises(Invalid, match="as_of"):
        queries.as_of_query({"as_of": text})


def test_as_of_may_be_left_out() -> None:
    assert [queries.as_of_query(one) for one in ({}, {"as_of": "12"})] == [None, 12]
