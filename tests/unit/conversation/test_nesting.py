from __future__ import annotations

import pytest

from convo.conversation.nesting import is_nested_deeper

THREE = (
    b"[[[]]]", b'{"a":[{}]}', b'[{"a":[1,2]},[]]', b"[],[[[1]]]",
    b'[[["[[[["]]]', b'[[["\\\\","["]]]', b'[["\\"[[[",[1]]]',
)  # fmt: skip


@pytest.mark.parametrize("data", THREE)
def test_levels_are_counted_outside_of_texts(data: bytes) -> None:
    assert is_nested_deeper(data, 2)
    assert not is_nested_deeper(data, 3)


@pytest.mark.parametrize("data", [b"[" * 4, b'[{"a":[{"b', b'[[[["]]]]'])
def test_of_what_ends_too_early_the_open_brackets_count(data: bytes) -> None:
    assert is_nested_deeper(data, 3)
    assert not is_nested_deeper(data, 4)


def test_many_levels_beside_each_other_are_not_deep() -> None:
    assert not is_nested_deeper(b"[" + b"[[]]," * 10_000 + b"[]]", 3)
    assert is_nested_deeper(b"[" + b"[[]]," * 10_000 + b"[[[]]]]", 3)
