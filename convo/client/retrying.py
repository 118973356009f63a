"""When a request is sent again, and after which pause: pure rules."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RETRYABLE = frozenset({408, 429, 502, 503, 504})
"""By 408, 429 and 503 convo states that the same request can succeed later; 502 and 504 come from a gateway."""

PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.25, 10.0


def pause_seconds(attempt: int, asked: float | None, chance: float) -> float:
    """Return how long to wait after the ``attempt``-th try (from 1); ``asked`` is what the server asked for.

    ``chance`` is in [0, 1): without it, all clients that were refused together would come back together.
    """
    own = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS * 2.0 ** min(attempt - 1, 30))
    if asked is None or asked < own / 2:
        return own * (0.5 + chance / 2)
    return asked + own * chance / 2


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Read a ``Retry-After``: seconds, or a date; None where there is none that can be read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())
