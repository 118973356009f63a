from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from convo import errors
from convo.conversation import transcript
from convo.conversation.decode import METADATA_BYTES_MAX, decode
from convo.conversation.digest import digest

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
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
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
    assert decode(body(r'"bot_name":"\ud83d\ude00"')).ended.bot_name == "😀"


@pytest.fixture(params=[1_000, 15_000])
def levels_read(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the decoder of Python 3.11 give up where it does, and as late as that of 3.13; the latter never changes."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(request.param)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("levels_read")
@pytest.mark.parametrize("depth", [102, 2_000, 9_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize(
    "place",
    [
        '"unknown":%s', '"bot_name":%s', '"metadata":{"a":%s}', '"messages":[{"role":"user","content":"hi","x":%s}]',
        '"conversation_log":[{"role":"user","content":[%s]}]', '"conversation_log":[],"unknown":[%s}]',
    ],
)  # fmt: skip
def test_what_is_nested_too_deeply_gets_the_same_answer_from_every_python(
    depth: int, opening: str, closing: str, place: str
) -> None:
    deep = body(place.replace("%s", opening * depth + "1" + closing * depth))
    with pytest.raises(errors.Invalid, match=r"^is nested deeper than 100 levels$"):
        transcript.check_log(decode(deep))


@pytest.mark.usefixtures("levels_read")
@pytest.mark.parametrize(
    "place", ['"unknown":%s', '"metadata":%s', '"messages":[{"content":"hi","role":"user","x":%s}]']
)
def test_what_is_nested_as_deeply_as_is_allowed_is_taken(place: str) -> None:
    levels = 99 if "x" in place else 100
    received = decode(body(place.replace("%s", '{"a":' * levels + "1" + "}" * levels)))
    assert transcript.check_log(received).turns == (1 if "x" in place else 0)


@pytest.mark.usefixtures("levels_read")
@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_a_body_that_only_opens_brackets_is_nested_too_deeply(depth: int) -> None:
    assert refused(b"[" * depth).detail == "is nested deeper than 100 levels"


def test_an_error_at_a_depth_that_is_allowed_keeps_its_own_text() -> None:
    assert refused(body('"unknown":' + "[" * 90)).status == 400
    assert refused(body('"bot_name":' + "[" * 90 + "]" * 90)).path == "$.bot_name"


def test_a_byte_order_mark_is_read_past() -> None:
    whole = body('"conversation_log":[{"role":"user","content":"hi"}]')
    assert digest(decode(b"\xef\xbb\xbf" + whole)) == digest(decode(whole))


def test_items_nested_too_deeply_to_be_read_again_elsewhere_are_not_accepted() -> None:
    received = decode(part('{"type":"image","x":' + "[" * 300 + "]" * 300 + "}"))
    with pytest.raises(errors.Invalid) as caught:
        transcript.check_log(received)
    assert caught.value.path == "$.conversation_logs[0]"


@pytest.mark.parametrize("digits", [19, 20, 100, 309, 4_299, 10_000])
def test_whole_numbers_of_any_size_come_back_as_they_were_sent(digits: int) -> None:
    log = f'[{{"role":"user","turn_id":{"9" * digits},"content":["hi"]}}]'
    received = decode(body(f'"conversation_log":{log}'))
    assert received.sent.log == log.encode()
    assert transcript.check_log(received).turns == 1


@pytest.mark.parametrize(
    "log", ["[]", "[ ]", '[ {"role" : "user",\n"content":"\\u00e9 \\/"} ]', "[1, 1.00, -0, 1e5, null, {}]", '["\\t"]']
)
@pytest.mark.parametrize("more", ["", ',"mood":1', ',"user_id":7'])
def test_the_log_is_kept_byte_for_byte(log: str, more: str) -> None:
    assert decode(body(f'"conversation_log":{log}{more}')).sent.log == log.encode()


@pytest.mark.parametrize("raw", ["", '"conversation_log":null,', '"conversation_logs":null,'])
def test_a_log_that_is_missing_or_null_is_kept_as_an_empty_one(raw: str) -> None:
    received = decode(body(f'{raw}"bot_name":null'))
    assert (received.sent.log, received.sent.items) == (b"[]", [])


def test_integer_ids_are_their_decimal_text() -> None:
    ended = decode(b'{"conversation_id":4711,"user_id":-42,"bot_id":0}').ended
    assert (ended.conversation_id, ended.user_id, ended.bot_id) == ("4711", "-42", "0")


def test_fields_that_are_not_kept_are_named_at_most_ten_of_them() -> None:
    fields = ",".join(f'"f{number}":{number}' for number in range(12))
    received = decode(body(f'"conversation_log":[],{fields},"{"x" * 99}":1'))
    assert received.ignored == tuple(f"f{number}" for number in range(10))
    assert decode(body('"bot_name":"a"')).ignored == ()
    assert decode(body(f'"{"x" * 99}":1')).ignored == ("x" * 64,)


def test_metadata_is_kept_as_it_was_sent() -> None:
    metadata = decode(body('"metadata":{"b": 1.50,\n"a":[] }')).ended.metadata
    assert isinstance(metadata, Raw)
    assert bytes(metadata) == b'{"b": 1.50,\n"a":[] }'


@pytest.mark.parametrize(
    "metadata",
    ["[]", "1", '"a"', f'{{"a":"{"x" * METADATA_BYTES_MAX}"}}', '{"a":' + "[" * 101 + "]" * 101 + "}"],
)
def test_metadata_is_an_object_and_neither_large_nor_deep(metadata: str) -> None:
    assert refused_path(body(f'"metadata":{metadata}')) == "$.metadata"


def refused_path(data: bytes) -> str | None:
    error = refused(data)
    assert error.status == 422
    return error.path


def test_a_recording_is_left_out_of_what_is_kept_and_of_its_length() -> None:
    audio = "UklG" * 2000
    data = body(f'"conversation_log":[{{"role":"user","content":"hi","audio":{{"data":"{audio}"}}}}]')
    received = decode(data)
    assert json.loads(received.sent.log)[0]["audio"]["data"]["omitted_bytes"] == len(audio)
    assert len(received.sent.log) < 300
    assert received.kept_bytes == len(data) - len(audio) - 2 + len(
        json.dumps(json.loads(received.sent.log)[0]["audio"]["data"], separators=(",", ":"))
    )


def test_a_body_is_too_large_by_what_is_left_of_it_without_recordings() -> None:
    audio = "UklG" * 2000
    data = body(f'"conversation_log":[{{"role":"user","content":"hi","audio":{{"data":"{audio}"}}}}]')
    kept = decode(data).kept_bytes
    assert decode(data, kept_bytes_max=kept).kept_bytes == kept
    with pytest.raises(errors.TooLarge, match=rf"{kept} bytes, over web\.body_bytes_max = {kept - 1} bytes"):
        decode(data, kept_bytes_max=kept - 1)
    # Base64 that is no recording is kept, and counts.
    with pytest.raises(errors.TooLarge):
        decode(data.replace(b'"audio"', b'"image"'), kept_bytes_max=kept)


def test_what_is_too_large_in_any_case_is_not_read() -> None:
    with pytest.raises(errors.TooLarge):
        decode(b"[" * 10_000 + b"no JSON", kept_bytes_max=9_999)


LOG = '[{"role":"user","content":"hi"}]'


@pytest.mark.parametrize(
    "data",
    [
        '{IDS,"metadata":{"conversation_log":[1]},"conversation_log":LOG}',
        '{IDS,"conversation_log":LOG,"metadata":{"conversation_log":[1]}}',
        '{IDS,"conversation_log":[1],"conversation_log":LOG}',
        '{IDS,"conversation\\u005flog":[1],"conversation_log":LOG}',
        '{IDS,"conversation_logs":LOG,"conversation\\u005flog":LOG}',
        '{IDS,"conversation\\u005flogs":[],"conversation_log":LOG}',
        '{IDS,"bot_name":"\\"conversation_log\\":[","conversation_log" : \n LOG \t}\r\n',
        '{IDS,"x\\"conversation_log":[1],"conversation_log":LOG}',
        '{IDS,"x\\"conversation_log":[1],"conversation_log":LOG,"y":[]}',
        '{IDS,"conversation_log":LOG,"agent_tag":"]"}',
        '{"conversation_log":LOG,IDS}',
    ],
)
def test_the_log_is_found_wherever_it_stands(data: str) -> None:
    sent = decode(data.replace("IDS", IDS).replace("LOG", LOG).encode()).sent
    assert sent.log == LOG.encode()
    assert len(sent.items) == 1


@pytest.mark.parametrize("end", ["]", "}", "]}", ",", '"', "1", "\x0b", "}}", "]}}", ",]}", 'x"]}'])
def test_a_body_that_goes_on_after_its_log_is_not_json(end: str) -> None:
    whole = body(f'"conversation_log":{LOG}')
    assert refused(whole + end.encode()).status == 400
    if end != "}":
        assert refused(whole[:-1] + end.encode()).status == 400


@pytest.mark.parametrize("empty", ["", '"conversation_log":null,', '"conversation_logs":[ ],'])
def test_a_log_under_another_name_is_read_where_there_is_none_under_its_own(empty: str) -> None:
    received = decode(body(f'{empty}"messages":{LOG},"mood":1'))
    assert (received.sent.name, received.sent.log, received.ignored) == ("messages", LOG.encode(), ("mood",))


def test_a_log_under_its_own_name_wins() -> None:
    received = decode(body(f'"messages":[{{"role":"user","content":"ho"}}],"conversation_logs":{LOG}'))
    assert (received.sent.name, received.sent.log, received.ignored) == (
        "conversation_logs",
        LOG.encode(),
        ("messages",),
    )


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"[]", "$"),
        (b"null", "$"),
        (b'"text"', "$"),
        (b"1", "$"),
        (b"{}", "$.conversation_id"),
        (b'{"conversation_id":"abc","user_id":"usr"}', "$.bot_id"),
        (b'{"conversation_id":"","user_id":"usr","bot_id":"bot"}', "$.conversation_id"),
        (b'{"conversation_id":1.5,"user_id":"usr","bot_id":"bot"}', "$.conversation_id"),
        (b'{"conversation_id":null,"user_id":"usr","bot_id":"bot"}', "$.conversation_id"),
        (b'{"conversation_id":"..","user_id":"usr","bot_id":"bot"}', "$.conversation_id"),
        (body(r'"bot_name":"a\u0000b"'), "$.bot_name"),
        (body('"start_time":true'), "$.start_time"),
        (body('"language":"en_US"'), "$.language"),
        (body('"timezone":"Mars Phobos"'), "$.timezone"),
        (body('"conversation_logs":{}'), "$.conversation_logs"),
        (body('"conversation_log":"[]"'), "$.conversation_log"),
    ],
)
def test_json_that_is_not_a_conversation_is_refused_with_the_field_s_path(data: bytes, path: str) -> None:
    error = refused(data)
    assert (error.status, error.path) == (422, path)
    assert "`$" not in error.detail


def test_of_duplicate_keys_the_last_one_counts() -> None:
    received = decode(body('"bot_name":"a","conversation_log":[{"role":"user"}],"bot_name":"b","conversation_log":[]'))
    assert (received.ended.bot_name, received.sent.items) == ("b", [])


@pytest.mark.parametrize("item", ["{}", "null", '{"a":1}', "3"])
def test_ten_thousand_items_that_cannot_be_read_are_refused_at_the_first(item: str) -> None:
    received = decode(body('"conversation_log":[' + ",".join([item] * 10_000) + "]"))
    with pytest.raises(errors.Invalid) as caught:
        transcript.check_log(received)
    assert caught.value.path == "$.conversation_log[0]"


@pytest.mark.parametrize(
    "item", ['{"role":"user","content":""}', '{"speaker":"pika","text":null}', '{"character":"USER"}']
)
def test_ten_thousand_items_with_nothing_said_are_no_turns(item: str) -> None:
    received = decode(body('"conversation_log":[' + ",".join([item] * 10_000) + "]"))
    assert transcript.check_log(received).turns == 0


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
    # Either a 4xx, or a job that runs to its end: there is no third way.
    try:
        received = decode(data)
        checked = transcript.check_log(received)
    except (errors.BadRequest, errors.Invalid):
        return
    end = checked.ended_at or transcript.span(decode(body('"start_time":"2026-03-02T08:00:00Z"')).ended)[0]
    assert end is not None
    assert received.sent.log == b"[]" or received.sent.log in data
    turns = transcript.turns(received.sent.log, checked.started_at or end, end)
    assert len(turns) == checked.turns
    assert all(turn.text.strip() and "\0" not in turn.text for turn in turns)
    assert digest(received).startswith("2:")


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
