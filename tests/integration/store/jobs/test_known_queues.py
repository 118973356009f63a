"""While an old snapshot keeps all that was leased since it began, leases stay as short, and as fair, as without it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import msgspec
import pytest
import trio

from convo.conversation.tenant import DEFAULT, WHOLE_DEFAULT
from convo.errors import DatabaseUnavailable
from convo.settings import JobsSettings
from convo.store.jobs import brought, fair_lease, known_queues
from convo.store.jobs.lease import Lease
from convo.store.jobs.table import Jobs
from convo.store.postgres import Connection, Postgres
from tests.support.making import Process, ask, open_dedicated, open_process, open_store, owned
from tests.support.plans import Counting
from tests.support.receipts_by_sql import RECEIPTS
from tests.support.tenants import ACME, BETA, accept_of, make_tenants

ENOUGH = 3_000
"""So many jobs, leased and settled, make a lease look around."""


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    """A process on a database with an old snapshot."""
    async with open_process(database) as opened, old_snapshot(database):
        yield opened


@asynccontextmanager
async def old_snapshot(database: str) -> AsyncIterator[None]:
    taken = trio.Event()

    async def hold(connection: Connection) -> None:
        await connection.fetch("SELECT FROM job LIMIT 1")
        taken.set()
        await connection.execute("SELECT pg_sleep(600)")

    async with open_store(database) as postgres, open_dedicated(postgres, statement_timeout="0") as session:
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: session.run("test.hold", hold, begin=begin, seconds=600))
            await taken.wait()
            yield
            nursery.cancel_scope.cancel()


async def fill(process: Process, jobs: int, *, users: int) -> None:
    """Insert so many ready jobs, of each user one after the other, and all older than what is accepted then."""

    async def body(connection: Connection, count: int) -> None:
        before = await connection.fetchval("SELECT coalesce(max(seq), 0) FROM conversation")
        await connection.execute(_CONVERSATIONS, before, count, users)
        await connection.execute(RECEIPTS.replace("ORDER BY", f"WHERE seq > {before} ORDER BY"))
        await connection.execute(_JOBS, before)

    # A unit of work has a few seconds, also on a busy machine.
    for first in range(0, jobs, _FILLED_AT_ONCE):
        await process.postgres.run("test.fill", partial(body, count=min(_FILLED_AT_ONCE, jobs - first)))


_FILLED_AT_ONCE = 10_000


_CONVERSATIONS = """
INSERT INTO conversation (conversation_id, user_id, bot_id, started_at, ended_at, received_at, turns, exchanges)
SELECT 'many-' || $1::bigint + n, 'many-' || n % $3, 'bot-1', now(), now(), now(), 0, 0
FROM generate_series(1, $2::integer) AS n
"""
_JOBS = """
INSERT INTO job (seq, fair_key, available_at)
SELECT seq, user_id, now() - interval '1 hour' + seq * interval '1 ms' FROM conversation WHERE seq > $1
"""


async def work_off(process: Process, jobs: int) -> None:
    """Lease and settle the oldest jobs that were inserted, as far as that shows in ``job``."""

    async def body(connection: Connection) -> None:
        oldest = "seq IN (SELECT seq FROM job WHERE state = 'ready' AND fair_key LIKE 'many-%' ORDER BY seq LIMIT $1)"
        token = "state = 'leased', lease_token = seq, leased_at = now(), leased_until = now(), leased_by = 'x'"
        await connection.execute(f"UPDATE job SET {token} WHERE {oldest}", jobs)
        await connection.execute("DELETE FROM job WHERE leased_by = 'x'")

    await process.postgres.run("test.work_off", body)


async def worked_off(process: Process, users: int = 1) -> None:
    """Leave behind nothing but dead rows, enough of them."""
    await fill(process, ENOUGH, users=users)
    await work_off(process, ENOUGH)


async def accepted(process: Process, **users: int) -> None:
    for user, count in users.items():
        await process.accepted(*(f"{user}-{n}" for n in range(count)), user_id=f"user-{user}")


async def leased(jobs: Jobs, *counts: int) -> list[Lease]:
    return [lease for count in counts for lease in await jobs.lease(count)]


def names(leases: list[Lease]) -> list[str]:
    return [lease.conversation_id for lease in leases]


def whose(leases: list[Lease]) -> str:
    return "".join(lease.user_id.removeprefix("user-") for lease in leases)


async def knowing(process: Process) -> Jobs:
    """Lease once, in vain: from now on this process knows the queues."""
    assert await process.jobs.lease(1) == []
    assert process.jobs._known.learned
    return process.jobs


def counted(process: Process) -> tuple[Counting, Jobs]:
    """Make another process's jobs, whose statements are counted."""
    counting = Counting(process.postgres)
    return counting, Jobs(cast("Postgres", counting), JobsSettings(), "here/counting")


async def buffers(process: Process, *, leases: int = 6) -> tuple[int, int]:
    """Return the buffers that a process touches in its first lease, and at most in one of the next ones."""
    counting, jobs = counted(process)
    assert await jobs.lease(8)
    first, found = counting.buffers, []
    for _ in range(leases):
        assert await jobs.lease(8)
        found.append(counting.buffers)
    return first, max(found)


# --- the price


@pytest.mark.parametrize("users", [1, 100])
async def test_a_lease_touches_as_many_buffers_whatever_was_leased_since_the_snapshot(
    process: Process, monkeypatch: pytest.MonkeyPatch, users: int
) -> None:
    monkeypatch.setattr(known_queues, "KNOWN_SECONDS", 600.0)
    await fill(process, 41_000, users=users)
    _, fresh = await buffers(process)
    found, done = [], 0
    for many in (10_000, 20_000, 40_000):
        await work_off(process, many - done)
        done = many
        found.append(await buffers(process))
    searching, knowing = [first for first, _ in found], [then for _, then in found]
    # Whoever searches reads over them all: they are still there.
    assert searching[2] > 1.5 * searching[1] > 1.5 * 1.2 * searching[0]
    assert max(knowing) <= fresh
    assert knowing[2] <= 1.1 * knowing[0]


async def test_the_few_jobs_of_an_idle_installation_are_leased_without_reading_over_the_others(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_queues, "KNOWN_SECONDS", 600.0)
    counting, jobs = counted(process)
    found = []
    for done in (10_000, 20_000):
        await fill(process, 10_000, users=10_000)
        await work_off(process, 10_000)
        await accepted(process, **{f"a{done}": 1})
        jobs.start_over()
        assert len(await jobs.lease(8)) == 1
        searching = counting.buffers
        await accepted(process, **{f"b{done}": 2, f"c{done}": 1})
        assert len(await jobs.lease(8)) == 3
        assert counting.buffers * 20 < searching
        assert await jobs.lease(8) == []
        found.append(counting.buffers)
    assert found[1] <= found[0] + 4


async def test_what_was_delayed_and_came_due_since_the_snapshot_is_not_read_over_either(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_queues, "KNOWN_SECONDS", 600.0)
    counting, jobs = counted(process)
    found = []
    for _ in range(2):
        await fill(process, 10_000, users=1)
        await ask(process.postgres, "UPDATE job SET delayed = true, available_at = now() + interval '1 minute'")
        await ask(process.postgres, "UPDATE job SET delayed = false, available_at = now() - interval '1 minute'")
        await work_off(process, 10_000)
        jobs.start_over()
        assert await jobs.lease(8) == []
        searching = counting.buffers
        assert await jobs.lease(8) == []
        assert counting.buffers * 20 < searching
        found.append(counting.buffers)
    assert found[1] <= found[0] + 4


async def test_without_an_old_snapshot_every_lease_searches(database: str) -> None:
    async with open_process(database) as process:
        await fill(process, 6_000, users=3)
        for _ in range(20):
            assert len(await process.jobs.lease(128)) == 128
            assert not process.jobs._known.learned


# --- the order


async def test_the_rounds_go_on_as_they_were(process: Process) -> None:
    await worked_off(process)
    await accepted(process, b=5, d=2)
    assert whose(await leased(process.jobs, 1, 1)) == "bd"
    assert process.jobs._known.learned
    await accepted(process, a=1, c=1)
    found = await leased(process.jobs, 1, 1, 2, 2, 4)
    assert whose(found) == "abcd" + "bb" + "b"
    assert names(found)[4:] == ["b-2", "b-3", "b-4"]


async def test_a_few_users_share_the_workers(process: Process) -> None:
    await worked_off(process)
    await knowing(process)
    await accepted(process, a=10, b=10, c=1)
    assert whose(await leased(process.jobs, 8)) == "abcabab"


async def test_what_comes_while_the_queues_are_known_is_leased_in_turn_however_much_it_is(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_queues, "NEW_MAX", 3)
    await worked_off(process)
    await knowing(process)
    await accepted(process, a=7, b=1)
    found = await leased(process.jobs, *[1] * 9)
    assert names(found) == ["a-0", "a-1", "b-0", "a-2", "a-3", "a-4", "a-5", "a-6"]


async def test_many_that_were_delayed_and_come_due_at_once_are_all_leased_in_their_order(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fair_lease, "_COME_DUE_MAX", 2)
    await worked_off(process)
    await knowing(process)
    await accepted(process, a=5, b=1)
    after = "(seq - (SELECT min(seq) FROM job)) * interval '1 ms'"
    await ask(process.postgres, f"UPDATE job SET delayed = true, available_at = now() + {after}")
    # Longer ago than what is looked for late.
    await trio.sleep(1.5)
    found = await leased(process.jobs, *[1] * 6)
    assert sorted(names(found)) == ["a-0", "a-1", "a-2", "a-3", "a-4", "b-0"]
    assert [name for name in names(found) if name != "b-0"] == ["a-0", "a-1", "a-2", "a-3", "a-4"]


async def test_what_waits_for_a_dependency_goes_before_the_others_of_its_user(process: Process) -> None:
    await accepted(process, a=3)
    for lease in await leased(process.jobs, 2):
        await process.jobs.park(lease, "llm", "down")
    await worked_off(process)
    await accepted(process, b=2)
    process.jobs.start_over()
    assert names(await leased(process.jobs, 1)) == ["a-0"]
    assert process.jobs._known.learned
    assert names(await leased(process.jobs, 2, 2)) == ["b-0", "a-1", "b-1", "a-2"]


async def test_tenants_take_turns_as_they_did(process: Process) -> None:
    await make_tenants(process.postgres)
    await worked_off(process)
    await knowing(process)
    for tenant in (DEFAULT, ACME, BETA):
        for user in ("a", "b"):
            for n in range(2):
                one = accept_of(tenant, f"{user}-{n}", user_id=f"user-{user}")
                await process.committer.accept(one)
    found = [f"{lease.tenant.name} {lease.conversation_id}" for lease in await leased(process.jobs, *[1] * 4, 5, 5)]
    assert process.jobs._known.learned
    turns = [f"{tenant} {user}-{n}" for n in range(2) for user in ("a", "b") for tenant in ("acme", "beta", "default")]
    assert found == turns


async def test_with_more_queues_than_are_noted_every_lease_searches_and_looks_around_no_more_for_a_while(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_queues, "QUEUES_MAX", 2)
    await worked_off(process)
    await accepted(process, a=2, b=1, c=1)
    assert whose(await leased(process.jobs, 1)) == "a"
    monkeypatch.setattr(known_queues, "_FIRST", "SELECT 1 / 0")
    assert whose(await leased(process.jobs, 1, 1, 1)) == "bca"
    assert not process.jobs._known.learned


# --- several processes


async def test_processes_that_know_the_queues_share_them_and_never_lease_the_same_job(
    process: Process, database: str
) -> None:
    await worked_off(process)
    users = {f"{letter}{n}": 3 for letter in "abcdefgh" for n in range(10)}
    await accepted(process, **users)
    found: list[Lease] = []
    async with open_process(database) as there:
        other = owned(there, "there/two")
        assert await leased(process.jobs, 1)
        assert await leased(other, 1)
        assert process.jobs._known.learned
        assert other._known.learned

        async def take(jobs: Jobs) -> None:
            while leases := await jobs.lease(5):
                found.extend(leases)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, process.jobs)
            nursery.start_soon(take, other)
    assert len({lease.seq for lease in found}) == len(found) == 3 * 80 - 2


async def test_what_others_leased_meanwhile_is_passed_by_and_what_stands_behind_it_is_found_at_once(
    process: Process,
) -> None:
    await worked_off(process)
    await accepted(process, **{f"a{n:03}": 1 for n in range(200)}, z=1)
    other = owned(process, "there/two")
    assert whose(await leased(process.jobs, 1)) == "a000"
    assert process.jobs._known.learned
    assert len(await other.lease(199)) == 199
    assert whose(await leased(process.jobs, 1)) == "z"


async def test_a_lease_that_fails_leaves_nothing_known(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    await worked_off(process)
    await fill(process, 4, users=1)
    (first,) = await leased(process.jobs, 1)
    assert process.jobs._known.learned

    async def fail(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(brought, "bring", fail)
        with pytest.raises(DatabaseUnavailable):
            await process.jobs.lease(2)
    assert [lease.seq - first.seq for lease in await leased(process.jobs, 3)] == [1, 2, 3]


# --- what comes back


async def release(process: Process, other: Jobs, lease: Lease) -> None:
    await other.release(lease)


async def return_unbegun(process: Process, other: Jobs, lease: Lease) -> None:
    await other.return_unbegun([lease])


async def retry_at_once(process: Process, other: Jobs, lease: Lease) -> None:
    await other.fail(lease, "no", {}, later=0.001)


async def park(process: Process, other: Jobs, lease: Lease) -> None:
    await other.park(lease, "llm", "down")


async def rescue(process: Process, other: Jobs, lease: Lease) -> None:
    await ask(process.postgres, "UPDATE job SET leased_until = now() - interval '1 s' WHERE seq = $1", lease.seq)
    assert (await other.rescue()).rescued == 1


async def bury_and_give_back(process: Process, other: Jobs, lease: Lease) -> None:
    last = process.settings.jobs.attempts_max - 1
    await ask(process.postgres, "UPDATE job SET attempts = $2 WHERE seq = $1", lease.seq, last)
    assert await other.fail(_at(lease, last), "no", {}, later=1.0)
    assert await other.give_back({lease.seq: 1}, "llm") == 1


async def bury_and_retry(process: Process, other: Jobs, lease: Lease) -> None:
    last = process.settings.jobs.attempts_max - 1
    assert await other.fail(_at(lease, last), "no", {}, later=1.0)
    await other.retry(WHOLE_DEFAULT, lease.conversation_id)


def _at(lease: Lease, attempts: int) -> Lease:
    return msgspec.structs.replace(lease, attempts=attempts)


@pytest.mark.parametrize(
    "come_back", [release, return_unbegun, retry_at_once, park, rescue, bury_and_give_back, bury_and_retry]
)
async def test_a_job_that_comes_back_is_leased_again_by_a_process_that_knew_the_queues_without_it(
    process: Process, monkeypatch: pytest.MonkeyPatch, come_back: Callable[[Process, Jobs, Lease], Awaitable[None]]
) -> None:
    monkeypatch.setattr(known_queues, "KNOWN_SECONDS", 0.5)
    await worked_off(process)
    # Older than all that is found by its age.
    await fill(process, 1, users=1)
    other = owned(process, "there/two")
    (lease,) = await other.lease(1)
    jobs = await knowing(process)
    until = trio.current_time() + 0.5 + 5.0
    await come_back(process, other, lease)
    while not (again := await jobs.lease(1)):
        assert trio.current_time() < until, "it is starved"
        await trio.sleep(0.05)
    assert again[0].seq == lease.seq


async def test_a_job_that_was_given_back_is_found_in_its_place_after_that_time_and_not_before(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worked_off(process)
    await fill(process, 4, users=1)
    lease = (await leased(process.jobs, 1))[0]
    assert process.jobs._known.learned
    (second,) = await leased(process.jobs, 1)
    await process.jobs.return_unbegun([lease])
    (third,) = await leased(process.jobs, 1)
    assert third.seq == second.seq + 1
    now = trio.current_time()
    monkeypatch.setattr(trio, "current_time", lambda: now + known_queues.KNOWN_SECONDS)
    found = await leased(process.jobs, 1, 1)
    assert [one.seq for one in found] == [lease.seq, third.seq + 1]


async def test_an_accept_whose_transaction_took_long_is_found(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_queues, "KNOWN_SECONDS", 0.5)
    await worked_off(process)
    jobs = await knowing(process)
    until = trio.current_time() + 0.5 + 5.0
    await fill(process, 1, users=1)
    while not await jobs.lease(1):
        assert trio.current_time() < until, "it is starved"
        await trio.sleep(0.05)


async def test_what_is_known_for_some_dependencies_is_not_used_for_others(process: Process) -> None:
    await accepted(process, a=1)
    (lease,) = await process.jobs.lease(1)
    await process.jobs.park(lease, "llm", "down")
    await worked_off(process)
    assert await process.jobs.lease(1, out=["llm"]) == []
    assert process.jobs._known.learned
    assert names(await leased(process.jobs, 1)) == ["a-0"]
