from __future__ import annotations

import gc
import gzip
import json
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.lowlevel
import zstandard

from convo.conversation import decode as decoding
from convo.conversation.decode import Received
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import BadRequest, Overloaded
from convo.runtime import threads
from convo.settings import IntakeSettings, WebSettings
from convo.web import accept
from convo.web.accept import AcceptRoute
from convo.web.admission import Admission
from convo.web.description.messages import Answer, Head
from convo.web.inflate import GRANT_BYTES
from tests.support.doors import ready
from tests.support.making import ended

ENCODINGS: dict[Callable[[bytes], bytes], str] = {
    gzip.compress: "gzip",
    zstandard.compress: "zstd",
    zlib.compress: "deflate",
}
ITEMS_MAX = IntakeSettings().items_max
SILENCE = json.dumps(
    ended(conversation_log=[{"role": "user", "content": "Hello", "audio": {"data": "A" * 4_000_000}}])
).encode()


class CountingCommitter:
    """Stores nothing; keeps how many bytes were held when it was asked to."""

    wait_seconds = 0.0

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.held: list[int] = []

    async def accept(self, *_: object) -> Any:
        await trio.lowlevel.checkpoint()
        self.held.append(self._admission.bytes)
        raise Overloaded("stores nothing", retry_after_seconds=1.0)


async def received(body: bytes, encoding: str, admission: Admission) -> tuple[Answer, list[int]]:
    committer: Any = CountingCommitter(admission)
    route = AcceptRoute(
        settings=WebSettings(), items_max=ITEMS_MAX, committer=committer, readiness=ready(), admission=admission
    )

    async def read(grow: Any) -> bytes:
        await trio.lowlevel.checkpoint()
        grow(len(body))
        return body

    head = Head(
        method="POST",
        path="/v1/conversations/end",
        peer="192.0.2.1",
        started=trio.current_time(),
        content_type="application/json",
        content_length=len(body),
        content_encoding=encoding,
    )
    return await route.receive(head, read, WHOLE_DEFAULT), committer.held


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, zlib.compress])
@pytest.mark.parametrize("length", [10, 10_000, 90_000, 200_000, 1_900_000])
async def test_a_packed_body_is_held_with_all_that_it_inflates_to(length: int, pack: Callable[[bytes], bytes]) -> None:
    admission = Admission(IntakeSettings(), 8.0)
    body = json.dumps(ended(conversation_log=[{"role": "user", "content": "a" * length}])).encode()
    packed = pack(body)
    answer, held = await received(packed, ENCODINGS[pack], admission)
    assert answer.status == 503
    assert held == [len(packed) + len(body)]
    assert admission.bytes == 0


async def test_what_a_body_becomes_is_held_before_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    admission = Admission(IntakeSettings(), 8.0)
    held: list[tuple[int, int]] = []
    real = decoding.decode

    def noted(body: bytes, **limits: int) -> Received:
        held.append((len(body), admission.bytes))
        return real(body, **limits)

    monkeypatch.setattr(accept, "decode", noted)
    packed = gzip.compress(SILENCE)
    _, at_commit = await received(packed, "gzip", admission)
    [(inflated, at_decode)] = held
    assert inflated + len(packed) <= at_decode < inflated + len(packed) + GRANT_BYTES + 65_536
    # The recording is not stored, so it is let go before the commit.
    assert len(packed) < at_commit[0] < len(packed) + 1_000
    assert admission.bytes == 0


async def test_many_bodies_that_wait_for_a_thread_are_held_as_small_as_they_were_sent() -> None:
    admission = Admission(IntakeSettings(), 8.0)
    packed = gzip.compress(SILENCE)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, admission.bytes)
            # A loop that never rests would keep the interpreter from the threads.
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        async with trio.open_nursery() as requests:
            for _ in range(20):
                requests.start_soon(received, packed, "gzip", admission)
        nursery.cancel_scope.cancel()
    # One that is inflated, and one that is tried on the loop.
    assert len(SILENCE) <= most < len(SILENCE) + 20 * len(packed) + 2 * GRANT_BYTES
    assert admission.bytes == 0


async def test_a_thread_that_was_abandoned_is_granted_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    admission = Admission(IntakeSettings(), 8.0)
    asked, cancelled, refused = threading.Event(), threading.Event(), threading.Event()

    def slow(_body: bytes, _encoding: str, _settings: WebSettings, grow: Callable[[int], None]) -> bytes:
        grow(1000)
        asked.set()
        assert cancelled.wait(10)
        try:
            grow(1000)
        except Overloaded:
            refused.set()
        return b""

    monkeypatch.setattr(accept, "inflate", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(received, gzip.compress(SILENCE), "gzip", admission)
        await trio.to_thread.run_sync(asked.wait, 10)
        assert admission.bytes > 1000
        nursery.cancel_scope.cancel()
    cancelled.set()
    assert await trio.to_thread.run_sync(refused.wait, 10)
    assert admission.bytes == 0
    async with threads.LARGE:
        pass  # The thread has ended, and those of other tests have room.


@pytest.mark.parametrize("encoding", ["", "gzip"])
async def test_a_refused_body_is_gone_at_once(encoding: str) -> None:
    body = json.dumps(ended(conversation_log=[{"role": "user", "content": "x" * 1_000}] * 1_900)).encode() + b"!"
    admission = Admission(IntakeSettings(), 8.0)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(5):
            with pytest.raises(BadRequest):
                await received(gzip.compress(body) if encoding else bytes(bytearray(body)), encoding, admission)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    # The last error, which pytest has, knows its own.
    assert kept < 2 * len(body)


async def test_a_body_that_inflates_beyond_the_room_that_is_left_is_refused() -> None:
    admission = Admission(IntakeSettings(), 8.0)
    with admission.place() as other:
        other.grow(IntakeSettings().bytes_in_flight_max - len(SILENCE))
        with pytest.raises(Overloaded, match="bytes_in_flight_max"):
            await received(gzip.compress(SILENCE), "gzip", admission)


async def test_a_short_body_that_inflates_to_a_long_one_is_decoded_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []
    real = decoding.decode

    def noted(body: bytes, **limits: int) -> Received:
        places.append(threading.get_ident())
        return real(body, **limits)

    monkeypatch.setattr(accept, "decode", noted)
    packed = gzip.compress(SILENCE)
    assert len(packed) < WebSettings().offload_bytes // 10
    await received(packed, "gzip", Admission(IntakeSettings(), 8.0))
    await received(json.dumps(ended()).encode(), "", Admission(IntakeSettings(), 8.0))
    assert places[0] != threading.get_ident() == places[1]
