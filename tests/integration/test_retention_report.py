from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import msgspec
import pytest

from convo import retention_report
from convo.retention_report import DueKind, read_due
from convo.settings import BotRetention, RetentionSettings
from tests.support.making import Process, ask, open_process, settled, shift_clock


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def due(process: Process, settings: RetentionSettings, *, count: bool = False) -> dict[str, DueKind]:
    return {one.kind: one for one in await read_due(process.postgres, settings, count=count)}


async def some(process: Process) -> None:
    await process.accepted("dead-1")
    (lease,) = await process.jobs.lease(1)
    assert await process.jobs.fail(msgspec.structs.replace(lease, attempts=4), "why", {}, later=0)
    await process.accepted("talk-1", "talk-2", "talk-3", bot_id="pika")
    for lease in await process.jobs.lease(3):
        await process.jobs.release(lease)
    await settled(process, 3)


async def test_an_empty_database_has_no_oldest_and_nothing_goes(process: Process) -> None:
    found = await due(process, RetentionSettings(logs_days=7), count=True)
    assert {(one.oldest_at, one.goes_at, one.over) for one in found.values()} == {(None, None, 0)}


async def test_the_oldest_of_each_kind_goes_after_its_days(process: Process) -> None:
    await some(process)
    received_at = await ask(process.postgres, "SELECT min(received_at) FROM conversation")
    bots = {"pika": BotRetention(logs_days=0, dead_days=9)}
    found = await due(process, RetentionSettings(conversations_days=30, bots=bots))
    assert found["conversations"] == DueKind(
        kind="conversations",
        days=30,
        days_of_bots={},
        oldest_at=received_at,
        goes_at=received_at + timedelta(days=30),
        over=None,
    )
    assert (found["logs"].days_of_bots, found["logs"].goes_at) == ({"pika": 0}, None)
    assert found["dead_letters"].days_of_bots == {"pika": 9}
    with_one = {kind for kind, one in found.items() if one.oldest_at is not None}
    assert with_one == {"conversations", "dead_letters", "logs", "runs", "memories"}


async def test_what_is_over_is_counted_and_stays(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_report, "RETIRED_ROWS_MAX", 2)
    await some(process)
    await shift_clock(process.postgres, "10 days")
    settings = RetentionSettings(logs_days=5, runs_days=5, dead_days=5, memories_days=5, audit_log_days=5)
    for _ in range(2):
        found = await due(process, settings, count=True)
        assert {kind: one.over for kind, one in found.items()} == {
            "conversations": 0,
            "dead_letters": 1,
            "logs": 3,
            "runs": 3,
            "memories": 1,
            "audit_rows": 0,
        }
