from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio

from convo.settings import DatabaseSettings
from convo.store.server_settings import connections_wanted
from tests.support.embedded_server import server_settings
from tests.support.receivers import GOOD, Got, Receiver
from tests.torture.outside import Outside
from tests.torture.world import World, connections_of

EVENTS = 18_000
"""A long run makes so many; its load makes up to 70 a second."""


class SlowCouriers:
    """A world whose couriers confirm an event every ten seconds, and stand still when ``left`` are left."""

    def __init__(self, waiting: int, left: int = 0) -> None:
        self._waiting = waiting
        self._left = left

    async def ask(self, _: str) -> Sequence[Any]:
        await trio.lowlevel.checkpoint()
        confirmed = int(trio.current_time() - self.began) // 10
        return [{"waiting": max(self._left, self._waiting - confirmed)}]

    async def waited_for(self) -> float:
        self.began = trio.current_time()
        await an_outside().until_delivered(cast("World", self))
        return trio.current_time() - self.began


def an_outside() -> Outside:
    return Outside(Receiver(lambda _: GOOD), None, seed=1)


def posted(number: int) -> Got:
    content = {"id": f"evt_{number}", "sequence": number, "type": "part.done", "data": {"user_id": "mia"}}
    return Got("/", {}, json.dumps(content).encode(), 0.0)


async def test_what_is_delivered_slowly_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    assert await SlowCouriers(200).waited_for() == pytest.approx(2000, abs=1)


async def test_what_is_not_delivered_any_more_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    assert await SlowCouriers(200, left=190).waited_for() == pytest.approx(100 + 120, abs=1)


def test_the_pauses_that_a_receiver_asks_for_leave_time_for_all_events() -> None:
    outside = an_outside()
    replies = [outside._answer(posted(number)) for number in range(EVENTS)]
    pauses = sum(float(reply.headers.get("Retry-After", "0")) for reply in replies)
    failed = sum(reply.status >= 400 for reply in replies)
    assert 30 < pauses < EVENTS / 70 / 2
    assert EVENTS * 0.08 < failed < EVENTS * 0.1


def test_a_healed_receiver_takes_everything() -> None:
    outside = an_outside()
    outside.heal()
    assert {outside._answer(posted(number)).status for number in range(1000)} == {GOOD.status}


def test_the_database_of_a_world_takes_all_that_its_processes_may_open() -> None:
    each = connections_wanted(DatabaseSettings().pool_max)
    assert connections_of(3) > 4 * each
    assert server_settings(["keep", f"connections={connections_of(3)}"]) == {"max_connections": str(connections_of(3))}
