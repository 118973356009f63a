from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import trio

from convo.analysis.analysts import AnalystsOfSets
from convo.analysis.analyze import Analyst, Analysts
from convo.analysis.job_calls import PaidCall, note_call
from convo.analysis.llm_usage import Tokens
from convo.conversation.model import Answered, Conversation, Finding
from convo.conversation.owed import DeclaredPart, owed_of
from convo.errors import RemoteError, RemoteGarbage, RemoteUnavailable
from convo.observe import tracing
from convo.observe.traced_waits import record_wait
from convo.observe.tracing import Recorder
from convo.pipeline.part_keeper import PartKeeper
from convo.pipeline.spending import Spending
from convo.runtime.deadline import wait_observers
from convo.settings import JobsSettings, Settings
from convo.store.jobs.part_jobs import PartJobs
from convo.store.owed_sets import OwedSets
from tests.support.making import Process, open_process, rows, shift_clock

OWED = owed_of([DeclaredPart(name=name, who="llm", version=f"p1:{name}") for name in ("one", "two")])
SETTINGS = Settings(jobs=JobsSettings(attempts_max=2, backoff_seconds=1.0, backoff_max_seconds=1.0))


class Asked:
    """Finds both parts, or fails with ``error``; notes what it was asked of."""

    def __init__(self) -> None:
        self.error: RemoteError | None = None
        self.said: list[str] = []

    def of(self, _owed: object) -> Analysts:
        return {name: Analyst(by=f"m/p1:{name}", find=self.find) for name in OWED.asked}

    def able(self) -> list[str]:
        return ["llm", ""]

    async def find(self, conversation: Conversation) -> Finding:
        self.said.append(conversation.turns[0].text)
        if self.error is not None:
            raise self.error
        return Answered(answer={"a": 1})


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    """One conversation that is done, and whose two parts are left to be found."""
    async with open_process(database) as process:
        process.owe(lambda _: OWED)
        await process.accepted("talk-1")
        await process.settler.settle(await process.leased())
        yield process


def keeper(process: Process, asked: Asked, **others: Any) -> PartKeeper:
    jobs = PartJobs(process.postgres, OwedSets())
    usual = {"read_log": process.log_store.take, "idle": lambda: True}
    return PartKeeper(jobs, SETTINGS, cast("AnalystsOfSets", asked), **{**usual, **others})


async def left(process: Process) -> list[tuple[Any, ...]]:
    return await rows(process.postgres, "SELECT state, attempts, made_by, error FROM part_job ORDER BY name")


async def test_what_was_left_is_found_once_from_the_stored_log(process: Process) -> None:
    asked = Asked()
    assert await keeper(process, asked).work()
    assert not await keeper(process, asked).work()
    assert asked.said == ["What is the capital of France?"] * 2
    assert await left(process) == [("done", 1, "m/p1:one", None), ("done", 1, "m/p1:two", None)]


async def test_what_is_found_later_is_part_of_the_trace_with_all_that_it_waited_for(process: Process) -> None:
    recorder = Recorder(sample=1.0, spans_max=100)
    with tracing.recording(recorder), wait_observers.adding(record_wait):
        request = tracing.begin_span("request", "server")
        assert request is not None
        traced = f"UPDATE conversation SET trace = '{request.context.stored}' RETURNING 1"
        await rows(process.postgres, f"WITH x AS ({traced}) SELECT count(*) FROM x")
        recorder.take(100)
        assert await keeper(process, Asked()).work()
    *within, job = recorder.take(100)
    assert (job.name, job.trace_id, job.parent_id) == ("part job", request.trace_id, request.span_id)
    # The first is the statement that took both parts, when it was not known yet whose they are.
    leased, *others = within
    assert (leased.name, leased.parent_id, leased.attributes["convo.batch_rows"]) == (
        *("db.part_jobs", request.span_id, 2),
    )
    names = [one.name for one in others if one.parent_id == job.span_id]
    assert names.count("db.part_jobs") == 2
    assert {"db.take", "analysis.decode", "analysis.job"} <= set(names)


async def test_an_outage_spends_no_attempt_and_a_failure_of_its_own_is_tried_so_often(process: Process) -> None:
    asked = Asked()
    asked.error = RemoteUnavailable("llm", "down")
    for minutes in range(1, 4):
        assert await keeper(process, asked).work()
        await shift_clock(process.postgres, f"{minutes} minutes")
    assert {(state, attempts) for state, attempts, _, _ in await left(process)} == {("waiting", 0)}
    asked.error = RemoteGarbage("llm", "it does not fit")
    for minutes in range(4, 6):
        assert await keeper(process, asked).work()
        await shift_clock(process.postgres, f"{minutes} minutes")
    assert not await keeper(process, asked).work()
    assert {one[:2] for one in await left(process)} == {("failed", 2)}
    assert {one[3] for one in await left(process)} == {"llm: it does not fit"}


async def test_an_outage_that_lasts_for_the_give_up_time_ends_the_parts_with_that_reason(process: Process) -> None:
    asked = Asked()
    asked.error = RemoteUnavailable("llm", "down")
    await shift_clock(process.postgres, "6 days")
    assert await keeper(process, asked).work()
    assert {one[0] for one in await left(process)} == {"waiting"}
    await shift_clock(process.postgres, "7 days 1 minute")
    assert await keeper(process, asked).work()
    found = await left(process)
    assert {one[:2] for one in found} == {("failed", 0)}
    assert found[0][3] == "given up: jobs.give_up_seconds = 604800 s after its conversation was done: llm: down"


async def test_a_part_that_no_process_takes_is_given_up(process: Process) -> None:
    await keeper(process, Asked()).give_up()
    assert {one[0] for one in await left(process)} == {"waiting"}
    await shift_clock(process.postgres, "7 days 1 minute")
    await keeper(process, Asked()).give_up()
    assert {(one[0], one[3]) for one in await left(process)} == {
        ("failed", "given up: no process has taken it for jobs.give_up_seconds = 604800 s")
    }
    assert not await keeper(process, Asked()).work()


async def test_a_log_that_is_gone_ends_the_parts_with_the_reason(process: Process) -> None:
    async def none(_seq: int) -> None:
        return None

    for minutes in range(1, 3):
        assert await keeper(process, Asked(), read_log=none).work()
        await shift_clock(process.postgres, f"{minutes} minutes")
    assert [(one[0], one[3]) for one in await left(process)] == [
        ("failed", "the log of this conversation is no longer stored")
    ] * 2


async def test_what_it_pays_for_is_counted_also_where_nothing_is_found(process: Process) -> None:
    class Paying(Asked):
        async def find(self, conversation: Conversation) -> Finding:
            note_call(PaidCall(server="llm", by="m/1", parts=("one",), tokens=Tokens(sent=7, answered=1), nano=500))
            return await super().find(conversation)

    asked = Paying()
    asked.error = RemoteGarbage("llm", "it does not fit")
    spending = Spending(process.postgres, None, 60.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(spending.run_group)
        assert await keeper(process, asked, spending=spending).work()
        nursery.cancel_scope.cancel()
    assert await rows(process.postgres, "SELECT part, nano FROM part_cost") == [("one", 500)] * 2
