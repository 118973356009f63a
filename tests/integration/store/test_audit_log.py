from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import trio

from convo.audit_actions import AUDIT_ACTIONS
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import DatabaseUnavailable, NotDead, NotFound, Refused
from convo.settings import Settings
from convo.store import audit_log, keys, ledger
from convo.store.audit_log import Caller
from convo.store.backup import restore_backup, write_backup
from convo.store.jobs.dead_letters import DeadFilter
from convo.store.migrate import migrate
from tests.support.audit_rows import audit_rows, hashed_id
from tests.support.making import Process, open_dedicated, open_process, open_store, owned
from tests.support.running import query

SHE = Caller(key_id="5f0c9a7e3b1d", address="192.0.2.7")
ALL = DeadFilter()
_KEYS = "SELECT key FROM installation_key"


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database, Settings()) as opened:
        yield opened


async def dead(process: Process, *names: str, **fields: Any) -> None:
    await process.accepted(*names, **fields)
    jobs = owned(process, "here/one", attempts_max=1)
    for one in await jobs.lease(len(names)):
        await jobs.fail(one, "why", {}, later=0)


async def rows_of(database: str) -> list[dict[str, Any]]:
    return await trio.to_thread.run_sync(audit_rows, database)


async def hashed(database: str, kind: str, id_: str) -> bytes:
    return await trio.to_thread.run_sync(hashed_id, database, kind, id_)


async def test_a_retry_is_one_row_with_who_did_it_and_the_ids_as_hmacs(process: Process, database: str) -> None:
    await dead(process, "talk-1", user_id="user-9")
    await process.jobs.retry(WHOLE_DEFAULT, "talk-1", SHE)
    (row,) = await rows_of(database)
    assert row.pop("number") == 1
    assert row.pop("at") is not None
    assert row == {
        "action": "retry",
        "key_id": "5f0c9a7e3b1d",
        "address": "192.0.2.7",
        "target_kind": "conversation",
        "target": await hashed(database, "conversation", "talk-1"),
        "of_user": await hashed(database, "user", "user-9"),
        "detail": None,
        "tenant": 0,
    }


async def test_each_dead_letter_of_a_batch_is_one_row_and_a_dry_run_is_none(process: Process, database: str) -> None:
    await dead(process, "talk-1", "talk-2", "talk-3")
    await process.jobs.retry_many(WHOLE_DEFAULT, ALL, after=0, limit=10, dry_run=True, caller=SHE)
    assert await rows_of(database) == []
    first = await process.jobs.retry_many(WHOLE_DEFAULT, ALL, after=0, limit=2, dry_run=False, caller=SHE)
    await process.jobs.retry_many(WHOLE_DEFAULT, ALL, after=first.next_after or 0, limit=10, dry_run=False, caller=SHE)
    found = await rows_of(database)
    assert {row["target"] for row in found} == {
        await hashed(database, "conversation", f"talk-{number}") for number in (1, 2, 3)
    }
    assert [(row["action"], row["key_id"], row["address"]) for row in found] == 3 * [("retry", SHE.key_id, SHE.address)]


async def test_a_review_is_one_row(process: Process, database: str) -> None:
    await dead(process, "talk-1")
    await process.jobs.acknowledge(WHOLE_DEFAULT, "talk-1", SHE)
    (row,) = await rows_of(database)
    assert (row["action"], row["key_id"], row["target_kind"]) == ("acknowledge", SHE.key_id, "conversation")


async def test_what_is_refused_leaves_no_row(process: Process, database: str) -> None:
    await process.accepted("talk-1")
    for change in (process.jobs.retry, process.jobs.acknowledge):
        with pytest.raises(NotDead):
            await change(WHOLE_DEFAULT, "talk-1", SHE)
        with pytest.raises(NotFound):
            await change(WHOLE_DEFAULT, "unknown", SHE)
    with pytest.raises(NotFound):
        await keys.revoke(process.postgres, "unknown")
    with pytest.raises(Refused):
        await keys.new(process.postgres, "robots", ["read"], 0, expires=timedelta(0))
    assert await rows_of(database) == []


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("ending", ["rolled back", "killed before the commit"])
async def test_a_retry_that_is_not_committed_leaves_no_row_and_no_retry(
    process: Process, database: str, monkeypatch: pytest.MonkeyPatch, *, many: bool, ending: str
) -> None:
    await dead(process, "talk-1")
    append = audit_log.append
    reached = []

    async def and_then_no_more(connection: Any, *entries: Any) -> None:
        await append(connection, *entries)
        reached.append(await connection.fetchval("SELECT count(*) FROM audit_log"))
        if ending == "rolled back":
            raise DatabaseUnavailable("it is away")
        await connection.fetchval("SELECT pg_terminate_backend(pg_backend_pid())")

    monkeypatch.setattr(audit_log, "append", and_then_no_more)
    batch = functools.partial(process.jobs.retry_many, WHOLE_DEFAULT, ALL, after=0, limit=10, dry_run=False, caller=SHE)
    with pytest.raises(DatabaseUnavailable):
        await (batch() if many else process.jobs.retry(WHOLE_DEFAULT, "talk-1", SHE))
    assert reached == [1], "it was there inside the transaction"
    assert await rows_of(database) == []
    assert (await process.state())[0] == "dead"


async def test_a_retry_whose_row_cannot_be_stored_is_no_retry(
    process: Process, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await dead(process, "talk-1")
    booked = []
    book = ledger.book

    async def noted(*given: Any) -> None:
        booked.append(given[1])
        await book(*given)

    monkeypatch.setattr(ledger, "book", noted)
    await trio.to_thread.run_sync(query, database, "ALTER TABLE audit_log RENAME TO gone")
    with pytest.raises(DatabaseUnavailable):
        await process.jobs.retry(WHOLE_DEFAULT, "talk-1", SHE)
    assert booked == ["dead"]
    assert (await process.state())[0] == "dead"


async def test_a_key_that_is_made_replaced_and_revoked_is_a_row_each_and_no_secret(database: str) -> None:
    async with open_store(database) as postgres:
        made = await keys.new(postgres, "robots", ["write", "read"], 0)
        key_id = made.split("_")[1]
        rotated = await keys.rotate(postgres, key_id, timedelta(days=1))
        await keys.revoke(postgres, key_id)
    found = await rows_of(database)
    assert [(row["action"], json.loads(row["detail"])) for row in found] == [
        ("key_made", {"key_id": key_id, "name": "robots", "scopes": ["write", "read"]}),
        (
            "key_rotated",
            {"key_id": rotated.split("_")[1], "replaces": key_id, "name": "robots", "scopes": ["write", "read"]},
        ),
        ("key_revoked", {"key_id": key_id}),
    ]
    assert {(row["key_id"], row["address"], row["target"]) for row in found} == {(None, None, None)}
    for key in (made, rotated):
        assert key.split("_", 2)[2] not in str(found)


async def test_a_restore_is_a_row_of_what_was_restored(database: str, empty_database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    async with open_store(database) as postgres:
        await keys.new(postgres, "robots", ["write"], 0)
        await write_backup(database, file)
        await keys.new(postgres, "later", ["write"], 0)
    ending = audit_log.restored("2026-11-29 10:50:00 UTC", file.stat().st_size)
    for target in (database, empty_database):
        await restore_backup(target, file, ending=ending)
        found = await rows_of(target)
        assert [(row["action"], row["number"]) for row in found] == [("key_made", 1), ("restore", 2)]
        assert json.loads(found[1]["detail"]) == {
            "made_at": "2026-11-29 10:50:00 UTC",
            "bytes": file.stat().st_size,
        }


async def test_ids_are_the_same_hmacs_after_a_restore(database: str, empty_database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    await write_backup(database, file)
    await restore_backup(empty_database, file)
    assert await hashed(database, "user", "user-1") == await hashed(empty_database, "user", "user-1")


async def test_a_backup_without_an_audit_log_is_restored_all_the_same(empty_database: str, tmp_path: Path) -> None:
    file = tmp_path / "convo.backup"
    await write_backup(empty_database, file)
    await restore_backup(empty_database, file, ending=audit_log.restored("", 7))


async def test_a_row_is_never_changed(database: str) -> None:
    async with open_store(database) as postgres:
        await keys.new(postgres, "robots", ["write"], 0)
    with pytest.raises(asyncpg.RaiseError, match="never changed"):
        await trio.to_thread.run_sync(query, database, "UPDATE audit_log SET key_id = 'another'")
    assert [row["key_id"] for row in await rows_of(database)] == [None]


async def test_two_installations_have_two_keys(database: str, empty_database: str) -> None:
    async with open_store(empty_database) as postgres, open_dedicated(postgres) as connection:
        await migrate(connection)
    kept = [await trio.to_thread.run_sync(query, one, _KEYS) for one in (database, empty_database)]
    ((first,),), ((second,),) = kept
    assert first != second
    assert {len(first), len(second)} == {32}


def test_no_action_is_listed_without_what_it_means() -> None:
    assert all(text.endswith(".") for text in AUDIT_ACTIONS.values())
