from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date, timedelta
from typing import Any, cast

import msgspec
import pytest
import trio

from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import BadRow
from convo.store import audit, ledger
from convo.store.ledger import Gap
from convo.store.postgres import Connection, DedicatedConnection
from tests.support.making import Process, ask, deleted, open_dedicated, open_process, rows, settled, shift_clock

TODAY = "SELECT (convo_now() AT TIME ZONE 'UTC')::date"
BOOKS = "SELECT day - (convo_now() AT TIME ZONE 'UTC')::date, kind, n::integer FROM ledger ORDER BY 1, 2, 3"


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


@pytest.fixture
async def dedicated(process: Process) -> AsyncIterator[DedicatedConnection]:
    async with open_dedicated(process.postgres) as opened:
        yield opened


# --- booking


@pytest.mark.parametrize("kind", ["accepted", "done", "dead", "retired", "superseded", "ready"])
async def test_the_ledger_takes_the_kinds_that_there_are_and_no_other(process: Process, kind: str) -> None:
    insert = f"WITH made AS (INSERT INTO ledger (day, kind, n) VALUES (now(), '{kind}', 1)) SELECT 1"
    if kind != "ready":
        await ask(process.postgres, insert)
        return
    with pytest.raises(BadRow):
        await ask(process.postgres, insert)


async def test_every_accept_settle_burial_and_retry_is_booked_under_the_day_of_receipt(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    await settled(process, 1)
    await shift_clock(process.postgres, "1 day")
    await process.accepted("talk-3")
    (lease,) = await process.jobs.lease(1)
    assert await process.jobs.fail(msgspec.structs.replace(lease, attempts=4), "why", {}, later=0)
    assert await rows(process.postgres, BOOKS) == [
        (-1, "accepted", 1),
        (-1, "accepted", 1),
        (-1, "dead", 1),
        (-1, "done", 1),
        (0, "accepted", 1),
    ]
    await process.jobs.retry(WHOLE_DEFAULT, "talk-2")
    assert (await ledger.totals(process.postgres)) == {"accepted": 3, "done": 1, "dead": 0}


async def test_a_replay_is_not_booked_again(process: Process) -> None:
    await process.accepted("talk-1", "talk-1", "talk-1")
    assert await ledger.totals(process.postgres) == {"accepted": 1}


async def test_what_a_rescue_buries_is_booked(process: Process) -> None:
    await process.accepted("talk-1")
    (lease,) = await process.jobs.lease(1)
    await process.jobs.park(lease, "llm", "down")
    await shift_clock(process.postgres, "8 days")
    await process.jobs.rescue()
    assert await ledger.totals(process.postgres) == {"accepted": 1, "dead": 1}


# --- folding


async def test_rows_older_than_a_minute_are_summed_up_and_younger_ones_left(
    process: Process, dedicated: DedicatedConnection
) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    await shift_clock(process.postgres, "61 seconds")
    await process.accepted("talk-4", "talk-5")
    assert await ledger.compare_recent(dedicated) == []
    assert sorted(row[2] for row in await rows(process.postgres, BOOKS)) == [1, 1, 3]
    assert await ledger.totals(process.postgres) == {"accepted": 5}


async def test_more_rows_than_one_transaction_sums_up_are_summed_up_in_several(
    process: Process, dedicated: DedicatedConnection
) -> None:
    many = """
    WITH made AS (
        INSERT INTO ledger (day, kind, n, at)
        SELECT '2026-01-01'::date + n % 7, CASE WHEN n % 2 = 0 THEN 'accepted' ELSE 'done' END, 1, '2026-01-08'
        FROM generate_series(1, $1) AS n
    ) SELECT 1
    """
    count = 2 * ledger.FOLD_ROWS + 1000
    await ask(process.postgres, many, count)
    deleted: list[int] = []

    class Counting:
        async def run(self, name: str, body: Any, **options: Any) -> Any:
            outcome = await dedicated.run(name, body, **options)
            deleted.extend([outcome] if isinstance(outcome, int) else [])
            return outcome

    await ledger.compare_recent(cast("DedicatedConnection", Counting()))
    assert deleted[:2] == [ledger.FOLD_ROWS] * 2
    assert 1000 <= deleted[2] <= 1014
    sums = await rows(process.postgres, "SELECT count(*), count(DISTINCT (day, kind)), sum(n)::bigint FROM ledger")
    assert sums == [(14, 14, count)]


async def test_one_process_at_a_time_keeps_the_books(process: Process, dedicated: DedicatedConnection) -> None:
    async def body(connection: Connection) -> None:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", ledger._LOCK)
        await connection.execute("SELECT pg_sleep(30)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.postgres.run, "test.lock", body)
        with trio.fail_after(10):
            while await ledger.compare_recent(dedicated) is not None:  # noqa: ASYNC110  (the lock tells nobody)
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert await ledger.compare_recent(dedicated) == []


# --- gaps


async def test_books_that_balance_have_no_gap(process: Process, dedicated: DedicatedConnection) -> None:
    await process.accepted(*(f"talk-{n}" for n in range(6)))
    await settled(process, 3)
    await process.jobs.lease(1)
    assert await ledger.compare_recent(dedicated) == []
    assert await ledger.gaps(dedicated) == []
    assert await audit.anomalies(dedicated) == []


@pytest.mark.parametrize(
    ("table", "gaps"),
    [
        ("outcome", [("jobs", 3, 2), ("done", 3, 2)]),
        ("conversation", [("conversations", 3, 2), ("jobs", 3, 2), ("done", 3, 2)]),
    ],
)
async def test_a_row_that_was_deleted_by_hand_is_a_gap(
    process: Process, dedicated: DedicatedConnection, table: str, gaps: list[tuple[str, int, int]]
) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    await settled(process, 3)
    await deleted(process, table, "talk-2")
    today = await ask(process.postgres, TODAY)
    expected = [Gap(day=today, what=what, booked=booked, found=found) for what, booked, found in gaps]
    assert await ledger.compare_recent(dedicated) == expected
    assert await ledger.gaps(dedicated) == expected


async def test_older_days_are_compared_one_a_minute(process: Process, dedicated: DedicatedConnection) -> None:
    await process.accepted("talk-1")
    for days in range(1, 5):
        await shift_clock(process.postgres, f"{days} days")
        await process.accepted(f"talk-{days + 1}")
    for number in (1, 2, 3):
        await deleted(process, "job", f"talk-{number}")
    found: list[date] = []
    for minute in range(3):
        await shift_clock(process.postgres, f"4 days {minute} minutes")
        found += [gap.day for gap in await ledger.compare_recent(dedicated) or []]
    oldest = await ask(process.postgres, TODAY) - timedelta(days=4)
    assert sorted(found) == [oldest + timedelta(days=n) for n in range(3)]


async def test_today_and_yesterday_are_compared_every_minute(process: Process, dedicated: DedicatedConnection) -> None:
    await process.accepted("talk-1")
    await shift_clock(process.postgres, "1 day")
    await process.accepted("talk-2")
    await deleted(process, "job", "talk-1")
    await deleted(process, "job", "talk-2")
    for minute in range(3):
        await shift_clock(process.postgres, f"1 day {minute} minutes")
        assert len(await ledger.compare_recent(dedicated) or []) == 2
