"""When to try a call again and how long to wait before: pure rules, and the policy made of them.

It knows no dependency and no status: errors say themselves whether they are retryable. How long all attempts
may take together is the business of the caller's cancel scope.
"""

from __future__ import annotations

import math
import random as dice
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import tenacity
import trio

from convo.deadline import ends_at
from convo.errors import ConvoError

T = TypeVar("T")

LONGEST_SECONDS = 86_400.0
"""Nobody is left alone for longer than a day, whatever it asks for."""

_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{0,15})?")
_TERM = re.compile(rf"({_NUMBER.pattern})(ms|us|µs|ns|d|h|m|s)")
_DURATION = re.compile(rf"(?:{_TERM.pattern})+")


def is_retryable(error: BaseException) -> bool:
    """Tell whether the same call can succeed later: only our own errors can say so."""
    return isinstance(error, ConvoError) and error.retryable


def wait_seconds(
    failures: int, *, backoff_seconds: float, backoff_max_seconds: float, asked_seconds: float | None, random: float
) -> float:
    """Compute the wait in seconds after so many ``failures`` (from 1) with a ``random`` number in [0, 1).

    Backoff doubles up to its maximum. Jitter takes up to half of it away, so that the ladder's sum stays an upper
    bound; to what the dependency asked for it adds, for that is never undercut and never met by all at once.
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
        return wait_seconds(
            state.attempt_number,
            backoff_seconds=backoff_seconds,
            backoff_max_seconds=backoff_max_seconds,
            asked_seconds=_asked_seconds(state),
            random=random(),
        )

    def stop(state: tenacity.RetryCallState) -> bool:
        ends = state.attempt_number >= attempts
        return ends or trio.current_time() + state.upcoming_sleep + attempt_seconds > ends_at() or not may_retry()

    async def attempt() -> T:
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


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """Read from an answer's ``headers`` (names in lower case) how many seconds to leave the dependency alone.

    ``retry-after-ms`` and ``retry-after`` (seconds, or a date) speak for themselves; ``x-ratelimit-reset-*`` count
    only beside a remaining of 0. A date is measured from the answer's own ``date``, from ``now`` (aware) without one.
    """
    for seconds in (_milliseconds(headers), _seconds_or_date(headers, now), _spent_limits(headers)):
        if seconds is not None:
            return min(max(seconds, 0.0), LONGEST_SECONDS)
    return None


def _milliseconds(headers: Mapping[str, str]) -> float | None:
    number = _number(headers.get("retry-after-ms", ""))
    return None if number is None else number / 1000


def _seconds_or_date(headers: Mapping[str, str], now: datetime) -> float | None:
    text = headers.get("retry-after", "")
    number = _number(text)
    if number is not None:
        return number
    at = _date(text)
    return None if at is None else (at - (_date(headers.get("date", "")) or now)).total_seconds()


def _spent_limits(headers: Mapping[str, str]) -> float | None:
    waits = [
        duration_seconds(headers.get(f"x-ratelimit-reset-{limit}", ""))
        for limit in ("requests", "tokens")
        if _number(headers.get(f"x-ratelimit-remaining-{limit}", "")) == 0
    ]
    return max((wait for wait in waits if wait is not None), default=None)


def duration_seconds(text: str) -> float | None:
    """Read a duration like ``1s``, ``6m0s``, ``120ms`` or ``7.66`` (bare seconds); None where it is none."""
    text = text.strip()
    if _DURATION.fullmatch(text):
        return math.fsum(float(term[1]) * _UNITS[term[2]] for term in _TERM.finditer(text))
    return _number(text)


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text := text.strip()) else None


def _date(text: str) -> datetime | None:
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
