"""When to try a call again and how long to wait before: pure rules, and the loop that follows them.

Each error knows whether it is ``retryable``. The caller's own deadline bounds how long all attempts take together.
"""

from __future__ import annotations

import random as dice
from collections.abc import Awaitable, Callable
from typing import TypeVar

import tenacity
import trio

from convo.errors import ConvoError
from convo.runtime.deadline import ends_at

T = TypeVar("T")


def is_retryable(error: BaseException) -> bool:
    """Return whether the same call can succeed later: only our own errors know that."""
    return isinstance(error, ConvoError) and error.retryable


def next_wait_seconds(
    failures: int, *, backoff_seconds: float, backoff_max_seconds: float, asked_seconds: float | None, random: float
) -> float:
    """Compute the wait in seconds after so many ``failures`` (from 1) with a ``random`` number in [0, 1).

    Backoff doubles up to its maximum. Jitter takes up to half of it away, so that the ladder's sum stays an upper
    bound. To the wait that the dependency asked for jitter adds: calls come no sooner, and not all at once.
    """
    backoff = min(backoff_max_seconds, backoff_seconds * 2.0 ** min(failures - 1, 60))
    jitter = random * backoff / 2
    if asked_seconds is None:
        return backoff - jitter
    return max(backoff - jitter, asked_seconds + jitter)


async def retrying(  # noqa: PLR0913  (numbers of one policy, each with a unit of its own)
    call: Callable[[], Awaitable[T]],
    *,
    attempts: int,
    backoff_seconds: float,
    backoff_max_seconds: float,
    attempt_seconds: float = 0.0,
    may_retry: Callable[[], bool] = lambda: True,
    random: Callable[[], float] = dice.random,
) -> T:
    """Make ``call`` until it succeeds, fails for good, or has failed ``attempts`` times; then its last error stands.

    ``may_retry`` is asked before each wait for another attempt. A wait is not begun when the caller's own deadline
    would leave less than ``attempt_seconds`` after it.

    Raises:
        ConvoError: the last attempt's own error; any other exception of ``call`` passes at once.
    """

    def wait(state: tenacity.RetryCallState) -> float:
        return next_wait_seconds(
            state.attempt_number,
            backoff_seconds=backoff_seconds,
            backoff_max_seconds=backoff_max_seconds,
            asked_seconds=_asked_seconds(state),
            random=random(),
        )

    def stop(state: tenacity.RetryCallState) -> bool:
        ends = state.attempt_number >= attempts
        return ends or trio.current_time() + state.upcoming_sleep + attempt_seconds > ends_at() or not may_retry()

    # Nearly every call succeeds at once, and tenacity takes as much of the processor as sending it: it begins with the
    # first failure.
    try:
        return await call()
    except ConvoError as error:
        if not is_retryable(error):
            raise
        failed: ConvoError | None = error

    async def attempt() -> T:
        nonlocal failed
        if failed is not None:
            first, failed = failed, None
            raise first
        return await call()

    policy = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(is_retryable),
        stop=stop,
        wait=wait,
        sleep=trio.sleep,
        reraise=True,
    )
    return await policy(attempt)


def _asked_seconds(state: tenacity.RetryCallState) -> float | None:
    error = state.outcome.exception() if state.outcome is not None else None
    return error.retry_after_seconds if isinstance(error, ConvoError) else None
