from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from convo.store import job_sql
from convo.store.postgres import Connection
from tests.support.making import Process, ask, open_process, rows


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def planned(process: Process, query: str) -> str:
    """Return the plan of a query where the planner may read the whole table only if it must."""

    async def body(connection: Connection) -> str:
        await connection.execute("SET LOCAL enable_seqscan = off")
        return "\n".join(row["QUERY PLAN"] for row in await connection.fetch(f"EXPLAIN {query}"))

    return await process.postgres.run("test.plan", body)


@pytest.mark.parametrize(
    ("condition", "order", "index"),
    [
        (job_sql.DUE, "waits_for, fair_key, available_at, seq", "job_due"),
        (job_sql.QUEUED, "waits_for, fair_key, available_at, seq", "job_due"),
        (job_sql.DELAYED, "available_at", "job_not_due"),
        (job_sql.SUSPECT, "available_at, seq", "job_not_due"),
        (job_sql.QUEUED, "available_at, seq", "job_queued"),
        (job_sql.PARKED_SINCE, "parked_since", "job_parked_since"),
    ],
)
async def test_a_condition_is_the_one_of_its_index(process: Process, condition: str, order: str, index: str) -> None:
    plan = await planned(process, f"SELECT seq FROM job WHERE {condition} ORDER BY {order}")
    assert index in plan
    assert "Sort" not in plan


ROWS = {
    "due": ("0", "''", "false"),
    "due, its dependency out": ("1", "'llm'", "false"),
    "delayed": ("0", "''", "true"),
    "delayed and parked": ("0", "'llm'", "true"),
    "suspect": ("2", "''", "false"),
    "suspect, its dependency out": ("9", "'llm'", "false"),
}
PARKED = {"due, its dependency out", "delayed and parked", "suspect, its dependency out"}
EXPECTED = {
    job_sql.DUE: {"due", "due, its dependency out"},
    job_sql.QUEUED: {"due"},
    job_sql.DELAYED: {"delayed", "delayed and parked"},
    job_sql.SUSPECT: {"suspect", "suspect, its dependency out"},
    job_sql.PARKED: PARKED,
    job_sql.PARKED_SINCE: PARKED,
}


async def test_each_condition_holds_for_the_ready_jobs_that_it_names(process: Process) -> None:
    for name, (crashes, waits_for, delayed) in ROWS.items():
        since = "NULL" if waits_for == "''" else "convo_now()"
        await ask(
            process.postgres,
            f"""
            WITH made AS (
                INSERT INTO job (seq, fair_key, crashes, waits_for, parked_since, delayed)
                VALUES ({[*ROWS].index(name)}, $1, {crashes}, {waits_for}, {since}, {delayed})
            ) SELECT 1
            """,
            name,
        )
    for condition, expected in EXPECTED.items():
        found = await rows(process.postgres, f"SELECT fair_key FROM job WHERE {condition}")
        assert {name for (name,) in found} == expected, condition


async def test_a_job_that_is_due_later_is_delayed_and_one_that_is_due_now_keeps_its_place(process: Process) -> None:
    await process.accepted("talk-1")
    changed = "UPDATE job SET {} RETURNING delayed, available_at > convo_now() AS later"
    for seconds, expected in ((0.0, (False, False)), (5.0, (True, True))):
        query = f"WITH changed AS ({changed.format(job_sql.later('$1'))}) SELECT delayed, later FROM changed"
        assert await rows(process.postgres, query, seconds) == [expected]
