from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from convo.errors import WrongLog
from convo.observe import metrics
from convo.store.logs import CommittedLog, RecentLogs, check_log_hash, hash_of, pack, unpack

STORED = b"from the store"


async def read(_: int) -> bytes | None:
    await trio.lowlevel.checkpoint()
    return STORED


def put(recent: RecentLogs, *logs: tuple[int, bytes]) -> None:
    recent.put([CommittedLog(seq=seq, digest=f"2:{seq}", body=body) for seq, body in logs])


async def take(recent: RecentLogs, *seqs: int) -> list[bytes | None]:
    """Take these logs; None for those that had to be read from the store."""
    taken = [await recent.take(seq, f"2:{seq}") for seq in seqs]
    return [None if body == STORED else body for body in taken]


async def test_what_was_put_is_taken_once_and_then_read_from_the_store() -> None:
    recent = RecentLogs(read, 100)
    put(recent, (1, b"one"), (2, b"two"))
    assert await take(recent, 1, 1, 2) == [b"one", None, b"two"]


async def test_when_it_is_full_the_newest_are_left_out() -> None:
    recent = RecentLogs(read, 10)
    put(recent, (1, b"12345"), (2, b"12345"), (3, b"1"))
    assert await take(recent, 1, 2, 3) == [b"12345", b"12345", None]


async def test_a_small_one_still_fits_where_a_big_one_did_not() -> None:
    recent = RecentLogs(read, 10)
    put(recent, (1, b"123456"), (2, b"123456"), (3, b"1234"))
    assert await take(recent, 1, 2, 3) == [b"123456", None, b"1234"]


async def test_what_was_taken_makes_room() -> None:
    recent = RecentLogs(read, 10)
    put(recent, (1, b"1234567890"))
    await take(recent, 1)
    put(recent, (2, b"1234567890"))
    assert await take(recent, 2) == [b"1234567890"]


async def test_one_that_nobody_took_goes_by_age_when_room_is_needed(autojump_clock: MockClock) -> None:
    recent = RecentLogs(read, 10)
    put(recent, (1, b"12345"))
    await trio.sleep(30)
    put(recent, (2, b"12345"))
    await trio.sleep(30)
    put(recent, (3, b"12345"))
    assert await take(recent, 1, 2, 3) == [None, b"12345", b"12345"]


async def test_an_old_one_stays_while_there_is_room(autojump_clock: MockClock) -> None:
    recent = RecentLogs(read, 10)
    put(recent, (1, b"12345"))
    await trio.sleep(599)
    put(recent, (2, b"12345"))
    assert await take(recent, 1) == [b"12345"]


async def test_nothing_is_handed_over_that_is_older_than_ten_minutes(autojump_clock: MockClock) -> None:
    recent = RecentLogs(read, 10)
    put(recent, (1, b"12345"))
    await trio.sleep(601)
    assert await take(recent, 1) == [None]


async def test_a_log_goes_to_the_conversation_of_its_digest_alone() -> None:
    contradicted: list[bool] = []
    recent = RecentLogs(read, 10, lambda: contradicted.append(True))
    put(recent, (1, b"anna's"))
    assert await recent.take(1, "2:bert") == STORED
    assert contradicted == [True]
    assert await take(recent, 1) == [None]


async def test_a_number_that_is_given_again_has_the_log_that_came_last_and_its_room() -> None:
    recent = RecentLogs(read, 10)
    put(recent, (1, b"123456"))
    put(recent, (1, b"1234567890"))
    assert await take(recent, 1) == [b"1234567890"]


async def test_what_was_cleared_is_read_from_the_store_and_makes_room() -> None:
    recent = RecentLogs(read, 10)
    put(recent, (1, b"1234567890"))
    recent.clear()
    put(recent, (2, b"1234567890"))
    assert await take(recent, 1, 2) == [None, b"1234567890"]


def test_a_log_of_another_hash_is_nobodys() -> None:
    body = pack(b"[1]")
    check_log_hash(body, hash_of(body), "talk-1")
    check_log_hash(body, None, "talk-1")
    with pytest.raises(WrongLog, match="not the one that was acknowledged"):
        check_log_hash(pack(b"[2]"), hash_of(body), "talk-1")


async def test_hits_and_misses_are_counted() -> None:
    hits, misses = metrics.handover_total.labels("hit"), metrics.handover_total.labels("miss")
    before = hits.value, misses.value
    recent = RecentLogs(read, 10)
    put(recent, (1, b"1"))
    await take(recent, 1, 1)
    assert (hits.value, misses.value) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("log", [b"[]", b'[{"role":"user","content":"Xin ch\xc3\xa0o"}]' * 1000])
def test_a_packed_log_unpacks_to_the_same_bytes(log: bytes) -> None:
    packed = pack(log)
    assert packed[:4] == bytes.fromhex("28b52ffd")  # zstd's own mark
    assert unpack(packed) == log
