from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from convo.commands.expiry import read_expiry, read_span
from convo.errors import Refused
from convo.store.keys import Expiry


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("45s", timedelta(seconds=45)),
        ("30m", timedelta(minutes=30)),
        ("12h", timedelta(hours=12)),
        (" 90d ", timedelta(days=90)),
        ("2w", timedelta(days=14)),
        ("0s", timedelta(0)),
        ("36525d", timedelta(days=36_525)),
    ],
)
def test_a_span_is_a_number_with_its_unit(text: str, span: timedelta) -> None:
    assert read_span(text, "--overlap") == span


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "1.5h", "1y", "1 d", "36526d", "999999999w", "never", "٣d"])
def test_what_is_no_span_is_refused_with_the_name_of_its_option(text: str) -> None:
    with pytest.raises(Refused, match="--overlap"):
        read_span(text, "--overlap")


@pytest.mark.parametrize(
    ("text", "expires"),
    [
        ("never", "never"),
        ("90d", timedelta(days=90)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T18:00Z", datetime(2027, 1, 31, 18, tzinfo=UTC)),
        ("2027-01-31 18:00", datetime(2027, 1, 31, 18, tzinfo=UTC)),
        ("2027-01-31T18:00+07:00", datetime(2027, 1, 31, 18, tzinfo=timezone(timedelta(hours=7)))),
    ],
)
def test_a_key_expires_after_a_span_or_at_a_time_or_never(text: str, expires: Expiry) -> None:
    found = read_expiry(text)
    assert found == expires
    assert not isinstance(found, datetime) or found.tzinfo is not None


@pytest.mark.parametrize("text", ["", "soon", "31.01.2027", "2027-02-30", "9999-12-31T23:59-14:00", "3000-01-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="--expires"):
        read_expiry(text)
