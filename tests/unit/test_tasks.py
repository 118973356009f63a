from __future__ import annotations

import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from convo import tasks
from convo.deadline import deadline
from convo.observe import events
from convo.tasks import TaskView


def seen(name: str) -> TaskView:
    (found,) = (task for _, task in tasks.flat(tasks.tree()) if task.name == name)
    return found


async def wait_inside() -> None:
    with events.bound(conversation_id="c-1"), deadline("outer", 10), deadline("inner", 60):
        await trio.sleep_forever()


async def test_a_task_is_shown_with_its_wait_since_when_and_the_deadline_that_ends_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_inside, name="waiting")
        await trio.sleep(4)
        found = seen("waiting")
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
            assert (seen("child").wait, seen("child").wait_seconds) == ("started.earlier", 3)
        # Its nursery is further out: what it was started in is over, and bounds it no more.
        assert (seen("child").wait, seen("child").deadline) == (None, None)
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
        found = seen("parent")
        assert [[task.name for task in one.tasks] for one in found.nurseries] == [["a", "b"], ["c"]]
        with capture_logs() as lines:
            tasks.tell()
        nursery.cancel_scope.cancel()
    names = [(line["task"], line["depth"]) for line in lines if line["event"] == "task_waits"]
    at = names.index(("parent", next(depth for name, depth in names if name == "parent")))
    depth = names[at][1]
    assert names[at : at + 4] == [("parent", depth), ("a", depth + 1), ("b", depth + 1), ("c", depth + 1)]
    assert names[0][1] == 0
