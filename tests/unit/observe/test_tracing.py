from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog.testing
from structlog.contextvars import get_contextvars

from convo.errors import RemoteUnavailable
from convo.observe import log_records, metrics, tracing
from convo.observe.tracing import Recorder, Span

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder(sample=1.0, spans_max=100)
    with tracing.recording(recorder):
        yield recorder


def ended(recorder: Recorder) -> dict[str, Span]:
    return {span.name: span for span in recorder.take(100)}


def test_nothing_is_recorded_without_a_recorder() -> None:
    assert not tracing.records()
    assert tracing.begin_span("request", "server", PARENT) is None
    assert tracing.continued(PARENT, "job", "consumer") is None
    with tracing.child_span("part") as span:
        assert span is None
    assert tracing.trace_headers() == {}


@pytest.mark.parametrize(
    ("sample", "traceparent", "recorded"),
    [
        (1.0, PARENT, True),
        (0.0, PARENT, True),  # its sender has decided
        (1.0, PARENT.removesuffix("01") + "00", False),
        (1.0, "", True),
        (0.0, "", False),
        (0.0, "nonsense", False),
        (1.0, "nonsense", True),
    ],
)
def test_the_senders_decision_counts_before_chance(sample: float, traceparent: str, recorded: bool) -> None:  # noqa: FBT001
    span = Recorder(sample=sample, spans_max=1).begin("request", "server", traceparent, "")
    assert (span is not None) is recorded


def test_chance_records_the_share_that_is_set() -> None:
    recorder = Recorder(sample=0.25, spans_max=1)
    count = sum(recorder.begin("request", "server", "", "") is not None for _ in range(4000))
    assert 800 < count < 1200  # six standard deviations


def test_a_request_goes_on_with_its_senders_trace(recorder: Recorder) -> None:
    span = tracing.begin_span("request", "server", PARENT, "vendor=x")
    assert span is not None
    assert (span.trace_id, span.parent_id, span.state) == (TRACE, SPAN, "vendor=x")
    with span, tracing.child_span("part") as part, tracing.child_span("call", "client"):
        assert part is not None
        headers = tracing.trace_headers()
    found = ended(recorder)
    assert {one.trace_id for one in found.values()} == {TRACE}
    assert found["call"].parent_id == found["part"].span_id
    assert found["part"].parent_id == found["request"].span_id
    assert headers == {"traceparent": f"00-{TRACE}-{found['call'].span_id}-01", "tracestate": "vendor=x"}
    assert found["request"].began_ns <= found["part"].began_ns <= found["part"].ended_ns <= found["request"].ended_ns


def test_a_job_goes_on_with_a_stored_trace(recorder: Recorder) -> None:
    request = tracing.begin_span("request", "server")
    assert request is not None
    job = tracing.continued(request.context.stored, "job", "consumer")
    assert job is not None
    assert (job.trace_id, job.parent_id) == (request.trace_id, request.span_id)
    assert tracing.continued(None, "job", "consumer") is None
    assert tracing.continued("nonsense", "job", "consumer") is None


def test_an_error_is_noted_by_its_code(recorder: Recorder) -> None:
    with pytest.raises(RemoteUnavailable), tracing.within_span(tracing.begin_span("request", "server")):
        raise RemoteUnavailable("llm", "answered 503")
    (span,) = recorder.take(1)
    assert (span.error, span.attributes["error.type"]) == ("llm: answered 503", "remote_unavailable")


def test_log_lines_have_the_ids_inside_the_span_and_not_behind_it(recorder: Recorder) -> None:
    span = tracing.begin_span("request", "server")
    assert span is not None
    with span:
        with tracing.child_span("part") as part:
            assert part is not None
            assert get_contextvars() == {"trace_id": span.trace_id, "span_id": part.span_id}
        assert get_contextvars() == {"trace_id": span.trace_id, "span_id": span.span_id}
    assert get_contextvars() == {}


def test_a_step_may_go_on_in_another_task_and_ends_once(recorder: Recorder) -> None:
    span = tracing.begin_span("job", "consumer")
    assert span is not None
    for _ in range(2):
        with tracing.resumed_span(span):
            assert tracing.current_span() is span
        span.end()
    with tracing.resumed_span(None):
        assert tracing.current_span() is None
    assert len(recorder) == 1


def test_what_is_over_the_bound_is_dropped_and_counted() -> None:
    rings: list[int] = []
    kept = Recorder(sample=1.0, spans_max=3, many=2, arrived=lambda: rings.append(len(kept)))
    before = metrics.spans_dropped_total.labels("queue_full").value
    for number in range(5):
        span = kept.begin(str(number), "server", "", "")
        assert span is not None
        span.end()
    assert metrics.spans_dropped_total.labels("queue_full").value - before == 2
    assert rings == [2]
    assert [span.name for span in kept.take(2)] == ["0", "1"]
    assert [span.name for span in kept.take(2)] == ["2"]


def test_records_of_the_log_are_written_with_the_ids(recorder: Recorder) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        log_records.log_to(structlog.get_logger())
        with tracing.within_span(tracing.begin_span("request", "server")) as span:
            log_records.replayed(conversation_id="talk-1")
    assert span is not None
    assert [(line["trace_id"], line["span_id"]) for line in lines] == [(span.trace_id, span.span_id)]
