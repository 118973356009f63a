from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from convo.errors import LeaseLost
from convo.store.jobs.lease import Lease
from tests.support.making import (
    THREE,
    Process,
    expire_leases,
    lease,
    open_process,
    owned,
    rows,
    store_part,
)


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


# --- fencing

Write = Callable[[Process, Lease], Awaitable[object]]
WRITES: dict[str, Write] = {
    "store_part": lambda process, one: store_part(process.jobs, one, "emotion", "late/1", THREE["emotion"]),
    "fail": lambda process, one: process.jobs.fail(one, "late", {"emotion": ("late/1", "late")}, later=1),
    "bury": lambda process, one: process.jobs.fail(
        msgspec.structs.replace(one, attempts=4), "late", {"emotion": ("late/1", "late")}, later=1
    ),
    "release": lambda process, one: process.jobs.release(one),
    "settle": lambda process, one: process.settler.settle(one),
}


async def everything(process: Process) -> list[list[tuple[object, ...]]]:
    tables = ("job", "part", "memory", "relationship")
    return [await rows(process.postgres, f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("since", ["rescued", "another's", "settled", "buried", "released"])
async def test_a_late_worker_can_write_nothing(process: Process, write: str, since: str) -> None:
    await process.accepted("talk-1")
    late = await process.leased()
    await process.analysed(late)
    if since == "settled":
        await process.settler.settle(late)
    elif since == "buried":
        await process.jobs.fail(msgspec.structs.replace(late, attempts=4), "why", {}, later=1)
    elif since == "released":
        await process.jobs.release(late)
    else:
        await expire_leases(process)
        assert (await process.jobs.rescue()).rescued == 1
    if since == "another's":
        assert len(await owned(process, "there/two").lease(1)) == 1
    before = await everything(process)
    with pytest.raises(LeaseLost, match="'talk-1'"):
        await WRITES[write](process, late)
    assert await everything(process) == before


async def test_a_lease_past_its_end_is_good_until_somebody_takes_it(process: Process) -> None:
    await process.accepted("talk-1")
    slow = await process.leased()
    await expire_leases(process)
    await process.settler.settle(await process.analysed(slow))
    assert await process.state() == ("done", 1)


async def test_a_lease_that_never_was_can_write_nothing(process: Process) -> None:
    with pytest.raises(LeaseLost):
        await process.jobs.release(lease(77))
