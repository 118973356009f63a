from __future__ import annotations

import threading
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from convo.errors import Overloaded
from convo.http.turns import Turns
from convo.observe import metrics
from convo.runtime.precedence import ACCEPTS, PATIENCE_SECONDS, Precedence
from convo.settings import WebSettings
from convo.web import reads as reads_module
from convo.web.description.messages import Answer
from convo.web.reads import AfterSome, Reads

SETTINGS = WebSettings(reads_max=2, read_bytes_max=1000, offload_bytes=500)


def reads(random: float = 0.0) -> Reads:
    return Reads(SETTINGS, random=lambda: random)


def answer(length: int) -> Answer:
    return Answer(status=200, body=bytes(length))


@pytest.mark.parametrize(("random", "seconds"), [(0.0, 1.0), (0.5, 2.0), (1.0, 3.0)])
async def test_one_read_too_many_is_refused_and_told_when_to_return(random: float, seconds: float) -> None:
    counted = reads(random)
    with counted.begin(), counted.begin():
        with pytest.raises(Overloaded, match=r"2 reads are under way, web\.reads_max") as refused:
            counted.begin()
        assert refused.value.retry_after_seconds == seconds
    with counted.begin():
        assert counted.under_way == 1
    assert counted.under_way == 0


async def test_bytes_over_the_limit_are_refused_and_those_held_end_with_the_read() -> None:
    counted = reads()
    with counted.begin() as one:
        one.hold(700)
        with counted.begin() as other, pytest.raises(Overloaded, match=r"web\.read_bytes_max"):
            other.hold(301)
        with counted.begin() as other:
            other.hold(300)
            assert counted.bytes == 1000
        assert counted.bytes == 700
    assert counted.bytes == 0


async def test_a_read_that_is_alone_may_hold_any_size() -> None:
    counted = reads()
    with counted.begin() as one:
        one.hold(5_000)
        one.hold(5_000)
        with counted.begin() as other, pytest.raises(Overloaded):
            other.hold(1)
    assert counted.bytes == 0


@pytest.mark.parametrize(("bytes_", "in_thread"), [(499, False), (500, True)])
async def test_a_large_answer_is_made_in_a_thread(bytes_: int, *, in_thread: bool) -> None:
    def make(_: AfterSome) -> Answer:
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            return answer(1)
        return answer(2)

    with reads().begin() as read:
        assert len((await read.answer(make, bytes_)).body) == (1 if in_thread else 2)


async def test_an_answer_counts_until_it_is_sent() -> None:
    counted = reads()
    seen: list[int] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        async def serve() -> None:
            with counted.begin() as read:
                await read.answer(lambda _: answer(400), 400)

        # As the framework does: a task of its own serves the request.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
        await send(None)

    async def send(_part: Any) -> None:
        seen.append(counted.bytes)
        await trio.lowlevel.checkpoint()

    await counted.until_sent(app)(None, None, send)
    assert (seen, counted.bytes, counted.under_way) == ([400], 0, 0)


async def test_an_answer_that_nobody_sends_counts_no_longer_than_its_read() -> None:
    counted = reads()
    with counted.begin() as read:
        await read.answer(lambda _: answer(400), 400)
    assert counted.bytes == 0


async def test_the_metrics_show_both() -> None:
    counted = reads()
    with counted.begin() as read:
        read.hold(321)
        shown = metrics.exposition()
    assert b"convo_reads_in_flight 1.0\n" in shown
    assert b"convo_reads_in_flight_bytes 321.0\n" in shown


async def made_beside(bytes_: int) -> tuple[int, float]:
    """Make an answer out of so much, in the loop; return beside how many accepts, and after how long."""
    large, began, seen = Reads(WebSettings()), trio.current_time(), list[tuple[int, float]]()

    def make(_: AfterSome) -> Answer:
        seen.append((ACCEPTS.under_way, trio.current_time() - began))
        return answer(1)

    with large.begin() as read:
        await read.answer(make, bytes_)
    return seen[0]


@pytest.mark.usefixtures("accept_under_way")
async def test_an_accept_under_way_is_let_past_before_an_answer_is_made_or_for_a_moment(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beside, seconds = await made_beside(8 << 10)
    assert beside == 1
    assert PATIENCE_SECONDS * 0.99 <= seconds < 20 * PATIENCE_SECONDS
    beside, seconds = await made_beside(4 << 10)
    assert (beside, seconds < PATIENCE_SECONDS * 0.99) == (1, True), "the smallest is made in no time"
    monkeypatch.setattr(reads_module, "PATIENCE_SECONDS", 60)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_after, 0.005)
        beside, seconds = await made_beside(8 << 10)
    assert (beside, seconds < 30) == (0, True)


async def end_after(seconds: float) -> None:
    await trio.sleep(seconds)
    ACCEPTS.end()


async def test_in_a_thread_an_answer_gives_way_and_in_the_loop_it_never_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    gave_way = list[bool]()
    monkeypatch.setattr(reads_module, "_give_way", lambda: gave_way.append(True))

    def make(after_some: AfterSome) -> Answer:
        after_some()
        return answer(1)

    with reads().begin() as read:
        await read.answer(make, 499)
        assert gave_way == []
        await read.answer(make, 500)
    assert gave_way == [True]


async def test_a_turn_ends_where_a_thread_makes_the_answer() -> None:
    turns, may_end, seen = Turns(Precedence()), threading.Event(), list[str]()

    def make(_: AfterSome) -> Answer:
        may_end.wait(10)
        seen.append("made")
        return answer(1)

    async def request() -> None:
        async with turns.turn("10.0.0.1"):
            with reads().begin() as read:
                await read.answer(make, 500)

    async def next_request() -> None:
        async with turns.turn("10.0.0.2"):
            seen.append("next")
            may_end.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        await wait_all_tasks_blocked()
        nursery.start_soon(next_request)
    assert seen == ["next", "made"]
