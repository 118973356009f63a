from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio_asyncio
from msgspec import structs

from convo import tenant_keeper
from convo.conversation.tenant import DEFAULT, WHOLE_DEFAULT
from convo.errors import DatabaseUnavailable
from convo.store import audit_pages, tenant_indexes
from convo.store.audit_pages import AuditFilter, read_audit_log
from convo.store.conversations import Reader
from convo.store.listing import ListFilter, list_statements
from convo.tenant_keeper import TenantIndexes
from tests.support.making import Process, ask, open_process, rows, told
from tests.support.many_rows import Explained, connect, explained
from tests.support.tenants import ACME, OF_ACME, accept_of, make_tenants

NAMES = {"audit_log_default", "conversation_default", "conversation_default_bot"}
NAMES |= {"conversation_default_user", "job_default"}
LISTS: tuple[dict[str, Any], ...] = (
    *({}, {"bot_id": "bot-1"}, {"user_id": "user-1"}, {"user_prefix": "user-"}),
    *({"state": state} for state in ("ready", "leased", "done", "dead", "parked")),
    *({"bot_id": "bot-1", "state": state} for state in ("ready", "dead", "done")),
)
# Much of its own, before the others: else the planner takes the new indexes for any statement that names the tenant.
_MINE = """
INSERT INTO conversation (conversation_id, user_id, bot_id, started_at, ended_at, received_at, turns, exchanges)
SELECT 'mine-' || n, 'user-1', 'bot-1', now(), now(), now(), 2, 1 FROM generate_series(1, 6000) AS n
"""
# Of another tenant, which has sent much since.
_OTHERS = (
    """
    INSERT INTO conversation (conversation_id, user_id, bot_id, started_at, ended_at, received_at, turns, exchanges,
                              tenant)
    SELECT 'other-' || n, 'user-1', 'bot-1', now(), now(), now(), 2, 1, 1 FROM generate_series(1, 6000) AS n
    """,
    """
    INSERT INTO job (seq, fair_key, state, ended_at, available_at, tenant)
    SELECT seq, user_id, state, CASE WHEN state = 'dead' THEN now() END, now(), 1
    FROM (SELECT *, CASE WHEN seq % 2 = 0 THEN 'dead' ELSE 'ready' END AS state FROM conversation WHERE tenant = 1) AS c
    """,
    "INSERT INTO audit_log (action, address, tenant) SELECT 'log_read', '192.0.2.7', 1 FROM generate_series(1, 6000)",
    "ANALYZE",
)


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    """A database with 15 conversations of the default tenant: each third is done, and each third dead."""
    async with open_process(database) as opened:
        for n in range(15):
            await opened.committer.accept(accept_of(DEFAULT, f"talk-{n:02}"))
            if n % 3:
                lease = await opened.leased()
                if n % 3 == 1:
                    await opened.settler.settle(await opened.analysed(lease))
                else:
                    await opened.jobs.fail(structs.replace(lease, attempts=4), "llm: 422", {}, later=1)
        await ask(opened.postgres, "INSERT INTO audit_log (action, address) VALUES ('log_read', '192.0.2.1')")
        yield opened


async def found_indexes(process: Process) -> set[str]:
    query = """
    SELECT relname::text FROM pg_class JOIN pg_index ON oid = indexrelid
    WHERE indisvalid AND relname ~ '_default' AND relnamespace = 'public'::regnamespace
    """
    return {name for (name,) in await rows(process.postgres, query)}


async def others_come(process: Process) -> None:
    await make_tenants(process.postgres, ACME)
    for statement in _OTHERS:
        await ask(process.postgres, f"DO $$ BEGIN {statement}; END $$")


async def listed(process: Process, made: TenantIndexes, asked: dict[str, Any]) -> list[str]:
    reader = Reader(process.postgres, process.log_store, made.are_made)
    page = await reader.many(WHOLE_DEFAULT, ListFilter(**asked), 50)
    return [row["conversation_id"] for row in page.rows]


async def test_where_there_is_one_tenant_none_is_made(process: Process) -> None:
    indexes = TenantIndexes(process.postgres, lambda: True)
    await indexes.look()
    assert not indexes.are_made()
    assert await found_indexes(process) == set()


async def test_only_the_process_that_leads_makes_them_and_the_others_learn_of_it(process: Process) -> None:
    await make_tenants(process.postgres)
    one = TenantIndexes(process.postgres, lambda: True)
    other = TenantIndexes(process.postgres, lambda: False)
    await other.look()
    assert await found_indexes(process) == set()
    with told() as names:
        await one.look()
        assert (one.are_made(), other.are_made()) == (True, False)
        await other.look()
        await one.look()
    assert await found_indexes(process) == NAMES
    assert (one.are_made(), other.are_made()) == (True, True)
    assert names == ["tenant_indexes_made"]
    one.forget()
    assert not one.are_made()


async def test_one_that_an_interrupted_process_has_left_is_not_used_and_made_anew(process: Process) -> None:
    await make_tenants(process.postgres)
    indexes = TenantIndexes(process.postgres, lambda: True)
    await indexes.look()
    await ask(
        process.postgres,
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'job_default'::regclass RETURNING 1",
    )
    other = TenantIndexes(process.postgres, lambda: False)
    await other.look()
    assert not other.are_made()
    await indexes.look()
    await other.look()
    assert other.are_made()
    assert await found_indexes(process) == NAMES


async def test_what_cannot_be_made_is_logged_and_tried_again(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_keeper, "TENANT_LOOK_SECONDS", 0.01)
    await make_tenants(process.postgres)
    made = tenant_indexes.make
    calls = 0

    async def fails_once(dedicated: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise DatabaseUnavailable("it is away")
        await made(dedicated)

    monkeypatch.setattr(tenant_indexes, "make", fails_once)
    indexes = TenantIndexes(process.postgres, lambda: True)
    with told() as names:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(indexes.run)
            with trio.fail_after(20):
                while not indexes.are_made():  # noqa: ASYNC110  (seen in the database only)
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert names == ["tenant_indexes_failed", "tenant_indexes_made"]


async def test_lists_of_the_default_tenant_are_the_same_when_others_have_sent_much_since(process: Process) -> None:
    indexes = TenantIndexes(process.postgres, lambda: True)
    before = [await listed(process, indexes, asked) for asked in LISTS]
    assert sum(map(len, before)) > 60
    await others_come(process)
    await indexes.look()
    assert [await listed(process, indexes, asked) for asked in LISTS] == before


async def test_a_list_of_the_default_tenant_reads_no_row_of_another(process: Process, database: str) -> None:
    await ask(process.postgres, f"DO $$ BEGIN {_MINE}; END $$")
    await others_come(process)
    await TenantIndexes(process.postgres, lambda: True).look()

    async def plans() -> dict[str, Explained]:
        found = {}
        connection = await connect(database)
        for asked in LISTS:
            made = list_statements(WHOLE_DEFAULT, ListFilter(**asked), 50, default_has_indexes=True)
            found[str(asked)] = await explained(connection, made.page, tuple(made.page_values))
            found[f"last {asked}"] = await explained(connection, made.last, tuple(made.last_values))
        found["audit log"] = await explained(connection, audit_pages._ALL_OF_DEFAULT, (0, 1 << 62, 50))
        connection.terminate()
        return found

    found = await trio_asyncio.aio_as_trio(plans)()
    assert {name: one.rows for name, one in found.items() if one.rows > 2000} == {}


async def test_a_page_of_the_audit_log_of_the_default_tenant_is_of_its_rows(process: Process) -> None:
    await others_come(process)
    await TenantIndexes(process.postgres, lambda: True).look()
    for made in (False, True):
        page = await read_audit_log(process.postgres, DEFAULT, AuditFilter(), 50, default_has_indexes=made)
        assert [row["address"] for row in page.rows] == ["192.0.2.1"]
        assert page.next_before is None


async def test_a_user_s_list_reads_no_row_of_another_tenant_s_user_of_the_same_name(
    process: Process, database: str
) -> None:
    await make_tenants(process.postgres, ACME)
    for name in ("acme-1", "acme-2"):
        await process.committer.accept(accept_of(ACME, name))
    # What the default tenant's user of this name has sent since.
    await ask(process.postgres, f"DO $$ BEGIN {_MINE}; ANALYZE; END $$")

    async def plan() -> tuple[Explained, Explained]:
        connection = await connect(database)
        made = list_statements(OF_ACME, ListFilter(user_id="user-1"), 50, default_has_indexes=False)
        found = [
            await explained(connection, query, tuple(values))
            for query, values in ((made.page, made.page_values), (made.last, made.last_values))
        ]
        connection.terminate()
        return found[0], found[1]

    page, last = await trio_asyncio.aio_as_trio(plan)()
    assert (page.rows < 100, last.rows < 100) == (True, True), (page.rows, last.rows)
    reader = Reader(process.postgres, process.log_store)
    listed_rows = (await reader.many(OF_ACME, ListFilter(user_id="user-1"), 50)).rows
    assert [row["conversation_id"] for row in listed_rows] == ["acme-2", "acme-1"]
