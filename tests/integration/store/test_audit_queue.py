from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from convo.errors import Overloaded, TransactionLost
from convo.observe import metrics
from convo.store import audit_queue
from convo.store.audit_log import AuditEntry, AuditTarget, Caller
from convo.store.audit_queue import AuditQueue
from convo.store.postgres import Postgres
from tests.support.audit_rows import audit_rows, audit_rows_soon
from tests.support.making import ask, open_store
from tests.support.running import away


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Postgres]:
    async with open_store(database) as opened:
        yield opened


def entry(number: int = 0, key_id: str | None = None) -> AuditEntry:
    target = AuditTarget(kind="conversation", id=f"talk-{number}", user_id="user-1")
    return AuditEntry(action="log_read", caller=Caller(key_id=key_id or f"key-{number}"), target=target)


async def stored(database: str) -> list[Any]:
    return [row["key_id"] for row in await trio.to_thread.run_sync(audit_rows, database)]


async def test_rows_are_stored_together_a_second_later_with_the_time_at_which_they_came(
    postgres: Postgres, database: str
) -> None:
    queue = AuditQueue(postgres)
    async with trio.open_nursery() as nursery:
        await nursery.start(queue.run)
        before = await ask(postgres, "SELECT now()")
        for number in range(3):
            queue.add(entry(number))
        after = await ask(postgres, "SELECT now()")
        found = await audit_rows_soon(database, 3)
        nursery.cancel_scope.cancel()
    assert [row["key_id"] for row in found] == ["key-0", "key-1", "key-2"]
    assert [row["number"] for row in found] == [1, 2, 3]
    assert all((before - row["at"]).total_seconds() < 0.2 > (row["at"] - after).total_seconds() for row in found)
    assert await ask(postgres, "SELECT max(at) < now() - interval '0.5 s' FROM audit_log"), "stored later"
    assert await ask(postgres, "SELECT count(DISTINCT xmin::text)::int FROM audit_log") == 1


async def test_more_than_a_batch_is_stored_in_order(
    postgres: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_queue, "_BATCH_ROWS", 2)
    queue = AuditQueue(postgres)
    for number in range(5):
        queue.add(entry(number))
    await queue.flush()
    assert await stored(database) == [f"key-{number}" for number in range(5)]


async def test_rows_wait_while_the_database_is_away_and_are_stored_once_it_is_back(
    postgres_url: str, postgres: Postgres, database: str
) -> None:
    queue = AuditQueue(postgres)
    with capture_logs() as lines:
        async with away(postgres_url, database):
            queue.add(entry(1))
            await queue.flush()
    assert [(line["event"], line["rows"]) for line in lines if line["event"].startswith("audit")] == [
        ("audit_rows_kept", 1)
    ]
    assert metrics.registry.get_sample_value("convo_audit_rows_waiting") == 1
    queue.add(entry(2))
    await queue.flush()
    assert await stored(database) == ["key-1", "key-2"]
    assert metrics.registry.get_sample_value("convo_audit_rows_waiting") == 0


@pytest.mark.parametrize("committed", [True, False])
async def test_rows_of_a_transaction_that_was_lost_are_stored_exactly_once(
    postgres: Postgres, database: str, monkeypatch: pytest.MonkeyPatch, *, committed: bool
) -> None:
    queue = AuditQueue(postgres)
    queue.add(entry(1))
    run = postgres.run
    lost: list[str] = []

    async def losing(name: str, body: Any, **options: Any) -> Any:
        async def broken(connection: Any) -> None:
            await body(connection)
            raise TransactionLost("the connection was lost")

        if "_store" in body.__qualname__ and not lost:
            lost.append(name)
            if not committed:
                return await run(name, broken, **options)
            await run(name, body, **options)
            raise TransactionLost("the connection was lost")
        return await run(name, body, **options)

    monkeypatch.setattr(postgres, "run", losing)
    with capture_logs() as lines:
        await queue.flush()
        assert lost == ["db.audit_rows"]
        queue.add(entry(2))
        await queue.flush()
    assert [line["event"] for line in lines if line["event"].startswith("audit")] == ["audit_rows_kept"]
    assert await stored(database) == ["key-1", "key-2"]


async def test_numbers_are_drawn_anew_in_a_database_that_went_back(
    postgres: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = AuditQueue(postgres)
    queue.add(entry(1))
    await queue._draw_numbers(list(queue._waiting))
    # The database that was restored gives the same number to another row.
    await ask(postgres, "INSERT INTO audit_log (number, action) VALUES (1, 'restore')")
    queue.forget_numbers()
    await queue.flush()
    assert await stored(database) == [None, "key-1"]


async def test_a_row_that_the_database_never_takes_holds_no_other_back(postgres: Postgres, database: str) -> None:
    queue = AuditQueue(postgres)
    for one in (entry(1), entry(key_id="a\0b"), entry(3)):
        queue.add(one)
    with capture_logs() as lines:
        await queue.flush()
    assert await stored(database) == ["key-1", "key-3"]
    assert [line["rows"] for line in lines if line["event"] == "audit_rows_lost"] == [1]


async def test_there_is_room_up_to_the_bound_and_again_once_rows_are_stored(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_queue, "ENTRIES_MAX", 2)
    queue = AuditQueue(postgres)
    queue.add(entry(1))
    queue.check_room()
    queue.add(entry(2))
    with pytest.raises(Overloaded, match="2 rows of the audit log wait") as refused:
        queue.check_room()
    assert refused.value.retry_after_seconds == 5
    await queue.flush()
    queue.check_room()


async def test_what_a_stop_cannot_store_is_counted_in_the_log(postgres: Postgres) -> None:
    queue = AuditQueue(postgres)
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            await nursery.start(queue.run)
            for number in range(3):
                queue.add(entry(number))
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            await nursery.start(AuditQueue(postgres).run)
            nursery.cancel_scope.cancel()
    assert [line["rows"] for line in lines if line["event"] == "audit_rows_lost"] == [3]
