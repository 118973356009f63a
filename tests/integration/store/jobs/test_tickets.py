from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from convo.errors import LeaseLost
from convo.store.jobs.lease import Lease
from tests.support.making import THREE, Process, open_process, rows, store_part

HELD = "SELECT name, ticket FROM part_ticket"


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def leased_again(process: Process, lease: Lease) -> Lease:
    await process.jobs.release(lease)
    return await process.leased()


async def test_a_ticket_comes_with_the_next_lease_until_its_part_is_stored(process: Process) -> None:
    await process.accepted("talk-1")
    one = await process.leased()
    assert one.tickets == {}
    await process.jobs.store_ticket(one, "memories", "first")
    await process.jobs.store_ticket(one, "memories", "second")
    one = await leased_again(process, one)
    assert one.tickets == {"memories": "second"}
    await store_part(process.jobs, one, "emotion", "test/1", THREE["emotion"])
    assert len(await rows(process.postgres, HELD)) == 1
    await store_part(process.jobs, one, "memories", "test/1", THREE["memories"])
    assert await rows(process.postgres, HELD) == []


async def test_an_empty_ticket_removes_the_one_before(process: Process) -> None:
    await process.accepted("talk-1")
    one = await process.leased()
    await process.jobs.store_ticket(one, "memories", "first")
    await process.jobs.store_ticket(one, "memories", "")
    assert (await leased_again(process, one)).tickets == {}


async def test_a_late_worker_stores_no_ticket(process: Process) -> None:
    await process.accepted("talk-1")
    one = await process.leased()
    await leased_again(process, one)
    with pytest.raises(LeaseLost):
        await process.jobs.store_ticket(one, "memories", "late")
    assert await rows(process.postgres, HELD) == []
