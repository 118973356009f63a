"""Clients on wires in memory, and what is recorded of the waits for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast
from unittest.mock import Mock

import pytest
import trio
from trio.testing import MockClock

from convo.http.connections import Connections
from convo.http.context import DirectTarget, ServerContext
from convo.http.forwarded import Proxies
from convo.http.recorded import RecordedConnection
from convo.observe import metrics, tracing
from convo.observe.tracing import Recorder, Span
from convo.settings import OtelSettings, Settings
from convo.web.description.messages import Answer, AnswerStream, Bound, Head, NextPiece, Read
from convo.web.door import answered
from tests.support.doors import END, Receive, Send, answer, get, statuses

SETTINGS = Settings(otel=OtelSettings(endpoint="http://127.0.0.1:4318"))
SAMPLED = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECOND = 1_000_000_000


class Slow:
    """A client that sends each piece after its seconds and then stays, and takes ``write_seconds`` for each answer."""

    encrypted = False

    def __init__(self, pieces: Sequence[tuple[float, bytes]], write_seconds: float = 0.0) -> None:
        self._pieces = list(pieces)
        self._write_seconds = write_seconds
        self.got = b""

    async def open(self) -> None:
        pass

    async def receive(self) -> bytes:
        if not self._pieces:
            return await trio.sleep_forever()
        seconds, piece = self._pieces[0]
        await trio.sleep(seconds)
        self._pieces.pop(0)
        return piece

    receive_remains = receive

    def send_now(self, data: bytes) -> int:
        if self._write_seconds:
            return 0
        self.got += data
        return len(data)

    async def send(self, data: memoryview) -> int:
        await trio.sleep(self._write_seconds)
        self.got += bytes(data)
        return len(data)

    def pending(self) -> bool:
        return False

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


def pieces() -> AnswerStream:
    """An answer of one piece; the end of it comes five seconds behind that."""
    left = [b"", b"piece"]

    async def next_piece() -> bytes:
        await trio.sleep(5.0)
        return left.pop()

    return AnswerStream(next_piece=next_piece, end=lambda: None, piece_seconds=10.0)


async def end(head: Head, read: Read, _next_piece: NextPiece, bound: Bound) -> Answer:
    async def serve() -> Answer:
        await read(lambda _: None)
        await trio.sleep(0.5)
        return Answer(status=202, body=b"{}")

    return await answered(END, head, SETTINGS, serve, bound)


async def stream(head: Head, _read: Read, _next_piece: NextPiece, bound: Bound) -> Answer:
    async def serve() -> Answer:
        return Answer(status=200, body=b"", stream=pieces())

    return await answered("/v1/events", head, SETTINGS, serve, bound)


async def app(_scope: Any, receive: Receive, send: Send) -> None:
    await receive()
    await answer(send, b"{}", status=404)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    # The clock of spans, which is not Trio's, goes with the virtual one.
    for module in ("convo.observe.tracing", "convo.observe.kept_request"):
        monkeypatch.setattr(f"{module}.perf_counter_ns", lambda: round(trio.current_time() * SECOND))
    recorder = Recorder(sample=0.0, spans_max=100)
    with tracing.recording(recorder):
        yield recorder


def make(wire: Slow) -> RecordedConnection:
    proxies = Proxies(SETTINGS.server)
    targets = (
        DirectTarget(method="POST", path=END, takes_turns=False, answer=end),
        DirectTarget(method="GET", path="/v1/events", takes_turns=True, answer=stream),
    )
    context = ServerContext(
        settings=SETTINGS,
        direct={one.path.encode(): one for one in targets},
        app=cast("Any", app),
        connections=Connections(SETTINGS.connection, proxies, 100),
        proxies=proxies,
    )
    return RecordedConnection(context, cast("Any", wire), Mock(socket=Mock(getsockname=Mock(side_effect=OSError))))


async def serve(wire: Slow, seconds: float) -> None:
    connection = make(wire)
    with trio.move_on_after(seconds):
        await connection.run()
        await connection.linger()
    connection.end()


def ended(recorder: Recorder) -> dict[str, Span]:
    found = recorder.take(100)
    assert len({span.name for span in found}) == len(found)
    return {span.name: span for span in found}


def lasted(span: Span) -> float:
    return (span.ended_ns - span.began_ns) / SECOND


POST = get(END, SAMPLED, "Content-Length: 4", method="POST")


async def test_the_waits_for_head_body_and_answer_are_spans_of_the_request_that_ends_behind_them(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    wire = Slow([(0.0, POST[:20]), (1.0, POST[20:]), (1.0, b"{ "), (0.75, b"} ")], write_seconds=0.25)
    exemplars = metrics.wait_seconds.labels("connection.body").exemplars
    exemplars.clear()
    await serve(wire, 20.0)
    assert statuses(wire.got) == [202]
    spans = ended(recorder)
    request = spans.pop(f"POST {END}")
    assert lasted(request) == pytest.approx(1.0 + 1.75 + 0.5 + 0.25, abs=0.001)
    waits = {"connection.head": (0.0, 1.0), "connection.body": (1.0, 1.75), "connection.write": (3.25, 0.25)}
    assert set(spans) == set(waits)
    for name, (began, seconds) in waits.items():
        span = spans[name]
        assert (span.parent_id, span.error) == (request.span_id, "")
        assert (span.began_ns - request.began_ns) / SECOND == pytest.approx(began, abs=0.001), name
        assert lasted(span) == pytest.approx(seconds, abs=0.001), name
    assert [noted[2] for noted in exemplars.values()] == [request.trace_id]


async def test_of_a_request_that_is_not_recorded_nothing_is(recorder: Recorder, autojump_clock: MockClock) -> None:
    other = get(END, "Content-Length: 2", method="POST")
    pieces = [(0.0, other[:20]), (1.0, other[20:]), (1.0, b"{}")]
    wire = Slow([*pieces, (1.0, POST), (1.0, b"{}  ")], write_seconds=0.25)
    await serve(wire, 20.0)
    assert statuses(wire.got) == [202, 202]
    # The waits of the one before are none of the other's.
    spans = ended(recorder)
    assert set(spans) == {f"POST {END}", "connection.body", "connection.write"}
    assert lasted(spans["connection.body"]) == pytest.approx(1.0, abs=0.001)


async def test_a_body_that_does_not_come_in_time_is_a_wait_that_names_its_deadline(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    wire = Slow([(0.0, POST), (1.0, b"{ ")])
    await serve(wire, 60.0)
    assert statuses(wire.got) == [408]
    spans = ended(recorder)
    body, request = spans["connection.body"], spans[f"POST {END}"]
    patience = SETTINGS.connection.body_patience_seconds
    assert lasted(body) == pytest.approx(patience, abs=0.1)
    assert body.error == request.error == "the deadline connection.body ran out"
    assert request.attributes["error.type"] == "deadline_exceeded"


async def test_an_answer_that_is_not_taken_in_time_is_a_wait_that_names_its_deadline(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    await serve(Slow([(0.0, POST + b"{}  ")], write_seconds=1000.0), 60.0)
    spans = ended(recorder)
    write, request = spans["connection.write"], spans[f"POST {END}"]
    assert lasted(write) == pytest.approx(SETTINGS.connection.write_seconds, abs=0.001)
    assert write.error == request.error == "the deadline connection.write ran out"
    assert request.attributes["http.response.status_code"] == 202


async def test_the_span_of_an_answer_in_pieces_ends_when_that_begins_and_the_pieces_are_a_wait(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    wire = Slow([(0.0, get("/v1/events", SAMPLED))])
    await serve(wire, 60.0)
    assert b"piece" in wire.got
    spans = ended(recorder)
    request, pieces, turn = spans["GET /v1/events"], spans["connection.stream"], spans["connection.turn"]
    assert lasted(request) < 1.0
    assert (pieces.parent_id, pieces.error) == (request.span_id, "")
    assert lasted(pieces) == pytest.approx(10.0, abs=0.001)
    assert turn.parent_id == request.span_id


async def test_a_request_whose_client_goes_away_ends_with_its_connection(
    recorder: Recorder, autojump_clock: MockClock
) -> None:
    await serve(Slow([(0.0, POST), (1.0, b"{ ")]), 1.5)
    spans = ended(recorder)
    assert spans[f"POST {END}"].attributes["error.type"] == "Cancelled"
    assert set(spans) == {f"POST {END}"}
