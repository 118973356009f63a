from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from convo.store.jobs.table import Jobs
from tests.support.making import Process, ask, dies, expire_leases, open_process, owned, rows, shift_clock


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def suspected(process: Process, count: int) -> None:
    """Accept so many conversations whose process died twice with each."""
    await process.accepted(*(f"talk-{n}" for n in range(count)))
    await ask(process.postgres, "WITH changed AS (UPDATE job SET crashes = 2 RETURNING 1) SELECT count(*) FROM changed")


async def names(jobs: Jobs) -> list[str]:
    return [one.conversation_id for one in await jobs.lease_suspect()]


async def test_one_process_at_a_time_has_the_claim_and_keeps_it_by_asking_again(process: Process) -> None:
    await suspected(process, 2)
    other = owned(process, "there/two")
    assert await process.jobs.claim_suspects()
    assert not await other.claim_suspects()
    assert await other.lease_suspect() == []
    assert await process.jobs.claim_suspects()
    assert await names(process.jobs) == ["talk-0"]


async def test_while_a_suspect_is_leased_no_process_leases_another(process: Process) -> None:
    await suspected(process, 2)
    other = owned(process, "there/two")
    (suspect,) = await process.jobs.lease_suspect()
    # However long it takes: the claim itself is over by then.
    await shift_clock(process.postgres, "10 minutes")
    await process.jobs.renew([suspect])
    assert await names(other) == await names(process.jobs) == []
    await process.jobs.release(suspect, later=60)
    assert await names(other) == ["talk-1"]


async def test_many_processes_at_once_lease_one_suspect(process: Process) -> None:
    await suspected(process, 8)
    found: list[str] = []

    async def take(jobs: Jobs) -> None:
        found.extend(await names(jobs))

    async with trio.open_nursery() as nursery:
        for n in range(8):
            nursery.start_soon(take, owned(process, f"there/{n}"))
    assert len(found) == 1


async def test_a_claim_whose_process_is_silent_ends_with_its_lease(process: Process) -> None:
    await suspected(process, 1)
    other = owned(process, "there/two")
    assert await process.jobs.claim_suspects()
    await shift_clock(process.postgres, "29 seconds")
    assert not await other.claim_suspects()
    await shift_clock(process.postgres, "31 seconds")
    assert await other.claim_suspects()


async def test_after_a_clock_was_set_back_a_claim_from_the_future_is_none(process: Process) -> None:
    await suspected(process, 1)
    other = owned(process, "there/two")
    assert await process.jobs.claim_suspects()
    await shift_clock(process.postgres, "-29 seconds")
    assert not await other.claim_suspects()
    await shift_clock(process.postgres, "-1 hour")
    assert await other.claim_suspects()


async def test_a_process_that_stops_or_signs_in_anew_gives_the_claim_up(process: Process) -> None:
    await suspected(process, 1)
    other = owned(process, "there/two")
    assert await process.jobs.claim_suspects()
    await process.jobs.release_all()
    assert await other.claim_suspects()


async def test_the_claim_of_a_process_that_died_with_a_suspect_ends_with_it(process: Process) -> None:
    await suspected(process, 2)
    assert await names(process.jobs) == ["talk-0"]
    await dies(process.postgres, process.jobs.owner)
    assert await names(owned(process, "there/two")) == ["talk-0"]


async def test_nobody_claims_where_no_suspect_is_due(process: Process) -> None:
    await process.accepted("talk-1")
    assert not await process.jobs.claim_suspects()
    assert await ask(process.postgres, "SELECT count(*) FROM suspect_claim") == 0


async def test_a_process_with_anything_else_leased_gets_no_suspect_so_that_nobody_else_is_blamed(
    process: Process,
) -> None:
    await suspected(process, 1)
    await process.accepted("talk-9")
    # Leased, and nobody works on it: the answer to this lease was lost on its way.
    (bystander,) = await process.jobs.lease(9)
    assert bystander.conversation_id == "talk-9"
    assert await process.jobs.lease_suspect() == []
    await expire_leases(process)
    await process.jobs.rescue()
    assert await names(process.jobs) == ["talk-0"]
    await dies(process.postgres, process.jobs.owner)
    assert await rows(process.postgres, "SELECT crashes FROM job ORDER BY seq") == [(3,), (0,)]
