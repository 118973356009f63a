from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec import Raw

from convo.conversation.times import instant, moment

AT = datetime(2025, 11, 28, 3, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        1764300000,
        1764300000.0,
        1764300000000,
        "1764300000",
        "1764300000.0",
        Raw(b"1764300000.000"),
        "2025-11-28T03:20:00Z",
        "2025-11-28T03:20:00",
        "2025-11-28 03:20:00",
        "2025-11-28T10:20:00+07:00",
    ],
)
def test_a_number_is_epoch_seconds_or_milliseconds_by_its_size_and_a_time_without_an_offset_is_utc(
    value: object,
) -> None:
    assert moment(value) == AT


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (0, timedelta()),
        (99_999_999.5, timedelta(seconds=99_999_999.5)),
        (100_000_000, datetime(1973, 3, 3, 9, 46, 40, tzinfo=UTC)),
        (99_999_999_999, datetime(5138, 11, 16, 9, 46, 39, tzinfo=UTC)),
        (100_000_000_000, datetime(1973, 3, 3, 9, 46, 40, tzinfo=UTC)),
        ("0.1", timedelta(seconds=0.1)),
    ],
)
def test_the_bounds_between_seconds_from_the_start_epoch_seconds_and_milliseconds(value: object, at: object) -> None:
    assert moment(value) == at


def test_a_field_that_says_its_unit_wins() -> None:
    assert moment(1_500, 0.001) == timedelta(seconds=1.5)
    assert moment(1764300000000, 0.001) == AT
    assert moment(200_000_000_000, 1.0) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=2e11)


@pytest.mark.parametrize(
    "value",
    [-1, True, None, [], {}, "", "10:32", "Monday", "-5", "1e9", 1e300, Raw(b"1e999"), 10**17, "0x10", "2025-11-28"],
)
def test_what_is_no_time_is_said_to_be_none(value: object) -> None:
    with pytest.raises((ValueError, OverflowError)):
        moment(value)


def test_a_leap_second_is_the_second_after() -> None:
    assert instant("2016-12-31T23:59:60Z") == datetime(2017, 1, 1, tzinfo=UTC)
