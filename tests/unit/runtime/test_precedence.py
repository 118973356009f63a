"""Who waits for accepts."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from convo.runtime import precedence
from convo.runtime.precedence import Precedence


async def test_others_wait_until_the_last_accept_has_ended(autojump_clock: MockClock) -> None:
    accepts, passed = Precedence(), trio.Event()

    async def other() -> None:
        await accepts.none_under_way()
        passed.set()

    async with trio.open_nursery() as nursery:
        accepts.begin()
        accepts.begin()
        nursery.start_soon(other)
        await wait_all_tasks_blocked()
        accepts.end()
        await wait_all_tasks_blocked()
        assert not passed.is_set()
        accepts.end()
        await passed.wait()


async def test_where_another_accept_has_begun_meanwhile_they_wait_on(autojump_clock: MockClock) -> None:
    accepts, passed = Precedence(), trio.Event()

    async def other() -> None:
        await accepts.none_under_way()
        passed.set()

    async with trio.open_nursery() as nursery:
        accepts.begin()
        nursery.start_soon(other)
        await wait_all_tasks_blocked()
        accepts.end()
        accepts.begin()
        await wait_all_tasks_blocked()
        assert not passed.is_set()
        accepts.end()


async def test_without_accepts_nobody_waits() -> None:
    await Precedence().none_under_way()


def test_others_rest_while_conversations_come_in_and_for_a_second_after(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr(precedence, "perf_counter", lambda: now[0])
    accepts = Precedence()
    accepts.others_share = 0.2
    assert accepts.rest_seconds(0.01) == 0
    accepts.begin()
    assert accepts.rest_seconds(0.01) == pytest.approx(0.04)
    accepts.end()
    now[0] += 0.9
    assert accepts.rest_seconds(0.01) == pytest.approx(0.04)
    assert accepts.rest_seconds(60) == 0.25
    now[0] += 0.2
    assert accepts.rest_seconds(0.01) == 0


def test_all_other_work_has_one_account_of_its_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr(precedence, "perf_counter", lambda: now[0])
    accepts = Precedence()
    accepts.others_share = 0.2
    accepts.note_worked(0.01)
    assert accepts.rest_left() == 0, "no conversation comes in"
    accepts.begin()
    accepts.note_worked(0.01)
    accepts.note_worked(0.005)
    assert accepts.rest_left() == pytest.approx(0.06)
    now[0] += 0.05
    assert accepts.rest_left() == pytest.approx(0.01)
    for _ in range(10):
        accepts.note_worked(0.05)
    assert accepts.rest_left() == pytest.approx(0.25), "no rest is longer, however many have worked"
    now[0] += 0.3
    assert accepts.rest_left() == 0
