from __future__ import annotations

import math
from pathlib import Path

import trio
from trio.testing import MockClock

from convo.capacity.finding import find_demands
from convo.capacity.load_ratio import Fill
from convo.capacity.machine_cpu import MachineCpu
from convo.capacity.meter import Meter
from convo.observe import metrics
from convo.settings import CapacitySettings


def meter(tmp_path: Path, admission: float = 0.0, **settings: float) -> Meter:
    fill = Fill(admission=admission, workers=0.0, backlog_seconds=0.0)
    return Meter(CapacitySettings(**settings), lambda: 0.0, lambda: fill, MachineCpu(tmp_path / "stat", tmp_path))


async def test_the_gauge_is_set_from_the_second_reading_on(autojump_clock: MockClock, tmp_path: Path) -> None:
    metrics.load_ratio.set(math.nan)
    measured = meter(tmp_path, 0.9, sample_seconds=5.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measured.run)
        await trio.sleep(4)
        assert b"convo_load_ratio NaN" in metrics.exposition()
        await trio.sleep(2)
        assert b"convo_load_ratio 0.9" in metrics.exposition()
        assert b'convo_load_share{resource="admission"} 0.9' in metrics.exposition()
        nursery.cancel_scope.cancel()
    metrics.load_ratio.set(math.nan)


async def test_readings_older_than_the_window_are_dropped(autojump_clock: MockClock, tmp_path: Path) -> None:
    measured = meter(tmp_path, sample_seconds=5.0, window_seconds=60.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measured.run)
        await trio.sleep(600.5)
        nursery.cancel_scope.cancel()
    readings = measured.readings()
    assert len(readings) == 13
    assert readings[-1].since(readings[0]).at == 60.0
    found = find_demands(readings, 2.0)
    assert found is not None
    assert found.seconds == 60.0
