from __future__ import annotations

import json
from typing import Any

import pytest

from convo import errors
from convo.conversation import transcript
from convo.conversation.decode import decode
from convo.conversation.found_log import OTHER_LOG_NAMES
from tests.support.bodies import received

LOG = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


@pytest.mark.parametrize("name", OTHER_LOG_NAMES)
def test_a_log_is_read_under_each_of_the_documented_names(name: str) -> None:
    found = received(**{name: LOG}, mood=1)
    assert (found.sent.name, found.ignored) == (name, ("mood",))
    assert transcript.check_log(found).turns == 2


def test_the_first_of_the_names_wins_and_the_others_are_ignored() -> None:
    found = received(history=LOG[:1], messages=LOG)
    assert (found.sent.name, found.ignored) == ("messages", ("history",))


def test_chatgpt_s_mapping_is_read_in_the_order_of_its_tree() -> None:
    def node(who: str, words: str, parent: str, *children: str) -> dict[str, Any]:
        message = {
            "author": {"role": who},
            "content": {"content_type": "text", "parts": [words]},
            "create_time": 1764e6,
        }
        return {"message": message, "parent": parent, "children": list(children)}

    mapping = {
        "b": node("assistant", "ho", "a"),
        "root": {"message": None, "parent": None, "children": ["a"]},
        "a": node("user", "hi", "root", "b"),
    }
    found = received(mapping=mapping)
    checked = transcript.check_log(found)
    assert checked.started_at is not None
    turns = transcript.turns(found.sent.log, checked.started_at, checked.started_at)
    assert [(turn.speaker, turn.text) for turn in turns] == [("user", "hi"), ("bot", "ho")]


@pytest.mark.parametrize(
    "item",
    [{"speaker": "A", "text": "hi"}, {"text": "hi"}, {"role": "user", "phrase": "hi"}, {"role": "user", "text": 3}],
)
def test_what_looks_like_a_turn_under_a_documented_name_is_refused_and_not_ignored(item: dict[str, Any]) -> None:
    with pytest.raises(errors.Invalid) as caught:
        transcript.check_log(received(turns=[item]))
    assert caught.value.path == "$.turns[0]"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"my_log": LOG}, "$.my_log"),
        ({"my_log": [{"speaker": "A", "text": "hi"}]}, "$.my_log"),
        ({"artifact": {"messages": LOG}}, "$.artifact.messages"),
        ({"data": {"x": {"transcript": LOG}}}, "$.data.x.transcript"),
        ({"transcript": "user: hi\nbot: ho"}, "$.transcript"),
    ],
)
def test_a_log_where_none_is_read_is_refused_by_the_name_found_and_the_name_meant(
    fields: dict[str, Any], path: str
) -> None:
    with pytest.raises(errors.Invalid, match="conversation_log") as caught:
        received(**fields)
    assert caught.value.path == path
    assert path.removeprefix("$.") in caught.value.detail


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"items": [{"sku": 1}]},
        {"history": ["a", "b"]},
        {"messages": []},
        {"messages": None},
        {"parties": [{"role": "agent", "name": "Kim"}]},
        {"tags": [{"type": "user", "value": "vip"}]},
        {"transcript": " "},
    ],
)
def test_a_body_with_no_log_at_all_is_a_conversation_of_no_turns(fields: dict[str, Any]) -> None:
    found = received(**fields)
    assert transcript.check_log(found).turns == 0
    assert found.ignored == tuple(fields)


def test_an_ignored_field_may_hold_anything() -> None:
    assert received(conversation_log=LOG, messages="user: hi", x=LOG).ignored == ("messages", "x")


@pytest.mark.parametrize(
    "vcon",
    [
        {"vcon": "0.0.1"},
        {"parties": [], "dialog": []},
        {"payload": "e30", "signatures": []},
        {"uuid": "x", "parties": []},
    ],
)
def test_a_vcon_is_refused_in_each_of_its_forms(vcon: dict[str, Any]) -> None:
    with pytest.raises(errors.Invalid, match="vCon"):
        decode(json.dumps(vcon).encode())
