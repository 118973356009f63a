from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest
import trio

from convo import threads
from convo.analysis.analyze import in_process
from convo.config import WebSettings
from convo.conversation.model import Conversation, Finding
from convo.web import conversations
from convo.web.conversations import Intake
from tests.fakes import conversation_of
from tests.making import THREE

NOTHING: Any = None


class Side:
    """Counts how many threads are inside at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0

    def work(self) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        time.sleep(0.02)
        with self._lock:
            self._inside -= 1


async def test_at_most_two_bodies_are_decoded_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side()
    monkeypatch.setattr(conversations, "_prepare", lambda *_: side.work())
    intake = Intake(
        settings=WebSettings(),
        committer=NOTHING,
        readiness=NOTHING,
        authority=NOTHING,
        clients=NOTHING,
        admission=NOTHING,
    )
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(intake._prepare, bytes(WebSettings().offload_bytes), "")
    assert side.most == 2


async def test_one_long_analysis_at_a_time_works_beside_the_loop() -> None:
    side = Side()

    def find(_: Conversation) -> Finding:
        side.work()
        return THREE["emotion"]

    turn = trio.Lock()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            analyst = in_process("local/1", find, turn, 1)
            nursery.start_soon(analyst.find, conversation_of("a long text"))
    assert side.most == 1


def test_threads_give_way_to_the_loop_sooner_than_python_would() -> None:
    before = sys.getswitchinterval()
    try:
        threads.favour_the_loop()
        assert sys.getswitchinterval() == pytest.approx(0.0005)
    finally:
        sys.setswitchinterval(before)
