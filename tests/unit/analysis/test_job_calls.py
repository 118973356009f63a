from __future__ import annotations

import trio

from convo.analysis.job_calls import job_at_work, working_for


async def test_calls_know_their_job_also_in_tasks_that_it_starts() -> None:
    found: list[int | None] = []

    async def call() -> None:
        await trio.lowlevel.checkpoint()
        found.append(job_at_work())

    with working_for(7):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
    await call()
    assert found == [7, None]
