from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio
import trio_asyncio

from convo import months_keeper
from convo.errors import DatabaseUnavailable
from convo.months_keeper import keep_months, look_for_month
from tests.support.making import Process, ask, open_process, shift_clock, told
from tests.support.many_rows import connect
from tests.support.running import serving


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        await opened.accepted("talk-1")
        await shift_clock(opened.postgres, "32 days")
        yield opened


async def begun(process: Process) -> bool:
    return bool(await ask(process.postgres, "SELECT last_value > 1 << 30 FROM conversation_seq_seq"))


async def test_only_the_process_that_leads_begins_a_month(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(months_keeper, "LOOK_SECONDS", 0.01)
    leads = False
    with told() as names:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_months, process.postgres, lambda: leads)
            await trio.sleep(0.2)
            assert not await begun(process)
            leads = True
            with trio.fail_after(10):
                while not await begun(process):  # noqa: ASYNC110  (seen in the database only)
                    await trio.sleep(0.01)
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    assert names.count("month_begun") == 1


async def test_a_table_that_is_locked_is_no_failure_and_the_month_begins_later(process: Process, database: str) -> None:
    await ask(process.postgres, "DO $$ BEGIN DROP TABLE run_2; END $$")
    other = await trio_asyncio.aio_as_trio(connect)(database)
    try:
        await trio_asyncio.aio_as_trio(other.execute)("BEGIN; LOCK TABLE run IN SHARE UPDATE EXCLUSIVE MODE")
        with told() as names:
            assert await look_for_month(process.postgres) is None
        await trio_asyncio.aio_as_trio(other.execute)("ROLLBACK")
    finally:
        other.terminate()
    assert "months_failed" not in names
    assert await look_for_month(process.postgres) == 1


async def test_a_database_that_is_away_is_logged(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise DatabaseUnavailable("away")

    with told() as names, monkeypatch.context() as patched:
        patched.setattr(process.postgres, "run", away)
        assert await look_for_month(process.postgres) is None
    assert names == ["months_failed"]
    assert await look_for_month(process.postgres) == 1


async def test_every_process_keeps_the_months(database: str, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, database) as url,
        httpx.AsyncClient(base_url=url, timeout=15) as client,
    ):
        assert "keep_months" in (await client.get("/debug/tasks")).text
