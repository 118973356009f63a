from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
from msgspec import Struct

from convo.analysis.analyze import Analyst
from convo.analysis.job_calls import PaidCall, note_call
from convo.analysis.llm_usage import Tokens
from convo.conversation.model import Conversation, Finding, Mood
from convo.conversation.owed import DEFAULT_OWED, version_of
from convo.conversation.tenant import DEFAULT, Tenant
from convo.errors import RemoteError, RemoteUnavailable
from convo.pipeline.spending import Spending
from convo.reanalysis import Reanalysis
from convo.settings import JobsSettings, Settings
from convo.store.costs import ComparedCost, read_rerun_costs
from convo.store.jobs.reruns import Rerun, RerunOrder, Reruns
from convo.store.owed_sets import OwedSets
from tests.support.making import Process, ask, open_process, rows, settled

QUICK = Settings(
    jobs=JobsSettings(
        lease_seconds=3.0, heartbeat_seconds=0.2, backoff_seconds=0.05, backoff_max_seconds=0.1, attempts_max=2
    )
)
Find = Callable[[Conversation], Awaitable[Finding]]


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as found:
        yield found


class Asked:
    """An analyst that finds everybody sad, and counts for whom it was asked."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.gate = trio.Event()
        self.gate.set()
        self.error: RemoteError | None = None

    async def find(self, conversation: Conversation) -> Finding:
        self.asked[conversation.conversation_id] += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Mood(emotion="sad")

    @property
    def analyst(self) -> Analyst:
        return Analyst(by="test/2", find=self.find)


async def work_of(
    process: Process, analyst: Analyst, spending: Spending | None = None
) -> tuple[Reanalysis, Reruns, Rerun]:
    reruns = Reruns(process.postgres, OwedSets())
    order = RerunOrder(part="emotion", version=version_of("emotion", "test/2"), owed=DEFAULT_OWED)
    rerun, _ = await reruns.begin(order)
    return Reanalysis(QUICK, reruns, rerun, analyst, process.log_store.take, spending), reruns, rerun


async def analysed(process: Process, count: int) -> list[str]:
    names = [f"talk-{n}" for n in range(count)]
    await process.accepted(*names)
    await settled(process, count)
    return names


async def counts(reruns: Reruns) -> dict[str, Any]:
    found = await reruns.read("emotion")
    assert found is not None
    return {"state": found.state, **found.counts}


async def test_each_conversation_is_asked_for_once_and_the_re_run_ends(process: Process) -> None:
    names, asked = await analysed(process, 10), Asked()
    work, reruns, _ = await work_of(process, asked.analyst)
    with trio.fail_after(20):
        await work.run(4)
    assert asked.asked == dict.fromkeys(names, 1)
    assert await counts(reruns) == {"state": "ended", "done": 10}
    assert (work.tally.found, work.tally.failed) == (10, 0)
    assert {row[0] for row in await rows(process.postgres, "SELECT made_by FROM candidate")} == {"test/2"}


async def test_what_is_under_way_when_the_command_ends_is_given_back(process: Process) -> None:
    await analysed(process, 3)
    asked = Asked()
    asked.gate = trio.Event()
    work, reruns, rerun = await work_of(process, asked.analyst)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.run, 2)
        with trio.fail_after(10):
            while sum(asked.asked.values()) < 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert len((await reruns.take(rerun, 10, 30)).taken) == 3


async def test_a_long_answer_is_waited_for_beyond_the_length_of_a_lease(process: Process) -> None:
    await analysed(process, 1)
    asked = Asked()
    asked.gate = trio.Event()
    work, reruns, rerun = await work_of(process, asked.analyst)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.run, 1)
        await trio.sleep(3.5)
        assert not (await reruns.take(rerun, 10, 30)).taken
        asked.gate.set()
    assert await counts(reruns) == {"state": "ended", "done": 1}


async def test_work_that_another_process_has_taken_is_stopped(process: Process) -> None:
    await analysed(process, 1)
    asked = Asked()
    asked.gate = trio.Event()
    work, reruns, _ = await work_of(process, asked.analyst)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.run, 1)
        with trio.fail_after(10):
            while not asked.asked:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await ask(
            process.postgres, "UPDATE candidate SET token = token + 1, state = 'done', result = '{}', made_by = 'x'"
        )
        with trio.fail_after(5):
            while (await counts(reruns))["state"] != "ended":  # noqa: ASYNC110
                await trio.sleep(0.05)
    assert work.tally.found == 0


async def test_an_outage_spends_no_attempt_and_what_is_wrong_fails_at_last(process: Process) -> None:
    await analysed(process, 1)
    asked = Asked()
    asked.error = RemoteUnavailable("llm", "out")
    work, reruns, _ = await work_of(process, asked.analyst)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.run, 1)
        with trio.fail_after(20):
            while sum(asked.asked.values()) < 4:  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert await ask(process.postgres, "SELECT attempts FROM candidate") == 0
            asked.error = None
    assert await counts(reruns) == {"state": "ended", "done": 1}


async def test_a_paused_re_run_ends_the_work_of_every_process(process: Process) -> None:
    await analysed(process, 6)
    asked = Asked()
    asked.gate = trio.Event()
    work, reruns, _ = await work_of(process, asked.analyst)
    other, _, _ = await work_of(process, asked.analyst)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work.run, 1)
            nursery.start_soon(other.run, 1)
            while len(asked.asked) < 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
            await reruns.pause("emotion")
            asked.gate.set()
    found = await counts(reruns)
    assert found["state"] == "paused"
    assert found["done"] < 6
    again, _, _ = await work_of(process, asked.analyst)
    with trio.fail_after(20):
        await again.run(2)
    assert await counts(reruns) == {"state": "ended", "done": 6}
    assert set(asked.asked.values()) == {1}


class Paid(Struct, frozen=True, kw_only=True):
    """A conversation for which somebody has paid."""

    seq: int
    tenant: Tenant
    bot_id: str


def call(nano: int) -> PaidCall:
    return PaidCall(server="llm", by="m/1", parts=("emotion",), tokens=Tokens(sent=10, answered=2), nano=nano)


async def test_what_a_re_run_pays_for_is_counted_and_stands_beside_what_was_paid_before(process: Process) -> None:
    await analysed(process, 2)
    seq = await ask(process.postgres, "SELECT min(seq) FROM conversation")
    spending = Spending(process.postgres, None, 60.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(spending.run_group)
        calls = spending.calls_of(Paid(seq=seq, tenant=DEFAULT, bot_id="bot-1"))
        calls.note(call(500))
        await spending.store(calls)
        asked = Asked()

        async def at_the_second_time(conversation: Conversation) -> Finding:
            note_call(call(7_000))
            if not asked.asked[conversation.conversation_id]:
                asked.asked[conversation.conversation_id] += 1
                raise RemoteUnavailable("llm", "it is out")
            return await asked.find(conversation)

        work, _, rerun = await work_of(process, Analyst(by="test/2", find=at_the_second_time), spending)
        with trio.fail_after(20):
            await work.run(2)
        before, again = await read_rerun_costs(process.postgres, rerun.number)
        nursery.cancel_scope.cancel()
    nothing = {"unknown_calls": 0, "unpriced_calls": 0}
    assert before == ComparedCost(calls=1, tokens_in=10, tokens_out=2, cost=0.000_000_5, **nothing)
    assert again == ComparedCost(calls=4, tokens_in=40, tokens_out=8, cost=0.000_028, **nothing)
