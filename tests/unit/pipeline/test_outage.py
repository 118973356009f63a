"""Hours of an outage on the virtual clock: the real publisher, workers and dependencies on a job table in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

from convo.analysis.analyze import Analyst
from convo.conversation.model import Conversation, Finding
from convo.errors import RemoteBusy, RemoteError, RemoteGarbage, RemoteRefused, RemoteUnavailable
from convo.observe import metrics
from convo.pipeline.endings import Endings
from convo.pipeline.held import HeldLeases
from convo.pipeline.publisher import LEASED_AHEAD_MAX, Handed, Publisher
from convo.pipeline.worker import Worker
from convo.resilience.dependency import Dependency
from convo.runtime.bell import Bell
from convo.settings import LlmSettings, Settings
from convo.store import logs
from convo.store.jobs.part_writer import PartWriter
from tests.support.fake_jobs import FakeJobs, Row, Table
from tests.support.making import THREE, Unpaced, told

HOUR = 3600.0
SECONDS = 2.0
"""What the model takes for an answer."""


class Model:
    """A model that answers, or fails as ``ends`` says at each moment; it notes when it was asked."""

    def __init__(self) -> None:
        self.error: RemoteError | None = None
        self.stuck = False
        self.asked: list[tuple[float, str, str]] = []

    async def answer(self, part: str, conversation: Conversation) -> Finding:
        self.asked.append((trio.current_time(), conversation.conversation_id, part))
        if self.stuck:
            await trio.sleep_forever()
        error = self.error
        if error is not None:
            await trio.lowlevel.checkpoint()
            detail = error.detail.partition(": ")[2]
            raise type(error)("llm", detail, retry_after_seconds=error.retry_after_seconds)
        await trio.sleep(SECONDS)
        return THREE["questions"] if part == "questions" else THREE["emotion"]


async def take_log(_seq: int, _digest: str) -> bytes:
    """Return the log of a conversation in which nothing was said."""
    await trio.lowlevel.checkpoint()
    return logs.pack(b"[]")


class House:
    """One process behind its door."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.table = Table()
        self.jobs = FakeJobs(self.table, settings.jobs)
        self.model = Model()
        self.dependency = Dependency("llm", settings.llm, random=lambda: 0.0)
        self.bell = Bell()
        self.calls = 0

    def accept(self, count: int, users: int = 1) -> list[Row]:
        made = []
        for n in range(count):
            row = self.table.accept(f"talk-{len(self.table.rows) + 1:05}", f"user-{n % users:05}")
            made.append(row)
        self.bell.ring()
        return made

    def analysts(self) -> dict[str, Analyst]:
        async def find(part: str, conversation: Conversation) -> Finding:
            self.calls += 1
            return await self.dependency.call(f"llm.{part}", partial(self.model.answer, part, conversation))

        async def memories(_: Conversation) -> Finding:
            await trio.lowlevel.checkpoint()
            return THREE["memories"]

        return {
            "questions": Analyst(by="m/1", find=partial(find, "questions")),
            "emotion": Analyst(by="m/1", find=partial(find, "emotion")),
            "memories": Analyst(by="local/2", find=memories),
        }

    def rows(self) -> list[Row]:
        return list(self.table.rows.values())

    def states(self) -> set[tuple[str, int]]:
        return {(row.state, row.attempts) for row in self.rows()}


@asynccontextmanager
async def at_work(**llm: Any) -> AsyncIterator[House]:
    settings = msgspec.structs.replace(Settings(), llm=LlmSettings(model="m", **llm))
    house = House(settings)
    jobs = cast("Any", house.jobs)
    held = HeldLeases(jobs, settings.jobs)
    part_writer = PartWriter(jobs, settings.database.unit_seconds)
    endings = Endings(
        settings=settings,
        jobs=jobs,
        part_writer=part_writer,
        settler=jobs,
        held=held,
        dependencies={"llm": house.dependency},
        ended=lambda _: None,
    )
    worker = Worker(
        settings=settings,
        endings=endings,
        settle=endings.settle,
        take_log=take_log,
        analysts=lambda _: cast("Any", house.analysts()),
        bell=house.bell,
    )
    publisher = Publisher(jobs, settings.jobs, house.bell, [house.dependency], lambda _: None, held, Unpaced())
    send, receive = trio.open_memory_channel[Handed](LEASED_AHEAD_MAX)
    with told():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.beat)
            nursery.start_soon(part_writer.run)
            for _ in range(settings.jobs.workers):
                nursery.start_soon(worker.run, receive.clone())
            nursery.start_soon(publisher.run, send, receive)
            yield house
            nursery.cancel_scope.cancel()


def down() -> RemoteError:
    return RemoteUnavailable("llm", "answered 503")


@pytest.mark.parametrize("backlog", [1_000, pytest.param(10_000, marks=pytest.mark.long)])
async def test_a_model_that_answers_503_for_two_hours_costs_time_and_nothing_else(
    backlog: int, autojump_clock: MockClock
) -> None:
    async with at_work() as house:
        house.model.error = down()
        house.accept(backlog, users=100)
        await trio.sleep(600)
        # What does not need the model was done at once, and all of them wait.
        assert all("memories" in row.parts for row in house.rows())
        assert {(row.state, row.waits_for) for row in house.rows()} == {("ready", "llm")}
        versions = {row.seq: row.versions for row in house.rows()}
        asked = len(house.model.asked)
        await trio.sleep(2 * HOUR - 600)
        probes = house.model.asked[asked:]
        # At most one probe a period; and only a row that probed was written.
        times = [at for at, _, _ in probes]
        assert len(times) >= 90
        assert all(later - earlier >= 60 for earlier, later in pairwise(times))
        written = {row.conversation_id for row in house.rows() if row.versions != versions[row.seq]}
        assert written == {conversation_id for _, conversation_id, _ in probes}
        assert house.states() == {("ready", 0)}
        # It is back.
        house.model.error = None
        asked = len(house.model.asked)
        back = trio.current_time()
        while house.states() != {("done", 1)}:  # noqa: ASYNC110  (virtual time)
            await trio.sleep(10)
        # A period till the probe, then as fast as eight calls at a time go.
        assert trio.current_time() - back <= 62 + backlog * 2 * SECONDS / 8 + 20
        assert_in_order(house, [conversation_id for _, conversation_id, _ in house.model.asked[asked:]])
    assert sum(house.table.relationships.values()) == sum(row.score.value for row in house.rows() if row.score)


def assert_in_order(house: House, asked: list[str]) -> None:
    """Each user's conversations were asked about oldest first, and the users in rounds; the probe came first."""
    user = {row.conversation_id: row.user_id for row in house.rows()}
    first = list(dict.fromkeys(asked))[1:]
    places: dict[str, list[int]] = {}
    for place, conversation_id in enumerate(first):
        places.setdefault(user[conversation_id], []).append(place)
    for mine in places.values():
        names = [first[place] for place in mine]
        assert names == sorted(names)
        # A hundred users: one a round, give or take the eight at work side by side and the probe.
        assert all(92 <= later - earlier <= 108 for earlier, later in pairwise(mine))


async def test_a_model_that_hangs_for_two_hours_spends_no_attempt(autojump_clock: MockClock) -> None:
    async with at_work() as house:
        house.model.stuck = True
        house.accept(200, users=10)
        await trio.sleep(2 * HOUR)
        assert {attempts for _, attempts in house.states()} == {0}
        assert all("memories" in row.parts for row in house.rows())
        house.model.stuck = False
        await trio.sleep(300)
        assert house.states() == {("done", 1)}


async def test_a_model_that_asks_for_an_hour_is_left_alone_for_an_hour(autojump_clock: MockClock) -> None:
    async with at_work() as house:
        house.model.error = RemoteBusy("llm", "answered 429", retry_after_seconds=HOUR)
        house.accept(100)
        await trio.sleep(HOUR - 1)
        first = len(house.model.asked)
        assert max(at for at, _, _ in house.model.asked) < 1.0
        assert first <= 8
        house.model.error = None
        await trio.sleep(300)
        assert house.states() == {("done", 1)}


async def test_garbage_is_the_jobs_own_fault_and_buries_it_after_five_attempts(autojump_clock: MockClock) -> None:
    async with at_work() as house:
        house.model.error = RemoteGarbage("llm", "the answer does not fit")
        house.accept(1)
        await trio.sleep(HOUR)
        (row,) = house.rows()
        assert (row.state, row.attempts) == ("dead", 5)
        assert row.last_error in {f"{part}: llm: the answer does not fit" for part in ("questions", "emotion")}


async def test_new_conversations_are_taken_up_while_old_ones_wait(autojump_clock: MockClock) -> None:
    async with at_work() as house:
        house.model.error = down()
        house.accept(50)
        await trio.sleep(30)
        (late,) = house.accept(1)
        await trio.sleep(2)
        assert "memories" in late.parts
        assert late.waits_for == "llm"


async def test_a_brown_out_is_not_amplified(autojump_clock: MockClock) -> None:
    async with at_work(breaker_failures=1000, breaker_calls=1000, concurrency=100) as house:
        model, answer, made = house.model, house.model.answer, metrics.retries_total.labels("llm", "made")
        before = made.value

        async def one_in_two(part: str, conversation: Conversation) -> Finding:
            model.error = down() if len(model.asked) % 2 else None
            return await answer(part, conversation)

        house.model.answer = one_in_two  # type: ignore[method-assign]
        house.accept(150, users=10)
        await trio.sleep(50)
        retries = made.value - before
        # Some of those that were let through are still in their wait.
        assert 10 < len(model.asked) - house.calls <= retries <= 0.2 * house.calls
        await trio.sleep(HOUR)
        assert house.states() == {("done", 1)}


async def test_six_suspects_delay_the_others_by_one_of_them_at_a_time(autojump_clock: MockClock) -> None:
    async with at_work() as house:
        suspects = house.accept(6)
        for row in suspects:
            row.write(crashes=2)
        house.accept(200, users=20)
        await trio.sleep(HOUR)
        assert house.states() == {("done", 1)}
        first = {conversation_id: at for at, conversation_id, _ in reversed(house.model.asked)}
    alone = sorted(first[row.conversation_id] for row in suspects)
    others = sorted(at for name, at in first.items() if name not in {row.conversation_id for row in suspects})
    # Nothing starts while a suspect is at work, and what starts before it has ended by then.
    for at in alone:
        assert not [one for one in others if at - SECONDS < one < at + SECONDS]
    # Between two of them the others have at least as long, as long as some of them wait.
    for earlier, later in pairwise(alone):
        if later < others[-1]:
            assert later - earlier >= 2 * SECONDS
            assert [one for one in others if earlier < one < later]
    assert max(later - earlier for earlier, later in pairwise(others)) <= 2 * SECONDS


# --- what fails for all alike


async def test_a_server_that_refuses_every_job_buries_none_and_costs_no_attempt(autojump_clock: MockClock) -> None:
    async with at_work() as house:
        house.model.error = RemoteRefused("llm", "answered 400 (unsupported_value)")
        house.accept(500, users=20)
        await trio.sleep(HOUR)
        assert house.states() == {("ready", 0)}
        assert {row.waits_for for row in house.rows()} == {"llm"}
        house.model.error = None
        await trio.sleep(600)
        assert house.states() == {("done", 1)}


async def test_ten_poisonous_jobs_in_a_row_delay_the_others_and_are_buried(autojump_clock: MockClock) -> None:
    async with at_work() as house:
        model, answer = house.model, house.model.answer
        poison = {row.conversation_id for row in house.accept(25)}

        async def choosy(part: str, conversation: Conversation) -> Finding:
            if conversation.conversation_id in poison:
                await trio.lowlevel.checkpoint()
                raise RemoteRefused("llm", "answered 400")
            return await answer(part, conversation)

        model.answer = choosy  # type: ignore[method-assign]
        await trio.sleep(300)
        assert {(row.state, row.attempts) for row in house.rows()} == {("ready", 0)}
        for _ in range(24):
            house.accept(10, users=5)
            await trio.sleep(600)
        others = {(row.state, row.attempts) for row in house.rows() if row.conversation_id not in poison}
        assert others == {("done", 1)}
        assert {row.state for row in house.rows() if row.conversation_id in poison} == {"dead"}


async def test_fewer_than_ten_that_died_of_a_fault_live_again_when_it_shows(autojump_clock: MockClock) -> None:
    async with at_work() as house:
        house.model.error = RemoteRefused("llm", "answered 400")
        house.accept(3)
        await trio.sleep(HOUR)
        assert {row.state for row in house.rows()} == {"dead"}
        house.accept(7)
        await trio.sleep(60)
        assert house.states() == {("ready", 0)}


# --- what fails while the dependency is out


async def test_a_server_that_refuses_a_few_jobs_after_an_outage_costs_no_attempt(autojump_clock: MockClock) -> None:
    async with at_work() as house:
        house.model.error = down()
        house.accept(6, users=6)
        await trio.sleep(70)
        assert not house.dependency.flows()
        house.model.error = RemoteRefused("llm", "answered 400")
        await trio.sleep(HOUR)
        assert house.states() == {("ready", 0)}
        house.model.error = None
        await trio.sleep(600)
        assert house.states() == {("done", 1)}


async def test_one_job_that_is_refused_between_two_outages_spends_no_attempt(autojump_clock: MockClock) -> None:
    async with at_work() as house:
        house.model.error = down()
        (row,) = house.accept(1)
        await trio.sleep(70)
        house.model.error = RemoteRefused("llm", "answered 400")
        while not row.attempts:  # noqa: ASYNC110  (virtual time)
            await trio.sleep(1)
        house.model.error = down()
        await trio.sleep(HOUR)
        assert house.states() == {("ready", 0)}


async def test_a_poisonous_job_that_is_alone_after_an_outage_is_buried_all_the_same(autojump_clock: MockClock) -> None:
    async with at_work() as house:
        house.model.error = down()
        house.accept(1)
        await trio.sleep(70)
        house.model.error = RemoteRefused("llm", "answered 400")
        await trio.sleep(HOUR)
        assert house.states() == {("dead", 5)}
