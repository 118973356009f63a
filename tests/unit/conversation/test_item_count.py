from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from convo import errors
from convo.conversation import item_count
from convo.conversation.decode import decode
from convo.conversation.found_log import LOG_NAMES
from tests.support.making import ended

ITEM = {"role": "user", "content": "a,b"}


def body(items: Any, name: str = "conversation_log", **others: Any) -> bytes:
    fields = {key: value for key, value in ended().items() if key not in LOG_NAMES}
    return json.dumps({**fields, name: items, **others}, separators=(",", ":")).encode()


@pytest.mark.parametrize("name", [*LOG_NAMES, "messages"])
def test_a_log_of_so_many_items_is_taken_and_one_of_one_more_names_the_setting(name: str) -> None:
    assert len(decode(body([ITEM] * 50, name), items_max=50).sent.items) == 50
    with pytest.raises(errors.Invalid, match=r"has more than 50 items, intake\.items_max") as caught:
        decode(body([ITEM] * 51, name), items_max=50)
    assert (caught.value.status, caught.value.path) == (422, f"$.{name}")


@pytest.mark.parametrize("item", [1, "", [], {}, None, {"role": "user", "content": "a"}, [[1]], 0.5, True])
def test_items_of_every_kind_are_counted(item: Any) -> None:
    with pytest.raises(errors.Invalid, match="more than 50 items"):
        decode(body([ITEM, *[item] * 50]), items_max=50)


def test_only_the_items_of_the_log_count() -> None:
    many = [1] * 1000
    found = decode(body([{**ITEM, "more": many}] * 20, events=many, metadata={"more": many}), items_max=50)
    assert len(found.sent.items) == 20


def test_the_nodes_of_a_tree_count() -> None:
    node = {"message": {"author": {"role": "user"}, "content": {"parts": ["a"]}}}
    tree = {str(number): node for number in range(51)}
    assert decode(body(tree, "mapping"), items_max=51).sent.items
    with pytest.raises(errors.Invalid, match="more than 50 items"):
        decode(body(tree, "mapping"), items_max=50)


def test_a_number_that_the_decoder_refuses_does_not_hide_the_others() -> None:
    with pytest.raises(errors.Invalid, match="more than 50 items"):
        decode(body([ITEM, 10**400, *[1] * 50]), items_max=50)


def test_items_over_the_bound_are_never_made() -> None:
    packed = body([ITEM] * 57_000)
    tracemalloc.start()
    try:
        with pytest.raises(errors.Invalid, match="more than 20000 items"):
            decode(packed, items_max=20_000)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_000_000


@pytest.mark.parametrize(
    "wrong", [b"", b"[" * 300, b'{"conversation_log":[' + b"[" * 100_000, b'{"conversation_log":"\xff']
)
def test_what_cannot_be_read_is_left_to_the_decoder(wrong: bytes) -> None:
    item_count.refuse_more_items(wrong + b"," * 100, 50)
