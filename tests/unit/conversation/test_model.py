from __future__ import annotations

from typing import Any

import msgspec
import pytest

from convo.conversation.model import KEY_CHARS_MAX, ConversationEnded, Turn, UnreadItem, bounded_key

IDS = ["conversation_id", "user_id", "bot_id"]
LABELS = ["bot_name", "bot_type", "agent_tag"]


def ended(**fields: Any) -> ConversationEnded:
    return msgspec.convert({"conversation_id": "abc", "user_id": "usr", "bot_id": "bot"} | fields, ConversationEnded)


@pytest.mark.parametrize("field", IDS)
@pytest.mark.parametrize(
    "value",
    [
        "a",
        "7",
        "x" * 255,
        "a/b",
        "/",
        "projects/p/sessions/s",
        "./..",
        "...",
        "a b",
        "Nguyễn",
        "😀😀😀",
        "a\u2028b",
        "%2F",
        "a\\b",
    ],
)
def test_an_id_may_hold_anything_printable(field: str, value: str) -> None:
    assert getattr(ended(**{field: value}), field) == value


@pytest.mark.parametrize("field", IDS)
@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "..",
        "x" * 256,
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
def test_an_id_is_refused_when_no_path_or_log_record_could_hold_it(field: str, value: object) -> None:
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


@pytest.mark.parametrize("value", ["vi", "en-US", "zh-Hant-TW", "sl-rozaj-biske-1994", "x-private", None])
def test_a_language_has_the_form_of_bcp_47(value: str | None) -> None:
    assert ended(language=value).language == value


@pytest.mark.parametrize("value", ["", "en_US", "-", "en-", "Vietnamese", "vi\n", "en US", 1])
def test_what_has_not_the_form_of_a_language_is_refused(value: object) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\.language"):
        ended(language=value)


@pytest.mark.parametrize("value", ["UTC", "Asia/Ho_Chi_Minh", "America/Argentina/Buenos_Aires", "Etc/GMT+7", None])
def test_a_timezone_has_the_form_of_an_iana_name(value: str | None) -> None:
    assert ended(timezone=value).timezone == value


@pytest.mark.parametrize("value", ["", "+07:00", "Asia/", "/etc/passwd", "../x", "Asia/Ho Chi Minh", "UTC\n", 7])
def test_what_has_not_the_form_of_a_timezone_is_refused(value: object) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"\$\.timezone"):
        ended(timezone=value)


@pytest.mark.parametrize("kind", [ConversationEnded, Turn, UnreadItem])
def test_values_are_frozen_and_keyword_only(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.frozen
    with pytest.raises(TypeError, match="positional"):
        kind("abc")


def test_a_long_key_of_a_memory_becomes_its_hash_and_a_short_one_stays() -> None:
    assert bounded_key("k" * KEY_CHARS_MAX) == "k" * KEY_CHARS_MAX
    long = bounded_key("k" * (KEY_CHARS_MAX + 1))
    assert len(long) <= KEY_CHARS_MAX
    assert long != bounded_key("k" * (KEY_CHARS_MAX + 2))
