from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from convo.analysis.analyze import in_process
from convo.conversation.model import Conversation, Finding
from convo.errors import Invalid
from convo.runtime import threads
from convo.runtime.precedence import ACCEPTS, PATIENCE_SECONDS
from convo.runtime.threads import ThreadBehindAccepts
from convo.settings import WebSettings
from convo.web import accept
from convo.web.accept import AcceptRoute
from tests.support.fakes import conversation_of
from tests.support.making import THREE

NOTHING: Any = None


class Side:
    """Counts how many threads are inside at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0

    def read(self, *_: object) -> tuple[None, int]:
        self.work()
        return None, 0

    def work(self) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        time.sleep(0.02)
        with self._lock:
            self._inside -= 1


@pytest.mark.parametrize(
    ("length", "most"), [(WebSettings().offload_bytes, 2), (threads.LARGE_BYTES, 2), (threads.LARGE_BYTES + 1, 1)]
)
async def test_at_most_two_bodies_are_decoded_beside_the_loop_and_one_large_one(
    length: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = Side()
    monkeypatch.setattr(accept.AcceptRoute, "_read", side.read)
    intake = AcceptRoute(settings=WebSettings(), items_max=1, committer=NOTHING, readiness=NOTHING, admission=NOTHING)
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(intake.prepare, bytes(length))
    assert side.most == most


async def test_one_long_analysis_at_a_time_works_beside_the_loop() -> None:
    side = Side()

    def find(_: Conversation) -> Finding:
        side.work()
        return THREE["emotion"]

    turn = trio.Lock()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            analyst = in_process("local/2", find, turn, 1)
            nursery.start_soon(analyst.find, conversation_of("a long text"))
    assert side.most == 1


def test_threads_give_way_to_the_loop_sooner_than_python_would() -> None:
    before = sys.getswitchinterval()
    try:
        threads.shorten_switch_interval()
        assert sys.getswitchinterval() == pytest.approx(0.0005)
    finally:
        sys.setswitchinterval(before)


async def test_an_error_of_ours_leaves_no_frame_of_its_thread_behind() -> None:
    class Body:
        """What can be noticed to be gone, as bytes cannot."""

    gone = threading.Event()
    known: list[object] = []

    def refuse(body: Any) -> None:
        try:
            int(body)
        except TypeError as error:
            raise Invalid("no number", path="$.x") from error

    async def refused() -> None:
        body = Body()
        weakref.finalize(body, gone.set)
        # Not pytest.raises, which keeps the error in this frame.
        try:
            await threads.run_in_thread(refuse, body, limiter=trio.CapacityLimiter(1))
        except Invalid as error:
            known.extend((error.detail, error.path, type(error.__cause__)))

    gc.disable()
    try:
        await refused()
        assert await trio.to_thread.run_sync(gone.wait, 5)
    finally:
        gc.enable()
    assert known == ["no number", "$.x", TypeError]


async def test_a_bug_in_a_thread_keeps_its_traceback() -> None:
    def crash() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        await threads.run_in_thread(crash, limiter=trio.CapacityLimiter(1))
    assert "crash" in [entry.name for entry in caught.traceback]


# --- behind accepts


async def test_one_call_behind_accepts_is_at_work_at_a_time() -> None:
    side, behind = Side(), ThreadBehindAccepts()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(behind.call_behind, side.work)
    assert side.most == 1


@pytest.mark.usefixtures("accept_under_way")
async def test_a_call_begins_when_no_accept_is_under_way(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "PATIENCE_SECONDS", 60)
    called = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ThreadBehindAccepts().call_behind, called.set)
        await wait_all_tasks_blocked()
        assert not called.is_set()
        ACCEPTS.end()
    assert called.is_set()


@pytest.mark.usefixtures("accept_under_way")
async def test_where_an_accept_is_always_under_way_a_call_begins_after_a_moment(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    await ThreadBehindAccepts().call_behind(int)
    assert trio.current_time() - began >= PATIENCE_SECONDS * 0.99


async def test_a_thread_behind_accepts_rests_as_its_share_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "pause_seconds", lambda worked: 60.0 if worked < 60 else 0.0)
    behind = ThreadBehindAccepts()
    assert await behind.call_behind(int) == 0
    with trio.move_on_after(0.05) as waited:
        await behind.call_behind(int)
    assert waited.cancelled_caught


async def test_a_call_that_was_abandoned_goes_on_and_the_next_one_waits_for_its_end() -> None:
    behind, may_end, order = ThreadBehindAccepts(), threading.Event(), list[str]()

    def first() -> None:
        may_end.wait(10)
        order.append("first")

    with trio.move_on_after(0.05):
        await behind.call_behind(first)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(behind.call_behind, order.append, "second")
        await trio.sleep(0.05)
        assert order == []
        may_end.set()
    assert order == ["first", "second"]


# --- giving way


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Thread:
    return Thread(monkeypatch)


class Thread:
    """This thread, of which the test says how long it works; it notes how long it sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worked = 0.0
        self.slept = list[float]()
        self.when_slept: Callable[[], object] = int
        monkeypatch.setattr(threads, "thread_time", lambda: self.worked)
        monkeypatch.setattr(threads, "sleep", self.sleep)
        monkeypatch.setattr(ACCEPTS, "others_share", 1.0)
        monkeypatch.setattr(threads._slice, "began", 0.0, raising=False)
        threads.set_share(1.0)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.when_slept()

    def work(self, seconds: float) -> None:
        self.worked += seconds
        threads.give_way(to_accepts=True)


@pytest.mark.usefixtures("accept_under_way")
def test_after_each_slice_a_thread_lets_the_accept_under_way_past(thread: Thread) -> None:
    thread.when_slept = lambda: ACCEPTS.end() if len(thread.slept) == 3 else None
    thread.work(0.0009)
    assert thread.slept == []
    thread.work(0.0002)
    assert thread.slept == [0.001] * 3
    thread.work(0.0011)
    assert thread.slept == [0.001] * 3, "none is under way"


@pytest.mark.usefixtures("accept_under_way")
def test_where_an_accept_is_always_under_way_a_thread_goes_on_after_a_moment(thread: Thread) -> None:
    thread.work(0.002)
    assert sum(thread.slept) == pytest.approx(PATIENCE_SECONDS)


@pytest.mark.usefixtures("accept_under_way")
def test_for_the_slice_of_a_thread_all_other_work_rests(thread: Thread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ACCEPTS, "others_share", 0.2)
    ACCEPTS.end()
    before = ACCEPTS.rest_left()
    thread.work(0.010)
    assert thread.slept == [pytest.approx(before + 0.040, abs=0.010)]
    assert ACCEPTS.rest_left() == pytest.approx(before + 0.040, abs=0.015)


async def test_what_a_call_worked_without_giving_way_is_noted_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = list[float]()
    monkeypatch.setattr(ACCEPTS, "note_worked", noted.append)

    def work() -> None:
        until = time.thread_time() + 0.005
        while time.thread_time() < until:
            pass

    await ThreadBehindAccepts().call_behind(work)
    assert sum(noted) == pytest.approx(0.005, abs=0.004)
