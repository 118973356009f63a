from __future__ import annotations

import math
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from convo.conversation.tenant import DEFAULT, Reach
from convo.erasure import Erasure, erase_conversation, read_receipt
from convo.errors import RemoteError, RemoteRefused, RemoteUnavailable, WrongLog
from convo.retention import Over, retire
from convo.retention_months import WholeMonth, drop_over, read_month
from convo.store import log_erasing, log_objects
from convo.store.audit_log import NO_CALLER
from convo.store.log_refs import parse_ref
from convo.store.months import Month
from convo.store.postgres import DURABLE, Connection
from convo.user_erasure import erase_user
from tests.support.buckets import S3Server
from tests.support.making import ask, rows, shift_clock
from tests.support.old_logs import Crashed, OldLogs, inflated, open_old_logs

CANARY = "the parrot sings at four"
WHOLE = Reach(tenant=DEFAULT)


@pytest.fixture
async def logs(database: str, s3: S3Server, bucket: str) -> AsyncIterator[OldLogs]:
    async with open_old_logs(database, s3.endpoint, bucket, pack_after_seconds=3600.0) as opened:
        yield opened


async def packed(logs: OldLogs, *names: str, days: int = 3, **fields: object) -> list[int]:
    """Settle conversations, of which only the first says the canary, and move their logs into one object."""
    seqs = await logs.settled(names[0], said=(CANARY, "Yes."), **fields)
    if names[1:]:
        seqs += await logs.settled(*names[1:], **fields)
    await shift_clock(logs.postgres, f"{days} days")
    assert await logs.packer.pack() == len(names)
    return seqs


async def erased(logs: OldLogs, name: str) -> Erasure:
    return await erase_conversation(logs.postgres, WHOLE, name, NO_CALLER, erased=lambda _: None, in_objects=True)


def stands(s3: S3Server, bucket: str) -> bool:
    """Whether the canary stands anywhere in the bucket, in an older version too."""
    return CANARY.encode() in inflated(list(s3.bodies(bucket).values()))


async def test_an_erased_log_goes_from_its_object_and_the_receipt_waits_for_that(
    logs: OldLogs, s3: S3Server, bucket: str
) -> None:
    seqs = await packed(logs, "talk-1", "talk-2", "talk-3")
    before = [await logs.read(seq) for seq in seqs[1:]]
    assert stands(s3, bucket)
    done = await erased(logs, "talk-1")
    assert (done.ended_at is not None, done.waiting, done.counts.told) == (True, {"s3": 1}, {})
    await logs.rewriter.erase_for(done.hmac, trio.current_time() + 20)
    done = await read_receipt(logs.postgres, "conversation", done.hmac)
    assert (done.waiting, done.counts.told) == ({}, {"s3": 1})
    assert not stands(s3, bucket)
    assert await logs.objects() == [("stored", 2)]
    assert len(s3.keys(bucket)) == 1
    assert [await logs.read(seq) for seq in seqs[1:]] == before


async def test_the_last_log_takes_its_object_along(logs: OldLogs, s3: S3Server, bucket: str) -> None:
    await packed(logs, "talk-1")
    await erased(logs, "talk-1")
    await logs.keeper.look()
    assert (await logs.objects(), s3.keys(bucket)) == ([], [])
    assert await rows(logs.postgres, "SELECT * FROM erased_log") == []


async def test_older_versions_go_where_the_bucket_keeps_them(database: str, s3: S3Server) -> None:
    bucket = s3.made(versions=True)
    async with open_old_logs(database, s3.endpoint, bucket, pack_after_seconds=3600.0) as logs:
        await packed(logs, "talk-1", "talk-2")
        (key,) = s3.keys(bucket)
        s3.ask("PUT", f"/{bucket}/{key}", s3.ask("GET", f"/{bucket}/{key}"))
        assert s3.version_count(bucket) == 2
        await erased(logs, "talk-1")
        await logs.keeper.look()
        assert s3.version_count(bucket) == 1
        assert not stands(s3, bucket)


async def test_a_process_that_dies_at_any_step_of_erasing_keeps_the_others_and_the_next_one_ends_it(
    logs: OldLogs, s3: S3Server, bucket: str
) -> None:
    point = 0
    while True:
        names = [f"talk-{point}-{n}" for n in range(3)]
        days = 3 * point + 3
        seqs = await packed(logs, *names, days=days)
        before = [await logs.read(seq) for seq in seqs[1:]]
        done = await erased(logs, names[0])
        steps, _, rewriter = logs.dying(point)
        died = False
        try:
            await rewriter.erase_urgent()
            await rewriter.delete_leaving()
        except Crashed:
            died = True
        assert [await logs.read(seq) for seq in seqs[1:]] == before, f"step {point}"
        receipt = await read_receipt(logs.postgres, "conversation", done.hmac)
        # The receipt never says more than is so.
        assert receipt.waiting or not stands(s3, bucket), f"step {point}"
        await shift_clock(logs.postgres, f"{days} days 1 hour")
        logs.keeper.forget()
        await logs.keeper.look()
        receipt = await read_receipt(logs.postgres, "conversation", done.hmac)
        assert (receipt.waiting, receipt.counts.told["s3"]) == ({}, 1), f"step {point}"
        assert not stands(s3, bucket), f"step {point}"
        assert [await logs.read(seq) for seq in seqs[1:]] == before, f"step {point}"
        assert {state for state, _ in await logs.objects()} == {"stored"}, f"step {point}"
        assert len(s3.keys(bucket)) == len(await logs.objects()), f"step {point}"
        if not died:
            break
        point += 1
    assert steps.count >= 10
    assert point >= 20


async def test_what_is_erased_while_its_object_is_written_anew_goes_with_the_next_one(
    logs: OldLogs, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await packed(logs, "talk-1", "talk-2", "talk-3")
    await erased(logs, "talk-2")
    put = logs.bucket.put
    receipts: list[Erasure] = []

    async def erasing(key: str, body: bytes) -> None:
        if not receipts:
            receipts.append(await erased(logs, "talk-1"))
        await put(key, body)

    monkeypatch.setattr(logs.bucket, "put", erasing)
    await logs.rewriter.erase_urgent()
    await logs.rewriter.delete_leaving()
    assert stands(s3, bucket)
    receipt = await read_receipt(logs.postgres, "conversation", receipts[0].hmac)
    assert receipt.waiting == {"s3": 1}
    await logs.rewriter.erase_for(receipt.hmac, math.inf)
    receipt = await read_receipt(logs.postgres, "conversation", receipts[0].hmac)
    assert receipt.waiting == {}
    assert not stands(s3, bucket)


async def test_what_retention_removes_while_its_object_is_written_anew_goes_with_the_next_one(
    logs: OldLogs, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seqs = await packed(logs, "talk-1", "talk-2", "talk-3")
    await erased(logs, "talk-2")
    put = logs.bucket.put

    async def retiring(key: str, body: bytes) -> None:
        await logs.postgres.run("test.retire", partial(retire, over=Over(position=None, logs=[seqs[0]])))
        await put(key, body)

    monkeypatch.setattr(logs.bucket, "put", retiring)
    await logs.rewriter.erase_urgent()
    monkeypatch.setattr(logs.bucket, "put", put)
    assert stands(s3, bucket)
    await logs.keeper.look()
    assert not stands(s3, bucket)
    assert await logs.read(seqs[2])


async def test_what_is_erased_while_it_moves_is_waited_for_and_goes(
    logs: OldLogs, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await logs.settled("talk-1", said=(CANARY, "Yes."))
    await logs.settled("talk-2")
    await shift_clock(logs.postgres, "3 days")
    put = logs.bucket.put
    receipts: list[Erasure] = []

    async def erasing(key: str, body: bytes) -> None:
        receipts.append(await erased(logs, "talk-1"))
        await put(key, body)

    monkeypatch.setattr(logs.bucket, "put", erasing)
    assert await logs.packer.pack() == 1
    monkeypatch.setattr(logs.bucket, "put", put)
    # The row did not refer to the object yet, and the receipt waits for it all the same.
    assert receipts[0].waiting == {"s3": 1}
    assert stands(s3, bucket)
    await logs.keeper.look()
    receipt = await read_receipt(logs.postgres, "conversation", receipts[0].hmac)
    assert (receipt.waiting, receipt.counts.told) == ({}, {"s3": 1})
    assert not stands(s3, bucket)


async def test_a_user_is_erased_from_all_objects_and_the_receipt_counts_each_log(
    logs: OldLogs, s3: S3Server, bucket: str
) -> None:
    await packed(logs, "talk-1", "talk-2", user_id="mia")
    await packed(logs, "talk-3", days=6, user_id="tom")
    await packed(logs, "talk-4", days=9, user_id="mia")
    done = await erase_user(
        logs.postgres, DEFAULT, "mia", NO_CALLER, erased=lambda _: None, until=math.inf, in_objects=True
    )
    assert done.waiting == {"s3": 3}
    await logs.rewriter.erase_for(done.hmac, math.inf)
    done = await read_receipt(logs.postgres, "user", done.hmac)
    assert (done.waiting, done.counts.told) == ({}, {"s3": 3})
    assert [count for _, count in await logs.objects()] == [1]  # of the other user


async def test_what_retention_removes_goes_in_batches_and_a_whole_object_at_once(
    logs: OldLogs, s3: S3Server, bucket: str
) -> None:
    seqs = await packed(logs, "talk-1", "talk-2")

    async def retired(*gone: int) -> None:
        await logs.postgres.run("test.retire", partial(retire, over=Over(position=None, logs=gone)))

    await retired(seqs[0])
    assert await logs.rewriter.erase_urgent() == 0
    assert await logs.rewriter.erase_batch() == 0  # it waits for others
    assert stands(s3, bucket)
    await shift_clock(logs.postgres, "5 days")
    assert await logs.rewriter.erase_batch() == 1
    await logs.rewriter.delete_leaving()
    assert not stands(s3, bucket)
    await retired(seqs[1])
    assert await logs.rewriter.erase_batch() == 1  # nothing of it is left
    await logs.rewriter.delete_leaving()
    assert (await logs.objects(), s3.keys(bucket)) == ([], [])


async def test_a_clock_that_was_set_back_makes_nothing_wait_for_it(logs: OldLogs, s3: S3Server, bucket: str) -> None:
    seqs = await packed(logs, "talk-1", "talk-2")
    await logs.postgres.run("test.retire", partial(retire, over=Over(position=None, logs=[seqs[0]])))
    await logs.postgres.run("test.plan", partial(log_objects.plan, tenant=0, seqs=[1]), begin=DURABLE)
    await shift_clock(logs.postgres, "1 day")
    await logs.keeper.look()
    assert not stands(s3, bucket)
    assert await logs.objects() == [("stored", 1)]


async def test_the_objects_of_a_month_that_is_dropped_go_but_for_what_is_kept(
    logs: OldLogs, s3: S3Server, bucket: str
) -> None:
    seqs = await packed(logs, "talk-1", "talk-2")
    month = Month(table="conversation_log", number=0)
    await shift_clock(logs.postgres, "40 days")

    async def dropped(connection: Connection) -> int:
        whole = WholeMonth(month=month, days=30)
        over = await read_month(connection, whole)
        assert over is not None
        return await drop_over(connection, whole, over)

    assert await logs.postgres.run("test.drop", dropped) == 2
    await logs.keeper.look()
    assert (await logs.objects(), s3.keys(bucket)) == ([], [])
    # The partition that has taken its place notes deletions, too.
    await ask(
        logs.postgres,
        "WITH i AS (INSERT INTO conversation_log (seq, storage_ref) VALUES ($1, '0123456789abcdef:0:1:1:00')) SELECT 1",
        seqs[0],
    )
    await ask(logs.postgres, "WITH d AS (DELETE FROM conversation_log) SELECT 1")
    assert await rows(logs.postgres, "SELECT name, seq FROM erased_log") == [("0123456789abcdef", seqs[0])]


async def test_an_object_that_is_forgotten_while_an_erasure_is_under_way_takes_its_note_along(logs: OldLogs) -> None:
    seqs = await packed(logs, "talk-1", "talk-2")
    await erased(logs, "talk-1")
    await logs.rewriter.erase_urgent()
    ((name,),) = await rows(logs.postgres, "SELECT name FROM log_object WHERE state = 'leaving'")
    receipt = await erased(logs, "talk-1")
    noted = trio.Event()

    async def slow(connection: Connection) -> None:
        await log_erasing.note_erased(connection, receipt.hmac, [seqs[1]])
        await connection.execute("SELECT pg_sleep(0.5)")

    async def erasing() -> None:
        await logs.postgres.run("test.erase", slow)
        noted.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(erasing)
        await trio.sleep(0.2)
        await logs.postgres.run("test.forget", partial(log_erasing.forget_object, name=name), begin=DURABLE)
        assert noted.is_set()  # it has waited
    assert await rows(logs.postgres, "SELECT * FROM erased_log WHERE name = $1", name) == []


async def test_one_object_that_cannot_be_deleted_does_not_hold_up_the_others(
    logs: OldLogs, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await packed(logs, "talk-1")
    await packed(logs, "talk-2", days=6)
    (held, _) = sorted(s3.keys(bucket))
    erase = logs.bucket.erase

    async def refusing(key: str) -> None:
        if key == held:
            raise RemoteRefused("s3", "it is under a legal hold")
        await erase(key)

    monkeypatch.setattr(logs.bucket, "erase", refusing)
    receipts = [await erased(logs, name) for name in ("talk-1", "talk-2")]
    await logs.rewriter.erase_urgent()
    with pytest.raises(RemoteError):
        await logs.rewriter.delete_leaving()
    assert s3.keys(bucket) == [held]
    waiting = [(await read_receipt(logs.postgres, "conversation", one.hmac)).waiting for one in receipts]
    assert sorted(map(bool, waiting)) == [False, True]
    monkeypatch.setattr(logs.bucket, "erase", erase)
    assert await logs.rewriter.delete_leaving() == 0  # not at once again
    await shift_clock(logs.postgres, "7 days")
    assert await logs.rewriter.delete_leaving() == 1


async def test_while_the_object_storage_is_away_the_receipt_waits_and_nothing_is_raised(
    logs: OldLogs, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await packed(logs, "talk-1", "talk-2")
    read = logs.bucket.read

    async def away(_key: str, _offset: int, _length: int) -> bytes:
        raise RemoteUnavailable("s3", "it is away")

    monkeypatch.setattr(logs.bucket, "read", away)
    done = await erased(logs, "talk-1")
    await logs.rewriter.erase_for(done.hmac, math.inf)
    assert (await read_receipt(logs.postgres, "conversation", done.hmac)).waiting == {"s3": 1}
    assert await logs.objects() == [("stored", 2)]
    monkeypatch.setattr(logs.bucket, "read", read)
    await trio.sleep(0.3)
    await logs.rewriter.erase_for(done.hmac, math.inf)
    assert (await read_receipt(logs.postgres, "conversation", done.hmac)).waiting == {}
    assert not stands(s3, bucket)


async def test_no_more_objects_are_planned_than_the_bucket_deletes(logs: OldLogs) -> None:
    plan = partial(log_objects.plan, tenant=0, seqs=[1])
    planned = [await logs.postgres.run("test.plan", plan, begin=DURABLE) for _ in range(21)]
    assert [one is not None for one in planned] == [True] * 20 + [False]


async def test_a_damaged_log_does_not_keep_others_from_being_erased(logs: OldLogs, s3: S3Server, bucket: str) -> None:
    seqs = await packed(logs, "talk-1", "talk-2", "talk-3")
    (key,) = s3.keys(bucket)
    body = s3.ask("GET", f"/{bucket}/{key}")
    s3.ask("PUT", f"/{bucket}/{key}", body[:-1] + bytes([body[-1] ^ 1]))
    first = await ask(logs.postgres, "SELECT storage_ref FROM conversation_log WHERE seq = $1", seqs[0])
    await erased(logs, "talk-1")
    await logs.keeper.look()
    (key,) = s3.keys(bucket)
    assert s3.ask("GET", f"/{bucket}/{key}") == body[parse_ref(first).length : -1] + bytes([body[-1] ^ 1])
    assert await logs.read(seqs[1])
    with pytest.raises(WrongLog):
        await logs.read(seqs[2])
