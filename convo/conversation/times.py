"""Reading the times that clients send: RFC 3339 texts and numbers, which become instants in UTC."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

from msgspec import Raw

# The ranges are fromisoformat's to check, but for 24:00 and offsets of 60 minutes and more, which some versions take.
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ](?!24)[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:[Zz]|[+-][0-9]{2}:[0-5][0-9])?"
)
_NUMBER = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?")
TIME_WANTED = (
    "must be a time within the years 1 to 9999 in UTC: RFC 3339 (2026-03-02T08:00:00Z; UTC where no offset stands),"
    " or a number of seconds or milliseconds since 1970"
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A number below the first is seconds from the start of the conversation (up to three years, and in epoch seconds the
# year 1973), below the second epoch seconds (until the year 5138), else epoch milliseconds (from the year 1973 on).
_RELATIVE_BELOW = 1e8
_SECONDS_BELOW = 1e11

Moment = datetime | timedelta
"""An instant, or a distance from the start of the conversation."""


def moment(value: object, unit_seconds: float | None = None) -> Moment:
    """Read a time; ``unit_seconds`` is the length of one unit where the field's name says it.

    Raises:
        ValueError, OverflowError: it is no time, or one outside the calendar.
    """
    if isinstance(value, str) and (":" in value or not _NUMBER.fullmatch(value)):
        return instant(value)
    number = _number(value)
    if unit_seconds is not None:
        seconds = number * unit_seconds
        absolute = seconds >= _RELATIVE_BELOW
    else:
        seconds = number if number < _SECONDS_BELOW else number / 1000
        absolute = number >= _RELATIVE_BELOW
    return _EPOCH + timedelta(seconds=seconds) if absolute else timedelta(seconds=seconds)


def instant(value: str) -> datetime:
    """Read an RFC 3339 time; one without an offset is UTC.

    Raises:
        ValueError, OverflowError: it is no such time, or one outside the calendar.
    """
    # fromisoformat alone reads far more than RFC 3339.
    if _TIME.fullmatch(value) is None:
        raise ValueError("not RFC 3339")
    if ":59:60" in value:
        return instant(value.replace(":59:60", ":59:59")) + timedelta(seconds=1)
    at = datetime.fromisoformat(value.upper())
    if at.tzinfo is None:
        return at.replace(tzinfo=UTC)
    return at if at.tzinfo is UTC else at.astimezone(UTC)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Raw):
        raise ValueError("neither a text nor a number")  # noqa: TRY004  (a value that a client sent)
    number = float(bytes(value)) if isinstance(value, Raw) else float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError("not a number of seconds from 0")
    return number
