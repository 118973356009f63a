"""Reads from an answer the pause that a remote service asks for: from its headers, or from its body.

It knows no clock: the caller says what time it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

LONGEST_SECONDS = 86_400.0
"""No pause is longer than a day, whatever a service asks for."""

_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{0,15})?")
_TERM = re.compile(rf"({_NUMBER.pattern})(ms|us|µs|ns|d|h|m|s)")
_DURATION = re.compile(rf"(?:{_TERM.pattern})+")
# "Please try again in 7.66s", "Please retry after 20 seconds", "Please wait 3 minutes".
_SENTENCE = re.compile(
    r"(?:try again|retry|wait)\W+(?:(?:in|after|for|at least)\W+)*"
    rf"(?:(?P<duration>(?:{_TERM.pattern})+)(?![a-z])|(?P<number>{_NUMBER.pattern})\s*(?P<unit>(?:milli)?second|minute|hour))"
)
_SENTENCE_UNITS = {"millisecond": 0.001, "second": 1.0, "minute": 60.0, "hour": 3_600.0}
# Where a body names the pause: keys in lower case without their separators, and the seconds in one unit of them.
_KEYS = {"retryafter": 1.0, "retrydelay": 1.0, "retryafterseconds": 1.0, "retryafterms": 0.001, "resetafter": 1.0}
# An error of a service is a few levels deep; no body is searched further.
_DEPTH_MAX = 6
_SENTENCE_CHARS_MAX = 2_000
# Times of this century, in seconds and in milliseconds: what is smaller is a pause.
_EPOCH_SECONDS, _EPOCH_MILLISECONDS = 1e9, 1e12


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """Read from an answer's ``headers`` (names in lower case) the pause in seconds that a service asks for.

    ``retry-after-ms`` and ``retry-after`` (seconds, or a date) speak for themselves; ``x-ratelimit-reset-*`` count
    only beside a remaining of 0. A date is measured from the answer's own ``date``, from ``now`` (aware) without one.
    """
    for seconds in (_milliseconds(headers), _seconds_or_date(headers, now), _spent_limits(headers)):
        if seconds is not None:
            return _bounded(seconds)
    return None


def body_pause_seconds(body: Any, now: datetime) -> float | None:
    """Read from the decoded ``body`` of a refusal the pause that it asks for: a field, or a sentence of its message.

    Fields are Google's ``retryDelay``, ``retry_after`` in any spelling, and the headers that OpenRouter hands on.
    """
    pauses = [seconds for seconds in _named(body, now, 0) if seconds is not None]
    return _bounded(max(pauses)) if pauses else None


def duration_seconds(text: str) -> float | None:
    """Read a duration like ``1s``, ``6m0s``, ``120ms`` or ``7.66`` (bare seconds); None where it is none."""
    text = text.strip()
    if _DURATION.fullmatch(text):
        return math.fsum(float(term[1]) * _UNITS[term[2]] for term in _TERM.finditer(text))
    return _number(text)


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_SECONDS)


# --- headers


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


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text := text.strip()) else None


def _date(text: str) -> datetime | None:
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


# --- bodies


def _named(value: Any, now: datetime, depth: int) -> Iterator[float | None]:
    if depth > _DEPTH_MAX:
        return
    if isinstance(value, list):
        for one in value:
            yield from _named(one, now, depth + 1)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _of_key(re.sub(r"[-_]", "", str(key)).lower(), one, now, depth)


def _of_key(key: str, value: Any, now: datetime, depth: int) -> Iterator[float | None]:
    if key in _KEYS:
        seconds = _pause(value, now)
        yield None if seconds is None else seconds * (_KEYS[key] if isinstance(value, int | float) else 1.0)
    elif key == "xratelimitreset":
        yield _until(value, now)
    elif key in ("message", "detail", "error") and isinstance(value, str):
        yield _of_sentence(value)
    else:
        yield from _named(value, now, depth + 1)


def _pause(value: Any, now: datetime) -> float | None:
    match value:
        case bool():
            return None
        case int() | float():
            return float(value) if value >= 0 else None
        case str():
            return (
                _seconds_or_date({"retry-after": value}, now)
                if not _DURATION.fullmatch(value)
                else duration_seconds(value)
            )
        case {"seconds": int() | float() | str() as seconds}:
            return _number(str(seconds))
        case _:
            return None


def _until(value: Any, now: datetime) -> float | None:
    number = _number(str(value))
    if number is None:
        return None
    if number > _EPOCH_MILLISECONDS:
        return number / 1000 - now.timestamp()
    return number - now.timestamp() if number > _EPOCH_SECONDS else number


def _of_sentence(text: str) -> float | None:
    found = _SENTENCE.search(text[:_SENTENCE_CHARS_MAX].lower())
    if found is None:
        return None
    if found["duration"]:
        return duration_seconds(found["duration"])
    return float(found["number"]) * _SENTENCE_UNITS[found["unit"]]
