from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio_asyncio

from convo import job_room_keeper
from convo.job_room_keeper import give_job_room_back, keep_job_room
from convo.store.jobs import job_room
from tests.support.making import Process, ask, open_process, rows, told
from tests.support.many_rows import connect

# A backlog and its end: what lies in the indexes of it is dead.
_BACKLOG = """
INSERT INTO job (seq, fair_key, state, available_at)
SELECT 1000000 + n, 'user-' || n % 500, 'ready', now() FROM generate_series(1, 4000) AS n
"""
_DRAIN = "DELETE FROM job WHERE seq > 1000000"


@pytest.fixture
async def process(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Process]:
    """A database of which a backlog was drained and vacuumed; two jobs have come since, of which one is leased."""
    monkeypatch.setattr(job_room, "INDEX_BYTES_MAX", 300_000)
    monkeypatch.setattr(job_room, "ROW_BYTES_MAX", 100_000)
    async with open_process(database) as opened:
        connection = await trio_asyncio.aio_as_trio(connect)(database)
        try:
            for statement in (_BACKLOG, _DRAIN, "VACUUM job"):
                await trio_asyncio.aio_as_trio(connection.execute)(statement)
        finally:
            connection.terminate()
        await opened.accepted("talk-1", "talk-2")
        await opened.leased()
        yield opened


async def index_bytes(process: Process) -> int:
    return int(await ask(process.postgres, "SELECT pg_indexes_size('job')"))


async def test_indexes_that_a_backlog_has_left_are_rebuilt_and_say_the_same(process: Process) -> None:
    before = await index_bytes(process)
    indexes = "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = 'job'::regclass ORDER BY 1"
    named = await rows(process.postgres, indexes)
    with told() as names:
        rebuilt = await give_job_room_back(process.postgres)
    assert rebuilt is not None
    assert (rebuilt.bytes_before, rebuilt.bytes_now) == (before, await index_bytes(process))
    assert rebuilt.bytes_now < before / 2
    assert names == ["job_room_given_back"]
    assert await rows(process.postgres, indexes) == named
    lease = await process.leased()
    await process.settler.settle(await process.analysed(lease))
    assert sorted([await process.state("talk-1"), await process.state("talk-2")]) == [("done", 1), ("leased", 0)]


async def test_nothing_is_rebuilt_while_there_are_many_jobs(process: Process) -> None:
    await ask(process.postgres, _BACKLOG.replace("1000000", "2000000"))
    before = await index_bytes(process)
    assert await give_job_room_back(process.postgres) is None
    assert await index_bytes(process) == before


async def test_nothing_is_rebuilt_that_is_small(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_room, "INDEX_BYTES_MAX", 10_000_000)
    before = await ask(process.postgres, "SELECT pg_relation_filenode('job_due')")
    assert await give_job_room_back(process.postgres) is None
    assert await ask(process.postgres, "SELECT pg_relation_filenode('job_due')") == before


async def test_whoever_reads_jobs_for_long_is_given_way_and_no_accept_waits(process: Process, database: str) -> None:
    other = await trio_asyncio.aio_as_trio(connect)(database)
    try:
        await trio_asyncio.aio_as_trio(other.execute)("BEGIN; SELECT FROM job")
        with told() as names, trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(give_job_room_back, process.postgres)
                await trio.sleep(0.02)
                await process.accepted("talk-3")
        await trio_asyncio.aio_as_trio(other.execute)("ROLLBACK")
    finally:
        other.terminate()
    assert "job_room_failed" not in names
    assert await give_job_room_back(process.postgres) is not None


async def test_what_cannot_be_rebuilt_is_logged(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_room, "_IS_WORTH_IT", "SELECT $1 > 0 AND $2 > 0 AND 'x'::integer > 0")
    with told() as names:
        assert await give_job_room_back(process.postgres) is None
    assert names == ["job_room_failed"]


async def test_only_the_process_that_leads_rebuilds(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_room_keeper, "ROOM_LOOK_SECONDS", 0.01)
    before = await index_bytes(process)
    leads = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_job_room, process.postgres, lambda: leads)
        await trio.sleep(0.2)
        assert await index_bytes(process) == before
        leads = True
        with trio.fail_after(10):
            while await index_bytes(process) == before:  # noqa: ASYNC110  (seen in the database only)
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
