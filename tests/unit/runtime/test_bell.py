from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from convo.runtime.bell import Bell


async def heard_at_once(bell: Bell) -> bool:
    heard = trio.Event()

    async def listen() -> None:
        await bell.rung()
        heard.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return heard.is_set()


async def test_a_ring_wakes_who_waits() -> None:
    bell, woken = Bell(), trio.Event()

    async def sleeper() -> None:
        await bell.rung()
        woken.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        await wait_all_tasks_blocked()
        assert not woken.is_set()
        bell.ring()


async def test_a_ring_that_nobody_heard_is_kept_for_the_next_who_comes() -> None:
    bell = Bell()
    bell.ring()
    with trio.fail_after(5):
        await bell.rung()


async def test_many_rings_that_nobody_heard_are_one() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    with trio.fail_after(5):
        await bell.rung()
    assert not await heard_at_once(bell)


async def test_who_stops_waiting_leaves_the_bell_as_it_was() -> None:
    bell = Bell()
    assert not await heard_at_once(bell)
    bell.ring()
    with trio.fail_after(5):
        await bell.rung()
