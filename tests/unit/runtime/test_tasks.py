from __future__ import annotations

from contextvars import Context
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from convo.observe import log_records
from convo.runtime import tasks
from convo.runtime.deadline import deadline
from convo.runtime.precedence import ACCEPTS
from convo.runtime.tasks import TaskView


async def seen(name: str) -> TaskView:
    (found,) = (task for _, task in tasks.flat(await tasks.tree()) if task.name == name)
    return found


async def wait_inside() -> None:
    with log_records.bound(conversation_id="c-1"), deadline("outer", 10), deadline("inner", 60):
        await trio.sleep_forever()


async def test_a_task_is_shown_with_its_wait_since_when_and_the_deadline_that_ends_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_inside, name="waiting")
        await trio.sleep(4)
        found = await seen("waiting")
        nursery.cancel_scope.cancel()
    assert (found.wait, found.wait_seconds, found.deadline, found.deadline_seconds) == ("inner", 4, "outer", 6)
    assert found.waits_in is not None
    assert found.waits_in.startswith("trio/_timeouts.py:")
    assert found.waits_in.endswith(" sleep_forever")
    assert (found.ours, found.conversation_id, found.nurseries) == (None, "c-1", ())


async def test_the_time_of_a_wait_is_its_deadlines_own(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        with deadline("started.earlier", 100):
            nursery.start_soon(trio.sleep_forever, name="child")
            await trio.sleep(3)
            child = await seen("child")
            assert (child.wait, child.wait_seconds) == ("started.earlier", 3)
        # Its nursery is further out: what it was started in is over, and bounds it no more.
        child = await seen("child")
        assert (child.wait, child.deadline) == (None, None)
        nursery.cancel_scope.cancel()


async def test_the_tree_is_that_of_the_nurseries() -> None:
    async def parent() -> None:
        async with trio.open_nursery() as one, trio.open_nursery() as other:
            one.start_soon(trio.sleep_forever, name="b")
            one.start_soon(trio.sleep_forever, name="a")
            other.start_soon(trio.sleep_forever, name="c")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(parent, name="parent")
        await wait_all_tasks_blocked()
        found = await seen("parent")
        assert [[task.name for task in one.tasks] for one in found.nurseries] == [["a", "b"], ["c"]]
        with capture_logs() as lines:
            await tasks.log_tasks()
        nursery.cancel_scope.cancel()
    names = [(line["task"], line["depth"]) for line in lines if line["event"] == "task_waits"]
    at = names.index(("parent", next(depth for name, depth in names if name == "parent")))
    depth = names[at][1]
    assert names[at : at + 4] == [("parent", depth), ("a", depth + 1), ("b", depth + 1), ("c", depth + 1)]
    assert names[0][1] == 0


async def test_other_tasks_run_while_thousands_are_looked_at() -> None:
    passes = 0

    async def count_passes() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async with trio.open_nursery() as nursery:
        for _ in range(2_000):
            nursery.start_soon(trio.sleep_forever)
        await wait_all_tasks_blocked()
        nursery.start_soon(count_passes)
        await tasks.tree()
        assert passes >= 2_000 // 20
        before = passes
        with capture_logs():
            await tasks.log_tasks()
        # Once for the look, once for the lines.
        assert passes - before >= 2 * (2_000 // 20)
        nursery.cancel_scope.cancel()


async def test_a_task_that_ends_before_it_is_looked_at_is_left_out() -> None:
    async with trio.open_nursery() as nursery:
        ending = trio.Event()
        for number in range(200):
            nursery.start_soon(ending.wait, name=f"ends {number:03}")
        await wait_all_tasks_blocked()
        nursery.start_soon(_set, ending, name="a first one")
        found = [task.name for _, task in tasks.flat(await tasks.tree())]
    assert "ends 199" not in found


async def _set(event: trio.Event) -> None:
    event.set()


async def test_those_who_ask_at_once_are_answered_one_after_the_other() -> None:
    ended: list[int] = []

    async def look(number: int) -> None:
        await tasks.tree()
        ended.append(number)

    async with trio.open_nursery() as nursery, trio.open_nursery() as idle:
        for _ in range(500):
            idle.start_soon(trio.sleep_forever)
        await wait_all_tasks_blocked()
        nursery.start_soon(look, 1)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(look, 2)
        with trio.fail_after(5):
            while len(ended) < 2:
                await trio.lowlevel.checkpoint()
                assert ended in ([], [1], [1, 2])
        idle.cancel_scope.cancel()


async def test_a_look_lets_accepts_past_but_does_not_wait_for_ever(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = list[float]()
    deadlines = tasks._deadlines

    def noting(context: Context) -> Any:
        looked_at.append(trio.current_time())
        return deadlines(context)

    monkeypatch.setattr(tasks, "_deadlines", noting)

    async def end_after(seconds: float) -> None:
        await trio.sleep(seconds)
        ACCEPTS.end()

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(trio.sleep_forever)
        for ends in (0.2, 3600.0):
            ACCEPTS.begin()
            nursery.start_soon(end_after, ends)
            began = trio.current_time()
            looked_at.clear()
            await tasks.tree()
            # A few are looked at before the first pause; from the end of the patience on, all.
            waited = [at - began for at in looked_at if at > began + 0.1]
            assert len(waited) > len(looked_at) - 4
            assert waited == pytest.approx([min(ends, 1.0)] * len(waited), abs=0.09)
        nursery.cancel_scope.cancel()
    ACCEPTS.end()
