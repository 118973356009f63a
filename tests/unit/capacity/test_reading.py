from __future__ import annotations

import pytest

from convo.capacity.reading import read_usage
from convo.capacity.usage import Usage
from convo.observe import metrics


def test_what_the_process_counts_is_what_is_read() -> None:
    before = read_usage(Usage(at=10.0, accept_busy_seconds=1.0, machine_seconds=5.0))
    metrics.intake_batch_rows.observe(3)
    metrics.intake_commit_seconds.observe(0.004)
    metrics.jobs_ended_total.labels("settle").inc(2)
    metrics.jobs_ended_total.labels("fail").inc(9)
    metrics.wait_seconds.labels("analysis.job").observe(1.5)
    metrics.wait_seconds.labels("db.settle").observe(0.02)
    metrics.wait_seconds.labels("db.settle").observe(0.03)
    metrics.wait_seconds.labels("db.lease").observe(0.01)
    metrics.wait_seconds.labels("llm.parts").observe(0.5)
    metrics.wait_seconds.labels("llm.bulkhead").observe(100.0)
    metrics.wait_seconds.labels("part.call").observe(0.3)
    metrics.remote_calls_total.labels("llm", "ok").inc()
    metrics.remote_calls_total.labels("llm.second", "remote_busy").inc()
    metrics.remote_calls_total.labels("part.topics", "ok").inc(2)
    metrics.remote_calls_total.labels("part.mood", "ok").inc(1)
    metrics.remote_calls_total.labels("s3", "ok").inc(50)
    metrics.llm_tokens_total.labels("llm", "questions", "in").inc(700)
    metrics.llm_tokens_total.labels("llm", "emotion", "out").inc(40)
    metrics.llm_price_total.labels("llm", "questions").inc(0.25)
    step = read_usage(Usage(at=12.0, accept_busy_seconds=1.5, machine_seconds=6.5)).since(before)
    assert (step.at, step.accept_busy_seconds, step.machine_seconds) == (2.0, 0.5, 1.5)
    assert (step.accepted, step.commits, step.analysed) == (3.0, 1.0, 2.0)
    assert (step.settles, step.settle_seconds, step.leases) == pytest.approx((2.0, 0.05, 1.0))
    assert (step.commit_seconds, step.job_seconds) == pytest.approx((0.004, 1.5))
    assert (step.tokens_in, step.tokens_out, step.price) == pytest.approx((700.0, 40.0, 0.25))
    # A fallback is the model, too; the wait for a place is no call; the parts share one wait by their calls.
    assert (step.calls["llm"], step.call_seconds["llm"]) == pytest.approx((2.0, 0.5))
    assert "s3" not in step.calls
    assert step.calls["part.topics"] == 2.0
    assert step.process_seconds >= 0.0


def test_the_services_of_parts_share_one_wait_by_their_calls() -> None:
    found = read_usage(Usage())
    metrics.wait_seconds.labels("part.call").observe(0.0)
    metrics.remote_calls_total.labels("part.topics", "ok").inc(0)
    found = read_usage(Usage())
    parts = [name for name in found.calls if name.startswith("part.")]
    seconds = metrics.wait_seconds.labels("part.call").total
    assert sum(found.call_seconds[name] for name in parts) == pytest.approx(seconds)
