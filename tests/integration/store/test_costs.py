from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
import trio

from convo import erase
from convo.conversation.tenant import DEFAULT
from convo.store import audit, costs
from convo.store.costs import CostRow, DaySum
from convo.store.postgres import Connection
from tests.support.making import Process, ask, open_dedicated, open_process, rows, shift_clock


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        await opened.accepted("talk-1")
        yield opened


async def seq_of(process: Process) -> int:
    seq: int = await ask(process.postgres, "SELECT seq FROM conversation")
    return seq


def row(seq: int, call: int = 1, **changes: Any) -> CostRow:
    usual = {"part": "questions", "by": "m/1", "sent": 700, "answered": 20, "cached": 0, "nano": 5_000}
    return CostRow(seq=seq, call=call, **{**usual, **changes})


async def store(process: Process, *stored: CostRow) -> DaySum:
    async def body(connection: Connection) -> DaySum:
        return await costs.store_costs(connection, stored)

    return await process.postgres.run("db.costs", body)


async def read(process: Process, seq: int) -> list[dict[str, Any]]:
    async def body(connection: Connection) -> list[dict[str, Any]]:
        return [dict(one) for one in await costs.read_costs(connection, seq)]

    return await process.postgres.run("db.read", body)


async def test_what_calls_cost_is_summed_by_part_and_by_who_answered(process: Process) -> None:
    seq = await seq_of(process)
    await store(process, row(seq), row(seq, call=1, part="emotion"), row(seq, call=2, sent=600, nano=4_000))
    await store(process, row(seq, call=3, by="backup/1", sent=None, answered=None, cached=None, nano=None))
    await store(process, row(seq, call=4, by="free/1", nano=None))
    found = {(one["part"], one["made_by"]): one for one in await read(process, seq)}
    assert found["questions", "m/1"] == {
        "part": "questions",
        "made_by": "m/1",
        "calls": 2,
        "tokens_in": 1300,
        "tokens_out": 40,
        "tokens_cached": 0,
        "nano": Decimal(9_000),
        "unknown_calls": 0,
        "unpriced_calls": 0,
    }
    assert found["emotion", "m/1"]["calls"] == 1
    unknown = found["questions", "backup/1"]
    assert (unknown["tokens_in"], unknown["unknown_calls"], unknown["unpriced_calls"]) == (None, 1, 0)
    free = found["questions", "free/1"]
    assert (free["nano"], free["unknown_calls"], free["unpriced_calls"]) == (0, 0, 1)


async def test_a_call_that_is_stored_twice_counts_once(process: Process) -> None:
    seq = await seq_of(process)
    once = await store(process, row(seq), row(seq, call=2))
    again = await store(process, row(seq), row(seq, call=2))
    assert (once.nano, again.nano) == (10_000, 10_000)
    assert (await read(process, seq))[0]["calls"] == 2
    assert (await costs.read_day(process.postgres)).nano == 10_000


async def test_the_sum_of_a_day_ends_with_the_day(process: Process) -> None:
    seq = await seq_of(process)
    today = await store(process, row(seq))
    assert 0 < today.seconds_left <= 86_400
    await shift_clock(process.postgres, f"{today.seconds_left + 1} seconds")
    tomorrow = await costs.read_day(process.postgres)
    assert (tomorrow.nano, (tomorrow.day - today.day).days) == (0, 1)
    assert 86_390 < tomorrow.seconds_left <= 86_400
    assert (await store(process, row(seq, call=2, nano=7))).nano == 7
    assert await rows(process.postgres, "SELECT nano FROM spent_day ORDER BY day") == [(5_000,), (7,)]


async def test_costs_go_with_their_conversation_and_what_was_spent_stays_spent(process: Process) -> None:
    seq = await seq_of(process)
    await store(process, row(seq))

    async def body(connection: Connection) -> None:
        await erase.erase_conversations(connection, DEFAULT, [seq])

    await process.postgres.run("test.erase", body)
    assert await ask(process.postgres, "SELECT count(*) FROM part_cost") == 0
    assert (await costs.read_day(process.postgres)).nano == 5_000
    assert (await store(process, row(seq, call=2))).nano == 5_000, "nothing is stored of a conversation that is gone"
    assert await ask(process.postgres, "SELECT count(*) FROM part_cost") == 0


async def test_costs_that_are_stored_while_their_conversation_is_erased_go_as_well(process: Process) -> None:
    seq = await seq_of(process)
    stored = trio.Event()
    ended: list[str] = []

    async def slow(connection: Connection) -> None:
        await costs.store_costs(connection, [row(seq)])
        process_token.run_sync_soon(stored.set)
        await connection.fetchval("SELECT pg_sleep(0.5)")

    async def keep() -> None:
        await process.postgres.run("db.costs", slow)
        ended.append("stored")

    async def body(connection: Connection) -> None:
        await erase.erase_conversations(connection, DEFAULT, [seq])

    process_token = trio.lowlevel.current_trio_token()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        await stored.wait()
        await process.postgres.run("test.erase", body)
        ended.append("erased")
    assert ended == ["stored", "erased"]
    assert await ask(process.postgres, "SELECT count(*) FROM part_cost") == 0


async def test_the_audit_finds_costs_without_a_conversation(process: Process) -> None:
    await ask(
        process.postgres,
        "INSERT INTO part_cost (seq, call, part, made_by) VALUES (999, 1, 'emotion', 'm/1') RETURNING 1",
    )
    async with open_dedicated(process.postgres) as dedicated:
        found = await audit.anomalies(dedicated)
    assert [(one.what, one.examples) for one in found] == [("costs without a conversation", ("999",))]
