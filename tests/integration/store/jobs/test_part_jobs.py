from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from convo.conversation.model import Answered
from convo.conversation.owed import DeclaredPart, owed_of
from convo.store.jobs.part_jobs import PartJobs
from convo.store.owed_sets import OwedSets
from tests.support.making import Process, open_process, rows, shift_clock, store_part

OWED = owed_of(
    [
        DeclaredPart(name="must", who="llm", version="p1:1", required=True),
        DeclaredPart(name="may", who="llm", version="p1:2"),
        DeclaredPart(name="crm", who="http", version="p1:3"),
    ]
)
FOUND = Answered(answer={"a": 1})
ABLE = ["llm", ""]


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as process:
        yield process


@pytest.fixture
async def jobs(process: Process) -> PartJobs:
    """One conversation that is done without the two parts that it need not wait for."""
    process.owe(lambda _: OWED)
    await process.accepted("talk-1")
    lease = await process.leased()
    await store_part(process.jobs, lease, "must", "m/p1:1", FOUND)
    assert (await process.settler.settle(lease, left={"may": ("m/p1:2", "it does not fit")})).final
    return PartJobs(process.postgres, OwedSets())


async def test_a_settle_leaves_what_is_not_found_to_jobs_of_their_own(process: Process, jobs: PartJobs) -> None:
    found = await rows(process.postgres, "SELECT name, needs, state, made_by, error FROM part_job ORDER BY name")
    assert found == [
        ("crm", "part.crm@p1:3", "waiting", None, None),
        ("may", "llm", "waiting", "m/p1:2", "it does not fit"),
    ]
    (job,) = await jobs.take(ABLE, 10, 30)
    assert (job.name, job.conversation_id, job.owed, job.attempts) == ("may", "talk-1", OWED, 0)


async def test_a_part_is_taken_by_one_at_a_time_and_again_when_its_taker_is_silent(
    process: Process, jobs: PartJobs
) -> None:
    (first,) = await jobs.take(ABLE, 10, 30)
    assert await jobs.take(ABLE, 10, 30) == []
    await shift_clock(process.postgres, "31 seconds")
    (second,) = await jobs.take(ABLE, 10, 30)
    assert not await jobs.done(first, "late", Answered(answer={"a": 2}))
    assert await jobs.done(second, "m/p1:2", FOUND)
    assert await rows(process.postgres, "SELECT made_by, result, error FROM part_job WHERE name = 'may'") == [
        ("m/p1:2", '{"answer": {"a": 1}}', None)
    ]


async def test_a_process_takes_what_it_is_able_to_find(jobs: PartJobs) -> None:
    assert await jobs.take([""], 10, 30) == []
    assert [job.name for job in await jobs.take(["part.crm@p1:3"], 10, 30)] == ["crm"]


async def test_a_failure_is_tried_again_later_or_not_at_all(process: Process, jobs: PartJobs) -> None:
    (job,) = await jobs.take(ABLE, 10, 30)
    assert await jobs.failed(job, "m", "out", later=5, spent=False)
    assert await jobs.take(ABLE, 10, 30) == []
    await shift_clock(process.postgres, "6 seconds")
    (job,) = await jobs.take(ABLE, 10, 30)
    assert job.attempts == 0
    assert await jobs.failed(job, "m", "no", later=0, spent=True)
    (job,) = await jobs.take(ABLE, 10, 30)
    assert job.attempts == 1
    assert await jobs.failed(job, "m", "never", later=None, spent=True)
    await shift_clock(process.postgres, "1 year")
    assert await jobs.take(ABLE, 10, 30) == []
    assert await rows(process.postgres, "SELECT state, error FROM part_job WHERE name = 'may'") == [("failed", "never")]


async def test_the_score_and_the_relationship_are_those_of_the_settle(process: Process, jobs: PartJobs) -> None:
    before = await rows(process.postgres, "SELECT score FROM relationship")
    (job,) = await jobs.take(ABLE, 10, 30)
    await jobs.done(job, "m/p1:2", FOUND)
    assert await rows(process.postgres, "SELECT score FROM relationship") == before
