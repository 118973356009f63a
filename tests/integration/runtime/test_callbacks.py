from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import sniffio
import trio
import trio.testing
import trio_asyncio
from structlog.testing import capture_logs

from convo.runtime.bridge import Bridge, in_thread, open_bridge
from convo.runtime.callbacks import Callbacks


class Steps(trio.abc.Instrument):
    """Counts the steps that tasks make while it is watching."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        self.count += 1


class Asking(asyncio.Protocol):
    """A client whose every question gets one answer."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.answered.set_result(data)


@asynccontextmanager
async def asking(bridge: Bridge) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
    """Yield a unit of work that asks once over a socket and returns the answer."""
    ours, theirs = socket.socketpair()
    with theirs:

        async def connect() -> tuple[asyncio.Transport, Asking]:
            return await asyncio.get_running_loop().create_connection(Asking, sock=ours)

        transport, client = await bridge.cross(connect)

        async def ask() -> bytes:
            client.answered = asyncio.get_running_loop().create_future()
            theirs.send(b"answer")
            return await client.answered

        async def close() -> None:
            transport.abort()
            await asyncio.sleep(0)

        yield ask
        await bridge.cross(close)


CALLS_MAX = 100_000
"""So many callbacks one after the other would have let nothing else work."""


async def test_a_unit_of_work_that_asks_once_takes_two_steps_of_trio() -> None:
    async with open_bridge() as bridge, asking(bridge) as ask:
        assert await bridge.cross(ask) == b"answer"
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for _ in range(20):
            assert await bridge.cross(ask) == b"answer"
        trio.lowlevel.remove_instrument(steps)
    # The reader's, and then the caller's; some are left for what the test's own loop does.
    assert steps.count <= 20 * 2 + 10


async def test_a_timer_that_is_due_before_the_one_that_is_waited_for_is_in_time() -> None:
    async def set_timer() -> None:
        asyncio.get_running_loop().call_later(60, lambda: None)

    async with open_bridge() as bridge:
        with trio.fail_after(20):
            await bridge.cross(set_timer)
            await trio.testing.wait_all_tasks_blocked()  # the main task waits for that one by now
            await bridge.cross(asyncio.sleep, 0.02)


async def test_a_timer_that_is_taken_back_does_nothing() -> None:
    called: list[str] = []

    async def set_timers() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, called.append, "taken back").cancel()
        loop.call_later(0.02, called.append, "due")
        await asyncio.sleep(0.05)

    async with open_bridge() as bridge:
        await bridge.cross(set_timers)
    assert called == ["due"]


async def test_callbacks_run_in_the_order_in_which_they_came() -> None:
    called: list[int] = []

    async def call() -> None:
        for number in range(200):
            asyncio.get_running_loop().call_soon(called.append, number)
        await asyncio.sleep(0)

    async with open_bridge() as bridge:
        await bridge.cross(call)
        with trio.fail_after(20):
            while len(called) < 200:  # noqa: ASYNC110
                await trio.sleep(0.001)
    assert called == list(range(200))


async def test_a_unit_may_wait_for_more_callbacks_than_are_run_at_once() -> None:
    async def unit() -> None:
        loop, last = asyncio.get_running_loop(), asyncio.Event()
        for _ in range(200):
            loop.call_soon(lambda: None)
        loop.call_soon(last.set)
        await last.wait()

    async with open_bridge() as bridge:
        await trio.testing.wait_all_tasks_blocked()  # the main task sleeps by now
        with trio.fail_after(20):
            await bridge.cross(unit)


async def test_a_callback_that_is_taken_back_is_not_called_and_knows_its_library() -> None:
    called: list[str] = []

    async def call() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(called.append, "taken back").cancel()
        loop.call_soon(lambda: called.append(sniffio.current_async_library()))
        await asyncio.sleep(0)

    with capture_logs() as records:
        async with open_bridge() as bridge:
            await bridge.cross(call)
            assert sniffio.current_async_library() == "trio"
    assert (called, records) == (["asyncio"], [])


async def test_the_end_of_the_main_task_is_left_to_the_main_task() -> None:
    async with trio_asyncio.open_loop() as loop:
        callbacks = Callbacks(loop)
        loop.stop()
        with callbacks:
            pass
        with trio.fail_after(20):
            await loop.wait_stopped()


async def test_callbacks_without_end_let_other_tasks_and_other_units_work() -> None:
    going, calls = True, 0

    def again() -> None:
        nonlocal calls
        calls += 1
        if going and calls < CALLS_MAX:
            asyncio.get_running_loop().call_soon(again)

    async def begin() -> None:
        again()

    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    async with open_bridge() as bridge:
        await bridge.cross(begin)
        with trio.fail_after(20):
            for _ in range(10):
                await trio.lowlevel.checkpoint()
                assert await bridge.cross(work) == "done"
        going = False
    assert calls < CALLS_MAX


async def test_what_comes_from_a_thread_is_called() -> None:
    called = trio.Event()

    async def unit() -> str:
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(called.set))
        thread.start()
        return await in_thread(lambda: "from a thread")

    async with open_bridge() as bridge:
        assert await bridge.cross(unit) == "from a thread"
        with trio.fail_after(20):
            await called.wait()


async def test_a_socket_that_is_closed_under_its_reader_ends_the_reader_alone() -> None:
    ours, theirs = socket.socketpair()

    async def wait_for_bytes() -> None:
        asyncio.get_running_loop().add_reader(ours.fileno(), lambda: None)

    with ours, theirs, capture_logs() as records:
        async with open_bridge() as bridge:
            await bridge.cross(wait_for_bytes)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.notify_closing(ours)
            await trio.testing.wait_all_tasks_blocked()
            await bridge.cross(asyncio.sleep, 0)  # the loop goes on
    assert [record["event"] for record in records] == ["asyncio_stray"]
    assert "ClosedResourceError" in records[0]["error"]


async def test_asyncio_code_may_call_trio_code_between_callbacks() -> None:
    order: list[str] = []

    async def on_trio() -> None:
        await trio.lowlevel.checkpoint()
        order.append("trio")

    async def unit() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(order.append, "before")
        await trio_asyncio.trio_as_aio(on_trio)()
        loop.call_soon(order.append, "after")
        await asyncio.sleep(0)

    async with open_bridge() as bridge:
        await bridge.cross(unit)
    assert order == ["before", "trio", "after"]


async def test_a_caller_that_is_cancelled_already_begins_nothing() -> None:
    begun: list[str] = []

    async def unit() -> None:
        begun.append("begun")

    async with open_bridge() as bridge:
        with trio.CancelScope() as scope:
            scope.cancel()
            await bridge.cross(unit)
    assert scope.cancelled_caught
    assert begun == []


async def test_units_that_are_still_under_way_at_the_end_are_cancelled() -> None:
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("ended")

    async def leave_behind() -> None:
        asyncio.get_running_loop().create_task(endless())
        await asyncio.sleep(0)

    with trio.fail_after(20):
        async with open_bridge() as bridge:
            await bridge.cross(leave_behind)
    assert ended == ["ended"]
