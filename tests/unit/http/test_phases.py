from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import trio
import trio.testing

from convo.http.phases import PhasedStream
from convo.http.wire import ClientGone
from convo.settings import ConnectionSettings

SETTINGS = ConnectionSettings(keep_alive_seconds=60.0, write_seconds=3.0, linger_seconds=2.0)


class Line:
    """A wire between a test and a stream: what is put on it arrives, and what is sent takes its time."""

    encrypted = False

    def __init__(self, *, seconds: float = 0.0) -> None:
        self._put, self._got = trio.open_memory_channel[bytes](10)
        self._seconds = seconds
        self.sent = b""
        self.finished = False

    def arrive(self, data: bytes) -> None:
        self._put.send_nowait(data)

    async def receive(self) -> bytes:
        return await self._got.receive()

    receive_remains = receive

    def send_now(self, _data: bytes) -> int:
        return 0

    async def send(self, data: memoryview) -> int:
        await trio.sleep(self._seconds)
        piece = bytes(data[: 1 << 16])
        self.sent += piece
        return len(piece)

    def pending(self) -> bool:
        return bool(self._put.statistics().current_buffer_used)

    def finish(self) -> None:
        self.finished = True


def stream_on(wire: Line) -> PhasedStream:
    return PhasedStream(cast("Any", wire), SETTINGS)


async def timed(work: Callable[[], Awaitable[Any]]) -> tuple[Any, float]:
    began = trio.current_time()
    return await work(), trio.current_time() - began


async def test_a_phase_ends_at_its_deadline(autojump_clock: trio.testing.MockClock) -> None:
    stream = stream_on(Line())

    async def work() -> None:
        stream.enter("handler", trio.current_time() + 4)
        await trio.sleep_forever()

    assert await timed(lambda: stream.run(work)) == (False, 4.0)


async def test_an_idle_connection_has_all_of_its_time_after_the_deadline_of_its_last_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream, passes = stream_on(Line()), 0

    async def work() -> None:
        nonlocal passes
        passes += 1
        if passes == 1:
            stream.enter("handler", trio.current_time() + 8)
        stream.idle()
        await stream.more()

    assert await timed(lambda: stream.run(work)) == (False, 60.0)
    assert passes == 2


async def test_what_arrives_with_the_deadline_is_read_in_the_next_pass(autojump_clock: trio.testing.MockClock) -> None:
    wire = Line()
    stream = stream_on(wire)
    read: list[bytes] = []

    async def work() -> None:
        if not stream.rest:
            stream.enter("handler", trio.current_time() + 8)
            stream.idle()
            # The deadline has come, and so have the bytes, before the task runs again.
            stream._scope.deadline = trio.current_time()
            wire.arrive(b"GET")
            await stream.more()
        read.append(stream.rest)

    assert await stream.run(work)
    assert read == [b"GET"]


async def test_only_an_idle_connection_without_bytes_ends_at_the_stop(autojump_clock: trio.testing.MockClock) -> None:
    for phase, arrived, ends in (("idle", b"", True), ("idle", b"GET", False), ("handler", b"", False)):
        wire = Line()
        stream = stream_on(wire)

        async def work(
            stream: PhasedStream = stream, wire: Line = wire, phase: str = phase, got: bytes = arrived
        ) -> None:
            stream.enter(phase, trio.current_time() + 5)
            if got:
                wire.arrive(got)
            stream.end_if_idle()
            await trio.sleep(1)

        assert await stream.run(work) is not ends


async def test_each_piece_of_an_answer_has_its_own_time_and_the_handler_loses_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wire = Line(seconds=2.0)
    stream = stream_on(wire)

    async def work() -> None:
        until = trio.current_time() + 1
        stream.enter("handler", until)
        await stream.send(bytes(3 << 16))
        assert (stream.phase, stream._scope.deadline) == ("handler", until + 6.0)

    assert await timed(lambda: stream.run(work)) == (True, 6.0)
    assert wire.sent == bytes(3 << 16)


async def test_a_client_that_does_not_read_ends_in_the_phase_of_writing(autojump_clock: trio.testing.MockClock) -> None:
    stream = stream_on(Line(seconds=10.0))

    async def work() -> None:
        await stream.send(b"x")

    assert await timed(lambda: stream.run(work)) == (False, 3.0)
    assert stream.phase == "write"


async def test_to_a_client_that_is_gone_nothing_is_written() -> None:
    wire = Line()
    stream = stream_on(wire)
    stream.gone = True
    await stream.send(b"x")
    assert wire.sent == b""


async def test_until_gone_outlasts_the_end_of_the_clients_side(autojump_clock: trio.testing.MockClock) -> None:
    wire = Line()
    stream = stream_on(wire)
    wire.arrive(b"")
    with trio.move_on_after(100) as moved_on:
        await stream.until_gone()
    assert moved_on.cancelled_caught
    assert not stream.gone


async def test_until_gone_ends_with_the_connection() -> None:
    class Broken(Line):
        async def receive(self) -> bytes:
            await trio.lowlevel.checkpoint()
            raise ClientGone

    stream = stream_on(Broken())
    await stream.until_gone()
    assert stream.gone


async def test_lingering_writes_the_last_answer_and_reads_on_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wire = Line()
    stream = stream_on(wire)
    wire.arrive(b"still sending")
    _, took = await timed(lambda: stream.linger(b"503"))
    assert (wire.sent, wire.finished, took) == (b"503", True, 2.0)
