from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
from msgspec import structs

from convo.errors import RemoteError, Unavailable
from convo.objects import packing
from convo.objects.keeper import LogsKeeper
from convo.objects.packing import Packer
from convo.objects.storage import ObjectStorage
from convo.observe import log_records
from convo.store import log_objects
from convo.store.logs import LogStore
from tests.support.buckets import S3Server
from tests.support.making import ask, rows, settled, shift_clock, told
from tests.support.old_logs import Crashed, OldLogs, inflated, open_old_logs


@pytest.fixture
async def logs(database: str, s3: S3Server, bucket: str) -> AsyncIterator[OldLogs]:
    async with open_old_logs(database, s3.endpoint, bucket, pack_after_seconds=3600.0) as opened:
        yield opened


async def over(logs: OldLogs, *names: str) -> list[int]:
    """Settle conversations, all of which are so old that their logs move, and in objects that are not full."""
    seqs = await logs.settled(*names)
    await shift_clock(logs.postgres, "3 days")
    return seqs


async def test_logs_that_have_ended_move_together_and_are_read_where_they_lie(
    logs: OldLogs, s3: S3Server, bucket: str
) -> None:
    seqs = await over(logs, "talk-1", "talk-2", "talk-3")
    before = [await logs.read(seq) for seq in seqs]
    assert await logs.packer.pack() == 3
    assert await logs.here() == []
    assert await logs.objects() == [("stored", 3)]
    assert [await logs.read(seq) for seq in seqs] == before
    assert inflated(list(s3.bodies(bucket).values())).count(b"What is the capital of France?") == 3


async def test_what_is_young_or_has_not_ended_stays_until_it_is_old_and_has(logs: OldLogs) -> None:
    await logs.settled("talk-1")
    assert await logs.packer.pack() == 0  # it is young
    await logs.process.accepted("talk-2")
    await over(logs, *())
    assert await logs.packer.pack() == 1
    assert len(await logs.here()) == 1
    await settled(logs.process, 1)
    fresh = Packer(logs.storage, logs.postgres, logs.settings, lambda: False)
    assert await fresh.pack() == 1
    assert await logs.here() == []


async def test_a_clock_that_was_set_back_holds_up_no_log(database: str, s3: S3Server, bucket: str) -> None:
    async with open_old_logs(database, s3.endpoint, bucket, pack_after_seconds=1.0, local_bytes_max=1) as logs:
        await shift_clock(logs.postgres, "5 hours")
        await logs.settled("talk-1")
        await shift_clock(logs.postgres, "0 hours")
        await logs.settled("talk-2")
        await shift_clock(logs.postgres, "2 seconds")
        assert await logs.packer.pack() == 2


async def test_objects_are_of_one_tenant_and_one_month_and_of_so_many_bytes(
    database: str, s3: S3Server, bucket: str
) -> None:
    async with open_old_logs(database, s3.endpoint, bucket, pack_bytes=1024) as logs:
        seqs = await logs.settled(*(f"talk-{n}" for n in range(20)))
        await ask(logs.postgres, "WITH t AS (INSERT INTO tenant (number, name) VALUES (7, 'other')) SELECT 1")
        await ask(logs.postgres, "WITH u AS (UPDATE conversation SET tenant = 7 WHERE seq % 2 = 0) SELECT 1")
        await shift_clock(logs.postgres, "3 days")
        sizes = [size for (size,) in await rows(logs.postgres, "SELECT octet_length(body) FROM conversation_log")]
        assert await logs.packer.pack() == 20
        found = await rows(logs.postgres, "SELECT tenant, seqs, bytes FROM log_object ORDER BY seqs[1]")
        assert sorted(seq for _, own, _ in found for seq in own) == seqs
        for tenant, own, size in found:
            assert {seq % 2 for seq in own} == {0 if tenant == 7 else 1}
            assert size <= 1024
            assert own == sorted(own)
        assert len(found) == 2 * -(-sum(sizes) // 2 // 1024)


async def test_after_a_while_other_work_on_objects_has_its_turn_and_then_the_rest_moves(
    database: str, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_TURN_SECONDS", 0.0)
    monkeypatch.setattr(packing, "_PAGE_ROWS", 4)
    async with open_old_logs(database, s3.endpoint, bucket, pack_bytes=1024, look_seconds=3600.0) as logs:
        await over(logs, *(f"talk-{n}" for n in range(20)))
        await logs.packer.pack()
        assert logs.packer.has_more
        assert len(await logs.here()) >= 16
        keeper = LogsKeeper(logs.storage, logs.postgres, logs.settings, lambda: True)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keeper.run)
                while await logs.here():  # noqa: ASYNC110
                    await trio.sleep(0.02)
                nursery.cancel_scope.cancel()


async def test_what_does_not_fill_an_object_waits_for_more_for_a_day(logs: OldLogs) -> None:
    await logs.settled("talk-1")
    await shift_clock(logs.postgres, "2 hours")
    assert await logs.packer.pack() == 0
    await shift_clock(logs.postgres, "26 hours")
    fresh = Packer(logs.storage, logs.postgres, logs.settings, lambda: False)
    assert await fresh.pack() == 1


async def test_under_the_pressure_of_the_bound_all_logs_move_but_the_youngest(
    database: str, s3: S3Server, bucket: str
) -> None:
    names = [f"talk-{n}" for n in range(10)]
    async with open_old_logs(
        database, s3.endpoint, bucket, pack_after_seconds=86_400.0, pack_bytes=1024, local_bytes_max=1000
    ) as logs:
        await logs.process.accepted(*names)
        assert await logs.packer.pack() == 0  # so young that a worker may be about to read them
        assert logs.packer.local_bytes > 1000
        await shift_clock(logs.postgres, "2 minutes")
        assert await logs.packer.pack() > 0
        assert logs.packer.local_bytes <= 900
        here = sum(size for (size,) in await rows(logs.postgres, _LOCAL))
        assert here == logs.packer.local_bytes


_LOCAL = "SELECT coalesce(octet_length(body), 0) FROM conversation_log"


async def test_a_log_that_is_not_what_was_acknowledged_stays_and_is_reported(logs: OldLogs) -> None:
    seqs = await over(logs, "talk-1", "talk-2")
    await ask(logs.postgres, "WITH u AS (UPDATE conversation_log SET body = 'x' WHERE seq = $1) SELECT 1", seqs[0])
    with told() as names:
        assert await logs.packer.pack() == 1
    assert "log_mismatch" in names
    assert await logs.here() == [seqs[0]]
    assert await logs.objects() == [("stored", 1)]


async def test_a_process_that_dies_at_any_step_of_packing_loses_no_log_and_leaves_no_object(
    database: str, s3: S3Server, bucket: str
) -> None:
    async with open_old_logs(database, s3.endpoint, bucket, pack_after_seconds=3600.0) as logs:
        point = 0
        while True:
            seqs = await logs.settled(f"talk-{point}-1", f"talk-{point}-2")
            await shift_clock(logs.postgres, f"{3 * point + 3} days")
            before = [await logs.read(seq) for seq in seqs]
            steps, packer, _ = logs.dying(point)
            try:
                await packer.pack()
            except Crashed:
                died = True
            else:
                died = False
            assert [await logs.read(seq) for seq in seqs] == before, f"step {point}"
            # The next process: what was planned and left is deleted, all logs are in objects, and no other objects are.
            fresh = Packer(logs.storage, logs.postgres, logs.settings, lambda: False)
            await fresh.pack()
            await shift_clock(logs.postgres, f"{3 * point + 3} days 1 hour")
            logs.keeper.forget()
            await logs.keeper.look()
            assert await logs.here() == [], f"step {point}"
            assert {state for state, _ in await logs.objects()} == {"stored"}, f"step {point}"
            assert len(s3.keys(bucket)) == len(await logs.objects()), f"step {point}"
            assert [await logs.read(seq) for seq in seqs] == before, f"step {point}"
            if not died:
                break
            point += 1
        assert steps.count >= 5
        assert point >= 10


async def test_an_object_that_was_given_up_while_it_was_written_is_not_referred_to(
    logs: OldLogs, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (seq,) = await over(logs, "talk-1")
    put = logs.bucket.put

    async def slow(key: str, body: bytes) -> None:
        await put(key, body)
        # The clock of the database is far ahead of it by now: whoever leads takes its process for dead.
        name = key.rpartition("/")[2].partition(".")[0]
        await logs.postgres.run("test.give_up", partial(log_objects.give_up, name=name, later_seconds=0.0))

    monkeypatch.setattr(logs.bucket, "put", slow)
    with pytest.raises(Unavailable, match="given up"):
        await logs.packer.pack()
    monkeypatch.setattr(logs.bucket, "put", put)
    assert await logs.here() == [seq]
    assert await logs.rewriter.delete_leaving() == 1
    assert await logs.packer.pack() == 1
    assert await logs.read(seq)
    assert len(s3.keys(bucket)) == 1


async def test_two_processes_that_pack_at_the_same_time_refer_to_each_log_once(logs: OldLogs) -> None:
    seqs = await over(logs, *(f"talk-{n}" for n in range(20)))
    before = [await logs.read(seq) for seq in seqs]
    other = Packer(logs.storage, logs.postgres, logs.settings, lambda: False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(logs.packer.pack)
        nursery.start_soon(other.pack)
    assert await logs.here() == []
    assert [await logs.read(seq) for seq in seqs] == before
    # What the slower one has written is not referred to, and goes.
    await logs.keeper.look()
    assert [count for _, count in await logs.objects()] == [20]


async def test_an_answer_that_was_lost_is_looked_at_and_the_object_is_referred_to(
    logs: OldLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    await over(logs, "talk-1")
    put, lost = logs.bucket.put, [True]

    async def lossy(key: str, body: bytes) -> None:
        await put(key, body)
        if lost.pop() if lost else False:
            raise unavailable()

    monkeypatch.setattr(logs.bucket, "put", lossy)
    assert await logs.packer.pack() == 1
    assert await logs.objects() == [("stored", 1)]


def unavailable() -> RemoteError:
    from convo.errors import RemoteUnavailable  # noqa: PLC0415

    return RemoteUnavailable("s3", "the answer was lost")


async def test_an_object_that_may_still_come_through_is_deleted_later(
    logs: OldLogs, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await over(logs, "talk-1")
    put = logs.bucket.put

    async def lossy(key: str, body: bytes) -> None:
        await put(key, body)
        raise unavailable()

    monkeypatch.setattr(logs.bucket, "put", lossy)
    with pytest.raises(RemoteError):
        await logs.packer.pack()
    monkeypatch.setattr(logs.bucket, "put", put)
    assert await logs.objects() == [("leaving", 1)]
    await logs.rewriter.delete_leaving()
    assert len(s3.keys(bucket)) == 1  # not yet: the writing may still be under way
    await trio.sleep(0.3)
    assert await logs.packer.pack() == 1
    await shift_clock(logs.postgres, "4 days")
    assert await logs.rewriter.delete_leaving() == 1
    assert len(s3.keys(bucket)) == 1
    assert await logs.objects() == [("stored", 1)]


async def test_a_read_compares_the_hash_and_tries_once_more(logs: OldLogs, s3: S3Server, bucket: str) -> None:
    from convo.errors import WrongLog  # noqa: PLC0415

    (seq,) = await over(logs, "talk-1")
    await logs.packer.pack()
    (key,) = s3.keys(bucket)
    body = s3.ask("GET", f"/{bucket}/{key}")
    s3.ask("PUT", f"/{bucket}/{key}", body[:-1] + bytes([body[-1] ^ 1]))
    found: list[str] = []
    with log_records.record_observers.adding(lambda name, _: found.append(name)), pytest.raises(WrongLog):
        await logs.read(seq)
    assert "log_not_found" in found
    s3.ask("DELETE", f"/{bucket}/{key}")
    with pytest.raises(WrongLog):
        await logs.read(seq)
    s3.ask("PUT", f"/{bucket}/{key}", body)
    assert await logs.read(seq)


async def test_a_log_that_moves_between_the_row_and_the_object_is_read(logs: OldLogs) -> None:
    seqs = await over(logs, "talk-1", "talk-2")
    await logs.packer.pack()
    asked = []

    async def moving(seq: int, ref: object) -> bytes | None:
        asked.append(ref)
        if len(asked) == 1:
            # Another process writes the object anew meanwhile.
            await ask(logs.postgres, "WITH d AS (DELETE FROM conversation_log WHERE seq = $1) SELECT 1", seqs[0])
            await ask(logs.postgres, "WITH u AS (UPDATE erased_log SET urgent = true) SELECT 1")
            await logs.rewriter.erase_urgent()
            await logs.rewriter.delete_leaving()
        return await logs.storage.read_log(seq, ref)  # type: ignore[arg-type]

    assert await LogStore(logs.postgres, moving).read(seqs[1])
    assert len(asked) == 2


async def test_what_was_read_is_kept_for_a_while_and_is_found_by_where_it_lies(
    logs: OldLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    (seq,) = await over(logs, "talk-1")
    await logs.packer.pack()
    await logs.read(seq)

    async def never(*_: object) -> bytes:
        pytest.fail("it is kept")

    monkeypatch.setattr(logs.bucket, "read", never)
    assert await logs.read(seq)
    small = ObjectStorage(logs.bucket, logs.postgres, structs.replace(logs.settings, cache_bytes=0))
    with pytest.raises(BaseException, match="it is kept"):
        await LogStore(logs.postgres, small.read_log).read(seq)
