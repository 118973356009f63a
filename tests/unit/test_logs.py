from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from convo.observe import metrics
from convo.store.logs import Handover, pack, unpack


async def test_what_was_put_is_taken_once() -> None:
    handover = Handover(100)
    handover.put([(1, b"one"), (2, b"two")])
    assert (handover.take(1), handover.take(1), handover.take(2)) == (b"one", None, b"two")


async def test_when_it_is_full_the_newest_are_left_out() -> None:
    handover = Handover(10)
    handover.put([(1, b"12345"), (2, b"12345"), (3, b"1")])
    assert [handover.take(seq) for seq in (1, 2, 3)] == [b"12345", b"12345", None]


async def test_a_small_one_still_fits_where_a_big_one_did_not() -> None:
    handover = Handover(10)
    handover.put([(1, b"123456"), (2, b"123456"), (3, b"1234")])
    assert [handover.take(seq) for seq in (1, 2, 3)] == [b"123456", None, b"1234"]


async def test_what_was_taken_makes_room() -> None:
    handover = Handover(10)
    handover.put([(1, b"1234567890")])
    handover.take(1)
    handover.put([(2, b"1234567890")])
    assert handover.take(2) == b"1234567890"


async def test_one_that_nobody_took_goes_by_age_when_room_is_needed(autojump_clock: MockClock) -> None:
    handover = Handover(10)
    handover.put([(1, b"12345")])
    await trio.sleep(30)
    handover.put([(2, b"12345")])
    await trio.sleep(30)
    handover.put([(3, b"12345")])
    assert [handover.take(seq) for seq in (1, 2, 3)] == [None, b"12345", b"12345"]


async def test_an_old_one_stays_while_there_is_room(autojump_clock: MockClock) -> None:
    handover = Handover(10)
    handover.put([(1, b"12345")])
    await trio.sleep(3600)
    handover.put([(2, b"12345")])
    assert handover.take(1) == b"12345"


async def test_hits_and_misses_are_counted() -> None:
    hits, misses = metrics.handover_total.labels("hit"), metrics.handover_total.labels("miss")
    before = hits.value, misses.value
    handover = Handover(10)
    handover.put([(1, b"1")])
    handover.take(1)
    handover.take(1)
    assert (hits.value, misses.value) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("log", [b"[]", b'[{"role":"user","content":"Xin ch\xc3\xa0o"}]' * 1000])
def test_a_packed_log_unpacks_to_the_same_bytes(log: bytes) -> None:
    packed = pack(log)
    assert packed[:4] == bytes.fromhex("28b52ffd")  # zstd's own mark
    assert unpack(packed) == log
