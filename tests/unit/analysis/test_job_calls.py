from __future__ import annotations

import trio

from convo.analysis.job_calls import JobCalls, PaidCall, calls_at_work, note_call, working_for
from convo.analysis.llm_usage import Tokens


def call(server: str = "llm") -> PaidCall:
    return PaidCall(server=server, by="m/1", parts=("questions",), tokens=Tokens(sent=7, answered=2), nano=5)


async def test_calls_of_all_tasks_of_a_job_are_noted_for_it_and_taken_once() -> None:
    told: list[PaidCall] = []
    calls = JobCalls(7, told.append)

    async def work(server: str) -> None:
        await trio.lowlevel.checkpoint()
        note_call(call(server))

    with working_for(calls):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, "llm")
            nursery.start_soon(work, "llm.backup")
        assert calls_at_work() is calls
    assert calls_at_work() is None
    assert sorted(one.server for one in told) == ["llm", "llm.backup"]
    assert sorted(one.server for one in calls.take()) == ["llm", "llm.backup"]
    assert calls.take() == []
    assert len({one.number for one in told}) == 2, "each call has a number of its own"


def test_outside_of_a_job_and_where_nobody_counts_nothing_is_kept() -> None:
    note_call(call())
    calls = JobCalls(7)
    calls.note(call())
    assert calls.take() == []
