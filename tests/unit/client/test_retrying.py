from __future__ import annotations

from datetime import UTC, datetime

import pytest

from convo.client.retrying import PAUSE_SECONDS_MAX, pause_seconds, retry_after_seconds


def test_chance_spreads_the_waits_and_never_undercuts_what_was_asked() -> None:
    assert [pause_seconds(3, None, chance) for chance in (0.0, 0.5)] == [0.5, 0.75]
    assert [pause_seconds(3, 5.0, chance) for chance in (0.0, 0.5)] == [5.0, 5.25]
    assert pause_seconds(7, 0.0, 0.0) == PAUSE_SECONDS_MAX / 2
    assert pause_seconds(10_000, None, 0.0) == PAUSE_SECONDS_MAX / 2


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 12 ", 12.0),
        ("soon", None),
        ("-3", None),
        ("Mon, 02 Mar 2026 08:00:30 GMT", 30.0),
        ("Mon, 02 Mar 2026 07:00:00 GMT", 0.0),
        ("Mon, 02 Mar 2026 08:00:05 -0000", 5.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, datetime(2026, 3, 2, 8, 0, tzinfo=UTC)) == seconds
