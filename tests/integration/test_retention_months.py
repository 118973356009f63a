from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio_asyncio

from convo import retention, retention_months
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import Expired
from convo.observe import metrics
from convo.retention_keeper import RetentionKeeper
from convo.retention_report import count_all_over
from convo.settings import BotRetention, RetentionSettings
from convo.store import audit, ledger, process_programs
from convo.store.conversations import Reader
from convo.store.months import MONTH_SEQS
from convo.store.postgres import Connection
from tests.integration.test_retention import died
from tests.support.making import (
    Process,
    ask,
    open_dedicated,
    open_process,
    rows,
    settled,
    settled_later,
    shift_clock,
    told,
)
from tests.support.many_rows import connect


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:

        async def announced(connection: Connection) -> None:
            await process_programs.announce(connection, "one", "0.2", retention.MIGRATION)

        await opened.postgres.run("test.announce", announced)
        yield opened


def always() -> bool:
    return True


def keeper(process: Process, **days: Any) -> RetentionKeeper:
    return RetentionKeeper(RetentionSettings(look_seconds=0.01, **days), process.postgres, always)


async def month_begins(process: Process, number: int = 1) -> None:
    """Begin a month, whatever the clock says; the ones behind it were made before."""
    await ask(process.postgres, "SELECT setval('conversation_seq_seq', $1, false)", number * MONTH_SEQS)


async def two_months(process: Process) -> None:
    """Three conversations of last month, all analysed, and one of this month; all are 40 days old."""
    await process.accepted("old-1", "old-2", "old-3")
    await settled_later(process, 3)
    await month_begins(process)
    await process.accepted("new-1")
    await settled_later(process, 1)
    await shift_clock(process.postgres, "40 days")


async def balanced(process: Process) -> bool:
    async with open_dedicated(process.postgres) as dedicated:
        gaps, odd = await ledger.gaps(dedicated), await audit.anomalies(dedicated)
    print(gaps, odd)
    return not gaps and not odd


async def deleted_row_by_row(process: Process, table: str) -> int:
    # What another session has counted is seen when that one has ended its next unit of work.
    async def flush(connection: Connection) -> None:
        await connection.execute("SELECT pg_stat_force_next_flush()")

    await process.postgres.run("db.retire", flush)
    count: int = await ask(
        process.postgres,
        "SELECT coalesce(sum(n_tup_del), 0)::bigint FROM pg_stat_user_tables WHERE relname ~ ('^' || $1 || '_[0-9]+$')",
        table,
    )
    return count


async def place_of(process: Process, table: str) -> int:
    place: int = await ask(process.postgres, f"SELECT '{table}_0'::regclass::oid::bigint")
    return place


async def test_a_month_that_is_over_goes_as_a_whole_and_what_had_it_says_so(process: Process) -> None:
    await two_months(process)
    before = await place_of(process, "conversation_log")
    total = metrics.retired_total.labels("logs")
    counted = total.value
    with told() as names:
        assert await keeper(process, logs_days=30).look() == {"logs": 4}
        assert await keeper(process, logs_days=30).look() == {}
    assert total.value == counted + 4
    assert names.count("month_dropped") == 1
    # Three by the drop; the one of this month by a DELETE.
    assert await deleted_row_by_row(process, "conversation_log") == 1
    assert await place_of(process, "conversation_log") != before
    reader = Reader(process.postgres, process.log_store)
    for name in ("old-1", "new-1"):
        with pytest.raises(Expired, match="log"):
            await reader.log_sizes(WHOLE_DEFAULT, name)
        assert (await reader.one(WHOLE_DEFAULT, name)).row["log_retired"] is True
    # Not by an update of each.
    assert await ask(process.postgres, "SELECT count(*) FROM conversation WHERE log_retired") == 1
    assert await ask(process.postgres, "SELECT count(*) FROM run") == 4
    assert await balanced(process)
    assert await rows(process.postgres, "SELECT table_name, number, rows, kept FROM dropped_month") == [
        ("conversation_log", 0, 3, 0)
    ]


async def test_the_runs_of_a_month_go_as_a_whole(process: Process) -> None:
    await two_months(process)
    assert await keeper(process, runs_days=30).look() == {"runs": 4}
    assert await deleted_row_by_row(process, "run") == 1
    assert await ask(process.postgres, "SELECT count(*) FROM conversation_log") == 4
    assert await balanced(process)


async def test_the_dry_run_counts_what_the_drop_removes(process: Process) -> None:
    await two_months(process)
    settings = RetentionSettings(logs_days=30, runs_days=30)

    async def body(connection: Connection) -> dict[Any, int]:
        over = await retention.find_conversations(connection, settings, None, 100)
        return await retention.count_over(connection, over)

    counted = await process.postgres.run("test.count", body)
    assert await keeper(process, logs_days=30, runs_days=30).look() == {
        kind: count for kind, count in counted.items() if count
    }


async def test_a_month_whose_conversations_are_over_goes_with_its_partitions(process: Process) -> None:
    await two_months(process)
    removed = await keeper(process, conversations_days=30).look()
    assert removed == {"logs": 3, "runs": 3, "conversations": 4}
    assert await keeper(process, conversations_days=30).look() == {}
    names = await rows(process.postgres, "SELECT relname::text FROM pg_class WHERE relispartition AND relkind = 'r'")
    assert {name for (name,) in names} == {f"{table}_{n}" for table in ("conversation_log", "run") for n in (1, 2)}
    assert await balanced(process)


@pytest.mark.parametrize(
    "days",
    [
        {"logs_days": 41},
        {"logs_days": 30, "bots": {"slow": BotRetention(logs_days=50)}},
        {"logs_days": 30, "bots": {"slow": BotRetention(logs_days=0)}},
    ],
)
async def test_a_month_stays_for_the_bot_that_keeps_the_longest(process: Process, days: dict[str, Any]) -> None:
    await two_months(process)
    before = await place_of(process, "conversation_log")
    await keeper(process, **days).look()
    assert await place_of(process, "conversation_log") == before
    assert await ask(process.postgres, "SELECT count(*) FROM dropped_month") == 0


def test_the_days_of_a_month_are_those_of_the_bot_that_keeps_the_longest() -> None:
    def days(**given: Any) -> tuple[int, int]:
        settings = RetentionSettings(**given)
        return settings.days_of_month("logs_days"), settings.days_of_month("runs_days")

    assert days() == (0, 0)
    assert days(logs_days=30, runs_days=7) == (30, 7)
    assert days(logs_days=30, conversations_days=10) == (10, 10)
    assert days(logs_days=30, bots={"b": BotRetention(logs_days=60)}) == (60, 0)
    assert days(logs_days=30, bots={"b": BotRetention(logs_days=0)}) == (0, 0)
    assert days(logs_days=30, bots={"b": BotRetention(logs_days=0, conversations_days=90)}) == (90, 0)
    assert days(logs_days=30, bots={"b": BotRetention(logs_days=1)}) == (30, 0)


async def test_a_row_whose_clock_was_ahead_keeps_its_month(process: Process) -> None:
    await process.accepted("old-1", "old-2", "old-3")
    await settled_later(process, 3)
    await ask(
        process.postgres,
        "WITH ahead AS (UPDATE conversation SET received_at = now() + interval '20 days' WHERE seq = 1 RETURNING 1)"
        " SELECT count(*) FROM ahead",
    )
    await month_begins(process)
    await shift_clock(process.postgres, "40 days")
    assert await keeper(process, logs_days=30).look() == {"logs": 2}
    assert await deleted_row_by_row(process, "conversation_log") == 2


async def test_a_run_that_ended_late_keeps_the_runs_of_its_month(process: Process) -> None:
    await process.accepted("old-1", "old-2")
    await settled_later(process, 1)
    await month_begins(process)
    await shift_clock(process.postgres, "35 days")
    await settled_later(process, 1)
    await shift_clock(process.postgres, "40 days")
    assert await keeper(process, runs_days=30).look() == {"runs": 1}
    assert await ask(process.postgres, "SELECT count(*) FROM dropped_month") == 0


async def test_what_was_not_analysed_keeps_its_log_and_its_runs_and_can_be_retried(process: Process) -> None:
    await died(process, "dead-1")
    await process.accepted("old-1", "old-2")
    await settled_later(process, 2)
    await process.accepted("waits-1")
    await month_begins(process)
    await shift_clock(process.postgres, "40 days")
    (lease,) = await process.jobs.lease(1)
    assert await keeper(process, logs_days=30, runs_days=30).look() == {"logs": 2, "runs": 2}
    assert await deleted_row_by_row(process, "conversation_log") == 0
    reader = Reader(process.postgres, process.log_store)
    assert (await reader.log_sizes(WHOLE_DEFAULT, "dead-1")).packed_bytes
    assert not (await reader.one(WHOLE_DEFAULT, "waits-1")).row["log_retired"]
    # Its run is written into a month that is gone.
    await process.jobs.release(lease)
    assert await ask(process.postgres, "SELECT count(*) FROM run_0 WHERE ending = 'release'") == 1
    await settled(process, 1)
    assert await balanced(process)
    # And then it is over, too.
    assert await keeper(process, logs_days=30).look() == {"logs": 1}
    with pytest.raises(Expired, match="log"):
        await reader.log_sizes(WHOLE_DEFAULT, "waits-1")
    assert await balanced(process)


async def test_a_month_of_many_dead_letters_goes_row_by_row(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_months, "KEPT_MAX", 1)
    await died(process, "dead-1", "dead-2")
    await process.accepted("old-1")
    await settled_later(process, 1)
    await month_begins(process)
    await shift_clock(process.postgres, "40 days")
    before = await place_of(process, "conversation_log")
    assert await keeper(process, logs_days=30).look() == {"logs": 1}
    assert await place_of(process, "conversation_log") == before


async def test_a_job_retried_between_the_reading_and_the_drop_keeps_its_last_run(process: Process) -> None:
    await died(process, "dead-1")
    await process.accepted("old-1")
    await settled_later(process, 1)
    await month_begins(process)
    await shift_clock(process.postgres, "40 days")
    settings = RetentionSettings(runs_days=30)

    async def read(connection: Connection) -> tuple[Any, Any]:
        (whole,) = await retention_months.find_whole_months(connection, settings)
        return whole, await retention_months.read_month(connection, whole)

    whole, over = await process.postgres.run("test.read", read)
    await ask(process.postgres, "WITH again AS (UPDATE job SET state = 'ready', ended_at = NULL, attempts = 0"
              " WHERE state = 'dead' RETURNING 1) SELECT count(*) FROM again")  # fmt: skip
    await settled_later(process, 1)

    async def drop(connection: Connection) -> int:
        return await retention_months.drop_over(connection, whole, over)

    assert await process.postgres.run("test.drop", drop) == 1
    assert await rows(process.postgres, "SELECT seq, ending FROM run ORDER BY ended_at") == [
        (1, "bury"),
        (1, "release"),
    ]


async def test_no_accept_waits_a_second_for_a_month_that_somebody_reads(
    process: Process, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convo.retention_keeper._DROP_TRIES", 2)
    await two_months(process)
    reader = await trio_asyncio.aio_as_trio(connect)(database)
    slowest = 0.0

    async def accepting() -> None:
        nonlocal slowest
        for number in range(10_000):
            started = trio.current_time()
            await process.accepted(f"later-{number}", user_id="quick")
            slowest = max(slowest, trio.current_time() - started)

    monkeypatch.setattr(retention, "_LIVE_WAITS", "SELECT false")
    try:
        await trio_asyncio.aio_as_trio(reader.execute)("BEGIN; SELECT count(*) FROM conversation_log")
        with told() as names:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(accepting)
                # What is about to be dropped is not deleted row by row meanwhile.
                assert await keeper(process, logs_days=30).look() == {}
                nursery.cancel_scope.cancel()
        await trio_asyncio.aio_as_trio(reader.execute)("COMMIT")
    finally:
        reader.terminate()
    assert "retention_waits" in names
    assert 0.2 < slowest < 1.0
    assert await deleted_row_by_row(process, "conversation_log") == 0
    assert (await keeper(process, logs_days=30).look())["logs"] == 4


async def test_the_month_of_today_is_never_dropped(process: Process) -> None:
    await process.accepted("talk-1")
    await settled_later(process, 1)
    await shift_clock(process.postgres, "400 days")
    before = await place_of(process, "conversation_log")
    assert await keeper(process, logs_days=30).look() == {"logs": 1}
    assert await place_of(process, "conversation_log") == before


# --- whole_months


async def test_with_whole_months_rows_wait_for_their_month_and_go_by_drop_alone(process: Process) -> None:
    await two_months(process)
    days = {"logs_days": 30, "runs_days": 30}
    assert await keeper(process, whole_months=True, **days).look() == {"logs": 3, "runs": 3}
    assert await keeper(process, whole_months=True, **days).look() == {}
    assert [await deleted_row_by_row(process, table) for table in ("conversation_log", "run")] == [0, 0]
    assert await balanced(process)
    await month_begins(process, 2)
    assert await keeper(process, whole_months=True, **days).look() == {"logs": 1, "runs": 1}
    assert [await deleted_row_by_row(process, table) for table in ("conversation_log", "run")] == [0, 0]
    assert await balanced(process)


async def test_with_whole_months_a_conversation_goes_after_its_month(process: Process) -> None:
    await two_months(process)
    every = keeper(process, whole_months=True, conversations_days=30)
    assert await every.look() == {"logs": 3, "runs": 3, "conversations": 3}
    assert await deleted_row_by_row(process, "conversation_log") == 0
    assert await ask(process.postgres, "SELECT conversation_id FROM conversation") == "new-1"
    assert await balanced(process)


async def test_with_whole_months_what_a_bot_keeps_for_ever_is_waited_for_by_nobody(process: Process) -> None:
    await two_months(process)
    bots = {"kept": BotRetention(logs_days=0)}
    assert await keeper(process, whole_months=True, logs_days=30, bots=bots).look() == {"logs": 4}


async def test_with_whole_months_what_a_dropped_month_kept_goes_when_it_is_over(process: Process) -> None:
    await process.accepted("waits-1", "old-1")
    (lease,) = await process.jobs.lease(1)
    await settled_later(process, 1)
    await month_begins(process)
    await shift_clock(process.postgres, "40 days")
    whole = keeper(process, whole_months=True, logs_days=30)
    assert await whole.look() == {"logs": 1}
    await process.settler.settle(await process.analysed(lease))
    assert await keeper(process, whole_months=True, logs_days=30).look() == {"logs": 1}
    assert await balanced(process)


async def test_the_dry_run_counts_what_goes_with_its_month(process: Process) -> None:
    await two_months(process)
    settings = RetentionSettings(whole_months=True, logs_days=30, runs_days=30)
    counted = await count_all_over(process.postgres, settings)
    assert +counted == {"logs": 3, "runs": 3}
