"""Hours of an outage on the virtual clock: the real publisher, workers and dependencies on a job table in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any, cast

import msgspec
import trio
from trio.testing import MockClock

from convo.analysis.analyze import Analyst
from convo.bell import Bell
from convo.config import LlmSettings, Settings
from convo.conversation import transcript
from convo.conversation.model import Conversation, Finding
from convo.errors import RemoteBusy, RemoteError, RemoteGarbage, RemoteUnavailable
from convo.observe import metrics
from convo.pipeline.held import Held
from convo.pipeline.publisher import Handed, Publisher
from convo.pipeline.worker import Worker
from convo.resilience.dependency import Dependency
from convo.store import logs
from convo.store.logs import Handover
from convo.store.shelf import Shelf
from tests.fake_jobs import FakeJobs, Row, Table
from tests.making import THREE, told

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
            raise error
        await trio.sleep(SECONDS)
        return THREE["questions"] if part == "questions" else THREE["emotion"]


class LogStore:
    """A database of which nothing is asked but a job's log."""

    def __init__(self) -> None:
        self.log = logs.pack(transcript.encode_log(()))

    async def run(self, name: str, body: object) -> bytes:
        await trio.lowlevel.checkpoint()
        assert name == "db.log"
        return self.log


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
        self.logs = LogStore()

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
            "memories": Analyst(by="local/1", find=memories),
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
    held = Held(jobs, settings.jobs)
    shelf = Shelf(jobs, settings.database.unit_seconds)
    worker = Worker(
        settings=settings,
        postgres=cast("Any", house.logs),
        jobs=jobs,
        shelf=shelf,
        settler=jobs,
        handover=Handover(1),
        held=held,
        analysts=cast("Any", house.analysts()),
        dependencies={"llm": house.dependency},
        bell=house.bell,
        ended=lambda _: None,
    )
    publisher = Publisher(jobs, settings.jobs, house.bell, [house.dependency], lambda _: None)
    send, receive = trio.open_memory_channel[Handed](0)
    with told():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.beat)
            nursery.start_soon(shelf.run)
            for _ in range(settings.jobs.workers):
                nursery.start_soon(worker.run, receive.clone())
            nursery.start_soon(publisher.run, send)
            yield house
            nursery.cancel_scope.cancel()


def down() -> RemoteError:
    return RemoteUnavailable("llm", "answered 503")


async def test_a_model_that_answers_503_for_two_hours_costs_time_and_nothing_else(autojump_clock: MockClock) -> None:
    async with at_work() as house:
        house.model.error = down()
        house.accept(10_000, users=100)
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
        assert trio.current_time() - back <= 62 + 10_000 * 2 * SECONDS / 8 + 20
        assert_in_order(house, [conversation_id for _, conversation_id, _ in house.model.asked[asked:]])
    assert sum(house.table.relationships.values()) == sum(row.score.value for row in house.rows() if row.score)


def assert_in_order(house: House, asked: list[str]) -> None:
    """Each user's conversations were asked about oldest first, and the users by turns; the probe went before all."""
    user = {row.conversation_id: row.user_id for row in house.rows()}
    first = list(dict.fromkeys(asked))[1:]
    turns: dict[str, list[int]] = {}
    for turn, conversation_id in enumerate(first):
        turns.setdefault(user[conversation_id], []).append(turn)
    for mine in turns.values():
        names = [first[turn] for turn in mine]
        assert names == sorted(names)
        # A hundred users: a turn each, give or take the eight at work side by side and the probe.
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
