from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from convo.conversation.tenant import WHOLE_DEFAULT
from convo.store.jobs import counts
from tests.support.making import Process, ask, open_process, shift_clock


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def test_jobs_that_are_not_done_are_counted_by_state_with_the_age_of_the_one_due_longest(
    process: Process,
) -> None:
    assert await process.jobs.count() == ({"ready": 0, "parked": 0, "leased": 0, "dead": 0}, 0.0)
    await process.accepted("talk-1", "talk-2", "talk-3", "talk-4")
    done, leased = await process.jobs.lease(2)
    await process.settler.settle(await process.analysed(done))
    await process.jobs.fail(await process.leased(), "why", {}, later=3600)
    await shift_clock(process.postgres, "60 seconds")
    found, oldest = await process.jobs.count()
    assert found == {"ready": 2, "parked": 0, "leased": 1, "dead": 0}
    assert 60 <= oldest < 120
    assert leased.conversation_id == "talk-2"


async def test_of_more_parked_jobs_than_are_counted_the_index_has_an_estimate(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3", "talk-4")
    for lease in await process.jobs.lease(4):
        await process.jobs.park(lease, "llm", "down")
    monkeypatch.setattr(counts, "COUNTED_MAX", 3)
    await ask(process.postgres, "ANALYZE job")
    found, _ = await process.jobs.count()
    assert (found["parked"], found["ready"]) == (4, 4)
    monkeypatch.setattr(counts, "COUNTED_MAX", 5)
    await ask(process.postgres, "UPDATE job SET waits_for = '', parked_since = NULL WHERE seq = 1")
    found, _ = await process.jobs.count()
    assert (found["parked"], found["ready"]) == (3, 4)


async def test_dead_and_ready_follow_a_job_to_its_grave_and_back(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    lease = (await process.jobs.lease(1))[0]
    await process.jobs.fail(msgspec.structs.replace(lease, attempts=4), "why", {}, later=0)
    assert (await process.jobs.count())[0] == {"ready": 1, "parked": 0, "leased": 0, "dead": 1}
    await process.jobs.retry(WHOLE_DEFAULT, lease.conversation_id)
    assert (await process.jobs.count())[0] == {"ready": 2, "parked": 0, "leased": 0, "dead": 0}
