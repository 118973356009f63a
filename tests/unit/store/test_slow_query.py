from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from convo.errors import DatabaseDeadlineExceeded
from convo.runtime.bridge import Bridge
from convo.settings import DatabaseSettings
from convo.store.postgres import Connection, Postgres

UNIT = DatabaseSettings().unit_seconds


class SlowBridge(Bridge):
    """Crosses to nowhere and is back after some seconds of trio's own clock."""

    def __init__(self, seconds: float) -> None:
        super().__init__(None, cast("Any", None))
        self.seconds = seconds

    async def cross(self, function: Callable[..., Any], *args: object) -> Any:
        await trio.sleep(self.seconds)


async def body(_: Connection) -> None:
    raise AssertionError("no connection is ever made")


def postgres(seconds: float, **how: float) -> Postgres:
    return Postgres(SlowBridge(seconds), "postgresql://there/convo", DatabaseSettings(), **how)  # type: ignore[arg-type]


async def slow_units(unit: Callable[[], Any]) -> list[tuple[str, float]]:
    with capture_logs() as lines:
        await unit()
    return [(line["name"], line["seconds"]) for line in lines if line["event"] == "slow_query"]


@pytest.mark.parametrize("kind", ["pool", "line"])
@pytest.mark.parametrize(
    ("seconds", "threshold", "told"),
    [(2.25, 0.0, []), (2.5, 0.0, [("db.read", 2.5)]), (1.0, 1.0, []), (1.5, 1.0, [("db.read", 1.5)])],
)
async def test_a_slow_unit_is_told_once_by_its_name_and_time(
    autojump_clock: MockClock, kind: str, seconds: float, threshold: float, told: list[tuple[str, float]]
) -> None:
    opened = postgres(seconds, slow_query_seconds=threshold)
    run = opened.run if kind == "pool" else opened.dedicated().run
    assert await slow_units(lambda: run("db.read", body)) == told


async def test_a_line_with_a_budget_of_its_own_is_measured_by_that(autojump_clock: MockClock) -> None:
    line = postgres(7.5).dedicated()
    assert await slow_units(lambda: line.run("db.inspect", body, seconds=10.0)) == []
    line = postgres(8.5).dedicated()
    assert await slow_units(lambda: line.run("db.inspect", body, seconds=10.0)) == [("db.inspect", 8.5)]


async def test_a_unit_whose_deadline_ran_out_is_slow_too_and_told_once(autojump_clock: MockClock) -> None:
    async def unit() -> None:
        with pytest.raises(DatabaseDeadlineExceeded, match=r"db\.read"):
            await postgres(60.0).run("db.read", body)

    assert await slow_units(unit) == [("db.read", UNIT)]
