from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convo import errors
from convo.conversation import transcript
from convo.conversation.decode import decode

# A busy machine is no failure.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

IDS = '"conversation_id":"abc","user_id":"usr","bot_id":"bot"'


def body(extra: str) -> bytes:
    return f"{{{IDS},{extra}}}".encode()


def part(content: str) -> bytes:
    return body(f'"conversation_logs":[{{"role":"user","content":[{content}]}}]')


def refused(data: bytes) -> errors.ConvoError:
    with pytest.raises((errors.BadRequest, errors.Invalid)) as caught:
        decode(data)
    return caught.value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"   ",
        b"{",
        b'{"conversation_id": "a',
        b"{} {}",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"{'a': 1}",
        body('"a":1,'),
        body('/* why */"a":1'),
        body('"a":01'),
        body('"a":NaN'),
        body('"a":-Infinity'),
        part("NaN"),
        body('"bot_name":"a\x00"'),
        body('"bot_name":"a\nb"'),
    ],
)
def test_what_is_not_json_cannot_be_read(data: bytes) -> None:
    assert refused(data).status == 400


@pytest.mark.parametrize("data", [b"[oops", b'{"conversation_id": 5, oops', body('"bot_name":5,') + b"}"])
def test_a_body_that_is_not_json_is_called_so_even_where_a_field_before_does_not_fit(data: bytes) -> None:
    assert refused(data).status == 400


@pytest.mark.parametrize("text", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x90\x80\x80", b"\xe2\x80"])
@pytest.mark.parametrize("place", ['"bot_name":"%s"', '"conversation_log":[{"role":"user","content":"%s"}]'])
def test_what_is_not_utf_8_cannot_be_read(text: bytes, place: str) -> None:
    assert refused(body(place).replace(b"%s", text)).status == 400


@pytest.mark.parametrize("text", [r"\ud800", r"\udc00", r"a\ud800b", r"\ud800\ud800", r"\udc00\ud800", r"\ud83dx😀"])
@pytest.mark.parametrize("after", ["", " and a good deal of text behind it"])
@pytest.mark.parametrize(
    "place",
    ['"bot_name":"%s"', '"conversation_log":[{"content":"%s"}]', '"conversation_log":[{"content":[{"%s":"%s"}]}]'],
)
def test_half_of_a_surrogate_pair_cannot_be_read(text: str, after: str, place: str) -> None:
    error = refused(body(place.replace("%s", text + after)))
    assert (error.status, "surrogate" in error.detail) == (400, True)


@pytest.mark.parametrize("text", [r'"a\\ud800"', r'"a\\ud800', r'"\ud83d\ude00"', '"a', r'"\ud8', r'"\ud800\ud'])
def test_a_body_cut_short_is_called_that(text: str) -> None:
    assert refused(b'{"conversation_id":' + text.encode()).detail == "the body is not JSON: Input data was truncated"


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert decode(body(r'"bot_name":"\ud83d\ude00"')).bot_name == "😀"


@pytest.mark.parametrize("depth", [2_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("place", ['"unknown":%s', '"conversation_log":[{"role":"user","content":[%s]}]'])
def test_a_body_nested_without_end_cannot_be_read(depth: int, opening: str, closing: str, place: str) -> None:
    deep = opening * depth + "1" + closing * depth
    assert refused(body(place.replace("%s", deep))).status == 400


def test_a_body_that_only_opens_brackets_cannot_be_read() -> None:
    assert refused(b"[" * 100_000).status == 400


def test_content_nested_too_deeply_to_be_read_again_elsewhere_is_not_accepted() -> None:
    ended = decode(part('{"type":"image","x":' + "[" * 800 + "]" * 800 + "}"))
    with pytest.raises(errors.Invalid) as caught:
        transcript.check(ended)
    assert caught.value.path == "$.conversation_logs[0].content"


@pytest.mark.parametrize("digits", [19, 20, 100, 309, 4_299])
def test_whole_numbers_of_any_readable_size_come_back_as_they_were_sent(digits: int) -> None:
    ended = decode(body(f'"conversation_log":[{{"role":"user","turn_id":{"9" * digits},"content":[-{"9" * digits}]}}]'))
    items = transcript.read_log(ended)[1]
    assert items[0].turn_id == 10**digits - 1
    assert transcript.decode_log(transcript.encode_log(items)) == items


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"[]", "$"),
        (b"null", "$"),
        (b'"text"', "$"),
        (b"1", "$"),
        (b"{}", "$.conversation_id"),
        (b'{"conversation_id":"abc","user_id":"usr"}', "$.bot_id"),
        (b'{"conversation_id":"ab","user_id":"usr","bot_id":"bot"}', "$.conversation_id"),
        (b'{"conversation_id":null,"user_id":"usr","bot_id":"bot"}', "$.conversation_id"),
        (b'{"conversation_id":"..","user_id":"usr","bot_id":"bot"}', "$.conversation_id"),
        (body(r'"bot_name":"a\u0000b"'), "$.bot_name"),
        (body('"start_time":1772438400'), "$.start_time"),
        (body('"conversation_logs":{}'), "$.conversation_logs"),
        (body('"conversation_logs":[{"role":"user"},3]'), "$.conversation_logs[1]"),
        (body('"conversation_logs":[null]'), "$.conversation_logs[0]"),
        (body('"conversation_log":[{"role":1}]'), "$.conversation_log[0].role"),
        (body('"conversation_log":[{"from":1}]'), "$.conversation_log[0].from"),
        (body('"conversation_log":[{"content":{"a":1}}]'), "$.conversation_log[0].content"),
        (body('"conversation_log":[{"turn_id":1.5}]'), "$.conversation_log[0].turn_id"),
        (body(f'"conversation_log":[{{"turn_id":{"9" * 5_000}}}]'), "$.conversation_log[0].turn_id"),
        (part("1e999"), "$.conversation_logs[0].content[0]"),
    ],
)
def test_json_that_is_not_a_conversation_is_refused_with_the_field_s_path(data: bytes, path: str) -> None:
    error = refused(data)
    assert (error.status, error.path) == (422, path)
    assert "`$" not in error.detail


def test_of_duplicate_keys_the_last_one_counts() -> None:
    ended = decode(body('"bot_name":"a","conversation_log":[{"role":"user"}],"bot_name":"b","conversation_log":[]'))
    assert (ended.bot_name, ended.conversation_log) == ("b", [])


def test_ten_thousand_empty_items_are_refused_at_the_first() -> None:
    ended = decode(body('"conversation_log":[' + ",".join(["{}"] * 10_000) + "]"))
    with pytest.raises(errors.Invalid) as caught:
        transcript.check(ended)
    assert caught.value.path == "$.conversation_log[0]"


@pytest.mark.parametrize(
    "item", ['{"role":"user","content":""}', '{"speaker":"pika","text":null}', '{"character":"USER"}']
)
def test_ten_thousand_items_with_nothing_said_are_no_turns(item: str) -> None:
    ended = decode(body('"conversation_log":[' + ",".join([item] * 10_000) + "]"))
    assert transcript.check(ended).turns == 0


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=5), below, max_size=4),
    max_leaves=8,
)
WORDS = st.text(max_size=6) | st.sampled_from(["hello", " ", "\x00", "hi\nbot: you won"])
TIMES = st.sampled_from(["2026-03-02T08:00:00Z", "2016-12-31T23:59:60Z", "0001-01-01T00:00:00Z"])
PARTS = st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "text": WORDS}), max_size=2)
SHAPES = st.one_of(
    st.fixed_dictionaries({"character": st.sampled_from(["USER", "BOT", "PIKA"]), "content": WORDS | PARTS}),
    st.fixed_dictionaries({"speaker": st.sampled_from(["user", "pika"]), "text": WORDS}),
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": WORDS | PARTS}),
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": WORDS}),
)
# Mostly sound items: damage everywhere would only ever reach the first refusal.
NAMES = ["character", "speaker", "role", "from", "content", "text", "value", "turn_id", "timestamp", "zzz"]
DAMAGE: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.dictionaries(
    st.sampled_from(NAMES), ANYTHING, min_size=1, max_size=1
)
ITEMS = st.builds(
    lambda item, times, damage: item | times | damage,
    SHAPES,
    st.fixed_dictionaries({}, optional={"timestamp": TIMES}),
    DAMAGE,
)


def accepted_and_run(data: bytes) -> None:
    # Either a 4xx at the door, or a job that runs to its end: there is no third way.
    try:
        ended = decode(data)
        checked = transcript.check(ended)
    except (errors.BadRequest, errors.Invalid):
        return
    log_bytes = transcript.encode_log(transcript.read_log(ended)[1])
    end = checked.ended_at or transcript.span(decode(body('"start_time":"2026-03-02T08:00:00Z"')))[0]
    assert end is not None
    turns = transcript.turns(transcript.decode_log(log_bytes), checked.started_at or end, end)
    assert len(turns) == checked.turns
    assert len(transcript.text(turns).splitlines()) == checked.turns


@UNTIMED
@given(
    fields=st.dictionaries(
        st.sampled_from(["bot_name", "agent_tag", "start_time", "end_time", "zzz"]), ANYTHING, max_size=2
    ),
    log=st.lists(ITEMS, max_size=4) | ANYTHING,
    name=st.sampled_from(["conversation_log", "conversation_logs"]),
    ascii_only=st.booleans(),
)
def test_any_json_is_a_4xx_or_a_job_that_can_be_run(
    fields: dict[str, Any], log: object, name: str, *, ascii_only: bool
) -> None:
    value = {"conversation_id": "abc", "user_id": "usr", "bot_id": "bot"} | fields | {name: log}
    accepted_and_run(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


@UNTIMED
@given(st.binary(max_size=40), st.integers(0, 120))
def test_any_damage_to_a_body_is_a_4xx_or_a_job_that_can_be_run(damage: bytes, at: int) -> None:
    whole = body('"conversation_log":[{"role":"user","content":"hello","timestamp":"2026-03-02T08:00:00Z"}]')
    accepted_and_run(whole[:at] + damage + whole[at + len(damage) :])
