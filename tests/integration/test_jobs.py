from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
import trio

from convo.config import JobsSettings, Settings
from convo.errors import LeaseLost, NotDead, NotFound
from convo.store import processes
from convo.store.jobs import Jobs, Lease
from convo.store.postgres import DURABLE, RELAXED, Connection
from tests.making import THREE, Process, ask, lease, open_process, open_store, rows, shift_clock


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


def owned(process: Process, owner: str, **settings: object) -> Jobs:
    """Return the job table as another process sees it."""
    return Jobs(process.postgres, msgspec.structs.replace(JobsSettings(), **settings), owner)


async def expire(process: Process) -> None:
    """Let every lease be past its end."""
    await ask(
        process.postgres, "UPDATE job SET leased_until = convo_now() - interval '1 second' WHERE state = 'leased'"
    )


async def names(process: Process, jobs: Jobs, count: int) -> list[str]:
    return [one.conversation_id for one in await jobs.lease(count)]


# --- leasing


async def test_a_lease_says_all_that_the_work_needs(process: Process) -> None:
    await process.accepted("talk-1", start_time="2026-11-22T07:00:00Z", end_time="2026-11-22T07:05:00Z")
    one = await process.leased()
    assert (one.conversation_id, one.user_id, one.bot_id, one.exchanges) == ("talk-1", "user-1", "bot-1", 1)
    assert (one.attempts, one.parts) == (0, {})
    assert (one.ended_at - one.started_at).total_seconds() == 300
    assert await process.state() == ("leased", 0)
    assert await rows(process.postgres, "SELECT leased_by, leased_until - convo_now() <= interval '30 seconds' FROM job"
                      ) == [("here/one", True)]  # fmt: skip


async def test_the_job_that_is_due_longest_is_leased_first(process: Process) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3", "talk-4")
    await ask(
        process.postgres,
        "UPDATE job SET available_at = available_at - interval '1 minute' FROM conversation c"
        " WHERE c.seq = job.seq AND c.conversation_id = 'talk-3'",
    )
    leased = [await names(process, process.jobs, 1) for _ in range(5)]
    assert leased == [["talk-3"], ["talk-1"], ["talk-2"], ["talk-4"], []]


async def test_at_most_so_many_are_leased(process: Process) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    assert await names(process, process.jobs, 2) == ["talk-1", "talk-2"]
    assert await names(process, process.jobs, 2) == ["talk-3"]


async def test_two_processes_never_get_the_same_job(process: Process) -> None:
    await process.accepted(*(f"talk-{n}" for n in range(40)))
    found: list[Lease] = []

    async def take(jobs: Jobs) -> None:
        while leases := await jobs.lease(3):
            found.extend(leases)

    async with trio.open_nursery() as nursery:
        for owner in ("here/one", "here/two", "there/three"):
            nursery.start_soon(take, owned(process, owner))
    assert len({one.seq for one in found}) == len(found) == 40
    assert len({one.token for one in found}) == 40


async def test_a_job_that_another_one_is_taking_is_passed_over_without_waiting(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    taking, done = trio.Event(), trio.Event()

    async def body(connection: Connection) -> None:
        await connection.fetchval("SELECT seq FROM job ORDER BY seq LIMIT 1 FOR UPDATE")
        taking.set()
        await connection.fetchval("SELECT pg_sleep(30)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.postgres.run, "test.take", body)
        await taking.wait()
        with trio.fail_after(2):
            assert await names(process, process.jobs, 2) == ["talk-2"]
        done.set()
        nursery.cancel_scope.cancel()


async def test_a_second_run_knows_what_the_first_one_stored(process: Process) -> None:
    await process.accepted("talk-1")
    first = await process.leased()
    await process.jobs.store_part(first, "emotion", "test/1", THREE["emotion"])
    await process.jobs.fail(first, "why", {"questions": ("test/1", "why")}, later=0)
    again = await process.leased()
    assert again.parts == {"emotion": THREE["emotion"]}
    assert again.attempts == 1


# --- fencing

Write = Callable[[Process, Lease], Awaitable[object]]
WRITES: dict[str, Write] = {
    "store_part": lambda process, one: process.jobs.store_part(one, "emotion", "late/1", THREE["emotion"]),
    "fail": lambda process, one: process.jobs.fail(one, "late", {"emotion": ("late/1", "late")}, later=1),
    "bury": lambda process, one: process.jobs.fail(
        msgspec.structs.replace(one, attempts=4), "late", {"emotion": ("late/1", "late")}, later=1
    ),
    "release": lambda process, one: process.jobs.release(one),
    "settle": lambda process, one: process.settler.settle(one),
}


async def everything(process: Process) -> list[list[tuple[object, ...]]]:
    tables = ("job", "part", "memory", "relationship")
    return [await rows(process.postgres, f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("since", ["rescued", "another's", "settled", "buried", "released"])
async def test_a_late_worker_can_write_nothing(process: Process, write: str, since: str) -> None:
    await process.accepted("talk-1")
    late = await process.leased()
    await process.analysed(late)
    if since == "settled":
        await process.settler.settle(late)
    elif since == "buried":
        await process.jobs.fail(msgspec.structs.replace(late, attempts=4), "why", {}, later=1)
    elif since == "released":
        await process.jobs.release(late)
    else:
        await expire(process)
        assert (await process.jobs.rescue()).rescued == 1
    if since == "another's":
        assert len(await owned(process, "there/two").lease(1)) == 1
    before = await everything(process)
    with pytest.raises(LeaseLost, match="'talk-1'"):
        await WRITES[write](process, late)
    assert await everything(process) == before


async def test_a_lease_past_its_end_is_good_until_somebody_takes_it(process: Process) -> None:
    await process.accepted("talk-1")
    slow = await process.leased()
    await expire(process)
    await process.settler.settle(await process.analysed(slow))
    assert await process.state() == ("done", 1)


# --- attempts


async def test_a_failure_spends_an_attempt_and_waits_its_backoff(process: Process) -> None:
    await process.accepted("talk-1")
    assert not await process.jobs.fail(await process.leased(), "llm: 429", {}, later=40)
    assert await process.state() == ("ready", 1)
    assert await ask(process.postgres, "SELECT last_error FROM job") == "llm: 429"
    assert await process.jobs.lease(1) == []
    await shift_clock(process.postgres, "39 seconds")
    assert await process.jobs.lease(1) == []
    await shift_clock(process.postgres, "41 seconds")
    assert (await process.leased()).attempts == 1


async def test_a_release_gives_the_attempt_back_and_the_job_at_once(process: Process) -> None:
    await process.accepted("talk-1")
    await process.jobs.release(await process.leased())
    assert await process.state() == ("ready", 0)
    assert (await process.leased()).attempts == 0


async def test_a_release_for_later_waits_and_gives_the_attempt_back(process: Process) -> None:
    await process.accepted("talk-1")
    await process.jobs.release(await process.leased(), later=40)
    assert await process.state() == ("ready", 0)
    assert await process.jobs.lease(1) == []
    await shift_clock(process.postgres, "41 seconds")
    assert (await process.leased()).attempts == 0


async def test_a_released_job_keeps_its_place_in_the_queue(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    await process.jobs.release((await process.jobs.lease(1))[0])
    assert await names(process, process.jobs, 1) == ["talk-1"]


async def test_a_rescue_spends_no_attempt(process: Process) -> None:
    await process.accepted("talk-1")
    await process.leased()
    await expire(process)
    await process.jobs.rescue()
    assert await process.state() == ("ready", 0)


async def test_the_last_attempt_buries_the_job_with_its_reason(process: Process) -> None:
    await process.accepted("talk-1")
    jobs = owned(process, "here/one", attempts_max=2)
    dead = [await jobs.fail((await jobs.lease(1))[0], f"reason {n}", {}, later=0) for n in range(2)]
    assert dead == [False, True]
    assert await process.state() == ("dead", 2)
    assert await ask(process.postgres, "SELECT last_error FROM job") == "reason 1"
    await shift_clock(process.postgres, "10 days")
    await jobs.rescue()
    assert await jobs.lease(1) == []


async def test_a_dead_letter_is_retried_with_all_its_attempts_and_its_parts(process: Process) -> None:
    await process.accepted("talk-1")
    jobs = owned(process, "here/one", attempts_max=1)
    (one,) = await jobs.lease(1)
    await jobs.store_part(one, "emotion", "test/1", THREE["emotion"])
    await jobs.fail(one, "why", {"questions": ("test/1", "why")}, later=0)
    await jobs.retry("talk-1")
    assert await process.state() == ("ready", 0)
    assert (await process.leased()).parts == {"emotion": THREE["emotion"]}


async def test_only_a_dead_letter_can_be_retried(process: Process) -> None:
    with pytest.raises(NotFound, match="'talk-1'"):
        await process.jobs.retry("talk-1")
    await process.accepted("talk-1")
    with pytest.raises(NotDead, match="is ready"):
        await process.jobs.retry("talk-1")
    one = await process.leased()
    with pytest.raises(NotDead, match="is leased"):
        await process.jobs.retry("talk-1")
    await process.settler.settle(await process.analysed(one))
    with pytest.raises(NotDead, match="is done"):
        await process.jobs.retry("talk-1")


async def test_an_acknowledged_dead_letter_stays_dead_and_a_retried_one_has_to_be_reviewed_anew(
    process: Process,
) -> None:
    unreviewed = "SELECT count(*)::integer FROM job WHERE state = 'dead' AND reviewed_at IS NULL"
    await process.accepted("talk-1")
    jobs = owned(process, "here/one", attempts_max=1)
    with pytest.raises(NotFound, match="'talk-2'"):
        await jobs.acknowledge("talk-2")
    with pytest.raises(NotDead, match="is ready"):
        await jobs.acknowledge("talk-1")
    for _ in range(2):
        (one,) = await jobs.lease(1)
        await jobs.fail(one, "why", {}, later=0)
        assert await rows(process.postgres, unreviewed) == [(1,)]
        assert await jobs.acknowledge("talk-1") == 1
        assert await jobs.acknowledge("talk-1") == 1
        assert await process.state() == ("dead", 1)
        assert await rows(process.postgres, unreviewed) == [(0,)]
        await jobs.retry("talk-1")


# --- leases that end


async def test_release_all_gives_back_what_its_own_name_has_leased_and_no_more(process: Process) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    other = owned(process, "there/two")
    await process.jobs.lease(2)
    (theirs,) = await other.lease(1)
    assert await process.jobs.release_all(crashed=False) == 2
    assert [await process.state(f"talk-{n}") for n in (1, 2, 3)] == [("ready", 0), ("ready", 0), ("leased", 0)]
    await other.store_part(theirs, "emotion", "test/1", THREE["emotion"])


async def test_only_ended_leases_are_rescued_whoever_has_them(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    await owned(process, "there/two").lease(1)
    await expire(process)
    good = await process.leased()
    assert (await process.jobs.rescue()).rescued == 1
    assert [await process.state(f"talk-{n}") for n in (1, 2)] == [("ready", 0), ("leased", 0)]
    await process.jobs.store_part(good, "emotion", "test/1", THREE["emotion"])


async def test_several_rescuers_at_once_rescue_each_job_once(process: Process) -> None:
    await process.accepted(*(f"talk-{n}" for n in range(20)))
    await process.jobs.lease(20)
    await expire(process)
    rescued: list[int] = []

    async def rescue(jobs: Jobs) -> None:
        rescued.append((await jobs.rescue()).rescued)

    async with trio.open_nursery() as nursery:
        for n in range(4):
            nursery.start_soon(rescue, owned(process, f"there/{n}"))
    assert sum(rescued) == 20


async def test_a_renewal_keeps_exactly_what_is_still_ours(process: Process) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    kept, lost, ended = await process.jobs.lease(3)
    await process.settler.settle(await process.analysed(ended))
    await ask(
        process.postgres, "UPDATE job SET leased_until = convo_now() - interval '1 second' WHERE seq = $1", lost.seq
    )
    await process.jobs.rescue()
    (theirs,) = await owned(process, "there/two").lease(1)
    left = "SELECT leased_until FROM job WHERE seq = $1"
    before = await ask(process.postgres, left, kept.seq), await ask(process.postgres, left, theirs.seq)
    assert theirs.seq == lost.seq
    assert await process.jobs.renew([kept, lost, ended]) == {kept.token}
    assert await ask(process.postgres, left, kept.seq) > before[0]
    assert await ask(process.postgres, left, theirs.seq) == before[1]
    assert await process.state("talk-3") == ("done", 1)


async def test_a_renewal_saves_a_lease_that_is_past_its_end(process: Process) -> None:
    await process.accepted("talk-1")
    one = await process.leased()
    await expire(process)
    assert await process.jobs.renew([one]) == {one.token}
    assert (await process.jobs.rescue()).rescued == 0


async def test_a_renewal_of_nothing_says_that_the_process_lives(process: Process) -> None:
    await enter(process.jobs, 1, "here", 9)
    await shift_clock(process.postgres, "10 minutes")
    assert await processes.signed_in(process.postgres) == []
    assert await process.jobs.renew([]) == set()
    assert await processes.signed_in(process.postgres) == ["here/one"]


# --- whose fault it was that a lease ended

QUICK_TO_BLAME: dict[str, object] = {"lease_seconds": 0.05}


async def crashes(process: Process) -> list[int]:
    return [count for (count,) in await rows(process.postgres, "SELECT crashes FROM job ORDER BY seq")]


async def test_a_lease_that_ends_counts_a_crash_only_where_its_process_is_gone(process: Process, database: str) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    await process.jobs.lease(1)
    await owned(process, "there/ghost").lease(1)
    async with open_process(database, owner="there/two") as silent:
        await silent.jobs.lease(1)
        await expire(process)
        assert (await owned(process, "here/one", **QUICK_TO_BLAME).rescue()).rescued == 3
    assert await crashes(process) == [0, 1, 0]


async def test_right_after_a_start_of_the_server_nobody_is_blamed_for_having_no_session_there(
    process: Process,
) -> None:
    await process.accepted("talk-1")
    await owned(process, "there/ghost").lease(1)
    await expire(process)
    assert (await owned(process, "here/one", lease_seconds=30_000_000.0).rescue()).rescued == 1
    assert await crashes(process) == [0]


async def test_whoever_signs_in_where_the_last_one_died_blames_what_that_one_worked_on(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    await process.jobs.lease(1)
    assert await process.jobs.release_all(crashed=True) == 1
    assert await crashes(process) == [1, 0]


# --- clocks


async def test_a_clock_set_forward_rescues_early_refuses_late_writes_and_counts_nothing_twice(
    process: Process,
) -> None:
    await process.accepted("talk-1")
    early = await process.leased()
    await process.jobs.store_part(early, "memories", "test/1", THREE["memories"])
    await shift_clock(process.postgres, "1 hour")
    assert (await process.jobs.rescue()).rescued == 1
    with pytest.raises(LeaseLost):
        await process.jobs.store_part(early, "emotion", "late/1", THREE["emotion"])
    again = await process.leased()
    missing = {name: finding for name, finding in THREE.items() if name not in again.parts}
    assert set(missing) == {"questions", "emotion"}
    found = await process.settler.settle(await process.analysed(again, missing))
    with pytest.raises(LeaseLost):
        await process.settler.settle(early)
    assert found.value == 9
    assert await rows(process.postgres, "SELECT score, conversations FROM relationship") == [(9, 1)]


async def test_after_a_clock_was_set_back_a_lease_that_ends_too_far_away_counts_as_ended(process: Process) -> None:
    await process.accepted("talk-1")
    await process.leased()
    await shift_clock(process.postgres, "-1 hour")
    assert (await process.jobs.rescue()).rescued == 1
    assert await process.state() == ("ready", 0)


async def test_after_a_clock_was_set_back_a_job_that_is_due_too_far_away_counts_as_due(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    await process.jobs.fail(await process.leased(), "why", {}, later=60)
    await shift_clock(process.postgres, "-1 day")
    assert await names(process, process.jobs, 2) == ["talk-2"]  # one that waits for nothing waits for no clock
    await process.jobs.rescue()
    assert await names(process, process.jobs, 2) == ["talk-1"]


async def test_a_backoff_within_its_legal_length_is_left_alone(process: Process) -> None:
    await process.accepted("talk-1")
    await process.jobs.fail(await process.leased(), "why", {}, later=Settings().jobs.backoff_max_seconds)
    await process.jobs.rescue()
    assert await process.jobs.lease(1) == []


# --- processes, and the gauges


async def enter(jobs: Jobs, pid: int, host: str, connections_max: int) -> int:
    return await processes.enter(jobs._postgres, jobs.owner, pid=pid, host=host, connections_max=connections_max)


async def test_living_processes_are_counted_with_the_connections_they_may_open(process: Process) -> None:
    assert await enter(process.jobs, 1, "here", 9) == 9
    other = owned(process, "there/two")
    assert await enter(other, 2, "there", 5) == 14
    assert await enter(process.jobs, 3, "here", 7) == 12
    assert sorted(await processes.signed_in(process.postgres)) == ["here/one", "there/two"]
    await processes.leave(process.postgres, other.owner)
    assert await enter(process.jobs, 3, "here", 7) == 7


async def test_on_a_database_without_a_schema_nobody_is_signed_in(empty_database: str) -> None:
    async with open_store(empty_database) as postgres:
        assert await processes.signed_in(postgres) == []


async def test_jobs_that_are_not_done_are_counted_by_state_with_the_age_of_the_one_due_longest(
    process: Process,
) -> None:
    assert await process.jobs.count() == ({"ready": 0, "parked": 0, "leased": 0, "dead": 0}, 0.0)
    await process.accepted("talk-1", "talk-2", "talk-3", "talk-4")
    done, leased = await process.jobs.lease(2)
    await process.settler.settle(await process.analysed(done))
    await process.jobs.fail(await process.leased(), "why", {}, later=3600)
    await shift_clock(process.postgres, "60 seconds")
    counts, oldest = await process.jobs.count()
    assert counts == {"ready": 2, "parked": 0, "leased": 1, "dead": 0}
    assert 60 <= oldest < 120
    assert leased.conversation_id == "talk-2"


# --- durability


async def test_what_ends_a_job_waits_for_the_disk_and_what_can_be_done_again_does_not(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, str] = {}
    run = process.postgres.run

    async def noting(name: str, body: Callable[[Connection], Awaitable[object]], *, begin: str = DURABLE) -> object:
        begun[name] = begin
        return await run(name, body, begin=begin)

    monkeypatch.setattr(process.postgres, "run", noting)
    await process.accepted("talk-1", "talk-2", "talk-3")
    first, second, third = await process.jobs.lease(3)
    await process.settler.settle(await process.analysed(first))
    await process.jobs.fail(second, "why", {}, later=0)
    await process.jobs.renew([third])
    await process.jobs.release(third)
    await process.jobs.rescue()
    relaxed = {"db.lease", "db.part", "db.renew", "db.release", "db.rescue"}
    durable = {"db.settle", "db.fail"}
    assert {name for name, begin in begun.items() if begin == RELAXED} == relaxed
    assert {name for name, begin in begun.items() if begin == DURABLE} >= durable


async def test_a_lease_that_never_was_can_write_nothing(process: Process) -> None:
    with pytest.raises(LeaseLost):
        await process.jobs.release(lease(77))
