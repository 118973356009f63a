from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from convo.store import processes
from convo.store.jobs.table import Jobs
from convo.store.months import MONTH_SEQS
from tests.support.making import (
    Process,
    ask,
    dies,
    entry_of,
    expire_leases,
    open_process,
    owned,
    rows,
    shift_clock,
    told,
)

LEASE = 1.0
"""Of the process that dies; the one that looks has a longer one."""


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database, owner="one.1") as opened:
        await processes.enter(opened.postgres, entry_of("one.1"))
        # Whoever is silent while the server is down is not dead.
        age = "extract(epoch FROM now() - pg_postmaster_start_time())"
        await ask(opened.postgres, f"SELECT pg_sleep(greatest(0, {3 * LEASE + 0.1} - {age}))")
        yield opened


async def signed_in(process: Process, name: str, lease_seconds: float = LEASE) -> Jobs:
    entry = entry_of(name, lease_seconds=lease_seconds)
    await processes.enter(process.postgres, entry)
    jobs = owned(process, name)
    jobs.signed_in(entry)
    return jobs


async def passes(process: Process, seconds: float) -> None:
    """Let time pass in which the process that looks is seen."""
    await shift_clock(process.postgres, f"{seconds} seconds")
    await process.jobs.renew([])


async def crashes(process: Process) -> list[int]:
    return [count for (count,) in await rows(process.postgres, "SELECT crashes FROM every_job ORDER BY seq")]


async def endings(process: Process) -> list[str]:
    return [ending for (ending,) in await rows(process.postgres, "SELECT ending FROM run ORDER BY seq, ended_at")]


async def names(process: Process) -> list[str]:
    return [name for (name,) in await rows(process.postgres, "SELECT name FROM process ORDER BY name")]


# --- not seen for three leases


async def test_a_process_that_was_not_seen_for_three_leases_is_dead_and_what_it_held_counts_a_crash(
    process: Process,
) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    ghost = await signed_in(process, "ghost.1")
    (first,) = await ghost.lease(1)
    await expire_leases(process)
    await process.jobs.rescue()
    await process.jobs.lease(1)
    (second,) = await ghost.lease(1)
    assert second.seq != first.seq
    await passes(process, 1.5 * LEASE)
    await process.jobs.rescue()
    assert (await crashes(process), await names(process)) == ([0, 0, 0], ["ghost.1", "one.1"])
    await passes(process, 4 * LEASE)
    with told() as records:
        await process.jobs.rescue()
    # The one that was rescued since it was last seen, and the one that it still had; no other.
    counted = [seq for (seq,) in await rows(process.postgres, "SELECT seq FROM job WHERE crashes = 1 ORDER BY seq")]
    assert counted == [first.seq, second.seq]
    assert await endings(process) == ["crash", "crash"]
    assert await names(process) == ["one.1"]
    assert records == ["process_declared_dead"]


async def test_one_death_counts_one_crash_of_a_job_however_often_its_lease_ended(process: Process) -> None:
    await process.accepted("talk-1")
    ghost = await signed_in(process, "ghost.1")
    for _ in range(2):
        await ghost.lease(1)
        await expire_leases(process)
        await process.jobs.rescue()
    await passes(process, 4 * LEASE)
    await process.jobs.rescue()
    assert await crashes(process) == [1]
    assert await endings(process) == ["rescue", "crash"]


async def test_a_run_at_the_same_place_of_another_month_is_no_crash(process: Process) -> None:
    await process.accepted("talk-1")
    ghost = await signed_in(process, "ghost.1")
    await ghost.lease(1)
    await expire_leases(process)
    await process.jobs.rescue()
    await ask(process.postgres, "SELECT setval('conversation_seq_seq', $1, false)", MONTH_SEQS)
    await process.accepted("talk-2")
    (lease,) = [one for one in await process.jobs.lease(2) if one.seq == MONTH_SEQS]
    await process.jobs.park(lease, "llm", "out")
    places = await rows(process.postgres, "SELECT tableoid::regclass::text, ctid::text FROM run ORDER BY seq")
    assert places == [("run_0", "(0,1)"), ("run_1", "(0,1)")]
    await passes(process, 4 * LEASE)
    await process.jobs.rescue()
    assert (await crashes(process), await endings(process)) == ([1, 0], ["crash", "park"])


async def test_a_rescue_from_before_it_was_last_seen_is_nobody_s_crash(process: Process) -> None:
    await process.accepted("talk-1")
    ghost = await signed_in(process, "ghost.1")
    await ghost.lease(1)
    await expire_leases(process)
    await process.jobs.rescue()
    await ghost.renew([])
    await passes(process, 4 * LEASE)
    await process.jobs.rescue()
    assert (await crashes(process), await endings(process)) == ([0], ["rescue"])


async def test_while_the_server_was_down_nobody_could_be_seen(process: Process) -> None:
    years = 30_000_000.0
    ghost = await signed_in(process, "ghost.1", lease_seconds=years)
    await shift_clock(process.postgres, f"{4 * years} seconds")
    await (await signed_in(process, "fresh.1")).rescue()
    assert ghost.owner in await names(process)


async def test_who_was_not_seen_itself_for_a_lease_waits_for_the_others_to_come_back(process: Process) -> None:
    await signed_in(process, "ghost.1")
    # A cut of the network, or a failover: longer than the lease of the one that looks.
    await shift_clock(process.postgres, "40 seconds")
    await process.jobs.rescue()
    await process.jobs.renew([])
    await process.jobs.rescue()
    assert "ghost.1" in await names(process)
    await passes(process, 40 + 2 * LEASE)
    await process.jobs.rescue()
    assert "ghost.1" not in await names(process)


async def test_who_started_long_after_the_last_sign_of_another_need_not_wait(process: Process) -> None:
    await process.accepted("talk-1")
    await (await signed_in(process, "ghost.1")).lease(1)
    await shift_clock(process.postgres, f"{4 * LEASE} seconds")
    successor = await signed_in(process, "fresh.1")
    await successor.rescue()
    assert await crashes(process) == [1]


async def test_a_process_that_is_not_registered_declares_nobody_dead(process: Process) -> None:
    await signed_in(process, "ghost.1")
    await passes(process, 4 * LEASE)
    await owned(process, "unknown.1").rescue()
    assert "ghost.1" in await names(process)


# --- seen again


async def test_a_process_that_is_seen_again_gives_back_its_crashes_and_only_those(process: Process) -> None:
    await process.accepted("talk-1")
    other = await signed_in(process, "other.1")
    await other.lease(1)
    await dies(process.postgres, "other.1")
    cut_off = await signed_in(process, "ghost.1")
    (lease,) = await cut_off.lease(1)
    await passes(process, 4 * LEASE)
    await process.jobs.rescue()
    assert await crashes(process) == [2]
    with told() as records:
        assert await cut_off.renew([lease]) == set()
        assert await cut_off.renew([]) == set()
    assert records == ["process_came_back"]
    assert await crashes(process) == [1]
    assert await endings(process) == ["crash", "rescue"]
    assert await names(process) == ["ghost.1", "one.1"]


async def test_what_is_done_or_dead_is_not_counted_any_more(process: Process) -> None:
    await process.accepted("talk-1")
    ghost = await signed_in(process, "ghost.1")
    await ghost.lease(1)
    await expire_leases(process)
    await process.jobs.rescue()
    await process.settler.settle(await process.analysed(await process.leased()))
    await passes(process, 4 * LEASE)
    await process.jobs.rescue()
    assert await crashes(process) == [0]


# --- the next start on the folder


async def test_the_next_start_on_a_folder_takes_back_what_its_earlier_starts_had_and_no_more(process: Process) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3", "talk-4")
    before = await signed_in(process, "two.1")
    await before.lease(1)
    earlier_program = owned(process, "there/two")
    await earlier_program.lease(1)
    await process.jobs.lease(1)
    now = await signed_in(process, "two.2")
    (mine,) = await now.lease(1)
    assert await now.claim_folder("two") == 2
    assert sorted(await crashes(process)) == [0, 0, 1, 1]
    assert await now.renew([mine]) == {mine.token}
    assert await names(process) == ["one.1", "two.2"]
    assert await now.claim_folder("two") == 0


async def test_what_was_rescued_before_the_folder_was_claimed_counts_too(process: Process) -> None:
    await process.accepted("talk-1")
    await (await signed_in(process, "two.1")).lease(1)
    await expire_leases(process)
    await process.jobs.rescue()
    assert await crashes(process) == [0]
    assert await dies(process.postgres, "two.1") == 0
    assert await crashes(process) == [1]


async def test_who_finds_its_folder_claimed_by_a_living_process_reports_the_copy(
    process: Process, database: str
) -> None:
    first = await signed_in(process, "two.1")
    async with open_process(database, owner="two.2") as copy:
        await processes.enter(copy.postgres, entry_of("two.2"))
        await copy.jobs.claim_folder("two")
        with told() as records:
            await first.renew([])
    assert records == ["process_came_back", "folder_copied"]


async def test_a_stop_gives_back_its_own_and_signs_itself_out_alone(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    first, copy = await signed_in(process, "two.1"), await signed_in(process, "two.2")
    await first.lease(1)
    await copy.lease(1)
    assert await copy.release_all() == 1
    await processes.leave(process.postgres, copy.owner)
    assert await names(process) == ["one.1", "two.1"]
    assert await rows(process.postgres, "SELECT leased_by FROM job WHERE state = 'leased'") == [("two.1",)]
