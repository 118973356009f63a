from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from convo.analysis.analyze import Analyst
from convo.conversation.model import Conversation, Finding, PartName
from convo.errors import DatabaseUnavailable, RemoteDenied, RemotePending, RemoteRefused, RemoteUnavailable
from convo.observe import metrics
from convo.resilience.dependency import Dependency
from convo.runtime.deadline import deadline
from convo.settings import AnalysisSettings, JobsSettings, LlmSettings, Settings
from convo.store.logs import RecentLogs
from convo.store.postgres import DURABLE, Connection
from tests.support.making import (
    THREE,
    Asked,
    Process,
    Stuck,
    accept,
    ask,
    at_work,
    failing,
    instant,
    open_process,
    rows,
    told,
)
from tests.support.stored_parts import stored_parts

QUICK = Settings(jobs=JobsSettings(poll_seconds=0.05, backoff_seconds=0.01, backoff_max_seconds=0.01))
RELATIONSHIP = "SELECT score, conversations FROM relationship"


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database, QUICK) as opened:
        yield opened


async def parts(process: Process) -> list[tuple[str, str, str]]:
    """Read the parts of the one conversation, by their names."""
    found = await stored_parts(process.postgres)
    return [(part.name, part.state, part.made_by) for of_one in found.values() for part in of_one]


def with_jobs(**jobs: Any) -> Settings:
    return msgspec.structs.replace(QUICK, jobs=msgspec.structs.replace(QUICK.jobs, **jobs))


@pytest.fixture
async def patient(database: str) -> AsyncIterator[Process]:
    """A process whose failed, parked and released jobs come back when a test says so (``due``), not before."""
    async with open_process(database, with_jobs(backoff_seconds=60.0, backoff_max_seconds=60.0)) as opened:
        yield opened


async def due(process: Process) -> None:
    """Make every job due that waits for its time."""
    await ask(process.postgres, "WITH due AS (UPDATE job SET delayed = false WHERE delayed RETURNING 1) SELECT 1")
    process.bell.ring()


async def until(process: Process, state: str, attempts: int, conversation_id: str = "talk-1") -> None:
    """Wait until a job stands so."""
    with trio.fail_after(10):
        while await process.state(conversation_id) != (state, attempts):  # noqa: ASYNC110  (the table tells nobody)
            await trio.sleep(0.02)


class Units:
    """The units of work of a process, by name; ``fault`` may make one fail."""

    def __init__(self, process: Process) -> None:
        self.names: list[str] = []
        self.fault: dict[str, Exception] = {}
        self._run = process.postgres.run

    async def run(self, name: str, body: Callable[[Connection], Awaitable[object]], *, begin: str = DURABLE) -> object:
        self.names.append(name)
        fault = self.fault.get(name)
        if fault is not None:
            await trio.lowlevel.checkpoint()
            raise fault
        return await self._run(name, body, begin=begin)


@pytest.fixture
def units(process: Process, monkeypatch: pytest.MonkeyPatch) -> Units:
    watched = Units(process)
    monkeypatch.setattr(process.postgres, "run", watched.run)
    return watched


# --- settle


async def test_a_job_whose_parts_are_all_found_is_settled(process: Process) -> None:
    before = metrics.jobs_ended_total.labels("settle").value
    async with at_work(process, instant()):
        await process.accepted("talk-1")
        await until(process, "done", 1)
    assert await parts(process) == [
        ("emotion", "done", "instant-emotion/1"),
        ("memories", "done", "instant-memories/1"),
        ("questions", "done", "instant-questions/1"),
    ]
    assert await rows(process.postgres, RELATIONSHIP) == [(9, 1)]
    assert process.ended == [1]
    assert len(process.held) == 0
    assert metrics.jobs_ended_total.labels("settle").value == before + 1


async def test_a_worker_that_takes_a_job_at_once_does_not_read_its_log_back(process: Process, units: Units) -> None:
    async with at_work(process, instant()):
        await process.accepted("talk-1")
        await until(process, "done", 1)
    assert "db.log" not in units.names


async def test_the_analysts_read_the_conversation_as_it_was_sent(process: Process, database: str) -> None:
    read: list[Conversation] = []

    async def find(conversation: Conversation) -> Finding:
        await trio.lowlevel.checkpoint()
        read.append(conversation)
        return THREE["emotion"]

    sent = accept("talk-1", start_time="2026-11-22T07:00:00Z", end_time="2026-11-22T07:01:00Z")
    await process.committer.accept(sent)
    analysts = {**instant(), "emotion": Analyst(by="reading/1", find=find)}
    # Another process: it has no log handed over, and reads it.
    async with open_process(database, QUICK) as other, at_work(other, analysts):
        await until(other, "done", 1)
    (conversation,) = read
    assert (conversation.conversation_id, conversation.digest) == ("talk-1", sent.digest)
    assert [(turn.speaker, turn.at.isoformat()) for turn in conversation.turns] == [
        ("user", "2026-11-22T07:00:00+00:00"),
        ("bot", "2026-11-22T07:00:30+00:00"),
        ("user", "2026-11-22T07:01:00+00:00"),
    ]


async def test_workers_of_several_processes_share_the_jobs_and_do_each_once(process: Process, database: str) -> None:
    asked = Asked()
    await process.accepted(*(f"talk-{n}" for n in range(40)))
    async with (
        open_process(database, QUICK, "there/two") as other,
        at_work(process, instant(asked), workers=3),
        at_work(other, instant(asked), workers=3),
    ):
        with trio.fail_after(20):
            while len(process.ended) + len(other.ended) < 40:  # noqa: ASYNC110  (two processes: no common bell)
                await trio.sleep(0.02)
    assert asked == Asked(questions=40, emotion=40, memories=40)
    assert sorted(process.ended + other.ended) == list(range(1, 41))
    assert await rows(process.postgres, RELATIONSHIP) == [(9 + 39 * 4, 40)]


# --- fail


async def test_a_part_that_fails_spends_an_attempt_and_only_it_is_done_again(patient: Process) -> None:
    process = patient
    asked, refused = Asked(), RemoteRefused("llm", "401")
    with told() as events:
        async with at_work(process, {**instant(asked), "emotion": failing(refused)}):
            await process.accepted("talk-1")
            await until(process, "ready", 1)
    assert {"part_failed", "job_failed"} <= set(events)
    assert await ask(process.postgres, "SELECT last_error FROM job") == "emotion: llm: 401"
    assert await parts(process) == [
        ("emotion", "failed", "failing/1"),
        ("memories", "done", "instant-memories/1"),
        ("questions", "done", "instant-questions/1"),
    ]
    await due(process)
    async with at_work(process, instant(asked)):
        await until(process, "done", 2)
    assert asked == Asked(questions=1, emotion=1, memories=1)
    assert await rows(process.postgres, RELATIONSHIP) == [(9, 1)]


async def test_the_last_attempt_makes_a_dead_letter_and_whoever_waits_is_told(process: Process) -> None:
    with told() as events:
        async with at_work(process, {**instant(), "emotion": failing(RemoteRefused("llm", "401"))}):
            await process.accepted("talk-1")
            await until(process, "dead", 5)
    assert events.count("job_failed") == 4
    assert events.count("job_buried") == 1
    assert process.ended == [1]
    assert await rows(process.postgres, RELATIONSHIP) == []


async def test_a_bug_in_an_analyst_is_that_jobs_failure_and_no_one_elses(process: Process) -> None:
    class Buggy:
        seen = 0

        async def find(self, conversation: Conversation) -> Finding:
            await trio.lowlevel.checkpoint()
            self.seen += 1
            if conversation.conversation_id == "talk-1":
                raise KeyError("bug")
            return THREE["emotion"]

    with told() as events:
        async with at_work(process, {**instant(), "emotion": Analyst(by="buggy/1", find=Buggy().find)}):
            await process.accepted("talk-1", "talk-2")
            await until(process, "dead", 5)
            await until(process, "done", 1, "talk-2")
    assert events.count("job_crashed") == 5
    assert await ask(process.postgres, "SELECT last_error FROM job WHERE state = 'dead'") == "a bug in convo: KeyError"


async def test_an_analysis_over_its_deadline_is_cancelled_and_spends_an_attempt(patient: Process) -> None:
    process = patient
    stuck = Stuck(THREE["emotion"])
    process.settings = msgspec.structs.replace(process.settings, analysis=AnalysisSettings(job_seconds=0.2))
    async with at_work(process, {**instant(), "emotion": stuck.analyst}):
        await process.accepted("talk-1")
        await until(process, "ready", 1)
        stuck.let_go.set()
        await due(process)
        await until(process, "done", 2)
    assert stuck.cancelled


async def test_a_log_that_is_missing_or_broken_is_a_failure_with_its_reason(process: Process, database: str) -> None:
    await process.accepted("talk-1", "talk-2")
    await ask(process.postgres, "WITH gone AS (DELETE FROM conversation_log WHERE seq = 1) SELECT 1")
    await ask(process.postgres, "WITH broken AS (UPDATE conversation_log SET body = 'no zstd') SELECT 1")
    await ask(process.postgres, "WITH old AS (UPDATE conversation SET log_hash = NULL) SELECT 1")
    async with open_process(database, QUICK) as other, at_work(other, instant()):
        await until(other, "dead", 5)
        await until(other, "dead", 5, "talk-2")
    reasons = [reason for (reason,) in await rows(process.postgres, "SELECT last_error FROM job ORDER BY seq")]
    assert reasons == ["the log of this conversation is missing", "a bug in convo: ZstdError"]


async def test_a_finding_that_the_database_refuses_is_a_failure(process: Process) -> None:
    bad = {**THREE, "questions": msgspec.convert({"questions": ["a\0b"]}, type(THREE["questions"]))}
    async with at_work(process, instant(parts=bad)):
        await process.accepted("talk-1")
        await until(process, "dead", 5)
    assert "SQLSTATE 22P05" in await ask(process.postgres, "SELECT last_error FROM job")


# --- park


def down(dependency: str = "llm") -> Analyst:
    return failing(RemoteUnavailable(dependency, "answered 503"))


async def until_parked(process: Process) -> None:
    parked = "SELECT state = 'ready' AND parked_since IS NOT NULL FROM job"
    with trio.fail_after(10):
        while not await ask(process.postgres, parked):  # noqa: ASYNC110  (the table tells nobody)
            await trio.sleep(0.01)


PARKED = "SELECT state, attempts, waits_for, parked_since IS NOT NULL, last_error FROM job"


async def test_an_outage_parks_the_job_spends_nothing_and_keeps_what_was_found(patient: Process) -> None:
    process = patient
    asked = Asked()
    with told() as events:
        async with at_work(process, {**instant(asked), "emotion": down()}):
            await process.accepted("talk-1")
            await until_parked(process)
    assert await rows(process.postgres, PARKED) == [("ready", 0, "llm", True, "emotion: llm: answered 503")]
    assert [part[:2] for part in await parts(process)] == [("memories", "done"), ("questions", "done")]
    assert "job_parked" in events
    assert "job_failed" not in events
    await due(process)
    async with at_work(process, instant(asked)):
        await until(process, "done", 1)
    # What did not need the model was done once, at once.
    assert asked == Asked(questions=1, emotion=1, memories=1)
    assert await rows(process.postgres, "SELECT waits_for, parked_since FROM every_job") == [("", None)]


async def test_a_failure_of_its_own_beside_an_outage_spends_an_attempt(patient: Process) -> None:
    process = patient
    parts = {**instant(), "emotion": down(), "questions": failing(RemoteRefused("llm", "answered 422"))}
    async with at_work(process, parts):
        await process.accepted("talk-1")
        await until(process, "ready", 1)
    assert await ask(process.postgres, "SELECT last_error FROM job") == "questions: llm: answered 422"


async def test_while_its_dependency_is_out_a_parked_job_is_not_touched(process: Process) -> None:
    dependency = Dependency("llm", LlmSettings(breaker_failures=1, breaker_open_seconds=3600.0))

    async def find(_: Conversation) -> Finding:
        return await dependency.call("llm.emotion", refuse)

    async def refuse() -> Finding:
        await trio.lowlevel.checkpoint()
        raise RemoteDenied("llm", "answered 401")

    process.dependencies["llm"] = dependency
    versions = "SELECT xmin::text, ctid::text FROM job ORDER BY seq"
    async with at_work(process, {**instant(), "emotion": Analyst(by="m/1", find=find)}, workers=3):
        await process.accepted("talk-1", "talk-2", "talk-3")
        with trio.fail_after(10):
            while await ask(process.postgres, "SELECT count(*) FROM job WHERE waits_for = 'llm'") < 3:  # noqa: ASYNC110
                await trio.sleep(0.01)
        before = await rows(process.postgres, versions)
        await trio.sleep(0.5)
        assert await rows(process.postgres, versions) == before
    assert not dependency.flows()


async def test_questions_found_while_memories_fail_are_a_result_at_once_and_final_without_asking_again(
    patient: Process,
) -> None:
    process = patient
    asked = Asked()
    async with at_work(process, {**instant(asked), "memories": down("memory")}):
        await process.accepted("talk-1")
        await until_parked(process)
    assert await ask(process.postgres, "SELECT count(*) FROM part WHERE state = 'done'") == 2
    assert await rows(process.postgres, RELATIONSHIP) == []
    await due(process)
    async with at_work(process, instant(asked)):
        await until(process, "done", 1)
    assert asked == Asked(questions=1, emotion=1, memories=1)
    assert await rows(process.postgres, RELATIONSHIP) == [(9, 1)]


# --- release


async def test_a_stop_gives_the_job_and_its_attempt_back_and_keeps_what_was_found(process: Process) -> None:
    stuck = Stuck(THREE["emotion"])
    with told() as events:
        async with at_work(process, {**instant(), "emotion": stuck.analyst}) as scope:
            await process.accepted("talk-1")
            await stuck.asked.wait()
            with trio.fail_after(5):
                while await ask(process.postgres, "SELECT count(*) FROM part") < 2:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            scope.cancel()
    assert stuck.cancelled
    assert await process.state() == ("ready", 0)
    assert [part[:2] for part in await parts(process)] == [("memories", "done"), ("questions", "done")]
    assert "job_released" in events


async def test_a_stop_while_the_log_is_read_gives_the_attempt_back(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = trio.Event()

    async def read(_seq: int, _digest: str) -> None:
        reading.set()
        await trio.sleep_forever()

    monkeypatch.setattr(process.recent_logs, "take", read)
    await process.accepted("talk-1")
    async with at_work(process, instant()) as working:
        await reading.wait()
        working.cancel()
    assert await process.state() == ("ready", 0)


async def test_a_stop_with_every_part_under_way_gives_the_job_back(process: Process) -> None:
    parts = {name: Stuck(finding) for name, finding in THREE.items()}
    async with at_work(process, {name: part.analyst for name, part in parts.items()}) as scope:
        await process.accepted("talk-1")
        for part in parts.values():
            await part.asked.wait()
        scope.cancel()
    assert await process.state() == ("ready", 0)


async def test_a_bug_that_shows_while_we_stop_does_not_end_the_process(process: Process) -> None:
    asked = trio.Event()

    async def find(_: Conversation) -> Finding:
        asked.set()
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("bug")

    with told() as events:
        async with at_work(process, {**instant(), "emotion": Analyst(by="buggy/1", find=find)}) as scope:
            await process.accepted("talk-1")
            await asked.wait()
            scope.cancel()
    assert "job_crashed" in events
    assert await process.state() == ("ready", 0)


async def test_the_end_of_the_feed_lets_started_work_finish(process: Process) -> None:
    stuck = Stuck(THREE["emotion"])
    async with trio.open_nursery() as nursery:

        async def let_go_later() -> None:
            await stuck.asked.wait()
            await trio.sleep(0.1)
            stuck.let_go.set()

        nursery.start_soon(let_go_later)
        async with at_work(process, {**instant(), "emotion": stuck.analyst}):
            await process.accepted("talk-1", "talk-2")
            await stuck.asked.wait()
    assert await process.state("talk-1") == ("done", 1)
    assert await process.state("talk-2") == ("ready", 0)


async def test_while_nothing_can_be_stored_no_attempt_is_spent_and_no_analyst_is_asked_again(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked()
    async with open_process(database, with_jobs(heartbeat_seconds=0.05)) as process:
        units = Units(process)
        monkeypatch.setattr(process.postgres, "run", units.run)
        units.fault |= dict.fromkeys(("db.settle", "db.part", "db.release"), DatabaseUnavailable("away"))
        with told():
            async with trio.open_nursery() as nursery, at_work(process, instant(asked)):
                nursery.start_soon(process.held.beat)
                await process.accepted("talk-1")
                with trio.fail_after(10):
                    while units.names.count("db.part") < 3:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                assert await process.state() == ("leased", 0)
                units.fault.clear()
                await until(process, "done", 1)
                nursery.cancel_scope.cancel()
    assert asked == Asked(questions=1, emotion=1, memories=1)


async def test_a_part_that_was_paid_for_is_stored_before_a_slow_one_is_found(process: Process) -> None:
    stuck, asked = Stuck(THREE["emotion"]), Asked()
    async with at_work(process, {**instant(asked), "emotion": stuck.analyst}):
        await process.accepted("talk-1")
        with trio.fail_after(10):
            while len(await rows(process.postgres, "SELECT name FROM part")) < 2:  # noqa: ASYNC110
                await trio.sleep(0.01)
        stored = await rows(process.postgres, "SELECT name FROM part ORDER BY name")
        assert stored == [("memories",), ("questions",)]
        stuck.let_go.set()
        await until(process, "done", 1)
    assert await rows(process.postgres, RELATIONSHIP) == [(9, 1)]


async def test_parts_that_are_found_at_once_are_stored_with_the_settle_and_by_no_other_unit(
    process: Process, units: Units
) -> None:
    async with at_work(process, instant()):
        await process.accepted("talk-1")
        await until(process, "done", 1)
    assert "db.part" not in units.names
    assert "db.take" not in units.names


@pytest.mark.parametrize("ending", ["db.settle", "db.release"])
async def test_an_ending_that_cannot_be_stored_is_left_to_the_end_of_the_lease(
    database: str, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    async with open_process(database, with_jobs(lease_seconds=1.0, heartbeat_seconds=0.2)) as process:
        units = Units(process)
        monkeypatch.setattr(process.postgres, "run", units.run)
        units.fault[ending] = DatabaseUnavailable("away")
        if ending == "db.release":
            process.recent_logs = RecentLogs(process.log_store.take, 0)
            units.fault["db.take"] = DatabaseUnavailable("away")
        with told() as events:
            async with at_work(process, instant()):
                await process.accepted("talk-1")
                with trio.fail_after(10):
                    while ending not in units.names:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                assert await process.state() == ("leased", 0)
                units.fault.clear()
                await until(process, "done", 1)
        assert {"ending_failed", "lease_rescued"} <= set(events)
        assert await rows(process.postgres, RELATIONSHIP) == [(9, 1)]


# --- the lease


async def test_a_lease_that_is_lost_cancels_the_work_and_nothing_is_stored(process: Process, database: str) -> None:
    process.held._settings = with_jobs(heartbeat_seconds=0.1).jobs
    stuck = Stuck(THREE["emotion"])
    async with (
        open_process(database, QUICK, "there/two") as other,
        trio.open_nursery() as nursery,
        at_work(process, {"emotion": stuck.analyst}),
    ):
        await process.accepted("talk-1")
        await stuck.asked.wait()
        await ask(process.postgres, "UPDATE job SET leased_until = convo_now() - interval '1 second'")
        await other.jobs.rescue()
        theirs = await other.leased()
        await nursery.start(process.held.beat)
        with trio.fail_after(5):
            while not stuck.cancelled:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert await rows(process.postgres, "SELECT leased_by, lease_token FROM job") == [("there/two", theirs.token)]
        assert await parts(process) == []
        await other.settler.settle(await other.analysed(theirs))
        nursery.cancel_scope.cancel()
    assert await rows(process.postgres, RELATIONSHIP) == [(9, 1)]


async def test_a_late_worker_that_notices_nothing_stores_nothing(process: Process, database: str) -> None:
    stuck = Stuck(THREE["emotion"])
    with told() as events:
        async with open_process(database, QUICK, "there/two") as other, at_work(process, {"emotion": stuck.analyst}):
            await process.accepted("talk-1")
            await stuck.asked.wait()
            await ask(process.postgres, "UPDATE job SET leased_until = convo_now() - interval '1 second'")
            await other.jobs.rescue()
            theirs = await other.leased()
            stuck.let_go.set()
            with trio.fail_after(5):
                while len(process.held):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert await parts(process) == []
            await other.settler.settle(await other.analysed(theirs))
    assert "lease_lost" in events
    assert await rows(process.postgres, RELATIONSHIP) == [(9, 1)]


async def test_the_heartbeat_keeps_a_long_job_from_being_rescued(process: Process) -> None:
    process.held._settings = with_jobs(heartbeat_seconds=0.1).jobs
    stuck = Stuck(THREE["emotion"])
    until_when = "SELECT leased_until FROM job"
    async with trio.open_nursery() as nursery, at_work(process, {**instant(), "emotion": stuck.analyst}):
        await nursery.start(process.held.beat)
        await process.accepted("talk-1")
        await stuck.asked.wait()
        for _ in range(2):
            before = await ask(process.postgres, until_when)
            with trio.fail_after(5):
                while await ask(process.postgres, until_when) == before:  # noqa: ASYNC110
                    await trio.sleep(0.01)
        stuck.let_go.set()
        await until(process, "done", 1)
        nursery.cancel_scope.cancel()


async def test_a_worker_that_cannot_renew_stops_itself_when_its_lease_is_old(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck(THREE["emotion"])
    async with open_process(database, with_jobs(lease_seconds=0.5, heartbeat_seconds=0.1)) as process:
        units = Units(process)
        monkeypatch.setattr(process.postgres, "run", units.run)
        units.fault["db.renew"] = DatabaseUnavailable("away")
        with told() as events:
            async with trio.open_nursery() as nursery, at_work(process, {**instant(), "emotion": stuck.analyst}):
                await nursery.start(process.held.beat)
                await process.accepted("talk-1")
                await stuck.asked.wait()
                with trio.fail_after(5):
                    while not stuck.cancelled:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                stuck.let_go.set()
                await until(process, "done", 1)
                nursery.cancel_scope.cancel()
        assert {"renewal_failed", "lease_lost"} <= set(events)
        assert await rows(process.postgres, RELATIONSHIP) == [(9, 1)]


async def test_a_job_that_comes_back_to_the_same_process_is_done_beside_its_lost_lease(process: Process) -> None:
    first, second = Stuck(THREE["emotion"]), Stuck(THREE["emotion"])
    turn = iter((first, second))

    async def find(conversation: Conversation) -> Finding:
        return await next(turn).find(conversation)

    async with at_work(process, {**instant(), "emotion": Analyst(by="stuck/1", find=find)}, workers=2):
        await process.accepted("talk-1")
        await first.asked.wait()
        await ask(process.postgres, "UPDATE job SET leased_until = convo_now() - interval '1 second'")
        await process.jobs.rescue()
        await second.asked.wait()
        first.let_go.set()
        with trio.fail_after(5):
            while len(process.held) > 1:  # noqa: ASYNC110
                await trio.sleep(0.01)
        second.let_go.set()
        await until(process, "done", 1)
    assert await rows(process.postgres, RELATIONSHIP) == [(9, 1)]


# --- cancelled at every checkpoint


class CancelAt(trio.abc.Instrument):
    """Cancels a scope after so many steps of any of the tasks."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self._scope = scope
        self._left = steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if not self._left:
            self._scope.cancel()


async def cancelled_at(steps: int, work: Callable[[], Awaitable[object]]) -> bool:
    """Do this work, cancelled after so many steps; tell whether it was cut short."""
    with trio.CancelScope() as scope:
        instrument = CancelAt(scope, steps)
        trio.lowlevel.add_instrument(instrument)
        try:
            await work()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught


async def test_an_accept_cancelled_at_any_checkpoint_can_be_sent_again(process: Process) -> None:
    steps = 0
    cut_short = True
    while cut_short:
        steps += 1
        sent = accept(f"talk-{steps}")
        cut_short = await cancelled_at(steps, partial(process.committer.accept, sent))
        await process.committer.accept(sent)
    assert steps > 3
    for table in ("conversation", "conversation_log", "job"):
        assert await ask(process.postgres, f"SELECT count(*) FROM {table}") == steps


async def test_a_process_cancelled_at_any_checkpoint_leaves_every_job_done_once_or_ready(process: Process) -> None:
    analysts = instant()

    async def work() -> None:
        async with at_work(process, analysts):
            with trio.fail_after(10):
                while not process.ended:  # noqa: ASYNC110
                    await trio.sleep(0.01)

    steps = runs = 0
    cut_short = True
    while cut_short:
        steps, runs = steps + 3, runs + 1
        process.ended.clear()
        await process.accepted(f"talk-{runs}")
        cut_short = await cancelled_at(steps, work)
        await process.jobs.release_all()  # as the service does when it stops
        state = await process.state(f"talk-{runs}")
        assert state in (("ready", 0), ("done", 1)), steps
        if state == ("ready", 0):
            lease = await process.leased()
            missing = {name: finding for name, finding in THREE.items() if name not in lease.parts}
            await process.settler.settle(await process.analysed(lease, missing or dict(THREE)))
        assert len(process.held) == 0
    assert runs > 5
    assert await rows(process.postgres, RELATIONSHIP) == [(9 + (runs - 1) * 4, runs)]


async def test_what_a_service_is_still_at_work_on_is_asked_for_later_with_its_ticket(patient: Process) -> None:
    asked: list[dict[PartName, str]] = []

    async def find(conversation: Conversation) -> Finding:
        with deadline("memory.extract", 5.0):
            await trio.lowlevel.checkpoint()
        asked.append(dict(conversation.tickets))
        if len(asked) < 3:
            raise RemotePending("memory", "at work", ticket=f"e-{len(asked)}", later_seconds=30.0)
        return THREE["memories"]

    await patient.accepted("talk-1")
    async with at_work(patient, {**instant(), "memories": Analyst(by="m/1", find=find)}):
        for tries in (1, 2):
            await until_asked(asked, tries)
            await until(patient, "ready", 0)
            (row,) = await rows(patient.postgres, "SELECT waits_for, delayed FROM job")
            assert tuple(row) == ("memory", True)
            await due(patient)
        await until(patient, "done", 1)
    assert asked == [{}, {"memories": "e-1"}, {"memories": "e-2"}]
    assert await rows(patient.postgres, "SELECT * FROM part_ticket") == []


async def until_asked(asked: list[dict[PartName, str]], tries: int) -> None:
    with trio.fail_after(10):
        while len(asked) < tries:  # noqa: ASYNC110  (the analyst tells nobody)
            await trio.sleep(0.02)
