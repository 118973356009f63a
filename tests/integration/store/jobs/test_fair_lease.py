from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import trio

from convo.settings import FairnessSettings, JobsSettings, Settings
from convo.store.jobs import fair_lease
from convo.store.jobs.fair_lease import FURTHER_KEYS, LOOKS_MAX
from convo.store.jobs.lease import Lease
from convo.store.jobs.table import Jobs
from convo.store.postgres import Connection
from tests.conftest import _database
from tests.support.making import Process, ask, open_process, rows, shift_clock, tables_of
from tests.support.plans import Planning
from tests.support.receipts_by_sql import RECEIPTS

MANY = 200_000


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def accepted(process: Process, **users: int) -> None:
    """Accept so many conversations of each user, one user after the other."""
    for user, count in users.items():
        for n in range(count):
            await process.accepted(f"{user}-{n}", user_id=f"user-{user}")


async def served(process: Process, *counts: int) -> str:
    """Lease so many jobs each time; return whose they were."""
    leases: list[Lease] = []
    for count in counts:
        leases += await process.jobs.lease(count)
    return "".join(lease.user_id.removeprefix("user-") for lease in leases)


# --- rounds


async def test_between_two_jobs_of_one_user_every_other_user_has_one(process: Process) -> None:
    await accepted(process, a=5, b=2, c=1)
    assert await served(process, *[1] * 9) == "abcabaaa"


async def test_the_rounds_are_the_same_however_many_are_leased_at_once(process: Process) -> None:
    await accepted(process, a=6, b=3, c=2)
    assert await served(process, 3, 3, 3, 3, 3) == "abcabc" + "ab" + "aaa"


async def test_one_alone_gets_all_workers(process: Process) -> None:
    await accepted(process, a=10)
    assert await served(process, 8, 8) == "a" * 10


async def test_a_few_users_share_the_workers(process: Process) -> None:
    await accepted(process, a=10, b=10, c=1)
    assert await served(process, 8) == "abcabab"


async def test_a_user_who_comes_while_others_wait_is_served_in_the_same_round(process: Process) -> None:
    await accepted(process, b=3, d=3)
    assert await served(process, 1) == "b"
    await accepted(process, a=1, c=1)
    assert await served(process, 1, 1, 1, 1, 1) == "cdabd"


async def test_ten_thousand_of_one_user_hold_up_nobody(process: Process) -> None:
    await _fill(process, 10_000, users=1)
    await accepted(process, z=1)
    assert await served(process, 1, 1) == "0z"


async def test_a_users_own_jobs_come_oldest_first(process: Process) -> None:
    await accepted(process, a=4)
    assert [lease.conversation_id for lease in await process.jobs.lease(4)] == ["a-0", "a-1", "a-2", "a-3"]


@pytest.mark.parametrize(("key", "order"), [("user", "abcab"), ("bot", "abcab"[::-1]), ("none", "aabbc")])
async def test_the_key_of_fairness_is_a_setting(database: str, key: Any, order: str) -> None:
    async with open_process(database, Settings(fairness=FairnessSettings(key=key))) as process:
        for user, bot in (("a", "z"), ("a", "w"), ("b", "y"), ("b", "x"), ("c", "v")):
            await process.accepted(f"{user}-{bot}", user_id=f"user-{user}", bot_id=f"bot-{bot}")
        found = await served(process, 1, 1, 1, 1, 1)
    assert found == {"user": "abcab", "bot": "cabba", "none": "aabbc"}[key]


async def test_accept_writes_no_row_a_user(process: Process) -> None:
    before = await _rows_by_table(process)
    await accepted(process, a=2, b=1)
    after = await _rows_by_table(process)
    grown = {table: after[table] - before[table] for table in after if after[table] != before[table]}
    # The books get a row a batch.
    assert grown == {"receipt": 3, "conversation": 3, "conversation_log": 3, "job": 3, "ledger": 3}


async def _rows_by_table(process: Process) -> dict[str, int]:
    tables = await tables_of(process.postgres)
    return {table: await ask(process.postgres, f"SELECT count(*) FROM {table}") for table in tables}


# --- parked ones


async def parked(process: Process, dependency: str, count: int) -> None:
    for lease in await process.jobs.lease(count):
        await process.jobs.park(lease, dependency, "down")


async def test_what_waits_for_a_dependency_that_is_out_is_left_where_it_is(process: Process) -> None:
    await accepted(process, a=1, b=1)
    await parked(process, "llm", 2)
    await accepted(process, c=1)
    assert [lease.user_id for lease in await process.jobs.lease(9, out=["llm"])] == ["user-c"]
    assert await process.jobs.lease(9, out=["llm", "memory"]) == []
    assert await served(process, 9) == "ab"


async def test_the_parked_ones_go_before_later_ones_of_the_same_user(process: Process) -> None:
    await accepted(process, a=2)
    await parked(process, "memory", 2)
    await process.accepted("late-1", user_id="user-a")
    assert [lease.conversation_id for lease in await process.jobs.lease(9)] == ["a-0", "a-1", "late-1"]


async def test_a_user_with_parked_and_other_jobs_has_one_job_a_round_like_all(process: Process) -> None:
    await accepted(process, a=2)
    await parked(process, "llm", 2)
    await accepted(process, b=2)
    await process.accepted("late-1", user_id="user-a")
    assert await served(process, 2, 2, 2) == "babaa"


async def test_one_that_waits_is_leased_as_a_probe(process: Process) -> None:
    await accepted(process, a=2)
    await parked(process, "llm", 2)
    assert [lease.conversation_id for lease in await process.jobs.lease_probe("llm")] == ["a-0"]
    assert await process.jobs.lease_probe("memory") == []


async def test_parking_spends_no_attempt_keeps_the_place_and_says_why(process: Process) -> None:
    await accepted(process, a=2)
    before = await ask(process.postgres, "SELECT min(available_at) FROM job")
    await parked(process, "llm", 1)
    columns = "state, attempts, waits_for, parked_since IS NOT NULL, last_error, delayed, available_at"
    query = f"SELECT {columns} FROM job WHERE seq = 1"
    assert await rows(process.postgres, query) == [("ready", 0, "llm", True, "down", False, before)]


async def test_parking_for_a_while_waits_at_least_so_long(process: Process) -> None:
    await accepted(process, a=1)
    (lease,) = await process.jobs.lease(1)
    await process.jobs.park(lease, "llm", "busy", later=40)
    assert await process.jobs.lease(1) == []
    await shift_clock(process.postgres, "41 seconds")
    assert await served(process, 1) == "a"


async def test_a_job_parked_again_has_waited_since_the_first_time(process: Process) -> None:
    await accepted(process, a=1)
    await parked(process, "llm", 1)
    since = await ask(process.postgres, "SELECT parked_since FROM job")
    await parked(process, "llm", 1)
    assert await ask(process.postgres, "SELECT parked_since FROM job") == since


# --- the price


async def _fill(process: Process, jobs: int, *, users: int) -> None:
    """Insert so many ready jobs, those of one user far apart."""
    for statement in (
        """
        INSERT INTO conversation (conversation_id, user_id, bot_id, started_at, ended_at, received_at, turns,
                                  exchanges)
        SELECT 'many-' || n, 'user-' || n % $2, 'bot-1', now(), now(), now(), 0, 0
        FROM generate_series(1, $1) AS n
        """,
        f"{RECEIPTS} LIMIT $1 OFFSET $2 * 0",
        "INSERT INTO job (seq, fair_key) SELECT seq, user_id FROM conversation WHERE seq <= $1 AND $2 > 0",
    ):

        async def body(connection: Connection, statement: str = statement) -> None:
            await connection.execute(statement, jobs, users)

        await process.postgres.run("test.fill", body)


PATIENT = msgspec.structs.replace(
    Settings(), database=msgspec.structs.replace(Settings().database, statement_seconds=120.0)
)


@pytest.fixture(scope="module")
def crowds(postgres_url: str, template: str) -> Iterator[Callable[[int], str]]:
    """Return the name of a database with ``MANY`` ready jobs of so many users; it is filled once, and copied."""
    with ExitStack() as databases:

        @cache
        def crowd(users: int) -> str:
            url = databases.enter_context(_database(postgres_url, template))
            trio.run(_crowd, url, users)
            return urlsplit(url).path.removeprefix("/")

        yield crowd


async def _crowd(url: str, users: int) -> None:
    async with open_process(url, PATIENT) as process:
        await _fill(process, MANY, users=users)

        async def analyze(connection: Connection) -> None:
            await connection.execute("ANALYZE job")
            await connection.execute("ANALYZE conversation")

        await process.postgres.run("test.analyze", analyze)


@pytest.fixture
def crowded(request: pytest.FixtureRequest, postgres_url: str, crowds: Callable[[int], str]) -> Iterator[str]:
    """A database of the test's own with ``MANY`` ready jobs of as many users as its parameter says."""
    with _database(postgres_url, crowds(request.param)) as url:
        yield url


@pytest.mark.parametrize("crowded", [pytest.param(1, marks=pytest.mark.long), 1000, MANY], indirect=True)
@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
async def test_at_200_000_ready_rows_a_lease_neither_sorts_nor_scans(crowded: str, plans: str) -> None:
    async with open_process(crowded, PATIENT) as process:
        planning: Any = Planning(process.postgres, f"plan_cache_mode = {plans}")
        await Jobs(planning, JobsSettings(), "here/one").lease(8)
    plan = "\n".join(planning.plans)
    assert "Sort" not in plan, plan
    assert "Seq Scan" not in plan, plan
    assert "Hash" not in plan, plan
    read = [
        int(line.split(" rows=")[2].split(".")[0].split()[0]) for line in plan.splitlines() if line.count(" rows=") == 2
    ]
    assert 8 <= max(read) <= 16, plan


@pytest.mark.parametrize("crowded", [MANY], indirect=True)
@pytest.mark.parametrize(("others", "looks"), [(0, 1), (8, 2), (1000, LOOKS_MAX)])
async def test_at_200_000_ready_rows_a_lease_probes_the_index_so_often_and_no_more(
    crowded: str, others: int, looks: int
) -> None:
    async def probes(connection: Connection) -> tuple[int, int]:
        rounds = fair_lease.Rounds(last_keys={"": "user-5"})
        taken = await fair_lease.take(
            connection, 8, owner="here/one", lease_seconds=30.0, rounds=rounds, allowed=["llm", "memory", ""]
        )
        scans = await connection.fetchval("SELECT idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'job'")
        return len(taken.rows), scans

    async with open_process(crowded, PATIENT) as process, locked(process, others, after="user-5"):
        leased, scans = await process.postgres.run("test.probes", probes)
    assert leased == (0 if looks == LOOKS_MAX else 8)
    keys = 8 + (looks - 1) * FURTHER_KEYS
    # Of each key the search and its rows, once for each value of waits_for; then what comes due, and the update of 8.
    assert keys <= scans <= 3 * 2 * keys + 8 + 2 * looks


@asynccontextmanager
async def locked(process: Process, users: int, *, after: str = "") -> AsyncIterator[None]:
    """Hold the rows of so many users locked, as another process does that leases them and has not committed."""
    held = trio.Event()

    async def body(connection: Connection) -> None:
        await connection.execute(
            "SELECT FROM job WHERE fair_key IN"
            " (SELECT DISTINCT fair_key FROM job WHERE fair_key > $2 ORDER BY fair_key LIMIT $1) FOR UPDATE",
            users,
            after,
        )
        held.set()
        await connection.execute("SELECT pg_sleep(60)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.postgres.run, "test.lock", body)
        await held.wait()
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("others", [4, 8, 72])
async def test_where_another_process_has_locked_the_next_users_the_ones_behind_are_leased(
    process: Process, others: int
) -> None:
    await _fill(process, 1000, users=1000)
    async with locked(process, others):
        taken = await process.jobs.lease(8)
    keys = sorted(f"user-{n}" for n in range(1000))
    assert sorted(lease.fair_key for lease in taken) == keys[others : others + 8]


async def test_a_lease_looks_so_far_and_no_further_and_begins_behind_that_next_time(process: Process) -> None:
    await _fill(process, 1000, users=1000)
    reach = 8 + (LOOKS_MAX - 1) * FURTHER_KEYS
    keys = sorted(f"user-{n}" for n in range(1000))
    async with locked(process, reach + 100):
        assert await process.jobs.lease(8) == []
        taken = await process.jobs.lease(8)
    assert sorted(lease.fair_key for lease in taken) == keys[reach + 100 : reach + 108]


async def test_where_all_users_are_locked_it_does_not_look_at_them_again(process: Process) -> None:
    await accepted(process, a=1, b=1, c=1)
    async with locked(process, 3):
        assert await process.jobs.lease(2) == []
        assert await process.jobs.lease(8) == []
    assert len(await process.jobs.lease(8)) == 3


async def test_two_processes_share_the_rounds_and_never_lease_the_same_job(process: Process) -> None:
    await accepted(process, a=6, b=6, c=6)
    other = Jobs(process.postgres, JobsSettings(), "there/two")
    found: list[Lease] = []

    async def take(jobs: Jobs) -> None:
        while leases := await jobs.lease(2):
            found.extend(leases)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, process.jobs)
        nursery.start_soon(take, other)
    assert len({lease.seq for lease in found}) == len(found) == 18


def test_leases_are_sorted_by_round_and_start_behind_the_key_served_last() -> None:
    found = [{"fair_key": key, "seq": seq, "available_at": 0} for seq, key in enumerate(["a", "a", "b", "c", "c", "c"])]
    assert "".join(row["fair_key"] for row in fair_lease.in_rounds(found, "a")) == "bcacac"
    assert "".join(row["fair_key"] for row in fair_lease.in_rounds(found, "")) == "abcacc"
