from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from convo import erasure
from convo.conversation.identity import id_hash
from convo.conversation.model import Finding, Mood, PartName
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import Erased, LeaseLost, NotFound, Unavailable
from convo.store import audit, ledger
from convo.store.audit_log import Caller
from convo.store.conversations import Reader
from convo.store.installation_key import read_installation_key
from convo.store.intake import SESSION_SETTINGS
from convo.store.logs import LogStore
from convo.store.postgres import Connection
from tests.support.making import (
    THREE,
    Process,
    accept,
    ask,
    open_dedicated,
    open_process,
    rows,
    store_part,
)

CALLER = Caller(key_id="5f0c9a7e3b1d", address="192.0.2.7")
ALL_OF_ONE = {"conversation": 1, "conversation_log": 1, "outcome": 1, "memory": 1, "relationship": 1}


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def settled(process: Process, conversation_id: str, **fields: Any) -> None:
    await process.accepted(conversation_id, **fields)
    await process.settler.settle(await process.analysed(await process.leased()))


async def erase(process: Process, conversation_id: str = "talk-1", *, dry_run: bool = False) -> erasure.Erasure:
    return await erasure.erase_conversation(
        process.postgres, WHOLE_DEFAULT, conversation_id, CALLER, erased=process.ended.extend, dry_run=dry_run
    )


async def differences(process: Process) -> list[object]:
    async with open_dedicated(process.postgres) as dedicated:
        return [*await ledger.gaps(dedicated), *await audit.anomalies(dedicated)]


async def hmac_of(process: Process, conversation_id: str) -> bytes:
    async def body(connection: Connection) -> bytes:
        return (await read_installation_key(connection)).hmac_of("conversation", conversation_id)

    return await process.postgres.run("test.key", body)


# --- a conversation


async def test_an_erased_conversation_leaves_no_row_but_its_receipt_which_says_nothing_of_it(process: Process) -> None:
    await settled(process, "talk-1", user_id="mia")
    await settled(process, "talk-2", user_id="tom")
    done = await erase(process)
    assert dict(done.counts.removed) == ALL_OF_ONE
    assert done.counts.changed["receipt"] == 1
    for table, count in ALL_OF_ONE.items():
        assert await ask(process.postgres, f"SELECT count(*) FROM {table}") == count, table
    found = await rows(process.postgres, "SELECT id_hash, digest, turns, notes FROM receipt WHERE state = 'e'")
    assert found == [(await hmac_of(process, "talk-1"), b"", 0, None)]
    assert process.ended == [1]


async def test_the_books_balance_before_and_after_an_erasure(process: Process) -> None:
    await settled(process, "talk-1", user_id="mia")
    await settled(process, "talk-2", user_id="mia")
    await erase(process)
    assert await differences(process) == []
    assert await ledger.totals(process.postgres) == {"accepted": 1, "done": 1}


async def test_a_relationship_says_of_the_erased_neither_its_score_nor_its_emotion(process: Process) -> None:
    boring: dict[PartName, Finding] = {**THREE, "emotion": Mood(emotion="boring")}
    await settled(process, "talk-1", user_id="mia")
    await process.accepted("talk-2", user_id="mia")
    await process.settler.settle(await process.analysed(await process.leased(), boring))
    query = "SELECT conversations, last_emotion, last_seq FROM relationship"
    assert await rows(process.postgres, query) == [(2, "boring", 2)]
    await erase(process, "talk-2")
    assert await rows(process.postgres, query) == [(1, "happy", 1)]
    assert await differences(process) == []


@pytest.mark.parametrize("state", ["ready", "leased", "dead"])
async def test_one_in_any_state_is_erased_and_the_books_balance(process: Process, state: str) -> None:
    await process.accepted("talk-1")
    if state == "leased":
        await process.leased()
    if state == "dead":
        lease = await process.leased()
        while not await process.jobs.fail(lease, "why", {}, later=0):
            lease = await process.leased()
    await erase(process)
    assert await differences(process) == []
    assert await ask(process.postgres, "SELECT count(*) FROM job") == 0


async def test_the_same_id_again_is_refused_alone_in_its_batch_and_stays_so(process: Process) -> None:
    await process.accepted("talk-1")
    await erase(process)
    for _ in range(2):
        with pytest.raises(Erased):
            await process.accepted("talk-1")
    with pytest.raises(Erased):
        await process.accepted("talk-1", said=("Other words.",))
    stored: list[str] = []

    async def send(conversation_id: str) -> None:
        try:
            stored.append((await process.committer.accept(accept(conversation_id))).conversation_id)
        except Erased:
            stored.append("refused")

    async with trio.open_nursery() as nursery:
        for one in ("talk-0", "talk-1", "talk-2"):
            nursery.start_soon(send, one)
    assert sorted(stored) == ["refused", "talk-0", "talk-2"]
    assert await differences(process) == []


async def test_an_accept_that_began_before_the_erasure_does_not_store_it_anew(process: Process) -> None:
    # Its view of the database is older than the list: it waits for the erasure of the row, and would find the id free.
    await process.accepted("talk-1")
    done: list[str] = []

    async def erases() -> None:
        await erase(process)
        done.append("erased")

    async with trio.open_nursery() as nursery, open_dedicated(process.postgres, **SESSION_SETTINGS) as other:

        async def slow(connection: Connection) -> None:
            # What an accept holds from its beginning on.
            await connection.execute("LOCK TABLE receipt IN ROW EXCLUSIVE MODE")
            nursery.start_soon(erases)
            await connection.fetchval("SELECT pg_sleep(0.3)")
            assert await connection.fetchval("SELECT count(*) FROM receipt WHERE id_hash = $1", id_hash("talk-1")) == 1
            done.append("accept")

        await other.run("test.slow", slow)
    assert done == ["accept", "erased"]


async def test_nothing_is_erased_where_an_accept_does_not_end(process: Process, monkeypatch: Any) -> None:
    await process.accepted("talk-1")
    async with open_dedicated(process.postgres) as other:
        # Its session has the usual limits; the erasure's own are shorter.
        await other.run("test.open", lambda connection: connection.fetchval("SELECT 1"))
        monkeypatch.setattr(process.postgres, "unit_seconds", 0.5)

        async def slow(connection: Connection) -> None:
            await connection.execute("LOCK TABLE receipt IN ROW EXCLUSIVE MODE")
            await connection.fetchval("SELECT pg_sleep(1.5)")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: other.run("test.slow", slow, seconds=5.0))
            await trio.sleep(0.2)
            with pytest.raises(Unavailable, match=r"erase\.accepts"):
                await erase(process)
    assert await process.state() == ("ready", 0)
    stored = await process.committer.accept(accept("talk-1"))
    assert stored.replayed
    assert (await erase(process)).counts.removed["conversation"] == 1


async def test_a_late_worker_stores_neither_a_part_nor_an_ending(process: Process) -> None:
    await process.accepted("talk-1")
    lease = await process.leased()
    await erase(process)
    with pytest.raises(LeaseLost):
        await store_part(process.jobs, lease, "questions", "test/1", THREE["questions"])
    for ending in (
        process.settler.settle(lease),
        process.jobs.fail(lease, "why", {}, later=0),
        process.jobs.park(lease, "llm", "why"),
        process.jobs.release(lease),
        process.jobs.store_ticket(lease, "memories", "42"),
    ):
        with pytest.raises(LeaseLost):
            await ending
    for table in ("part", "run", "part_ticket", "job", "relationship", "memory"):
        assert await ask(process.postgres, f"SELECT count(*) FROM {table}") == 0, table


async def test_a_read_of_an_erased_id_says_so(process: Process) -> None:
    await process.accepted("talk-1")
    await erase(process)
    reader = Reader(process.postgres, LogStore(process.postgres))
    for read in (
        reader.one(WHOLE_DEFAULT, "talk-1"),
        reader.log_sizes(WHOLE_DEFAULT, "talk-1"),
        process.jobs.retry(WHOLE_DEFAULT, "talk-1", CALLER),
    ):
        with pytest.raises(Erased, match="'talk-1' was erased"):
            await read
    with pytest.raises(NotFound):
        await reader.one(WHOLE_DEFAULT, "talk-2")


async def test_an_erasure_that_is_repeated_has_the_same_receipt_and_no_second_row_in_the_audit_log(
    process: Process,
) -> None:
    await settled(process, "talk-1")
    first = await erase(process)
    again = await erase(process)
    assert (again.counts, again.begun_at, again.ended_at) == (first.counts, first.begun_at, first.ended_at)
    assert (first.repeated, again.repeated) == (False, True)
    query = "SELECT action, key_id, address, target_kind, target FROM audit_log"
    assert await rows(process.postgres, query) == [
        ("erase", CALLER.key_id, CALLER.address, "conversation", await hmac_of(process, "talk-1"))
    ]


async def test_of_two_erasures_at_once_one_erases_and_both_have_its_receipt(process: Process) -> None:
    await settled(process, "talk-1")
    done: list[erasure.Erasure] = []

    async def erases() -> None:
        done.append(await erase(process))

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(erases)
    assert sorted(one.repeated for one in done) == [False, True]
    assert done[0].counts == done[1].counts
    assert await ask(process.postgres, "SELECT count(*) FROM audit_log") == 1
    assert await differences(process) == []


async def test_what_was_never_stored_is_not_found_and_not_refused(process: Process) -> None:
    with pytest.raises(NotFound):
        await erase(process)
    await process.accepted("talk-1")


async def test_an_expired_one_loses_its_receipt_too(process: Process) -> None:
    await process.accepted("talk-1")
    await ask(process.postgres, "WITH gone AS (DELETE FROM conversation RETURNING 1) SELECT count(*) FROM gone")
    await ask(process.postgres, "WITH gone AS (DELETE FROM job RETURNING 1) SELECT count(*) FROM gone")
    await ask(process.postgres, "WITH x AS (UPDATE receipt SET state = 'x' RETURNING 1) SELECT count(*) FROM x")
    assert (await erase(process)).counts.changed == {"receipt": 1}
    with pytest.raises(Erased):
        await process.accepted("talk-1")


async def test_a_dry_run_counts_the_same_and_erases_nothing(process: Process) -> None:
    await settled(process, "talk-1")
    counted = await erase(process, dry_run=True)
    assert counted.ended_at is None
    assert (await process.state())[0] == "done"
    assert process.ended == []
    assert await ask(process.postgres, "SELECT count(*) FROM erasure") == 0
    assert await ask(process.postgres, "SELECT count(*) FROM audit_log") == 0
    assert (await erase(process)).counts == counted.counts


async def test_nothing_is_erased_beside_a_program_that_would_store_it_anew(process: Process) -> None:
    await process.accepted("talk-1")

    async def older(connection: Connection) -> None:
        await connection.execute("ALTER TABLE conversation ADD COLUMN digest text")

    await process.postgres.run("test.older", older)
    with pytest.raises(Unavailable, match="MIGRATION_WAITS"):
        await erase(process)
    assert (await process.state())[0] == "ready"
    assert await ask(process.postgres, "SELECT count(*) FROM erasure") == 0


async def test_a_database_that_went_back_is_not_suspected_for_what_was_erased(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    await erase(process)
    assert await process.receipts.missing(process.postgres) == (2, [])
    await ask(
        process.postgres, "WITH gone AS (DELETE FROM receipt WHERE seq = 2 RETURNING 1) SELECT count(*) FROM gone"
    )
    assert await process.receipts.missing(process.postgres) == (2, ["talk-2"])
