from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from convo import erase
from convo.conversation.model import CANARY_USER
from convo.conversation.tenant import DEFAULT
from convo.store import audit, ledger
from convo.store.postgres import Connection
from tests.support.making import Process, ask, open_dedicated, open_process, rows, shift_clock, tables_of

BOOKS = {"accepted": 1, "done": 1}
OF_A_CONVERSATION = ("seq", "last_seq", "conversation_id", "user_id")
"""A table with one of these columns holds something of a conversation."""


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def settled(process: Process, conversation_id: str, **fields: Any) -> None:
    await process.accepted(conversation_id, **fields)
    (lease,) = await process.jobs.lease(1)
    await process.settler.settle(await process.analysed(lease))
    costs = "INSERT INTO part_cost (seq, call, part, made_by) VALUES ($1, 1, 'emotion', 'm/1') RETURNING 1"
    await ask(process.postgres, costs, lease.seq)


async def balanced(process: Process) -> bool:
    async with open_dedicated(process.postgres) as dedicated:
        return await ledger.gaps(dedicated) == [] and await audit.anomalies(dedicated) == []


async def test_an_erased_canary_leaves_nothing_and_the_books_balance(process: Process) -> None:
    await settled(process, "talk-1", user_id="mia")
    await settled(process, "canary-1", user_id=CANARY_USER)
    assert await balanced(process)
    assert await erase.erase_canaries(process.postgres, ["canary-1"]) == 1
    assert await balanced(process)
    assert await ledger.totals(process.postgres) == BOOKS
    for table in ("receipt", "conversation", "conversation_log", "outcome", "relationship"):
        assert await ask(process.postgres, f"SELECT count(*) FROM {table}") == 1, table
    assert await rows(process.postgres, "SELECT DISTINCT user_id FROM memory") == [("mia",)]
    for table in ("job", "part", "run"):
        assert await ask(process.postgres, f"SELECT count(*) FROM {table}") == 0, table


async def test_canaries_that_nobody_erased_for_days_go_in_several_transactions(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erase, "_ROWS_MAX", 2)
    for n in range(3):
        await settled(process, f"canary-{n}", user_id=CANARY_USER)
    names = [f"canary-{n}" for n in range(3)]
    assert [await erase.erase_canaries(process.postgres, names) for _ in range(3)] == [2, 1, 0]
    assert await balanced(process)


async def test_a_canary_that_died_is_erased_and_one_under_way_is_not(process: Process) -> None:
    await process.accepted("canary-1", user_id=CANARY_USER)
    assert await erase.erase_canaries(process.postgres, ["canary-1"]) == 0
    (lease,) = await process.jobs.lease(1)
    for _ in range(process.settings.jobs.attempts_max):
        if await process.jobs.fail(lease, "why", {}, later=0):
            break
        (lease,) = await process.jobs.lease(1)
    assert await erase.erase_canaries(process.postgres, ["canary-1"]) == 1
    assert await balanced(process)
    assert await ledger.totals(process.postgres) == {"accepted": 0, "dead": 0}


async def test_one_of_two_canaries_goes_and_the_others_score_stays(process: Process) -> None:
    await settled(process, "canary-1", user_id=CANARY_USER)
    await settled(process, "canary-2", user_id=CANARY_USER)
    assert await erase.erase_canaries(process.postgres, ["canary-1"]) == 1
    assert await balanced(process)
    assert await rows(process.postgres, "SELECT user_id, conversations FROM relationship") == [(CANARY_USER, 1)]


async def test_what_a_dead_process_left_is_erased_after_an_hour(process: Process) -> None:
    await settled(process, "canary-1", user_id=CANARY_USER)
    assert await erase.erase_canaries(process.postgres, []) == 0
    await shift_clock(process.postgres, "61 minutes")
    assert await erase.erase_canaries(process.postgres, []) == 1


async def test_no_conversation_of_anybody_else_is_ever_erased(process: Process) -> None:
    await settled(process, "talk-1")
    await shift_clock(process.postgres, "2 hours")
    assert await erase.erase_canaries(process.postgres, ["talk-1"]) == 0


WITH_COLUMNS = """
SELECT DISTINCT table_name::text FROM information_schema.columns JOIN pg_class ON relname = table_name
WHERE table_schema = 'public' AND column_name = ANY($1::text[]) AND relkind IN ('r', 'p') AND NOT relispartition
"""


async def test_every_table_that_holds_something_of_a_conversation_says_how_it_is_erased(process: Process) -> None:
    holding = {table for (table,) in await rows(process.postgres, WITH_COLUMNS, list(OF_A_CONVERSATION))}
    assert holding >= {"conversation", "job", "outcome", "run"}
    # It notes which logs have to go from an object yet, and nothing else of them.
    assert holding - set(erase.ERASURES) == {"erased_log"}


NOTHING_OF_ANYBODY = {
    **dict.fromkeys(("schema_version", "schema_step", "process_program"), "which program knows what"),
    **dict.fromkeys(("process", "process_settings", "suspect_claim"), "who is at work"),
    **dict.fromkeys(("history", "history_beat", "installation_key"), "of the database itself"),
    **dict.fromkeys(("api_key", "session"), "of clients, who are no users"),
    "open_alert": "which alerts last, and who of the operators has acknowledged them",
    "audit_log": "ids as HMACs alone",
    **dict.fromkeys(
        ("event_counter", "courier", "webhook", "webhook_aside"), "which numbers were given, and which are confirmed"
    ),
    "webhook_attempt": "what receivers answer, by the id of an event",
    "erasure": "ids as HMACs alone: the list of what was erased",
    "erase_again": "the same, of what a restore has brought back",
    "untold": "what a service is yet to be told of what was erased; it goes when the service has confirmed it",
    "erased_memory": "ids and keys as HMACs alone",
    "dropped_month": "numbers of months",
    "spent_day": "sums of a whole day",
    "rerun": "which part is found again for which share of the conversations",
    **dict.fromkeys(("log_object", "erased_log"), "in which objects logs are, by their numbers"),
    "imported_relationship": "users and bots as HMACs alone",
    "tenant": "the names of the owners",
    "part_set": "what is declared in settings",
}
"""The other tables, each with why nothing is erased there."""
OF_A_USER = ("user_id",)


async def test_every_table_is_one_that_is_erased_or_one_that_holds_nothing_of_anybody(process: Process) -> None:
    tables = await tables_of(process.postgres)
    assert tables - set(erase.ERASURES) - set(NOTHING_OF_ANYBODY) == set(), "what does it hold of a conversation?"
    assert set(NOTHING_OF_ANYBODY) - tables == set()


async def test_every_table_that_names_a_user_says_how_that_is_erased(process: Process) -> None:
    holding = {table for (table,) in await rows(process.postgres, WITH_COLUMNS, list(OF_A_USER))}
    # A conversation goes as such.
    assert holding - set(erase.ERASURES_OF_USER) == {"conversation"}


async def test_an_erasure_names_only_tables_that_exist(process: Process) -> None:
    assert set(erase.ERASURES) <= await tables_of(process.postgres)


async def test_the_rows_of_every_table_go_with_their_conversation_and_no_other_row(process: Process) -> None:
    for name, user in (("talk-1", "mia"), ("talk-2", "tom")):
        await settled(process, name, user_id=user)
    seq = await ask(process.postgres, "SELECT seq FROM conversation WHERE conversation_id = 'talk-1'")
    before = await counts(process)

    async def body(connection: Connection) -> None:
        await erase.erase_conversations(connection, DEFAULT, [seq])

    await process.postgres.run("test.erase", body)
    assert await counts(process) == {table: count // 2 for table, count in before.items()}
    assert await balanced(process)


async def counts(process: Process) -> dict[str, int]:
    """Count the rows of each table but of the books, where an erasure adds some."""
    tables = [table for table in erase.ERASURES if table != "ledger"]
    return {table: await ask(process.postgres, f"SELECT count(*) FROM {table}") for table in tables}
