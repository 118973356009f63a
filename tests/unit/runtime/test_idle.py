from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from convo.runtime.idle import GIVE_WAY_SECONDS, IdleMoments, until_idle


class Load:
    """A process under pressure, or not."""

    def __init__(self) -> None:
        self.pressed = True

    def __call__(self) -> bool:
        return self.pressed


async def test_a_moment_is_waited_for_as_long_as_the_caller_has_time(autojump_clock: MockClock) -> None:
    load = Load()
    began = trio.current_time()
    assert not await until_idle(load, 30.0)
    assert trio.current_time() == began + 30.0
    load.pressed = False
    assert await until_idle(load, 30.0)


async def test_after_the_bound_work_goes_on_step_by_step_until_a_moment_comes(autojump_clock: MockClock) -> None:
    load = Load()
    moments = IdleMoments(load, 600.0)
    began = trio.current_time()
    # On the virtual clock: one that waited for ever would hang the run.
    with trio.fail_after(7200):
        await moments.next_one()
        assert trio.current_time() == began + 600.0
        assert moments.busy_seconds == moments.longest_seconds == 600.0
        await moments.next_one()
        assert trio.current_time() == began + 600.0 + GIVE_WAY_SECONDS, "each step only tries for a moment"
        load.pressed = False
        await moments.next_one()
        assert moments.busy_seconds == 0.0
        load.pressed = True
        began = trio.current_time()
        await moments.next_one()
        assert trio.current_time() == began + 600.0, "it waits as before"


async def test_how_long_it_has_waited_is_seen_meanwhile_and_not_when_there_is_no_work(
    autojump_clock: MockClock,
) -> None:
    moments = IdleMoments(Load(), 600.0)
    assert moments.busy_seconds == 0.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(moments.next_one)
        await trio.sleep(45)
        assert moments.busy_seconds == pytest.approx(45.0)
        nursery.cancel_scope.cancel()
    moments.end()
    assert moments.busy_seconds == 0.0
