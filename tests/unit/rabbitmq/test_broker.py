from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import aio_pika
import pytest
import trio
from trio.testing import MockClock

from convo.errors import Refused
from convo.rabbitmq import broker
from convo.runtime.bridge import open_bridge
from convo.settings import RabbitmqSettings, Secret


async def nothing(_: Any) -> None:
    """Declare nothing."""


def test_without_rabbitmq_its_library_is_not_imported() -> None:
    program = "import sys, convo.service; assert not {'aio_pika', 'aiormq', 'pamqp'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_where_the_library_is_missing_a_person_learns_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aio_pika", None)
    with pytest.raises(Refused, match=r"rabbitmq\.url is set, and aio-pika.*pip install 'convo\[rabbitmq\]'"):
        broker.Broker(None, RabbitmqSettings(url=Secret("amqp://localhost/")), "events", nothing)  # type: ignore[arg-type]


class Stuck:
    """A connection's way to a broker that does not say that it is closed."""

    async def close(self, _: Any) -> None:
        await asyncio.sleep(1000)


@pytest.mark.parametrize("seconds", [100, 0.5], ids=["it takes too long", "it is cancelled"])
async def test_a_close_that_is_cut_short_leaves_nothing_to_the_collector(
    autojump_clock: MockClock, seconds: float
) -> None:
    async def connection() -> Any:
        made = aio_pika.Connection(aio_pika.connection.make_url("amqp://localhost/"))
        made.transport = Stuck()  # type: ignore[assignment]
        return made

    async with open_bridge() as bridge:
        left = await bridge.cross(connection)
        with trio.move_on_after(seconds):
            await bridge.cross(broker._close, left)
        assert left.is_closed
        assert trio.current_time() == pytest.approx(min(seconds, 1.0), abs=0.01)
