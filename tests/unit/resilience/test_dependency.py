from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from convo.errors import (
    RemoteBusy,
    RemoteDenied,
    RemoteDown,
    RemoteError,
    RemoteGarbage,
    RemoteRefused,
    RemoteTimeout,
    RemoteUnavailable,
)
from convo.resilience.dependency import Dependency, is_outage
from convo.runtime.deadline import deadline
from convo.settings import RemoteSettings
from tests.support.making import told

WAIT = "llm.questions"


def dependency(*, random: float = 0.0, **settings: Any) -> Dependency:
    return Dependency("llm", RemoteSettings(**settings), random=lambda: random)


class Calls:
    """Attempts that end as told, in order, then well; it notes when each began."""

    def __init__(self, *ends: RemoteError | float) -> None:
        self._ends = list(ends)
        self.began: list[float] = []

    async def __call__(self) -> str:
        self.began.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        end = self._ends.pop(0) if self._ends else None
        if isinstance(end, RemoteError):
            raise end
        await trio.sleep(end or 0)
        return "answer"


def unavailable(count: int = 1) -> list[RemoteError]:
    return [RemoteUnavailable("llm", "answered 503") for _ in range(count)]


async def failure(one: Dependency, calls: Calls) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await one.call(WAIT, calls)
    return caught.value


async def test_a_refused_key_is_a_wrong_setting_until_a_call_succeeds(autojump_clock: MockClock) -> None:
    one = dependency()
    with told() as events:
        await failure(one, Calls(RemoteDenied("llm", "answered 401")))
        assert one.misconfigured == "llm: answered 401"
        assert "answered 401" in one.described()
        await one.call(WAIT, Calls())
        assert one.misconfigured == ""
    assert list(events) == ["misconfigured", "configured"]


async def down(one: Dependency) -> None:
    """Let five calls fail, one attempt each."""
    for _ in range(5):
        await failure(one, Calls(RemoteDenied("llm", "answered 401")))
    assert one.state() == "open"


# --- retry


async def test_three_attempts_of_15_s_with_waits_of_2_and_4_s_end_at_exactly_51_s(autojump_clock: MockClock) -> None:
    calls = Calls(math.inf, math.inf, math.inf)
    error = await failure(dependency(), calls)
    assert (trio.current_time(), calls.began) == (51.0, [0.0, 17.0, 36.0])
    assert isinstance(error, RemoteTimeout)
    assert str(error) == "llm: llm.questions took longer than its 15 s"


async def test_retries_are_a_fifth_of_the_calls_or_a_few(autojump_clock: MockClock) -> None:
    one = dependency(breaker_failures=1000, breaker_calls=1000, backoff_seconds=0.5)
    for _ in range(85):
        await one.call(WAIT, Calls())
    attempts = 0
    for _ in range(15):
        calls = Calls(*unavailable(3))
        await failure(one, calls)
        attempts += len(calls.began)
    # A fifth of the hundred; all of it within a minute.
    assert trio.current_time() < 60
    assert attempts == 15 + 20


async def test_no_retry_starts_after_the_caller_is_cancelled(autojump_clock: MockClock) -> None:
    calls = Calls(*unavailable(3))
    with trio.move_on_after(1.0):
        await dependency().call(WAIT, calls)
    await trio.sleep(100)
    assert calls.began == [0.0]


# --- the breaker


async def test_a_dependency_that_is_down_is_not_called(autojump_clock: MockClock) -> None:
    one = dependency()
    with told() as names:
        await down(one)
    assert names == ["misconfigured", "breaker_opened"]
    calls = Calls()
    error = await failure(one, calls)
    assert (type(error), is_outage(error), calls.began) == (RemoteDown, True, [])
    assert "the next probe is due in 60 s" in str(error)
    assert not one.flows()


async def test_after_its_time_one_call_finds_out_and_the_others_are_refused(autojump_clock: MockClock) -> None:
    one = dependency()
    await down(one)
    await trio.sleep(60)
    assert (one.state(), one.wants_probe(), one.flows()) == ("half-open", True, False)
    ends: list[str] = []

    async def call() -> None:
        try:
            ends.append(await one.call(WAIT, Calls(3.0)))
        except RemoteDown:
            ends.append("refused")

    with told() as names:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            assert not one.wants_probe()
    assert sorted(ends) == ["answer", "refused", "refused", "refused"]
    assert names == ["configured", "breaker_closed"]
    assert one.flows()


async def test_a_failed_probe_is_not_tried_again_and_opens_for_another_minute(autojump_clock: MockClock) -> None:
    one = dependency()
    await down(one)
    await trio.sleep(60)
    calls = Calls(*unavailable(3))
    assert is_outage(await failure(one, calls))
    assert calls.began == [60.0]
    assert one.state() == "open"
    await trio.sleep(60)
    assert one.wants_probe()


async def test_a_cancelled_probe_leaves_its_place_to_the_next(autojump_clock: MockClock) -> None:
    one = dependency()
    await down(one)
    await trio.sleep(60)
    with trio.move_on_after(1):
        await one.call(WAIT, Calls(math.inf))
    assert one.wants_probe()


async def test_calls_that_wait_for_a_slot_when_it_opens_are_refused(autojump_clock: MockClock) -> None:
    one = dependency(concurrency=5, attempts=1)
    began: list[float] = []
    ends: list[type[RemoteError]] = []

    async def call() -> None:
        calls = Calls(math.inf)
        ends.append(type(await failure(one, calls)))
        began.extend(calls.began)

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(call)
    assert began == [0.0] * 5
    assert (ends.count(RemoteTimeout), ends.count(RemoteDown)) == (5, 45)
    assert trio.current_time() == 15.0


@pytest.mark.parametrize("error", [RemoteRefused("llm", "answered 422"), RemoteGarbage("llm", "does not fit")])
async def test_what_a_call_is_refused_for_says_nothing_of_the_dependency(
    error: RemoteError, autojump_clock: MockClock
) -> None:
    one = dependency(attempts=1)
    for _ in range(30):
        assert not is_outage(await failure(one, Calls(error)))
    assert one.state() == "closed"


# --- timeouts


async def test_a_timeout_while_others_are_answered_is_the_calls_own(autojump_clock: MockClock) -> None:
    one = dependency(attempts=1)
    async with trio.open_nursery() as nursery:

        async def others() -> None:
            await trio.sleep(7)
            await one.call(WAIT, Calls())

        nursery.start_soon(others)
        error = await failure(one, Calls(math.inf))
    assert isinstance(error, RemoteTimeout)
    assert not is_outage(error)


async def test_a_timeout_while_nobody_is_answered_is_an_outage(autojump_clock: MockClock) -> None:
    one = dependency(attempts=1)
    await one.call(WAIT, Calls())
    await trio.sleep(1)
    assert is_outage(await failure(one, Calls(math.inf)))


# --- hold


async def test_retry_after_holds_back_all_callers(autojump_clock: MockClock) -> None:
    one = dependency(attempts=1)
    await failure(one, Calls(RemoteBusy("llm", "429", retry_after_seconds=30.0)))
    assert one.state() == "closed"
    assert not one.flows()
    began: list[float] = []

    async def call() -> None:
        calls = Calls()
        await one.call(WAIT, calls)
        began.extend(calls.began)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(call)
    assert began == [30.0] * 5
    assert one.flows()


async def test_those_held_back_do_not_all_return_in_one_moment(autojump_clock: MockClock) -> None:
    one = dependency(attempts=1, random=0.5)
    await failure(one, Calls(RemoteBusy("llm", "429", retry_after_seconds=30.0)))
    calls = Calls()
    await one.call(WAIT, calls)
    assert calls.began == [30.5]


async def test_a_hold_that_leaves_no_time_for_an_attempt_is_not_waited_out(autojump_clock: MockClock) -> None:
    one = dependency(attempts=1)
    await failure(one, Calls(RemoteBusy("llm", "429", retry_after_seconds=100.0)))
    with deadline("analysis.job", 114.0):
        error = await failure(one, Calls())
    assert (type(error), is_outage(error), trio.current_time()) == (RemoteBusy, True, 0.0)
    with deadline("analysis.job", 116.0):
        await one.call(WAIT, Calls())


async def test_a_dependency_that_asks_for_a_pause_is_not_down(autojump_clock: MockClock) -> None:
    one = dependency(attempts=1)
    for _ in range(10):
        await failure(one, Calls(RemoteBusy("llm", "429", retry_after_seconds=1.0)))
    assert one.state() == "closed"


async def test_a_busy_dependency_that_names_no_pause_is_down(autojump_clock: MockClock) -> None:
    one = dependency(attempts=1)
    for _ in range(5):
        await failure(one, Calls(RemoteBusy("llm", "429")))
    assert one.state() == "open"


# --- bulkhead


async def test_so_many_calls_are_made_side_by_side_and_no_more(autojump_clock: MockClock) -> None:
    one = dependency(concurrency=2)
    began: list[float] = []

    async def call() -> None:
        calls = Calls(5.0)
        await one.call(WAIT, calls)
        began.extend(calls.began)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(call)
    assert sorted(began) == [0, 0, 5, 5, 10, 10]


async def test_a_wait_for_a_slot_ends_when_no_time_is_left_for_an_attempt(autojump_clock: MockClock) -> None:
    one = dependency(concurrency=1, attempt_seconds=15.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.call, WAIT, Calls(14.0))
        await trio.testing.wait_all_tasks_blocked()
        with deadline("analysis.job", 20.0):
            error = await failure(one, Calls())
        assert trio.current_time() == 5.0
        assert is_outage(error)
        assert "its 1 concurrent calls" in str(error)


async def test_a_lease_that_is_moved_on_cuts_no_wait_short(autojump_clock: MockClock) -> None:
    one = dependency(attempts=1)
    await failure(one, Calls(RemoteBusy("llm", "429", retry_after_seconds=40.0)))
    with deadline("analysis.job", 120.0), trio.CancelScope(deadline=trio.current_time() + 30) as lease:

        async def beat() -> None:
            await trio.sleep(10)
            lease.deadline += 30

        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat)
            assert await one.call(WAIT, Calls()) == "answer"
    assert trio.current_time() == 40.0


def test_only_a_dependencys_failure_is_an_outage() -> None:
    of_dependency: list[Callable[[], RemoteError]] = [
        lambda: RemoteUnavailable("llm", "503"),
        lambda: RemoteBusy("llm", "429"),
        lambda: RemoteDenied("llm", "401"),
        lambda: RemoteDown("llm", "open"),
        lambda: RemoteTimeout("llm", "15 s", outage=True),
    ]
    of_call: list[Callable[[], RemoteError]] = [
        lambda: RemoteRefused("llm", "422"),
        lambda: RemoteGarbage("llm", "no JSON"),
        lambda: RemoteTimeout("llm", "15 s", outage=False),
    ]
    assert all(is_outage(make()) for make in of_dependency)
    assert not any(is_outage(make()) for make in of_call)


# --- what fails for all jobs alike


async def refuse(one: Dependency, job: int, wait: str = WAIT) -> bool:
    """Let a call be refused for a job; return whether the dependency is at fault."""
    with pytest.raises(RemoteError) as caught:
        await one.call(wait, Calls(RemoteRefused("llm", "answered 400")))
    return one.is_at_fault(caught.value, job)


async def test_a_call_that_fails_for_all_jobs_alike_is_an_outage_until_it_succeeds(autojump_clock: MockClock) -> None:
    one = dependency(breaker_jobs=3)
    with told() as names:
        assert [await refuse(one, job) for job in range(3)] == [False, False, True]
        assert (one.state(), is_outage(await failure(one, Calls()))) == ("open", True)
        await trio.sleep(60)
        # The probe fails as the others did: it is closed for another period.
        assert await refuse(one, 3)
        assert one.state() == "open"
        await trio.sleep(60)
        await one.call(WAIT, Calls())
        assert one.flows()
        assert not await refuse(one, 4)
    assert names == ["breaker_opened", "breaker_opened", "breaker_closed"]


async def test_a_success_of_another_call_does_not_close_it(autojump_clock: MockClock) -> None:
    one = dependency(breaker_jobs=3)
    for job in range(3):
        await refuse(one, job)
    await trio.sleep(60)
    await one.call("llm.emotion", Calls())
    assert not one.flows()
    assert await refuse(one, 3)
    await trio.sleep(60)
    await one.call(WAIT, Calls())
    assert one.flows()


async def test_the_first_answer_is_told(autojump_clock: MockClock) -> None:
    seen = iter([(400, "first words"), (400, "other words"), (400, "last words")])
    one = Dependency("llm", RemoteSettings(breaker_jobs=3), random=lambda: 0.0, answer_seen=lambda: next(seen))
    for job in range(3):
        await refuse(one, job)
    assert "it answered 400: first words" in one.described()


async def test_another_status_is_another_way_to_fail(autojump_clock: MockClock) -> None:
    seen = iter([(400, ""), (422, ""), (400, "")])
    one = Dependency("llm", RemoteSettings(breaker_jobs=3), random=lambda: 0.0, answer_seen=lambda: next(seen))
    assert not any([await refuse(one, job) for job in range(3)])


async def test_a_probe_that_is_refused_shows_a_fault_with_the_second_job(autojump_clock: MockClock) -> None:
    one = dependency(attempts=1)
    for _ in range(5):
        await failure(one, Calls(*unavailable()))
    await trio.sleep(60)
    assert [await refuse(one, job) for job in (1, 1, 2)] == [False, False, True]
    assert one.state() == "open"
    await trio.sleep(60)
    await one.call(WAIT, Calls())
    assert not any([await refuse(one, job) for job in (3, 4)])
