from __future__ import annotations

from typing import Any

import msgspec
import pytest

from convo.conversation.model import ConversationEnded, LogItem, Turn

IDS = ["conversation_id", "user_id", "bot_id"]
LABELS = ["bot_name", "bot_type", "agent_tag"]


def ended(**fields: Any) -> ConversationEnded:
    return msgspec.convert({"conversation_id": "abc", "user_id": "usr", "bot_id": "bot"} | fields, ConversationEnded)


@pytest.mark.parametrize("field", IDS)
@pytest.mark.parametrize("value", ["abc", "x" * 255, "...", "a b", "Nguyễn", "😀😀😀", "a\u2028b", "%2F", "a\\b"])
def test_an_id_may_hold_anything_printable(field: str, value: str) -> None:
    assert getattr(ended(**{field: value}), field) == value


@pytest.mark.parametrize("field", IDS)
@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "..",
        "ab",
        "x" * 256,
        "a/b",
        "/abc",
        "abc/",
        "a\nb",
        "abc\n",
        "a\x00b",
        "a\x7fb",
        "a\x85b",
        "\tabc",
        None,
        1,
    ],
)
def test_an_id_is_refused_when_no_path_or_log_line_could_hold_it(field: str, value: object) -> None:
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}"):
        ended(**{field: value})


@pytest.mark.parametrize("field", IDS)
def test_an_id_is_required(field: str) -> None:
    fields = {name: "abc" for name in IDS if name != field}
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert(fields, ConversationEnded)


@pytest.mark.parametrize("field", LABELS)
@pytest.mark.parametrize("value", ["", "x" * 255, "two\nlines", None])
def test_a_label_may_be_empty_null_or_long(field: str, value: str | None) -> None:
    assert getattr(ended(**{field: value}), field) == value


@pytest.mark.parametrize("field", LABELS)
@pytest.mark.parametrize("value", ["x" * 256, "a\x00b", "\x00", 1])
def test_a_label_holds_no_nul_and_is_not_endless(field: str, value: object) -> None:
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}"):
        ended(**{field: value})


def test_what_was_not_sent_is_told_from_what_was_sent_as_null() -> None:
    conversation = ended(bot_name=None)
    assert conversation.bot_name is None
    assert conversation.bot_type is msgspec.UNSET
    assert msgspec.to_builtins(conversation).keys() == {*IDS, "bot_name"}


def test_unknown_fields_are_ignored_above_and_in_the_log() -> None:
    conversation = ended(mood="great", conversation_log=[{"role": "user", "content": "hi", "name": "Anna"}])
    assert conversation == ended(conversation_log=[{"role": "user", "content": "hi"}])


def test_a_sender_is_called_from_on_the_wire() -> None:
    assert msgspec.to_builtins(LogItem(from_="human", value="hi")) == {"from": "human", "value": "hi"}


@pytest.mark.parametrize("kind", [ConversationEnded, LogItem, Turn])
def test_values_are_frozen_and_keyword_only(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.frozen
    with pytest.raises(TypeError, match="positional"):
        kind("abc")
