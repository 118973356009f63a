from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio

from convo.errors import BadRow
from convo.store import processes
from convo.store.jobs.lease import Lease
from convo.store.jobs.table import Jobs
from convo.store.postgres import DURABLE, RELAXED, Connection
from tests.support.making import (
    THREE,
    Process,
    ask,
    entry_of,
    expire_leases,
    open_process,
    owned,
    rows,
    seen_processes,
    shift_clock,
    store_part,
)


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def names(process: Process, jobs: Jobs, count: int) -> list[str]:
    return [one.conversation_id for one in await jobs.lease(count)]


# --- what a row may be


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("state = 'done', ended_at = now()", "job_open"),
        ("state = 'lost'", "job_state"),
        ("state = 'leased'", "job_lease"),
        ("lease_token = 7", "job_lease"),
        ("state = 'dead'", "job_end"),
        ("ended_at = now()", "job_end"),
        ("reviewed_at = now()", "job_review"),
        ("waits_for = 'llm'", "job_wait"),
    ],
)
async def test_an_update_that_breaks_a_rule_of_the_states_is_refused_by_its_name(
    process: Process, change: str, rule: str
) -> None:
    await process.accepted("talk-1")
    with pytest.raises(BadRow) as refused:
        await ask(process.postgres, f"UPDATE job SET {change}")
    assert refused.value.sqlstate == "23514"
    assert f"breaks the rule {rule}: " in str(refused.value.__cause__)
    assert await process.state() == ("ready", 0)


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


async def test_a_job_is_leased_only_by_a_process_that_has_what_it_waits_for(process: Process) -> None:
    postgres, settings = process.postgres, process.settings.jobs
    await process.accepted("talk-1", "talk-2")
    first, second = await process.jobs.lease(2)
    await process.jobs.park(first, "llm", "why")
    await process.jobs.park(second, "oracle", "why")
    without, newer = Jobs(postgres, settings, "there/two", []), Jobs(postgres, settings, "there/three", ["oracle"])
    assert await names(process, without, 2) == []
    assert await names(process, newer, 2) == ["talk-2"]
    assert await names(process, process.jobs, 2) == ["talk-1"]


async def test_a_suspect_is_leased_only_by_a_process_that_has_what_it_waits_for(process: Process) -> None:
    await process.accepted("talk-1")
    await process.jobs.park(await process.leased(), "llm", "why")
    await ask(process.postgres, "UPDATE job SET crashes = 2")
    without = Jobs(process.postgres, process.settings.jobs, "there/two", [])
    assert (await without.has_suspects(), await without.lease_suspect()) == (False, [])
    assert await process.jobs.claim_suspects()
    assert len(await process.jobs.lease_suspect()) == 1


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
    await store_part(process.jobs, first, "emotion", "test/1", THREE["emotion"])
    await process.jobs.fail(first, "why", {"questions": ("test/1", "why")}, later=0)
    again = await process.leased()
    assert again.parts == {"emotion": THREE["emotion"]}
    assert again.attempts == 1


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
    await expire_leases(process)
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
    await expire_leases(process)
    assert await process.jobs.renew([one]) == {one.token}
    assert (await process.jobs.rescue()).rescued == 0


async def test_a_renewal_of_nothing_says_that_the_process_lives(process: Process) -> None:
    await processes.enter(process.postgres, entry_of(process.jobs.owner))
    await shift_clock(process.postgres, "10 minutes")
    assert await seen_processes(process.postgres) == []
    assert await process.jobs.renew([]) == set()
    assert await seen_processes(process.postgres) == ["here/one"]


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
