from __future__ import annotations

import pytest

from convo.observe import metrics
from convo.web.process_counts import rates_between, read_counts, waits_between

END = "/v1/conversations/end"


def test_what_came_between_two_readings_is_a_rate() -> None:
    before = read_counts(10.0)
    for seconds in (0.004, 0.004, 0.2):
        metrics.accept_seconds.observe(seconds)
    metrics.batch_lines_total.labels("202").inc(2)
    metrics.batch_lines_total.labels("429").inc()
    metrics.queue_messages_total.labels("accepted").inc()
    for status in ("503", "429", "202", "422"):
        metrics.requests_total.labels(END, "POST", status).inc()
    metrics.requests_total.labels("/v1/conversations", "GET", "503").inc()
    metrics.loop_pass_seconds.observe(0.0007)
    rates = rates_between(before, read_counts(12.0))
    assert (rates.accepts_per_s, rates.refused_per_s) == (3.0, 1.5)
    assert rates.accept_p50_ms == pytest.approx(4.375)
    assert rates.accept_p99_ms == pytest.approx(245.5)
    assert 0.5 < (rates.loop_lag_ms or 0) <= 1


def test_what_nothing_was_measured_of_is_none() -> None:
    before = read_counts(10.0)
    rates = rates_between(before, read_counts(11.0))
    assert (rates.accepts_per_s, rates.accept_p50_ms, rates.accept_p99_ms, rates.loop_lag_ms) == (0.0, None, None, None)
    assert waits_between(before, read_counts(11.0)) == ()


def test_the_waits_that_ended_are_listed_by_name() -> None:
    before = read_counts(10.0)
    metrics.wait_seconds.labels("web.new_wait").observe(0.2)
    for seconds in (0.002, 0.002, 0.002):
        metrics.wait_seconds.labels("db.accept").observe(seconds)
    found = {wait.name: wait for wait in waits_between(before, read_counts(11.0))}
    assert list(found) == ["db.accept", "web.new_wait"]
    assert (found["db.accept"].count, found["web.new_wait"].count) == (3, 1)
    assert 1 < found["db.accept"].p50_ms < found["db.accept"].p99_ms <= 2.5
