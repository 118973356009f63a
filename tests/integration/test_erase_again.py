from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from convo import erasure, user_erasure
from convo.conversation.identity import id_hash
from convo.conversation.tenant import DEFAULT, WHOLE_DEFAULT, Reach, Tenant
from convo.erase_again import ErasedAgain, erase_again, note_broken_off
from convo.errors import Erased, Refused
from convo.store import audit, erasure_list, erasures, ledger
from convo.store.audit_log import NO_CALLER
from convo.store.backup import restore_backup, write_backup
from convo.store.erasure_file import ErasureList
from convo.store.installation_key import read_installation_key
from convo.store.postgres import Connection, Postgres
from tests.support.making import (
    THREE,
    Process,
    ask,
    open_dedicated,
    open_process,
    open_store,
    remembering,
    rows,
    shift_clock,
)
from tests.support.tenants import ACME, BETA, OF_ACME, accept_of, make_tenants

NOTHING = ErasedAgain()


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def settled(process: Process, conversation_id: str, *keys: str, **fields: Any) -> None:
    await process.accepted(conversation_id, **fields)
    parts = {**THREE, "memories": remembering(*keys)} if keys else THREE
    await process.settler.settle(await process.analysed(await process.leased(), parts))


def ignore(_seqs: Sequence[int]) -> None:
    pass


async def erase(postgres: Postgres, conversation_id: str, reach: Reach = WHOLE_DEFAULT) -> None:
    await erasure.erase_conversation(postgres, reach, conversation_id, NO_CALLER, erased=ignore)


async def erase_user(postgres: Postgres, user_id: str, tenant: Tenant = DEFAULT) -> None:
    await user_erasure.erase_user(postgres, tenant, user_id, NO_CALLER, erased=ignore, until=trio.current_time() + 10)


async def list_of(postgres: Postgres) -> ErasureList:
    async def body(connection: Connection) -> ErasureList:
        found = await erasure_list.read_list(connection, "here")
        assert found is not None
        return found

    return await postgres.run("test.list", body)


async def differences(postgres: Postgres) -> list[object]:
    async with open_dedicated(postgres) as dedicated:
        return [*await ledger.gaps(dedicated), *await audit.anomalies(dedicated)]


async def restored_with(url: str, empty: str, file: Path, after: Any) -> ErasureList:
    """Back a database up, do something in it, and restore the backup elsewhere with the list as it is then."""
    await write_backup(url, file)
    async with open_store(url) as postgres:
        await after(postgres)
        found = await list_of(postgres)
    await restore_backup(empty, file, ending=erasure_list.restoring([found]))
    return found


async def again(postgres: Postgres) -> ErasedAgain:
    done = await erase_again(postgres, erased=ignore)
    assert done is not None
    return done


async def test_what_was_erased_since_the_backup_is_erased_again_in_what_is_restored(
    process: Process, database: str, empty_database: str, tmp_path: Path
) -> None:
    await settled(process, "talk-1", user_id="mia")
    await settled(process, "talk-2", "jam", user_id="mia")
    for n in range(3):
        await settled(process, f"tom-{n}", f"tom likes {n}", user_id="tom")

    async def after(postgres: Postgres) -> None:
        await erase(postgres, "talk-1")
        await erase_user(postgres, "tom")

    await restored_with(database, empty_database, tmp_path / "backup", after)
    async with open_process(empty_database) as other:
        assert await ask(other.postgres, "SELECT count(*) FROM conversation") == 5
        assert await again(other.postgres) == ErasedAgain(conversations=1, users=1)
        assert await rows(other.postgres, "SELECT conversation_id FROM conversation") == [("talk-2",)]
        assert await rows(other.postgres, "SELECT DISTINCT user_id FROM memory") == [("mia",)]
        assert await ask(other.postgres, "SELECT count(*) FROM erasure WHERE ended_at IS NULL") == 0
        assert await ask(other.postgres, "SELECT count(*) FROM erase_again") == 0
        query = "SELECT target_kind FROM audit_log WHERE action = 'erase' ORDER BY target_kind"
        assert {kind for (kind,) in await rows(other.postgres, query)} == {"conversation", "user"}
        assert await differences(other.postgres) == []
        for refused in ("talk-1", "tom-1"):
            with pytest.raises(Erased):
                await other.accepted(refused, user_id="mia")
        assert await again(other.postgres) == NOTHING


async def test_what_was_accepted_and_erased_since_the_backup_is_refused_after_it(
    process: Process, database: str, empty_database: str, tmp_path: Path
) -> None:
    async def after(_: Postgres) -> None:
        await process.accepted("talk-1")
        await erase(process.postgres, "talk-1")

    await restored_with(database, empty_database, tmp_path / "backup", after)
    async with open_process(empty_database) as other:
        assert await again(other.postgres) == NOTHING
        with pytest.raises(Erased):
            await other.accepted("talk-1")
        assert await ask(other.postgres, "SELECT count(*) FROM erasure WHERE ended_at IS NULL") == 0


async def test_a_user_who_came_back_after_the_erasure_keeps_what_came_then(
    process: Process, database: str, empty_database: str, tmp_path: Path
) -> None:
    await settled(process, "mia-1", user_id="mia")
    await erase_user(process.postgres, "mia")
    await settled(process, "mia-2", user_id="mia")

    async def nothing(_: Postgres) -> None:
        pass

    await restored_with(database, empty_database, tmp_path / "backup", nothing)
    async with open_process(empty_database) as other:
        assert await again(other.postgres) == NOTHING
        assert await rows(other.postgres, "SELECT conversation_id FROM conversation") == [("mia-2",)]


async def test_a_memory_that_went_since_the_backup_goes_again_and_is_not_brought_back_by_an_older_conversation(
    process: Process, database: str, empty_database: str, tmp_path: Path
) -> None:
    await settled(process, "talk-1", "tea", user_id="mia")
    await process.accepted("talk-2", user_id="mia")

    async def after(postgres: Postgres) -> None:
        # The last word of it was said in a conversation that the backup does not have.
        await settled(process, "talk-3", "tea", user_id="mia")
        await erase(postgres, "talk-3")
        assert await rows(postgres, "SELECT key FROM memory") == [("jam",)]

    await process.settler.settle(
        await process.analysed(await process.leased(), {**THREE, "memories": remembering("jam")})
    )
    await restored_with(database, empty_database, tmp_path / "backup", after)
    async with open_process(empty_database) as other:
        assert await again(other.postgres) == ErasedAgain(memories=1)
        assert await rows(other.postgres, "SELECT key FROM memory") == [("jam",)]
        # Numbers begin anew after the backup: what is said now is not barred.
        await settled(other, "talk-4", "tea", user_id="mia")
        assert await rows(other.postgres, "SELECT key FROM memory ORDER BY key") == [("jam",), ("tea",)]


async def test_of_an_expired_one_the_hash_of_its_id_goes_again(
    process: Process, database: str, empty_database: str, tmp_path: Path
) -> None:
    await process.accepted("talk-1", "talk-2")
    for table in ("conversation", "job", "conversation_log"):
        await ask(process.postgres, f"WITH gone AS (DELETE FROM {table} RETURNING 1) SELECT count(*) FROM gone")
    await ask(process.postgres, "WITH x AS (UPDATE receipt SET state = 'x' RETURNING 1) SELECT count(*) FROM x")
    await restored_with(database, empty_database, tmp_path / "backup", lambda postgres: erase(postgres, "talk-1"))
    async with open_store(empty_database) as postgres:
        await again(postgres)
        found = dict(await rows(postgres, "SELECT seq, id_hash FROM receipt"))
        key = await postgres.run("test.key", read_installation_key)
    assert found == {1: key.hmac_of("conversation", "talk-1"), 2: id_hash("talk-2")}


async def test_a_list_of_another_installation_is_refused_and_nothing_is_changed(
    process: Process, database: str, empty_database: str, tmp_path: Path
) -> None:
    await process.accepted("talk-1")
    await write_backup(database, tmp_path / "backup")
    other = ErasureList(place="/data/erasures-ffffffffffffffff", installation="f" * 16, listed={})
    for lists in ([other], []):
        with pytest.raises(Refused, match=r"no list of erasures of this backup is here: .*--without-erasures") as found:
            await restore_backup(empty_database, tmp_path / "backup", ending=erasure_list.restoring(lists))
        assert f"erasures-{(await list_of(process.postgres)).installation}" in found.value.detail
    async with open_store(empty_database) as postgres:
        assert await ask(postgres, "SELECT to_regclass('conversation')") is None


@pytest.mark.parametrize("erased", [True, False])
async def test_a_backup_of_before_there_was_a_list_is_restored_where_nothing_was_ever_erased(
    process: Process, database: str, empty_database: str, tmp_path: Path, *, erased: bool
) -> None:
    await process.accepted("talk-1")
    if erased:
        await erase(process.postgres, "talk-1")
    found = await list_of(process.postgres)
    await ask(process.postgres, "SELECT 1 FROM conversation")
    async with open_store(database) as postgres:

        async def older(connection: Connection) -> None:
            await connection.execute("DROP TABLE erase_again, erasure, installation_key")

        await postgres.run("test.older", older)
    await write_backup(database, tmp_path / "backup")
    restoring = restore_backup(empty_database, tmp_path / "backup", ending=erasure_list.restoring([found]))
    if erased:
        with pytest.raises(Refused, match="the backup is older than the list of erasures"):
            await restoring
    else:
        await restoring


async def test_a_restore_that_was_killed_before_it_erased_leaves_that_to_the_next_one(
    process: Process, database: str, empty_database: str, tmp_path: Path
) -> None:
    await process.accepted("talk-1")
    first = await restored_with(database, empty_database, tmp_path / "backup", lambda one: erase(one, "talk-1"))
    async with open_store(empty_database) as postgres:
        # What it left belongs to the list, too, for a restore that comes before it is done.
        assert (await list_of(postgres)).listed.keys() == first.listed.keys()
        assert await again(postgres) == ErasedAgain(conversations=1)


async def test_each_tenant_loses_again_what_was_erased_of_it_and_no_other_does(
    process: Process, database: str, empty_database: str, tmp_path: Path
) -> None:
    await make_tenants(process.postgres)
    for tenant in (DEFAULT, ACME, BETA):
        for name, user, key in (("talk-1", "mia", "tea"), ("talk-2", "tom", "jam"), ("talk-3", "kim", "figs")):
            await process.committer.accept(accept_of(tenant, name, user_id=user))
            await process.settler.settle(
                await process.analysed(await process.leased(), {**THREE, "memories": remembering(key)})
            )

    async def after(postgres: Postgres) -> None:
        await erase(postgres, "talk-1", OF_ACME)
        await erase_user(postgres, "tom", BETA)
        # Of memories alone: the last word of it was said in a conversation that the backup does not have.
        await process.committer.accept(accept_of(ACME, "talk-4", user_id="kim"))
        await process.settler.settle(
            await process.analysed(await process.leased(), {**THREE, "memories": remembering("figs")})
        )
        await erase(postgres, "talk-4", OF_ACME)

    await restored_with(database, empty_database, tmp_path / "backup", after)
    async with open_process(empty_database) as other:
        assert await again(other.postgres) == ErasedAgain(conversations=1, users=1, memories=1)
        stored = await rows(other.postgres, "SELECT tenant, conversation_id FROM conversation ORDER BY seq")
        names = ("talk-1", "talk-2", "talk-3")
        gone = {(1, "talk-1"), (2, "talk-2")}
        assert stored == [one for number in range(3) for name in names if (one := (number, name)) not in gone]
        remembered = await rows(other.postgres, "SELECT tenant, user_id FROM memory ORDER BY memory_seq")
        users = [(0, "mia"), (0, "tom"), (0, "kim"), (1, "tom"), (2, "mia"), (2, "kim")]
        assert remembered == users
        assert await differences(other.postgres) == []
        assert await again(other.postgres) == NOTHING


# --- what was broken off


async def begun(process: Process, kind: Any, id_: str) -> None:
    async def body(connection: Connection) -> None:
        key = await read_installation_key(connection)
        await erasures.note_begin(connection, kind, key.hmac_of(kind, id_))

    await process.postgres.run("test.begin", body)


async def test_an_erasure_that_was_broken_off_is_finished(process: Process) -> None:
    for n in range(3):
        await settled(process, f"mia-{n}", user_id="mia")
    await settled(process, "tom-1", user_id="tom")
    await settled(process, "tom-2", user_id="tom")
    await begun(process, "user", "mia")
    await begun(process, "conversation", "tom-1")
    # A request may be at work on it.
    assert await note_broken_off(process.postgres, 60) == 0
    await shift_clock(process.postgres, "61 seconds")
    await process.accepted("mia-9", user_id="mia")
    assert await note_broken_off(process.postgres, 60) == 2
    assert await again(process.postgres) == ErasedAgain(conversations=1, users=1)
    stored = await rows(process.postgres, "SELECT conversation_id FROM conversation ORDER BY seq")
    assert stored == [("tom-2",), ("mia-9",)]
    assert await ask(process.postgres, "SELECT count(*) FROM erasure WHERE ended_at IS NULL") == 0
    assert await note_broken_off(process.postgres, 60) == 0
    assert await differences(process.postgres) == []


async def test_an_erasure_that_was_broken_off_before_the_clock_was_set_back_is_finished(process: Process) -> None:
    await settled(process, "tom-1", user_id="tom")
    await shift_clock(process.postgres, "5 hours")
    await begun(process, "conversation", "tom-1")
    await shift_clock(process.postgres, "0 seconds")
    assert await note_broken_off(process.postgres, 60) == 1
    assert await again(process.postgres) == ErasedAgain(conversations=1)
    assert await ask(process.postgres, "SELECT count(*) FROM erasure WHERE ended_at IS NULL") == 0
    assert await note_broken_off(process.postgres, 60) == 0


async def test_nothing_is_erased_again_beside_a_program_that_would_store_it_anew(process: Process) -> None:
    await process.accepted("talk-1")
    await begun(process, "conversation", "talk-1")
    await shift_clock(process.postgres, "61 seconds")
    assert await note_broken_off(process.postgres, 60) == 1

    async def older(connection: Connection) -> None:
        await connection.execute("ALTER TABLE conversation ADD COLUMN digest text")

    await process.postgres.run("test.older", older)
    assert await erase_again(process.postgres, erased=ignore) is None
    assert await ask(process.postgres, "SELECT count(*) FROM erase_again") == 1
