from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from convo.conversation.tenant import WHOLE_DEFAULT
from tests.support.making import Process, open_process, owned, rows, told

BOOKED = "SELECT kind, sum(n)::integer FROM ledger GROUP BY kind ORDER BY kind"


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def test_the_books_hold_no_dead_letter_that_lives_again(process: Process) -> None:
    await process.accepted("talk-1")
    jobs = owned(process, "here/one", attempts_max=1)
    (one,) = await jobs.lease(1)
    await jobs.fail(one, "why", {}, later=0)
    with told() as names:
        assert await jobs.give_back({one.seq: 1}, "llm") == 1
    assert names == ["attempts_given_back"]
    assert await process.state() == ("ready", 0)
    assert dict(await rows(process.postgres, BOOKED))["dead"] == 0


async def test_a_dead_letter_that_somebody_reviewed_stays_one(process: Process) -> None:
    await process.accepted("talk-1")
    jobs = owned(process, "here/one", attempts_max=1)
    (one,) = await jobs.lease(1)
    await jobs.fail(one, "why", {}, later=0)
    await jobs.acknowledge(WHOLE_DEFAULT, "talk-1")
    assert await jobs.give_back({one.seq: 1}, "llm") == 0
    assert await process.state() == ("dead", 1)


async def test_a_dead_letter_that_did_not_die_of_its_attempts_stays_one(process: Process) -> None:
    await process.accepted("talk-1")
    jobs = owned(process, "here/one", attempts_max=1)
    (one,) = await jobs.lease(1)
    await jobs.fail(one, "why", {}, later=0)
    patient = owned(process, "here/one", attempts_max=5)
    await patient.give_back({one.seq: 1}, "llm")
    assert await process.state() == ("dead", 1)
