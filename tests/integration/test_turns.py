from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import trio

from convo.config import FairnessSettings, JobsSettings, Settings
from convo.store import turns
from convo.store.jobs import Jobs, Lease
from convo.store.postgres import Connection
from tests.making import Process, ask, open_process, rows, shift_clock

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


# --- turns


async def test_between_two_jobs_of_one_user_every_other_user_has_a_turn(process: Process) -> None:
    await accepted(process, a=5, b=2, c=1)
    assert await served(process, *[1] * 9) == "abcabaaa"


async def test_the_turns_are_the_same_however_many_are_leased_at_once(process: Process) -> None:
    await accepted(process, a=6, b=3, c=2)
    assert await served(process, 3, 3, 3, 3, 3) == "abcabc" + "ab" + "aaa"


async def test_one_alone_gets_all_workers(process: Process) -> None:
    await accepted(process, a=10)
    assert await served(process, 8, 8) == "a" * 10


async def test_a_few_users_share_the_workers(process: Process) -> None:
    await accepted(process, a=10, b=10, c=1)
    assert await served(process, 8) == "abcabab"


async def test_whoever_comes_while_others_wait_is_served_in_his_turn(process: Process) -> None:
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
    assert grown == {"conversation": 3, "conversation_log": 3, "job": 3, "ledger": 3}


async def _rows_by_table(process: Process) -> dict[str, int]:
    tables = [
        name for (name,) in await rows(process.postgres, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    ]
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


async def test_a_user_with_parked_and_other_jobs_has_one_turn_like_all(process: Process) -> None:
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
                                  exchanges, digest)
        SELECT 'many-' || n, 'user-' || n % $2, 'bot-1', now(), now(), now(), 0, 0, '1:a'
        FROM generate_series(1, $1) AS n
        """,
        "INSERT INTO job (seq, fair_key) SELECT seq, user_id FROM conversation WHERE seq <= $1 AND $2 > 0",
    ):

        async def body(connection: Connection, statement: str = statement) -> None:
            await connection.execute(statement, jobs, users)

        await process.postgres.run("test.fill", body)


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("users", [1, 1000, MANY])
async def test_at_200_000_ready_rows_a_lease_neither_sorts_nor_scans(database: str, users: int, plans: str) -> None:
    settings = msgspec.structs.replace(
        Settings(), database=msgspec.structs.replace(Settings().database, statement_seconds=120.0)
    )
    async with open_process(database, settings) as process:
        await _fill(process, MANY, users=users)

        async def analyze(connection: Connection) -> None:
            await connection.execute("ANALYZE job")
            await connection.execute("ANALYZE conversation")

        await process.postgres.run("test.analyze", analyze)

        async def explain(connection: Connection) -> list[str]:
            await connection.execute(f"SET LOCAL plan_cache_mode = {plans}")
            plan = await connection.fetch(
                f"EXPLAIN (ANALYZE, TIMING OFF) {turns._LEASE}", 8, "here/one", 30.0, "", ["llm", "memory", ""]
            )
            return [row["QUERY PLAN"] for row in plan]

        plan = "\n".join(await process.postgres.run("test.explain", explain))
    assert "Sort" not in plan, plan
    assert "Seq Scan" not in plan, plan
    assert "Hash" not in plan, plan
    read = [
        int(line.split(" rows=")[2].split(".")[0].split()[0]) for line in plan.splitlines() if line.count(" rows=") == 2
    ]
    assert 8 <= max(read) <= 16, plan


async def test_two_processes_take_turns_without_taking_the_same(process: Process) -> None:
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


def test_the_order_of_turns_is_by_round_and_from_the_one_served_last() -> None:
    found = [{"fair_key": key, "seq": seq, "available_at": 0} for seq, key in enumerate(["a", "a", "b", "c", "c", "c"])]
    assert "".join(row["fair_key"] for row in turns.in_turns(found, "a")) == "bcacac"
    assert "".join(row["fair_key"] for row in turns.in_turns(found, "")) == "abcacc"
