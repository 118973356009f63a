from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
import trio.testing

from convo.errors import DeadlineExceeded, RemoteUnavailable
from convo.observe import metrics, tracing
from convo.observe.traced_waits import PastWaits, gathering_waits, record_wait
from convo.observe.tracing import Recorder, Span
from convo.runtime.deadline import deadline, wait_observers


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder(sample=1.0, spans_max=100)
    with tracing.recording(recorder), wait_observers.adding(record_wait):
        yield recorder


def begun(name: str = "request") -> Span:
    """Begin a span long ago: what passes on the virtual clock does not pass on the one of spans."""
    span = tracing.begin_span(name, "server")
    assert span is not None
    span.began_seconds_ago(10.0)
    return span


def ended(recorder: Recorder) -> dict[str, Span]:
    return {span.name: span for span in recorder.take(100)}


async def test_every_named_wait_of_a_task_with_a_span_is_recorded(
    recorder: Recorder, autojump_clock: trio.testing.MockClock
) -> None:
    with deadline("db.read", 1.0):
        await trio.sleep(0.25)
    assert len(recorder) == 0
    with begun():
        with deadline("db.list", 1.0):
            await trio.sleep(0.25)
        with pytest.raises(DeadlineExceeded), deadline("db.log", 0.5):
            await trio.sleep_forever()
    found = ended(recorder)
    assert found["db.list"].parent_id == found["request"].span_id
    assert found["db.list"].ended_ns - found["db.list"].began_ns == pytest.approx(250_000_000, abs=1000)
    assert (found["db.list"].error, found["db.log"].error) == ("", "the deadline db.log ran out")


async def test_a_wait_that_a_span_stands_for_is_recorded_once(
    recorder: Recorder, autojump_clock: trio.testing.MockClock
) -> None:
    with (
        pytest.raises(DeadlineExceeded),
        tracing.within_span(tracing.begin_span("request", "server")),
        tracing.child_span("call", "client", wait="llm.parts"),
        deadline("llm.parts", 0.5),
    ):
        await trio.sleep_forever()
    names = [span.name for span in recorder.take(10)]
    assert names == ["call", "request"]


async def test_a_wait_has_an_exemplar_in_its_bucket(recorder: Recorder, autojump_clock: trio.testing.MockClock) -> None:
    cell = metrics.wait_seconds.labels("db.read")
    cell.exemplars.clear()
    span = tracing.begin_span("request", "server")
    assert span is not None
    with span, deadline("db.read", 1.0):
        await trio.sleep(0.3)
    (noted,) = cell.exemplars.values()
    assert (noted[0], noted[2:]) == (0.3, (span.trace_id, span.span_id))


# --- of a task that works for several traces


async def test_waits_that_are_gathered_stand_in_each_trace(
    recorder: Recorder, autojump_clock: trio.testing.MockClock
) -> None:
    one, other = begun(), begun()
    with gathering_waits() as waits:
        for name in ("db.settle", "db.costs"):
            with deadline(name, 1.0):
                await trio.sleep(0.25)
    assert waits is not None
    assert len(recorder) == 0
    waits.record_in([one, None, other.context.stored, "nonsense"], rows=3)
    spans = recorder.take(100)
    assert [(span.name, span.parent_id) for span in spans] == [
        *(("db.settle", one.span_id), ("db.costs", one.span_id)),
        *(("db.settle", other.span_id), ("db.costs", other.span_id)),
    ]
    assert {span.attributes["convo.batch_rows"] for span in spans} == {3}
    for span in spans:
        assert span.ended_ns - span.began_ns == pytest.approx(250_000_000, abs=1000)


async def test_what_a_gathered_wait_failed_with_is_noted_of_the_last_one(
    recorder: Recorder, autojump_clock: trio.testing.MockClock
) -> None:
    waits = PastWaits()

    async def commit() -> None:
        with waits:
            with deadline("db.part", 1.0):
                await trio.sleep(0.1)
            with deadline("db.settle", 1.0):
                raise RemoteUnavailable("llm", "answered 503")

    with pytest.raises(RemoteUnavailable):
        await commit()
    waits.record_in([begun()])
    found = ended(recorder)
    assert (found["db.part"].error, found["db.settle"].error) == ("", "llm: answered 503")
    assert "error.type" not in found["db.part"].attributes
    assert found["db.settle"].attributes["error.type"] == "remote_unavailable"


async def test_waits_within_a_span_are_that_ones_also_where_others_are_gathered(
    recorder: Recorder, autojump_clock: trio.testing.MockClock
) -> None:
    with gathering_waits() as waits, begun(), deadline("db.read", 1.0):
        await trio.sleep(0.1)
    assert waits is not None
    assert len(waits) == 0
    assert set(ended(recorder)) == {"db.read", "request"}


async def test_nothing_is_gathered_where_nothing_is_recorded() -> None:
    with gathering_waits() as waits, deadline("db.read", 1.0):
        await trio.lowlevel.checkpoint()
    assert waits is None
