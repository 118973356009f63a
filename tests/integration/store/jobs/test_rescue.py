from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
import trio

from convo.errors import LeaseLost
from convo.settings import JobsSettings, Settings
from convo.store.jobs.rescue import BATCH_ROWS, Rescue, rescue
from convo.store.jobs.table import Jobs
from tests.support.making import (
    THREE,
    Process,
    ask,
    expire_leases,
    open_process,
    owned,
    rows,
    shift_clock,
    store_part,
)


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def names(process: Process, jobs: Jobs, count: int) -> list[str]:
    return [one.conversation_id for one in await jobs.lease(count)]


# --- leases that end


async def test_release_all_gives_back_what_its_own_name_has_leased_and_no_more(process: Process) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    other = owned(process, "there/two")
    await process.jobs.lease(2)
    (theirs,) = await other.lease(1)
    assert await process.jobs.release_all() == 2
    assert [await process.state(f"talk-{n}") for n in (1, 2, 3)] == [("ready", 0), ("ready", 0), ("leased", 0)]
    await store_part(other, theirs, "emotion", "test/1", THREE["emotion"])


async def test_only_ended_leases_are_rescued_whoever_has_them(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    await owned(process, "there/two").lease(1)
    await expire_leases(process)
    good = await process.leased()
    assert (await process.jobs.rescue()).rescued == 1
    assert [await process.state(f"talk-{n}") for n in (1, 2)] == [("ready", 0), ("leased", 0)]
    await store_part(process.jobs, good, "emotion", "test/1", THREE["emotion"])


async def test_several_rescuers_at_once_rescue_each_job_once(process: Process) -> None:
    await process.accepted(*(f"talk-{n}" for n in range(20)))
    await process.jobs.lease(20)
    await expire_leases(process)
    rescued: list[int] = []

    async def rescue(jobs: Jobs) -> None:
        rescued.append((await jobs.rescue()).rescued)

    async with trio.open_nursery() as nursery:
        for n in range(4):
            nursery.start_soon(rescue, owned(process, f"there/{n}"))
    assert sum(rescued) == 20


# --- clocks


async def test_a_clock_set_forward_rescues_early_refuses_late_writes_and_counts_nothing_twice(
    process: Process,
) -> None:
    await process.accepted("talk-1")
    early = await process.leased()
    await store_part(process.jobs, early, "memories", "test/1", THREE["memories"])
    await shift_clock(process.postgres, "1 hour")
    assert (await process.jobs.rescue()).rescued == 1
    with pytest.raises(LeaseLost):
        await store_part(process.jobs, early, "emotion", "late/1", THREE["emotion"])
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


@pytest.mark.parametrize("seconds", [0.05, 30_000.0])
async def test_a_lease_is_judged_by_its_own_length_and_not_by_the_rescuers(process: Process, seconds: float) -> None:
    await process.accepted("talk-1", "talk-2")
    other = owned(process, "there/two", lease_seconds=600.0)
    (held,) = await other.lease(1)
    await process.leased()
    hasty = owned(process, "there/three", lease_seconds=seconds)
    assert (await hasty.rescue()).rescued == 0
    assert await other.renew([held]) == {held.token}
    assert (await hasty.rescue()).rescued == 0
    await shift_clock(process.postgres, "-61 seconds")
    assert (await hasty.rescue()).rescued == 1
    await shift_clock(process.postgres, "-11 minutes")
    assert (await hasty.rescue()).rescued == 1


async def test_a_delay_is_judged_by_its_own_length_and_not_by_the_rescuers(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    await process.jobs.fail(await process.leased(), "why", {}, later=3600)
    await process.jobs.park(await process.leased(), "llm", "why", later=3600)
    hasty = owned(process, "there/two", backoff_seconds=0.1, backoff_max_seconds=0.1)
    await hasty.rescue()
    assert await process.jobs.lease(2) == []
    await shift_clock(process.postgres, "-5 minutes")
    await hasty.rescue()
    assert sorted(await names(process, process.jobs, 2)) == ["talk-1", "talk-2"]


async def test_only_a_process_that_takes_jobs_gives_up_what_was_parked_for_too_long(process: Process) -> None:
    await process.accepted("talk-1")
    await process.jobs.park(await process.leased(), "llm", "why")
    await shift_clock(process.postgres, "8 days")
    assert (await process.jobs.rescue(gives_up=False)).buried == {}
    assert len((await process.jobs.rescue()).buried) == 1


# --- how much at once


async def park_many(process: Process, count: int) -> None:
    """Insert so many jobs that were parked for too long, each one second longer than the next."""
    await ask(
        process.postgres,
        """
        WITH made AS (
            INSERT INTO job (seq, fair_key, waits_for, parked_since)
            SELECT 1000000 + n, 'user-' || n, 'llm', convo_now() - interval '30 days' + make_interval(secs => n)
            FROM generate_series(1, $1) AS n
        ) SELECT 1
        """,
        count,
    )


async def test_300_000_jobs_to_bury_time_out_no_rescue_and_come_after_the_leases_that_ended(database: str) -> None:
    patient = msgspec.structs.replace(Settings().database, statement_seconds=300.0)
    async with open_process(database, msgspec.structs.replace(Settings(), database=patient)) as process:
        await park_many(process, 300_000)
    async with open_process(database) as process:
        await process.accepted("talk-1")
        assert [one.conversation_id for one in await process.jobs.lease(1, out=["llm"])] == ["talk-1"]
        await expire_leases(process)
        found = await process.jobs.rescue()
        assert (found.rescued, found.more) == (1, True)
        buried = len(found.buried)
        assert buried >= BATCH_ROWS
        for _ in range(3):
            with trio.fail_after(process.postgres.unit_seconds):
                buried += len((await process.jobs.rescue()).buried)
        assert await ask(process.postgres, "SELECT count(*) FROM job WHERE state = 'dead'") == buried


async def test_each_batch_of_burials_is_committed_oldest_first_until_none_is_left(process: Process) -> None:
    await park_many(process, 2 * BATCH_ROWS + 500)
    first = await rescue(process.postgres, JobsSettings(), pass_seconds=0.0)
    assert (sorted(first.buried), first.more) == ([1_000_000 + n for n in range(1, BATCH_ROWS + 1)], True)
    second = await rescue(process.postgres, JobsSettings(), pass_seconds=60.0)
    assert (len(second.buried), second.more) == (BATCH_ROWS + 500, False)
    assert await rescue(process.postgres, JobsSettings()) == Rescue()


async def test_leases_that_ended_are_taken_back_in_batches_before_anything_is_buried(process: Process) -> None:
    await park_many(process, 10)
    await ask(
        process.postgres,
        """
        WITH made AS (
            INSERT INTO job (seq, fair_key, state, lease_token, leased_at, leased_by, leased_until)
            SELECT n, 'user-1', 'leased', n, convo_now(), 'here/one', convo_now() - make_interval(secs => n)
            FROM generate_series(1, $1) AS n
        ) SELECT 1
        """,
        BATCH_ROWS + 10,
    )
    first = await rescue(process.postgres, JobsSettings(), pass_seconds=0.0)
    assert (first.rescued, first.buried, first.more) == (BATCH_ROWS, {}, True)
    left = await rows(process.postgres, "SELECT seq FROM job WHERE state = 'leased' ORDER BY seq")
    assert left == [(n,) for n in range(1, 11)]  # those that ended last
    second = await rescue(process.postgres, JobsSettings())
    assert (second.rescued, len(second.buried), second.more) == (10, 10, False)


async def test_after_a_clock_was_set_back_thousands_become_due_batch_by_batch(process: Process) -> None:
    await ask(
        process.postgres,
        """
        WITH made AS (
            INSERT INTO job (seq, fair_key, delayed, delayed_at, available_at)
            SELECT n, 'user-1', true, convo_now() + interval '1 day', convo_now() + interval '2 days'
            FROM generate_series(1, $1) AS n
        ) SELECT 1
        """,
        BATCH_ROWS + 10,
    )
    delayed = "SELECT count(*) FROM job WHERE delayed"
    assert (await rescue(process.postgres, JobsSettings(), pass_seconds=0.0)).more
    assert await ask(process.postgres, delayed) == 10
    assert not (await rescue(process.postgres, JobsSettings())).more
    assert await ask(process.postgres, delayed) == 0
