from __future__ import annotations

from typing import Any

import msgspec
import pytest

from convo.conversation.decode import decode
from convo.conversation.log_prefix import begins_with, items_digest
from convo.errors import Unavailable

ITEMS = [{"role": "user", "content": f"Word {n}."} for n in range(4)]


def sent(log: Any, name: str = "conversation_log") -> Any:
    body = {"conversation_id": "c", "user_id": "u", "bot_id": "b", name: log}
    return decode(msgspec.json.encode(body)).sent


@pytest.mark.parametrize("count", range(5))
def test_a_log_begins_with_each_log_of_its_first_items(count: int) -> None:
    assert begins_with(sent(ITEMS).log, count, items_digest(sent(ITEMS[:count])))


def test_a_log_does_not_begin_with_a_longer_or_another_one() -> None:
    digest = items_digest(sent(ITEMS))
    assert not begins_with(sent(ITEMS[:3]).log, 4, digest)
    assert not begins_with(sent([*ITEMS[:3], {"role": "user", "content": "Other."}, ITEMS[3]]).log, 4, digest)
    assert not begins_with(sent(ITEMS).log, 3, digest)


def test_white_space_the_order_of_keys_and_escapes_make_no_difference() -> None:
    digest = items_digest(sent([{"role": "user", "content": "Xin chào", "extra": {"b": 1.0, "a": None}}]))
    log = b'[ {"extra":{"a":null,"b":1.0}, "content":"Xin ch\\u00e0o","role":"user"}, {"role":"user","content":"x"}]'
    assert begins_with(log, 1, digest)
    assert not begins_with(log.replace(b"1.0", b"1.00"), 1, digest)


def test_a_missing_log_is_the_beginning_of_every_log() -> None:
    assert begins_with(sent(ITEMS).log, 0, items_digest(sent(None)))


def test_recordings_are_compared_by_what_is_kept_of_them() -> None:
    spoken = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QUJD" * 300}}]}
    digest = items_digest(sent([spoken]))
    assert begins_with(sent([spoken, *ITEMS]).log, 1, digest)
    other = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QUJE" * 300}}]}
    assert not begins_with(sent([other, *ITEMS]).log, 1, digest)


def test_a_digest_of_a_newer_program_is_neither_the_same_nor_another() -> None:
    with pytest.raises(Unavailable, match="version 02"):
        begins_with(sent(ITEMS).log, 0, b"\2" + bytes(32))
