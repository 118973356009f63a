from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from convo.remote_pauses import body_pause_seconds, duration_seconds, retry_after_seconds

NOW = datetime(2026, 11, 22, 7, 0, 0, tzinfo=UTC)


def asked(**headers: str) -> float | None:
    return retry_after_seconds({name.replace("_", "-"): text for name, text in headers.items()}, NOW)


def test_without_a_notification_of_it_nothing_is_asked() -> None:
    assert asked() is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), (" 12 ", 12.0), ("1.5", 1.5), ("0", 0.0), ("Sun, 22 Nov 2026 07:01:30 GMT", 90.0)],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float) -> None:
    assert asked(retry_after=text) == seconds


def test_a_date_is_measured_by_the_clock_of_whoever_sent_it() -> None:
    ours_is_late = (NOW - timedelta(hours=3)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert asked(retry_after="Sun, 22 Nov 2026 04:00:20 GMT", date=ours_is_late) == 20.0


def test_a_date_in_the_past_asks_for_no_wait() -> None:
    assert asked(retry_after="Sun, 22 Nov 2026 06:00:00 GMT") == 0.0


@pytest.mark.parametrize(
    "text", ["", "soon", "-3", "nan", "inf", "1e400", "9" * 400, "Sun, 99 Nov 2026", "Sun, 22 Nov 99999 07:00:00 GMT"]
)
def test_what_cannot_be_read_asks_for_nothing(text: str) -> None:
    assert asked(retry_after=text) is None


def test_no_pause_is_longer_than_a_day() -> None:
    assert asked(retry_after="999999999") == 86_400.0
    assert asked(retry_after="Sun, 22 Nov 2099 07:00:00 GMT") == 86_400.0


def test_milliseconds_go_before_seconds() -> None:
    assert asked(retry_after_ms="250", retry_after="1") == 0.25


def test_retry_after_goes_before_rate_limits() -> None:
    assert asked(retry_after="3", x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="9s") == 3.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1.0), ("6m0s", 360.0), ("120ms", 0.12), ("2m59.56s", 179.56), ("1h2m3s", 3723.0), ("7.66", 7.66)],
)
def test_a_spent_rate_limit_is_waited_for(text: str, seconds: float) -> None:
    assert asked(x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests=text) == seconds
    assert asked(x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens=text) == seconds


def test_a_rate_limit_that_is_not_spent_asks_for_nothing() -> None:
    assert asked(x_ratelimit_remaining_requests="1", x_ratelimit_reset_requests="6m0s") is None
    assert asked(x_ratelimit_reset_requests="6m0s") is None


def test_of_two_spent_limits_the_longer_one_counts() -> None:
    assert (
        asked(
            x_ratelimit_remaining_requests="0",
            x_ratelimit_reset_requests="1s",
            x_ratelimit_remaining_tokens="0",
            x_ratelimit_reset_tokens="4s",
        )
        == 4.0
    )


@pytest.mark.parametrize("text", ["", "s", "5x", "1s later", "-1s", "6m 0s"])
def test_a_text_that_is_no_duration_is_none(text: str) -> None:
    assert duration_seconds(text) is None


# --- bodies


def google(delay: Any) -> Any:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
    return [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": [{"reason": "X"}, info]}}]


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (google("8s"), 8.0),
        (google("0.5s"), 0.5),
        (google({"seconds": "8", "nanos": 0}), 8.0),
        ({"error": {"message": "Rate limit reached. Please try again in 7.66s. Visit …"}}, 7.66),
        ({"error": {"message": "Please try again in 6m0s."}}, 360.0),
        ({"error": {"message": "Requests have exceeded the limit. Please retry after 20 seconds."}}, 20.0),
        ({"message": "Please wait for 3 minutes"}, 180.0),
        ({"error": "too fast, retry in 250ms"}, 0.25),
        ({"retry_after": 1.5}, 1.5),
        ({"error": {"retryAfterMs": 1500}}, 1.5),
        ({"error": {"metadata": {"headers": {"Retry-After": "9"}}}}, 9.0),
        ({"error": {"metadata": {"headers": {"X-RateLimit-Reset": str(int((NOW.timestamp() + 60) * 1000))}}}}, 60.0),
        ({"retry_after": 10**9}, 86_400.0),
    ],
)
def test_a_pause_is_read_where_it_stands_in_the_body(body: Any, seconds: float) -> None:
    assert body_pause_seconds(body, NOW) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "body",
    [
        None,
        7,
        [],
        {},
        {"error": {"message": "Slow down."}},
        {"error": {"message": "retry later, or in 3 other ways"}},
        {"retry_after": None},
        {"retry_after": True},
        {"retry_after": -3},
        {"retryDelay": "soon"},
        {"retryDelay": {"seconds": "nan"}},
    ],
)
def test_a_body_without_a_pause_asks_for_nothing(body: Any) -> None:
    assert body_pause_seconds(body, NOW) is None


def test_a_body_without_end_is_not_searched_to_its_bottom() -> None:
    body: Any = {"retry_after": 5}
    for _ in range(20):
        body = {"inner": body}
    assert body_pause_seconds(body, NOW) is None
