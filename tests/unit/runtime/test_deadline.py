from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from convo.errors import DeadlineExceeded
from convo.runtime.deadline import collecting, deadline, wait_observers


async def test_a_block_that_takes_longer_ends_exactly_at_its_deadline(autojump_clock: MockClock) -> None:
    with pytest.raises(DeadlineExceeded) as caught, deadline("db.accept", 3.0):
        await trio.sleep_forever()
    assert trio.current_time() == 3.0
    assert (caught.value.name, caught.value.seconds) == ("db.accept", 3.0)
    assert "db.accept took longer than its 3 s" in str(caught.value)


async def test_a_block_in_time_passes(autojump_clock: MockClock) -> None:
    with deadline("db.accept", 3.0):
        await trio.sleep(2.9)


async def test_an_error_of_the_block_passes_as_it_is(autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError), deadline("db.accept", 3.0):
        raise KeyError


async def test_a_cancellation_from_outside_is_not_this_deadlines_end(autojump_clock: MockClock) -> None:
    with trio.move_on_after(1.0) as outer, deadline("db.accept", 3.0):
        await trio.sleep_forever()
    assert outer.cancelled_caught


async def test_the_innermost_wait_that_used_an_outer_deadline_up_is_named(autojump_clock: MockClock) -> None:
    with pytest.raises(DeadlineExceeded) as caught, deadline("web.request", 8.0), deadline("db.accept", 30.0):
        await trio.sleep_forever()
    assert (caught.value.name, caught.value.seconds) == ("db.accept", 8.0)


async def test_a_wait_that_was_over_is_not_blamed(autojump_clock: MockClock) -> None:
    async def two_waits() -> None:
        with deadline("db.accept", 5.0):
            await trio.sleep(4)
        await trio.sleep_forever()

    with pytest.raises(DeadlineExceeded) as caught, deadline("web.request", 8.0):
        await two_waits()
    assert caught.value.name == "web.request"


async def test_the_inner_of_two_deadlines_ends_alone(autojump_clock: MockClock) -> None:
    with deadline("web.request", 8.0):
        with pytest.raises(DeadlineExceeded, match=r"db\.accept"), deadline("db.accept", 3.0):
            await trio.sleep_forever()
        await trio.sleep(4.9)


async def test_the_wait_of_another_task_inside_is_named_too(autojump_clock: MockClock) -> None:
    async def call() -> None:
        with deadline("llm.questions", 30.0):
            await trio.sleep_forever()

    async def two_calls() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            nursery.start_soon(call)

    with pytest.raises(DeadlineExceeded) as caught, deadline("analysis.job", 8.0):
        await two_calls()
    assert caught.value.name == "llm.questions"


async def test_every_observer_gets_every_wait_that_ends_and_what_ran_out_with_it(autojump_clock: MockClock) -> None:
    first: list[tuple[str, float, str | None]] = []
    second: list[str] = []
    with (
        wait_observers.adding(lambda *wait: first.append(wait)),
        wait_observers.adding(lambda name, _seconds, _exceeded: second.append(name)),
    ):
        with deadline("db.accept", 3.0):
            await trio.sleep(2)
        with pytest.raises(DeadlineExceeded), deadline("web.request", 8.0), deadline("db.read", 30.0):
            await trio.sleep_forever()
        with pytest.raises(KeyError), deadline("db.log", 3.0):
            raise KeyError
    with deadline("db.list", 3.0):
        pass
    ended = [("db.accept", 2.0, None), ("db.read", 8.0, None), ("web.request", 8.0, "db.read"), ("db.log", 0.0, None)]
    assert first == ended
    assert second == [name for name, _, _ in ended]


async def test_the_waits_of_a_block_are_collected_for_it_and_those_of_others_are_not(autojump_clock: MockClock) -> None:
    async def another() -> None:
        with deadline("db.read", 9.0):
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(another)
        with collecting() as waits:
            for seconds in (2, 3):
                with deadline("db.accept", 9.0):
                    await trio.sleep(seconds)
    assert waits == {"db.accept": 5.0}


async def test_the_longer_waits_are_collected_with_when_they_were(autojump_clock: MockClock) -> None:
    since = trio.current_time()
    await trio.sleep(1)
    with collecting(since) as waits:
        for seconds in (2.0, 0.004, 0.5):
            with deadline("db.accept", 9.0):
                await trio.sleep(seconds)
        # It began before there was anybody to collect it.
        with deadline("web.request", 9.0, since=since - 1):
            pass
    assert waits == pytest.approx({"db.accept": 2.504, "web.request": 4.504})
    assert [(name, round(began, 3), round(ended, 3)) for name, began, ended in waits.spans] == [
        ("db.accept", 1.0, 3.0),
        ("db.accept", 3.004, 3.504),
        ("web.request", 0.0, 3.504),
    ]


async def test_of_many_waits_the_longest_are_kept(autojump_clock: MockClock) -> None:
    with collecting() as waits:
        for n in range(1, 101):
            with deadline("llm.questions", 900.0):
                await trio.sleep(n)
    assert [round(ended - began) for _, began, ended in waits.spans] == list(range(69, 101))
    assert waits == {"llm.questions": 5050.0}
