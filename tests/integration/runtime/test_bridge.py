from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
import trio
from structlog.testing import capture_logs

from convo.errors import DatabaseUnavailable
from convo.runtime.bridge import Bridge, open_bridge, together, within

Call = Callable[[], Awaitable[str]]
GRACE = 0.05


async def test_a_crossing_returns_what_the_coroutine_returns() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async with open_bridge() as bridge:
        assert await bridge.cross(double, 21) == 42


async def test_a_cancelled_caller_cancels_the_coroutine() -> None:
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async with open_bridge() as bridge:
        with trio.move_on_after(0.05) as scope:
            await bridge.cross(endless)
    assert scope.cancelled_caught
    assert ended == ["cancelled"]


async def test_a_library_that_cancels_its_own_futures_is_an_unavailable_database() -> None:
    async def cancels_itself() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with open_bridge() as bridge:
        with pytest.raises(DatabaseUnavailable, match="cancelled the call"):
            await bridge.cross(cancels_itself)


async def test_a_task_that_was_started_before_the_loop_can_cross() -> None:
    async def one() -> int:
        await asyncio.sleep(0)
        return 1

    bridges, crossed = list[Bridge](), list[int]()
    opened = trio.Event()

    async def early() -> None:
        await opened.wait()
        crossed.append(await bridges[0].cross(one))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(early)
        async with open_bridge() as bridge:
            bridges.append(bridge)
            opened.set()
            while not crossed:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_a_failure_that_no_caller_awaits_is_logged_and_stops_nothing() -> None:
    async def leave_one_behind() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0.01)

    with capture_logs() as records:
        async with open_bridge() as bridge:
            await bridge.cross(leave_one_behind)
    assert [record["event"] for record in records] == ["asyncio_stray"]
    assert "ZeroDivisionError" in records[0]["error"]


async def test_a_clean_up_on_the_asyncio_side_is_bounded() -> None:
    async def bounded() -> None:
        await within(0.01, asyncio.sleep(1000))

    async with open_bridge() as bridge:
        with pytest.raises(TimeoutError):
            await bridge.cross(bounded)


# --- calls side by side


def answering(name: str, seconds: float, cancelled: list[str] | None = None) -> Call:
    async def call() -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            assert cancelled is not None
            cancelled.append(name)
            raise
        return name

    return call


def failing(error: Exception, seconds: float = 0.0) -> Call:
    async def call() -> str:
        await asyncio.sleep(seconds)
        raise error

    return call


async def crossed(*calls: Call, undone: list[str] | None = None) -> list[str]:
    async def unit() -> list[str]:
        return await together(calls, GRACE, undo=(undone if undone is not None else []).append)

    async with open_bridge() as bridge:
        return await bridge.cross(unit)


async def test_calls_side_by_side_return_in_their_order() -> None:
    assert await crossed(answering("a", 0.02), answering("b", 0.0)) == ["a", "b"]


async def test_whoever_is_silent_is_waited_for_no_longer_than_the_grace_after_the_first_success() -> None:
    cancelled: list[str] = []
    began = time.monotonic()
    assert await crossed(answering("silent", 60, cancelled), answering("b", 0.0)) == ["b"]
    assert GRACE <= time.monotonic() - began < 5
    assert cancelled == ["silent"]


async def test_failures_do_not_end_the_wait_for_a_success() -> None:
    assert await crossed(failing(OSError("refused")), answering("b", 2 * GRACE)) == ["b"]


async def test_where_none_succeeds_the_last_ones_failure_is_raised() -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="second"), flatten_subgroups=True):
        await crossed(failing(OSError("first"), 0.01), failing(OSError("second")))


async def test_what_nobody_gets_after_a_cancellation_is_undone() -> None:
    cancelled: list[str] = []
    undone: list[str] = []

    async def unit() -> list[str]:
        return await together([answering("a", 0.0), answering("b", 60, cancelled)], 60, undo=undone.append)

    async with open_bridge() as bridge:
        with trio.move_on_after(GRACE):
            await bridge.cross(unit)
    assert (undone, cancelled) == (["a"], ["b"])
