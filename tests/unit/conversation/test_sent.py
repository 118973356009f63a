from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convo.conversation.sent import PLAIN_TYPES, is_too_deep, items_of, read_json, read_log, write_json

# A busy machine is no failure.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PLAIN = st.sampled_from([("character", "content"), ("speaker", "text"), ("role", "content"), ("from", "value")])
TEXTS = st.text(max_size=8)


@UNTIMED
@given(
    PLAIN.flatmap(
        lambda names: st.lists(
            st.fixed_dictionaries(
                dict.fromkeys(names, TEXTS), optional={"turn_id": TEXTS | st.integers(), "timestamp": TEXTS}
            ).map(lambda item: {names[0]: item[names[0]]} | item),
            min_size=1,
        )
    ),
    st.booleans(),
)
def test_a_plain_log_is_written_as_any_other_is(log: list[dict[str, Any]], ascii_only: bool) -> None:  # noqa: FBT001
    sent = json.dumps(log, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    read = read_log(sent)
    assert all(type(item) in PLAIN_TYPES for item in read)
    assert write_json(read) == write_json(read_json(sent))
    assert json.loads(write_json(read)) == log


@pytest.mark.parametrize(
    "log",
    [
        '[{"role":"user","content":"hi"},{"role":"user","text":"hi"}]',
        '[{"role":"user","content":"hi","x":1}]',
        '[{"role":"user","content":"hi","turn_id":1.0}]',
        '[{"role":"user","content":null}]',
        '[{"role":"user","content":"hi"},3]',
    ],
)
def test_a_log_with_anything_else_in_it_is_read_whole(log: str) -> None:
    assert write_json(read_log(log.encode())) == write_json(json.loads(log))


def node(parent: str | None, *children: str) -> dict[str, Any]:
    return {"parent": parent, "children": list(children)}


def test_the_nodes_of_a_tree_stand_from_the_root_on() -> None:
    tree = {"c": node("b"), "a": node(None, "b", "d"), "d": node("a"), "b": node("a", "c")}
    assert items_of(tree) == [tree["a"], tree["b"], tree["c"], tree["d"]]


@pytest.mark.parametrize(
    "tree",
    [
        {"a": node("b", "b"), "b": node("a", "a")},
        {"a": node("a", "a", "a")},
        {"a": node(None, "x"), "b": 3, "c": None},
        {"a": {"parent": [], "children": [1, None]}},
        {"a": node("gone"), "b": node("a", "a")},
    ],
)
def test_no_node_of_a_broken_tree_is_lost_or_doubled(tree: dict[str, Any]) -> None:
    assert sorted(map(repr, items_of(tree))) == sorted(map(repr, tree.values()))


def test_numbers_are_written_as_they_were_sent() -> None:
    sent = b"[1.0,1.00,1E5,1e400,-0.0,18446744073709551616,%d]" % (10**4000)
    assert write_json(read_json(sent)) == sent
    longer = b"[%b]" % (b"9" * 6000)
    assert write_json(read_json(longer)) == longer


def test_depth_is_counted_in_lists_and_objects() -> None:
    deep: Any = []
    for level in range(99):
        deep = [deep] if level % 2 else {"x": deep, "y": 1}
    assert not is_too_deep(deep)
    assert is_too_deep([deep])
    assert not is_too_deep({"x": "y"})
