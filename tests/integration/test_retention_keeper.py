from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import trio
import trio_asyncio

from convo import retention
from convo.errors import DatabaseUnavailable
from convo.observe import metrics
from convo.retention_keeper import RetentionKeeper
from convo.settings import RetentionSettings
from convo.store import process_programs
from convo.store.postgres import Connection
from tests.support.making import Process, ask, open_process, settled, shift_clock, told
from tests.support.running import serving

OVER = RetentionSettings(conversations_days=1, look_seconds=0.01)


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:

        async def announced(connection: Connection) -> None:
            await process_programs.announce(connection, "one", "0.2", retention.MIGRATION)

        await opened.postgres.run("test.announce", announced)
        yield opened


async def three_over(process: Process) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    await settled(process, 3)
    await shift_clock(process.postgres, "2 days")


async def stored(process: Process) -> int:
    count: int = await ask(process.postgres, "SELECT count(*) FROM conversation")
    return count


def always() -> bool:
    return True


async def test_a_look_removes_page_after_page_counts_and_logs_it_once(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convo.retention_keeper.RETIRED_ROWS_MAX", 1)
    monkeypatch.setattr("convo.retention_keeper._PAGE_ROWS_MIN", 1)
    await three_over(process)
    total = metrics.retired_total.labels("conversations")
    before = total.value
    with told() as names:
        keeper = RetentionKeeper(OVER, process.postgres, always)
        assert await keeper.look() == {"conversations": 3}
        assert await keeper.look() == {}
    assert names.count("retired") == 1
    assert total.value == before + 3
    assert await stored(process) == 0


@pytest.mark.parametrize(("days", "runs"), [("0", False), ("1", True)])
async def test_a_process_that_keeps_everything_has_no_keeper(
    database: str, tmp_path: Path, days: str, *, runs: bool
) -> None:
    async with (
        serving(tmp_path, database, {"retention.logs_days": days}) as url,
        httpx.AsyncClient(base_url=url, timeout=15) as client,
    ):
        assert ("RetentionKeeper.run" in (await client.get("/debug/tasks")).text) == runs


async def test_only_the_process_that_leads_removes(process: Process) -> None:
    await three_over(process)
    leads = False
    keeper = RetentionKeeper(OVER, process.postgres, lambda: leads)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        await trio.sleep(0.2)
        assert await stored(process) == 3
        leads = True
        with trio.fail_after(10):
            while await stored(process):  # noqa: ASYNC110  (a delete tells nobody)
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("what", ["a request is refused", "a job waits", "another process removes"])
async def test_it_gives_way_while_something_else_comes_first(
    process: Process, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("convo.retention_keeper.GIVE_WAY_SECONDS", 0.01)
    await three_over(process)
    pressed = what == "a request is refused"
    lease_soon = what == "a job waits"
    if lease_soon:
        await process.accepted("waiting")
        await shift_clock(process.postgres, "2 days 5 seconds")
    count = await stored(process)
    keeper = RetentionKeeper(OVER, process.postgres, always, lambda: pressed)
    hold = trio.CancelScope()

    async def other(task_status: Any) -> None:
        async def body(connection: Any) -> None:
            assert await retention.take_turn(connection)
            await connection.execute("SELECT pg_sleep(2.5)")

        with hold:
            task_status.started()
            await process.postgres.run("test.hold", body)

    async with trio.open_nursery() as nursery:
        if what == "another process removes":
            await nursery.start(other)
            await trio.sleep(0.1)
        nursery.start_soon(keeper.run)
        await trio.sleep(0.3)
        assert await stored(process) == count
        pressed = False
        hold.cancel()
        if lease_soon:
            await process.jobs.lease(1)
        with trio.fail_after(10):
            while await stored(process) > count - 3:  # noqa: ASYNC110  (a delete tells nobody)
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_nothing_goes_while_an_older_program_is_at_work(process: Process, database: str) -> None:
    await three_over(process)
    settings = {"application_name": "convo older"}
    older = await trio_asyncio.aio_as_trio(asyncpg.connect)(database, server_settings=settings)
    keeper = RetentionKeeper(OVER, process.postgres, always)
    try:
        with told() as names:
            assert await keeper.look() == {}
    finally:
        await trio_asyncio.aio_as_trio(older.close)()  # noqa: ASYNC102  (the test is given up with it)
    assert "retention_waits" in names
    assert await stored(process) == 3
    assert await keeper.look() == {"conversations": 3}


async def test_what_was_passed_over_is_looked_at_again_after_a_day(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convo.retention_keeper.RETIRED_ROWS_MAX", 1)
    monkeypatch.setattr("convo.retention_keeper._PAGE_ROWS_MIN", 1)
    await process.accepted("talk-1", "talk-2", "talk-3")
    await shift_clock(process.postgres, "2 days")
    leases = await process.jobs.lease(3)
    keeper = RetentionKeeper(OVER, process.postgres, always)
    assert await keeper.look() == {}
    await process.settler.settle(await process.analysed(min(leases, key=lambda lease: lease.seq)))
    assert await keeper.look() == {}
    monkeypatch.setattr("convo.retention_keeper._WHOLE_SECONDS", 0.0)
    assert await keeper.look() == {"conversations": 1}


async def test_a_failure_is_logged_and_the_keeper_goes_on_with_smaller_pages(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await three_over(process)
    keeper = RetentionKeeper(OVER, process.postgres, always)

    async def away(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise DatabaseUnavailable("away")

    with told() as names, monkeypatch.context() as patched:
        patched.setattr(process.postgres, "run", away)
        sizes = [keeper._rows]
        for _ in range(3):
            assert await keeper.look() == {}
            sizes.append(keeper._rows)
    assert sizes == [100, 25, 20, 20]
    assert names == ["retention_failed"]
    assert await keeper.look() == {"conversations": 3}
