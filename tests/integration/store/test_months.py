from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from convo.store import audit, months
from convo.store.months import MONTH_SEQS, MONTH_TABLES
from tests.support.making import Process, ask, open_dedicated, open_process, rows, settled, settled_later, shift_clock


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        await on_day(opened, 0)
        yield opened


async def on_day(process: Process, days: float) -> None:
    """Set the clock to so many days after the tenth of this month, at noon."""
    await ask(
        process.postgres,
        "CREATE OR REPLACE FUNCTION convo_now() RETURNS timestamptz LANGUAGE sql STABLE AS $$ SELECT"
        " (date_trunc('month', now() AT TIME ZONE 'UTC') + interval '9 days 12 hours') AT TIME ZONE 'UTC'"
        f" + (now() - date_trunc('minute', now())) + interval '{days} days' $$",
    )


async def prepared(process: Process) -> int | None:
    return await process.postgres.run("test.months", months.prepare_months)


async def partitions(process: Process) -> dict[str, list[int]]:
    return {name: list(numbers) for name, numbers in (await process.postgres.run("t", months.read_months)).items()}


async def seq_of(process: Process, conversation_id: str) -> int:
    seq: int = await ask(process.postgres, "SELECT seq FROM conversation WHERE conversation_id = $1", conversation_id)
    return seq


async def last_value(process: Process) -> int:
    value: int = await ask(process.postgres, "SELECT last_value FROM conversation_seq_seq")
    return value


async def test_a_month_begins_with_the_first_look_in_it_and_old_rows_stay_where_they_are(process: Process) -> None:
    await process.accepted("old")
    assert await prepared(process) is None
    await on_day(process, 30)
    assert await prepared(process) == 1
    assert await prepared(process) is None
    await process.accepted("new")
    await settled_later(process, 2)
    assert await seq_of(process, "old") == 1
    assert await seq_of(process, "new") == MONTH_SEQS
    for table in MONTH_TABLES:
        found = await rows(process.postgres, f"SELECT seq, tableoid::regclass::text FROM {table} ORDER BY seq")
        assert found == [(1, f"{table}_0"), (MONTH_SEQS, f"{table}_1")]


async def test_a_month_in_which_nothing_was_received_uses_no_partition(process: Process) -> None:
    for days in (30, 60, 90):
        await on_day(process, days)
        assert await prepared(process) is None
    await process.accepted("talk-1")
    assert await seq_of(process, "talk-1") == 1


async def test_the_partitions_of_the_next_two_months_are_always_there(process: Process) -> None:
    for number in range(1, 5):
        await process.accepted(f"talk-{number}")
        await on_day(process, 31 * number)
        assert await prepared(process) == number
        await prepared(process)
        for numbers in (await partitions(process)).values():
            assert numbers == list(range(number + 3))


async def test_a_partition_made_later_is_like_the_first_one(process: Process) -> None:
    await process.accepted("talk-1")
    await on_day(process, 31)
    assert await prepared(process) == 1
    await prepared(process)
    for query in (
        (
            "SELECT attname::text, attstorage::text, attnotnull, attcollation::text, attstattarget::text"
            " FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attname"
        ),
        (
            "SELECT indkey::text, indisunique, indisprimary, pg_get_expr(indpred, indrelid) FROM pg_index"
            " WHERE indrelid = $1::regclass AND indisvalid ORDER BY 1, 4"
        ),
        (
            "SELECT pg_get_constraintdef(oid), convalidated FROM pg_constraint WHERE conrelid = $1::regclass"
            " AND contype = 'c' ORDER BY 1"
        ),
    ):
        for table in MONTH_TABLES:
            first = await rows(process.postgres, query, f"{table}_0")
            assert await rows(process.postgres, query, f"{table}_3") == first


async def test_a_clock_that_jumps_ahead_and_comes_back_uses_two_numbers(process: Process) -> None:
    await process.accepted("before")
    await on_day(process, 400)
    assert await prepared(process) == 1
    await process.accepted("ahead")
    for _ in range(5):
        assert await prepared(process) is None
    await on_day(process, 0)
    assert await prepared(process) == 2
    await process.accepted("back")
    for _ in range(5):
        assert await prepared(process) is None
    await on_day(process, 31)
    assert await prepared(process) == 3


async def test_a_clock_set_back_over_the_end_of_a_month_begins_no_other_one(process: Process) -> None:
    await process.accepted("before")
    await on_day(process, 31)
    assert await prepared(process) == 1
    await process.accepted("after")
    await ask(process.postgres, "WITH moved AS (UPDATE receipt SET received_at = convo_now() + interval '1 minute'"
              " WHERE seq > 1 RETURNING 1) SELECT count(*) FROM moved")  # fmt: skip
    assert await prepared(process) is None


async def test_the_sequence_is_never_set_back(process: Process) -> None:
    await process.accepted("talk-1")
    await on_day(process, 31)

    async def stale(connection: Any) -> int | None:
        # Another process that has read the sequence before the month began.
        value: int | None = await connection.fetchval(months._BEGIN, MONTH_SEQS)
        return value

    assert await prepared(process) == 1
    await process.accepted("talk-2", "talk-3")
    assert await process.postgres.run("test.stale", stale) is None
    assert await last_value(process) == MONTH_SEQS + 1


async def test_two_processes_begin_a_month_once(process: Process) -> None:
    await process.accepted("talk-1")
    await on_day(process, 31)
    begun: list[int | None] = []

    async def one() -> None:
        begun.append(await prepared(process))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)
    assert sorted(begun, key=str) == [1, None, None, None]
    assert await last_value(process) == MONTH_SEQS


async def test_nothing_begins_while_partition_0_is_the_only_one(process: Process) -> None:
    await ask(process.postgres, "DO $$ BEGIN DROP TABLE conversation_log_1, conversation_log_2, run_1, run_2; END $$")
    await process.accepted("talk-1")
    await on_day(process, 400)
    assert await prepared(process) is None
    assert await partitions(process) == {"conversation_log": [0], "run": [0]}
    await process.accepted("talk-2")
    assert await seq_of(process, "talk-2") == 2


async def test_after_years_without_a_look_rows_go_on_in_the_same_month(process: Process) -> None:
    await process.accepted("talk-1")
    await on_day(process, 5 * 365)
    await process.accepted("talk-2")
    await settled(process, 2)
    assert await seq_of(process, "talk-2") == 2
    assert await prepared(process) == 1


async def test_a_sequence_that_was_set_forward_by_hand_finds_its_partitions_at_the_next_look(process: Process) -> None:
    await ask(process.postgres, "SELECT setval('conversation_seq_seq', $1)", 9 * MONTH_SEQS + 7)
    await prepared(process)
    assert (await partitions(process))["run"] == [0, 1, 2, 9, 10, 11]
    await process.accepted("talk-1")
    assert await seq_of(process, "talk-1") == 9 * MONTH_SEQS + 8


async def test_the_last_number_that_json_can_hold_is_never_passed(process: Process) -> None:
    last = (1 << 53) // MONTH_SEQS - 1
    await ask(process.postgres, "SELECT setval('conversation_seq_seq', $1)", last * MONTH_SEQS)
    await prepared(process)
    await process.accepted("talk-1")
    await on_day(process, 400)
    assert await prepared(process) is None
    assert max((await partitions(process))["run"]) == last


async def test_the_audit_reads_every_month_and_not_the_numbers_between(process: Process) -> None:
    await process.accepted("old")
    await on_day(process, 31)
    assert await prepared(process) == 1
    await process.accepted("new", "newer")
    await settled(process, 3)
    await ask(process.postgres, "WITH gone AS (DELETE FROM conversation_log RETURNING 1) SELECT count(*) FROM gone")
    with trio.fail_after(20):
        async with open_dedicated(process.postgres) as dedicated:
            (odd,) = await audit.anomalies(dedicated)
    assert (odd.what, sorted(odd.examples)) == ("conversations without a log", ["new", "newer", "old"])


@pytest.mark.parametrize("table", MONTH_TABLES)
async def test_a_read_by_number_opens_one_partition(process: Process, table: str) -> None:
    plan = await rows(process.postgres, f"EXPLAIN SELECT * FROM {table} WHERE seq = $1", MONTH_SEQS + 5)
    scanned = {word for (line,) in plan for word in line.split() if word.startswith(f"{table}_") and "idx" not in word}
    assert {name for name in scanned if "pkey" not in name} == {f"{table}_1"}


async def test_the_clock_of_the_tests_is_in_the_middle_of_a_month(process: Process) -> None:
    await shift_clock(process.postgres, "0 days")
    await on_day(process, 31)
    assert await ask(
        process.postgres,
        "SELECT date_trunc('month', convo_now() AT TIME ZONE 'UTC')"
        " = date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month'",
    )
