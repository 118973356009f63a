from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from convo.errors import (
    BadRequest,
    ConvoError,
    DeadlineExceeded,
    RemoteBusy,
    RemoteGarbage,
    RemoteRefused,
    RemoteUnavailable,
)
from convo.resilience.retry import is_retryable, next_wait_seconds, retrying
from convo.runtime.deadline import deadline


class Failing:
    """A call that fails with these errors in turn, then answers; it notes when it was called."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.called_at: list[float] = []

    async def __call__(self) -> str:
        self.called_at.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


async def persist(call: Callable[[], Awaitable[str]], *, attempts: int = 3, random: float = 0.0, **bounds: Any) -> str:
    policy: dict[str, Any] = {"attempts": attempts, "backoff_seconds": 2.0, "backoff_max_seconds": 10.0, **bounds}
    return await retrying(call, random=lambda: random, **policy)


def busy(seconds: float | None = None) -> RemoteBusy:
    return RemoteBusy("llm", "429", retry_after_seconds=seconds)


# --- the policy


async def test_three_attempts_of_15_s_with_waits_of_2_and_4_s_end_at_exactly_51_s(autojump_clock: MockClock) -> None:
    async def stuck() -> str:
        with deadline("llm.questions", 15.0):
            await trio.sleep_forever()
        raise AssertionError

    with pytest.raises(DeadlineExceeded):
        await persist(stuck)
    assert trio.current_time() == 51.0


async def test_a_call_that_succeeds_is_made_once_and_waits_for_nothing(autojump_clock: MockClock) -> None:
    call = Failing()
    assert await persist(call) == "answer"
    assert call.called_at == [0.0]


async def test_waits_double_up_to_their_maximum(autojump_clock: MockClock) -> None:
    call = Failing(*[RemoteUnavailable("llm", "503") for _ in range(5)])
    assert await persist(call, attempts=6) == "answer"
    assert call.called_at == [0.0, 2.0, 6.0, 14.0, 24.0, 34.0]


async def test_what_the_dependency_asks_for_is_waited_exactly(autojump_clock: MockClock) -> None:
    call = Failing(busy(7.5))
    await persist(call)
    assert call.called_at == [0.0, 7.5]


async def test_asking_for_less_than_the_backoff_does_not_shorten_it(autojump_clock: MockClock) -> None:
    call = Failing(busy(0.5))
    await persist(call)
    assert call.called_at == [0.0, 2.0]


async def test_the_last_error_itself_is_raised(autojump_clock: MockClock) -> None:
    last = RemoteGarbage("llm", "the third")
    call = Failing(busy(), RemoteUnavailable("llm", "503"), last)
    with pytest.raises(RemoteGarbage) as raised:
        await persist(call)
    assert raised.value is last
    assert len(call.called_at) == 3


@pytest.mark.parametrize("error", [RemoteRefused("llm", "401"), BadRequest("no"), ValueError("a bug")])
async def test_what_cannot_succeed_later_is_not_tried_again(error: Exception, autojump_clock: MockClock) -> None:
    call = Failing(error)
    with pytest.raises(type(error)):
        await persist(call)
    assert call.called_at == [0.0]


async def test_one_attempt_means_one_call(autojump_clock: MockClock) -> None:
    call = Failing(busy(1.0))
    with pytest.raises(RemoteBusy):
        await persist(call, attempts=1)
    assert call.called_at == [0.0]


async def test_a_wait_is_cancelled_with_its_caller(autojump_clock: MockClock) -> None:
    call = Failing(RemoteUnavailable("llm", "503"))
    with trio.move_on_after(1.0):
        await persist(call)
    assert trio.current_time() == 1.0
    assert call.called_at == [0.0]


async def test_a_wait_after_which_there_is_no_time_for_an_attempt_is_not_begun(autojump_clock: MockClock) -> None:
    call = Failing(RemoteUnavailable("llm", "503"))
    with pytest.raises(RemoteUnavailable), deadline("analysis.job", 16.9):
        await persist(call, attempt_seconds=15.0)
    assert (call.called_at, trio.current_time()) == ([0.0], 0.0)


async def test_a_retry_that_is_not_allowed_is_not_waited_for(autojump_clock: MockClock) -> None:
    call = Failing(RemoteUnavailable("llm", "503"))
    with pytest.raises(RemoteUnavailable):
        await persist(call, may_retry=lambda: False)
    assert (call.called_at, trio.current_time()) == ([0.0], 0.0)


async def test_an_asked_wait_that_the_callers_deadline_would_cut_short_is_not_begun(
    autojump_clock: MockClock,
) -> None:
    call = Failing(busy(100.0))
    with pytest.raises(RemoteBusy) as raised, deadline("analysis.job", 60.0):
        await persist(call)
    assert raised.value.retry_after_seconds == 100.0
    assert trio.current_time() == 0.0


async def test_an_asked_wait_that_fits_the_callers_deadline_is_waited(autojump_clock: MockClock) -> None:
    call = Failing(busy(50.0))
    with deadline("analysis.job", 60.0):
        assert await persist(call) == "answer"
    assert call.called_at == [0.0, 50.0]


# --- how long to wait


def wait(failures: int, *, asked: float | None = None, random: float = 0.0) -> float:
    return next_wait_seconds(
        failures, backoff_seconds=2.0, backoff_max_seconds=10.0, asked_seconds=asked, random=random
    )


def test_jitter_takes_at_most_half_of_the_backoff_and_never_adds_to_it() -> None:
    assert [wait(1, random=r) for r in (0.0, 0.5, 1.0)] == [2.0, 1.5, 1.0]
    assert [wait(9, random=r) for r in (0.0, 0.5, 1.0)] == [10.0, 7.5, 5.0]


def test_jitter_never_undercuts_what_was_asked() -> None:
    assert [wait(1, asked=7.0, random=r) for r in (0.0, 0.5, 1.0)] == [7.0, 7.5, 8.0]


def test_being_asked_for_nothing_still_backs_off() -> None:
    assert wait(1, asked=0.0) == 2.0


def test_any_number_of_failures_has_a_wait() -> None:
    assert wait(100_000) == 10.0


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (RemoteUnavailable("llm", "x"), True),
        (busy(), True),
        (RemoteGarbage("llm", "x"), True),
        (RemoteRefused("llm", "x"), False),
        (ConvoError(), False),
        (OSError(), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_only_our_own_errors_can_say_that_they_are_retryable(error: BaseException, *, retryable: bool) -> None:
    assert is_retryable(error) is retryable
