from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import trio

from convo import erasure, retention, user_erasure
from convo.conversation.identity import id_hash
from convo.conversation.tenant import DEFAULT, WHOLE_DEFAULT
from convo.errors import Erased, LeaseLost, NotFound
from convo.settings import RetentionSettings
from convo.store import audit, ledger
from convo.store.audit_log import Caller
from convo.store.conversations import Reader
from convo.store.installation_key import read_installation_key
from convo.store.jobs.lease import Lease
from convo.store.postgres import Connection, Postgres
from tests.support.making import (
    THREE,
    Process,
    ask,
    open_dedicated,
    open_process,
    remembering,
    rows,
    shift_clock,
    store_part,
)
from tests.support.running import holding

CALLER = Caller(key_id="5f0c9a7e3b1d", address="192.0.2.7")
ALL_OF_ONE = {"conversation": 1, "conversation_log": 1, "job": 1, "memory": 1, "part": 3, "relationship": 1, "run": 1}


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def settled(process: Process, conversation_id: str, **fields: Any) -> None:
    await process.accepted(conversation_id, **fields)
    await process.settler.settle(await process.analysed(await process.leased()))


async def erase_user(
    process: Process, user_id: str = "mia", *, seconds: float = 5.0, dry_run: bool = False
) -> erasure.Erasure:
    until = trio.current_time() + seconds
    return await user_erasure.erase_user(
        process.postgres, DEFAULT, user_id, CALLER, erased=process.ended.extend, until=until, dry_run=dry_run
    )


async def differences(process: Process) -> list[object]:
    async with open_dedicated(process.postgres) as dedicated:
        return [*await ledger.gaps(dedicated), *await audit.anomalies(dedicated)]


BEFORE, AFTER = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(hours=1)


async def test_an_erased_user_leaves_nothing_and_the_books_balance(process: Process, monkeypatch: Any) -> None:
    monkeypatch.setattr(user_erasure, "_BATCH_ROWS", 2)
    for n in range(3):
        await settled(process, f"mia-{n}", user_id="mia", bot_id=f"bot-{n % 2}")
    await settled(process, "tom-1", user_id="tom")
    await process.accepted("mia-3", user_id="mia")
    done = await erase_user(process)
    assert done.ended_at is not None
    assert (done.counts.removed["conversation"], done.counts.removed["relationship"]) == (4, 2)
    for table in ("conversation", "relationship", "memory"):
        assert await rows(process.postgres, f"SELECT DISTINCT user_id FROM {table}") == [("tom",)], table
    assert await rows(process.postgres, "SELECT state::text, count(*) FROM receipt GROUP BY 1 ORDER BY 1") == [
        ("", 1),
        ("e", 4),
    ]
    assert sorted(process.ended) == [1, 2, 3, 5]
    assert await differences(process) == []


async def test_what_is_sent_again_while_its_user_is_erased_is_not_stored_anew(process: Process, database: str) -> None:
    await settled(process, "tom-1", user_id="tom")
    await erase_user(process, "tom")
    # From now on each accept looks on the list.
    await settled(process, "mia-1", user_id="mia")

    async def send_again() -> None:
        # A replay, or refused: it says of no time that it ended.
        with suppress(Erased):
            await process.accepted("mia-1", user_id="mia")
        sent.set()

    async def waiting(kind: str) -> bool:
        return bool(await rows(process.postgres, f"SELECT FROM pg_locks WHERE NOT granted AND locktype = '{kind}'"))

    sent = trio.Event()
    # What an erasure does last waits: all else of it is done and not committed.
    async with trio.open_nursery() as nursery, holding(database, "LOCK TABLE audit_log IN SHARE MODE"):
        nursery.start_soon(erase_user, process)
        await eventually_here(partial(waiting, "relation"))
        nursery.start_soon(send_again)
        while not sent.is_set() and not await waiting("transactionid"):  # noqa: ASYNC110  (as below)
            await trio.sleep(0.01)
    assert await rows(process.postgres, "SELECT conversation_id FROM conversation") == []
    assert await differences(process) == []


async def test_a_number_that_is_another_users_since_the_database_went_back_is_not_erased(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await settled(process, "mia-1", user_id="mia")
    times = 0

    async def goes_back(postgres: Postgres) -> None:
        nonlocal times
        times += 1
        if times == 2:
            # Mia's conversation is put on the list. Restored meanwhile, and its number given to what Tom sent.
            moved = "WITH moved AS (UPDATE {} SET user_id = 'tom' RETURNING 1) SELECT count(*) FROM moved"
            for table in ("conversation", "relationship", "memory"):
                assert await ask(postgres, moved.format(table)) == 1

    monkeypatch.setattr(user_erasure, "await_accepts", goes_back)
    await erase_user(process)
    assert await rows(process.postgres, "SELECT seq, user_id FROM conversation") == [(1, "tom")]
    assert await differences(process) == []


async def eventually_here(true: Callable[[], Awaitable[bool]]) -> None:
    while not await true():  # noqa: ASYNC110  (what becomes true does so in the database)
        await trio.sleep(0.01)


async def test_what_ended_before_the_erasure_of_its_user_is_refused_and_what_ends_later_is_stored(
    process: Process,
) -> None:
    await process.accepted("mia-1", user_id="mia")
    await erase_user(process)
    for refused in ("mia-1", "mia-2"):
        with pytest.raises(Erased):
            await process.accepted(refused, user_id="mia", end_time=BEFORE.isoformat())
    await process.accepted("mia-3", user_id="mia", end_time=AFTER.isoformat())
    await process.accepted("mia-4", user_id="mia")
    await process.accepted("tom-1", user_id="tom", end_time=BEFORE.isoformat())
    with pytest.raises(Erased):
        await process.accepted("mia-1", user_id="mia")
    stored = await rows(process.postgres, "SELECT conversation_id FROM conversation ORDER BY seq")
    assert stored == [("mia-3",), ("mia-4",), ("tom-1",)]


async def test_a_user_who_came_back_is_erased_again_and_keeps_no_score_of_before(process: Process) -> None:
    await settled(process, "mia-1", user_id="mia")
    await erase_user(process)
    await settled(process, "mia-2", user_id="mia")
    assert await rows(process.postgres, "SELECT user_id, conversations FROM relationship") == [("mia", 1)]
    again = await erase_user(process)
    assert (again.repeated, again.counts.removed["conversation"]) == (False, 1)
    with pytest.raises(Erased):
        await process.accepted("mia-2", user_id="mia")
    assert (await erase_user(process)).repeated
    assert await differences(process) == []


async def test_what_is_accepted_while_a_user_is_erased_stays_whole(process: Process) -> None:
    await settled(process, "mia-1", user_id="mia")
    later = await read_until(process)
    await process.accepted("mia-2", user_id="mia", end_time=AFTER.isoformat())
    await process.settler.settle(
        await process.analysed(await process.leased(), {**THREE, "memories": remembering("tea")})
    )
    batch = user_erasure._UserBatch(tenant=DEFAULT, user_id="mia", hmac=later[0], begun_at=later[1], caller=CALLER)
    nothing_left = False
    while not nothing_left:
        _, nothing_left = await batch.erase(process.postgres)
    assert await rows(process.postgres, "SELECT conversation_id FROM conversation") == [("mia-2",)]
    assert await rows(process.postgres, "SELECT key FROM memory") == [("tea",)]
    assert await differences(process) == []


async def read_until(process: Process) -> tuple[bytes, datetime]:
    """Begin the erasure of a user, and go no further."""

    async def body(connection: Connection) -> tuple[bytes, datetime]:
        hmac = (await read_installation_key(connection)).hmac_of("user", "mia")
        noted = await erasure.put_on_list(connection, "user", hmac, dry_run=False)
        assert noted is not None
        return hmac, noted.begun_at

    return await process.postgres.run("test.begin", body)


async def test_a_user_for_whom_the_time_is_too_short_is_erased_by_the_requests_that_follow(
    process: Process, monkeypatch: Any
) -> None:
    monkeypatch.setattr(user_erasure, "_BATCH_ROWS", 1)
    for n in range(3):
        await process.accepted(f"mia-{n}", user_id="mia")
    first = await erase_user(process, seconds=0.0)
    assert (first.ended_at, first.counts.removed["conversation"]) == (None, 1)
    with pytest.raises(Erased):
        await process.accepted("mia-7", user_id="mia", end_time=BEFORE.isoformat())
    done = await erase_user(process)
    assert done.ended_at is not None
    assert done.counts.removed["conversation"] == 3
    assert not done.repeated


async def test_a_dry_run_of_a_user_counts_all_and_erases_nothing(process: Process, monkeypatch: Any) -> None:
    monkeypatch.setattr(user_erasure, "_BATCH_ROWS", 2)
    for n in range(3):
        await settled(process, f"mia-{n}", user_id="mia")
    counted = await erase_user(process, dry_run=True)
    assert await ask(process.postgres, "SELECT count(*) FROM conversation") == 3
    assert await ask(process.postgres, "SELECT count(*) FROM erasure") == 0
    done = await erase_user(process)
    assert dict(counted.counts.removed) == dict(done.counts.removed)


async def test_memories_and_relationships_without_a_conversation_go_with_their_user(process: Process) -> None:
    await settled(process, "mia-1", user_id="mia")
    for table in ("conversation", "job"):
        await ask(process.postgres, f"WITH gone AS (DELETE FROM {table} RETURNING 1) SELECT count(*) FROM gone")
    done = await erase_user(process)
    assert dict(done.counts.removed) == {"memory": 1, "relationship": 1}
    assert done.ended_at is not None


async def test_a_user_of_whom_nothing_is_stored_is_not_found(process: Process) -> None:
    with pytest.raises(NotFound):
        await erase_user(process)
    await process.accepted("mia-1", user_id="mia", end_time=BEFORE.isoformat())


async def test_each_batch_of_a_user_has_its_row_in_the_audit_log(process: Process, monkeypatch: Any) -> None:
    monkeypatch.setattr(user_erasure, "_BATCH_ROWS", 2)
    await process.accepted("mia-1", "mia-2", "mia-3", user_id="mia")
    await erase_user(process)
    query = "SELECT action, target_kind, target = of_user, detail ->> 'conversations' FROM audit_log ORDER BY number"
    assert await rows(process.postgres, query) == [("erase", "user", True, n) for n in ("2", "1", "0")]


async def test_a_late_worker_of_an_erased_user_stores_nothing(process: Process) -> None:
    await process.accepted("mia-1", user_id="mia")
    lease: Lease = await process.leased()
    await erase_user(process)
    with pytest.raises(LeaseLost):
        await store_part(process.jobs, lease, "memories", "test/1", THREE["memories"])
    assert await ask(process.postgres, "SELECT count(*) FROM memory") == 0


async def test_two_requests_at_once_count_what_both_erased(process: Process, monkeypatch: Any) -> None:
    monkeypatch.setattr(user_erasure, "_BATCH_ROWS", 1)
    for n in range(6):
        await process.accepted(f"mia-{n}", user_id="mia")
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(erase_user, process)
    done = await erase_user(process)
    assert done.ended_at is not None
    assert (done.counts.removed["conversation"], done.counts.changed["receipt"]) == (6, 6)
    assert await differences(process) == []


async def test_the_one_that_began_later_ends_it(process: Process) -> None:
    # Else what was accepted between the two would stay, on a list that says that all is erased.
    await process.accepted("mia-1", user_id="mia")
    hmac, first_at = await read_until(process)
    await process.accepted("mia-2", user_id="mia")
    _, second_at = await read_until(process)
    ended = "SELECT ended_at IS NOT NULL FROM erasure WHERE kind = 'user'"
    for begun_at, expected in ((first_at, False), (second_at, True)):
        batch = user_erasure._UserBatch(tenant=DEFAULT, user_id="mia", hmac=hmac, begun_at=begun_at, caller=CALLER)
        while not (await batch.erase(process.postgres))[1]:
            pass
        assert await ask(process.postgres, ended) is expected
    assert await ask(process.postgres, "SELECT count(*) FROM conversation") == 0


async def test_the_receipts_of_expired_conversations_of_a_user_lose_the_hashes_of_their_ids(process: Process) -> None:
    for name, user in (("mia-1", "mia"), ("tom-1", "tom")):
        await settled(process, name, user_id=user)
    settings = RetentionSettings(conversations_days=1)
    await shift_clock(process.postgres, "2 days")

    async def retired(connection: Connection) -> None:
        over = await retention.find_conversations(connection, settings, None, 10)
        await retention.retire(connection, over)

    await process.postgres.run("test.retire", retired)
    assert await ask(process.postgres, "SELECT count(*) FROM conversation") == 0
    counted = await erase_user(process, dry_run=True)
    done = await erase_user(process)
    assert counted.counts.changed["receipt"] == done.counts.changed["receipt"] == 1
    found = await rows(
        process.postgres, "SELECT state::text, id_hash = $1, user_hmac FROM receipt ORDER BY seq", id_hash("tom-1")
    )
    assert (found[0], found[1][:2]) == (("e", False, None), ("x", True))
    assert await ask(process.postgres, "SELECT count(*) FROM receipt WHERE id_hash = $1", id_hash("mia-1")) == 0
    assert (await erase_user(process)).repeated
    assert await differences(process) == []
    with pytest.raises(Erased):
        await Reader(process.postgres, process.log_store).one(WHOLE_DEFAULT, "mia-1")
    # The database has not lost it.
    assert await process.receipts.missing(process.postgres) == (2, [])


async def test_a_memory_that_was_stored_late_goes_with_its_user_where_its_conversation_was_before(
    process: Process,
) -> None:
    await settled(process, "mia-1", user_id="mia")
    for table in ("conversation", "job"):
        await ask(process.postgres, f"WITH gone AS (DELETE FROM {table} RETURNING 1) SELECT count(*) FROM gone")
    late = "UPDATE memory SET first_seen_at = convo_now() + interval '5 hours' RETURNING 1"
    await ask(process.postgres, f"WITH late AS ({late}) SELECT count(*) FROM late")
    assert (await erase_user(process)).counts.removed["memory"] == 1
