"""Reads what the options of ``convo key`` say of time: how long a key lives, and when it ends."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from convo.errors import Refused

if TYPE_CHECKING:
    from convo.store.keys import Expiry

_SPAN = re.compile(r"([0-9]{1,12})([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_LONGEST = timedelta(days=36_525)
_LAST_YEAR = 2999


def read_span(text: str, option: str) -> timedelta:
    """Read a span of time such as ``90d`` or ``12h``.

    Raises:
        Refused: ``text`` is none, or it is over 100 years.
    """
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise Refused(f"{option} {text!r}: give a number with s, m, h, d or w, such as 12h or 90d")
    seconds = int(found[1]) * _UNITS[found[2]]
    if seconds > _LONGEST.total_seconds():
        raise Refused(f"{option} {text!r}: that is over 100 years")
    return timedelta(seconds=seconds)


def read_expiry(text: str) -> Expiry:
    """Read when a key expires: ``never``, a span of time, a date (its beginning) or a time; UTC without an offset.

    Raises:
        Refused: ``text`` is none of these.
    """
    text = text.strip()
    if text == "never":
        return "never"
    if _SPAN.fullmatch(text):
        return read_span(text, "--expires")
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(
            f"--expires {text!r}: give a span such as 90d, a date or time such as 2027-01-31 or 2027-01-31T18:00Z, or"
            " never"
        ) from None
    # The database's times go on after Python's last year: a key that no server can read would keep all others unread.
    if at.year > _LAST_YEAR:
        raise Refused(f"--expires {text!r}: that is after the year {_LAST_YEAR}; say never")
    return at if at.tzinfo else at.replace(tzinfo=UTC)
