from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from convo.store.jobs import runs
from convo.store.jobs.runs import NO_WAITS
from convo.store.postgres import Connection
from tests.support.making import Process, open_process, rows

NOTED = "SELECT seq, ending, made_by, reason, waits::text FROM run ORDER BY seq"


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def test_a_run_holds_who_had_the_lease_and_since_when(process: Process) -> None:
    await process.accepted("talk-1")
    lease = await process.leased()

    async def body(connection: Connection) -> None:
        await runs.note(connection, "fail", lease.seq, "llm: 422", {"llm.questions": 0.12345})

    await process.postgres.run("test.note", body)
    assert await rows(process.postgres, NOTED) == [
        (lease.seq, "fail", "here/one", "llm: 422", '{"llm.questions": 0.123}')
    ]
    began = "SELECT run.began_at = job.leased_at FROM run JOIN job USING (seq)"
    assert await rows(process.postgres, began) == [(True,)]


async def test_several_settled_leases_are_noted_at_once_each_with_its_own_waits(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    first, second = await process.jobs.lease(2)

    async def body(connection: Connection) -> None:
        await runs.note_settled(
            connection, [(first.seq, {"db.log": 1.0}, [("db.log", 0.5, 1.5)]), (second.seq, NO_WAITS, ())]
        )

    await process.postgres.run("test.note", body)
    assert await rows(process.postgres, NOTED) == [
        (first.seq, "settle", "here/one", None, '{"db.log": 1.0}'),
        (second.seq, "settle", "here/one", None, "{}"),
    ]
    lines = [(first.seq, '[["db.log", 0.5, 1.5]]'), (second.seq, None)]
    assert await rows(process.postgres, "SELECT seq, timeline::text FROM run ORDER BY seq") == lines
