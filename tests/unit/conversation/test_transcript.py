from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from convo import errors
from convo.conversation import transcript
from convo.conversation.decode import Received, decode
from convo.conversation.model import UnreadItem
from tests.support.bodies import received

# A busy machine is no failure.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
END = datetime(2026, 3, 2, 8, 1, tzinfo=UTC)


def user(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": text} | fields


def turns(*log: object) -> list[Any]:
    return list(transcript.turns(json.dumps(log).encode(), START, END))


def said(*log: object) -> list[tuple[str, str]]:
    return [(turn.speaker, turn.text) for turn in turns(*log)]


def seconds(*log: object) -> list[float]:
    return [(turn.at - START).total_seconds() for turn in turns(*log)]


def span(**fields: Any) -> tuple[datetime | None, datetime | None]:
    return transcript.span(received(**fields).ended)


def refused(conversation: Received) -> str | None:
    with pytest.raises(errors.Invalid) as caught:
        transcript.check_log(conversation)
    return caught.value.path


# --- who said what


@pytest.mark.parametrize(
    ("item", "turn"),
    [
        ({"character": "BOT_RESPONSE_CONVERSATION", "content": "hi"}, ("bot", "hi")),
        ({"character": "USER_RESPONSE_CONVERSATION", "content": "hi"}, ("user", "hi")),
        ({"character": "BOT", "content": "hi"}, ("bot", "hi")),
        ({"character": "PIKA", "content": "hi"}, ("bot", "hi")),
        ({"character": "USER", "content": "hi"}, ("user", "hi")),
        ({"speaker": "pika", "turn_id": 1, "text": "hi"}, ("bot", "hi")),
        ({"speaker": "user", "turn_id": "t2", "text": "hi"}, ("user", "hi")),
        ({"role": "user", "content": "hi"}, ("user", "hi")),
        ({"role": "assistant", "content": "hi"}, ("bot", "hi")),
        ({"from": "human", "value": "hi"}, ("user", "hi")),
        ({"from": "user", "value": "hi"}, ("user", "hi")),
        ({"from": "gpt", "value": "hi"}, ("bot", "hi")),
        ({"from": "assistant", "value": "hi"}, ("bot", "hi")),
        ({"character": None, "speaker": None, "role": "user", "content": "hi"}, ("user", "hi")),
    ],
)
def test_every_known_shape_is_a_turn(item: dict[str, Any], turn: tuple[str, str]) -> None:
    assert said(item) == [turn]


@pytest.mark.parametrize("role", ["system", "developer", "tool", "function"])
def test_what_is_said_behind_the_scenes_is_no_turn(role: str) -> None:
    assert said({"role": role, "content": "be kind"}, user()) == [("user", "hi")]


def test_a_sharegpt_system_prompt_is_no_turn() -> None:
    assert said({"from": "system", "value": "be kind"}, {"from": "human", "value": "hi"}) == [("user", "hi")]


def test_a_log_may_mix_shapes() -> None:
    mixed = [
        {"character": "BOT", "content": "1"},
        {"speaker": "user", "text": "2"},
        {"role": "assistant", "content": "3"},
        {"from": "human", "value": "4"},
    ]
    assert said(*mixed) == [("bot", "1"), ("user", "2"), ("bot", "3"), ("user", "4")]


@pytest.mark.parametrize("nothing", ["", " ", "\n\t", "\u3000", "\x00", " \x00 ", None, []])
def test_an_item_with_nothing_said_is_skipped(nothing: object) -> None:
    assert said({"role": "user", "content": nothing}, user("there")) == [("user", "there")]


def test_an_assistant_that_only_called_a_tool_said_nothing() -> None:
    assert said({"role": "assistant"}, user()) == [("user", "hi")]


def test_words_stay_as_they_were_said_but_for_nul() -> None:
    assert said(user("  a\x00b\n\x00 ")) == [("user", "  ab\n ")]


@UNTIMED
@given(st.lists(st.text(alphabet=st.sampled_from("a1é \x00\n\u3000\"'…«<{[-*")), min_size=1, max_size=6))
def test_a_plain_log_is_checked_as_it_is_read_later(texts: list[str]) -> None:
    log = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
    checked, later = transcript.check_log(received(conversation_log=log)), said(*log)
    assert checked.turns == len(later)
    # With a field that plain items do not have, each item is searched for its words.
    assert checked == transcript.check_log(received(conversation_log=[item | {"lang": "vi"} for item in log]))
    assert later == said(*[item | {"lang": "vi"} for item in log])


def test_the_text_parts_of_a_content_are_joined_and_the_others_skipped() -> None:
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
        {"type": "input_text", "text": "at this"},
        {"type": "output_text", "text": "cat"},
    ]
    assert said({"role": "user", "content": parts}) == [("user", "look\nat this\ncat")]
    assert said({"role": "user", "content": parts[1:2]}) == []


def test_one_odd_item_of_many_is_kept_and_listed() -> None:
    checked = transcript.check_log(received(conversation_log=[*[user()] * 300, {"speaker": "A", "text": "hm"}]))
    assert checked.turns == 300
    assert checked.unread == (UnreadItem(path="$.conversation_log[300]", fields=("speaker", "text")),)


@pytest.mark.parametrize("field", ["usage", "confidence", "transcriptConfidence", "durationMs", "interrupted"])
@pytest.mark.parametrize("words", ["it rains", ["it rains"], {"deep": {"er": ["it rains"]}}])
def test_words_in_a_field_of_numbers_are_not_passed_over(field: str, words: object) -> None:
    odd = {"role": "user", "content": "", field: words}
    assert refused(received(conversation_log=[odd])) == "$.conversation_log[0]"
    (unread,) = transcript.check_log(received(conversation_log=[user(), odd])).unread
    assert (unread.path, field in unread.fields) == ("$.conversation_log[1]", True)


def test_figures_beside_no_words_are_no_words() -> None:
    figures = {"usage": {"model": "gpt-4o", "tokens": [3, None]}, "confidence": "0.93", "interrupted": False}
    assert transcript.check_log(received(conversation_log=[{"role": "user", "content": ""} | figures])).unread == ()


def test_a_turn_whose_time_cannot_be_read_is_a_turn_and_listed() -> None:
    checked = transcript.check_log(received(conversation_logs=[user(), user(timestamp="yesterday")]))
    assert checked.turns == 2
    assert checked.unread == (UnreadItem(path="$.conversation_logs[1]", fields=("timestamp",)),)


def test_only_the_first_items_that_cannot_be_read_are_listed() -> None:
    checked = transcript.check_log(received(conversation_log=[user(), *[{"a": 1}] * 1000]))
    assert len(checked.unread) == transcript.UNREAD_MAX
    assert checked.unread[0].path == "$.conversation_log[1]"


@pytest.mark.parametrize(
    ("item", "fields"),
    [
        ({"content": "hi"}, "content"),
        ({"character": "NARRATOR", "content": "hi"}, "character, content"),
        ({"role": "user", "phrase": "hi"}, "role, phrase"),
        ({"role": "user", "content": 1}, "role, content"),
        ({"role": "user", "content": [{"type": "input_audio", "transcript": None}]}, "role, content"),
        ("user: hi", "no fields"),
        (["user", "hi"], "no fields"),
        (3, "no fields"),
    ],
)
@pytest.mark.parametrize("name", ["conversation_log", "conversation_logs"])
def test_a_log_that_is_not_understood_and_yields_no_words_is_refused_by_its_fields(
    item: object, fields: str, name: str
) -> None:
    with pytest.raises(errors.Invalid, match="character, speaker, role") as caught:
        transcript.check_log(received(**{name: [{"role": "system", "content": "be kind"}, item, None, {}]}))
    assert caught.value.path == f"$.{name}[1]"
    assert f"has {fields};" in caught.value.detail


@pytest.mark.parametrize(
    "log", [[user("")], [{"role": "system", "content": "x"}], [{"role": "user", "content": [{"type": "x"}]}]]
)
def test_a_log_in_which_nothing_is_said_is_a_conversation_of_no_turns(log: list[Any]) -> None:
    assert transcript.check_log(received(conversation_log=log)).turns == 0


@pytest.mark.parametrize("within", [list, dict])
def test_an_item_may_be_nested_100_levels_deep(within: type) -> None:
    def nested(levels: int) -> dict[str, Any]:
        value: Any = []
        for _ in range(levels - 2):
            value = [value] if within is list else {"x": value}
        return {"role": "system", "content": value}

    assert transcript.check_log(received(conversation_log=[nested(100)])).turns == 0
    assert refused(received(conversation_log=[user(), nested(101)])) == "$.conversation_log[1]"


def test_a_speaker_s_name_is_kept() -> None:
    family = [user(name="Mom"), {"role": "user", "speaker": "Leo", "content": "hi"}, user()]
    assert [(turn.text, turn.name or None) for turn in turns(*family)] == [("hi", "Mom"), ("hi", "Leo"), ("hi", None)]


# --- the log under either spelling


@pytest.mark.parametrize("log", [{}, {"conversation_log": None}, {"conversation_logs": []}])
def test_a_log_that_is_missing_null_or_empty_has_no_items(log: dict[str, Any]) -> None:
    assert received(**log).sent.items == []
    assert transcript.check_log(received(**log)).turns == 0


@pytest.mark.parametrize("nothing", [{}, None, []])
@pytest.mark.parametrize(
    ("name", "other"), [("conversation_log", "conversation_logs"), ("conversation_logs", "conversation_log")]
)
def test_the_log_is_the_spelling_that_holds_something(name: str, other: str, nothing: object) -> None:
    beside = {} if nothing == {} else {other: nothing}
    sent = received(**{name: [user()]}, **beside).sent
    assert (sent.name, sent.log) == (name, json.dumps([user()]).encode())


def test_both_spellings_may_hold_the_same() -> None:
    assert received(conversation_log=[user()], conversation_logs=[user()]).sent.name == "conversation_log"


@pytest.mark.parametrize("other", [user("ho"), user(turn_id=None), user(turn_id="1"), user(turn_id=1.0)])
def test_both_spellings_may_not_differ(other: dict[str, Any]) -> None:
    with pytest.raises(errors.Invalid) as caught:
        received(conversation_log=[user(turn_id=1)], conversation_logs=[other])
    assert caught.value.path == "$.conversation_logs"


# --- times


@pytest.mark.parametrize(
    ("value", "at"),
    [
        ("2026-03-02T08:00:00Z", START),
        ("2026-03-02t08:00:00z", START),
        ("2026-03-02 08:00:00Z", START),
        ("2026-03-02T15:00:00+07:00", START),
        ("2026-03-02T08:00:00-00:00", START),
        ("2026-03-02T08:00:00.25Z", START + timedelta(milliseconds=250)),
        ("2026-03-02T08:00:00.123456789Z", START + timedelta(microseconds=123456)),
        (f"2026-03-02T08:00:00.{'0' * 5_000}Z", START),
        ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
        ("2017-01-01T06:59:60.5+07:00", datetime(2017, 1, 1, 0, 0, 0, 500000, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999Z", datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_rfc_3339_times_are_read_in_utc(value: str, at: datetime) -> None:
    start, end = span(start_time=value)
    assert (start, end) == (at, None)
    assert start is not None
    assert start.tzinfo is UTC


@pytest.mark.parametrize("name", ["start_time", "end_time"])
@pytest.mark.parametrize(
    "value",
    [
        "",
        "yesterday",
        "2026-03-02",
        "20260302T080000Z",
        "2026-W10-1T08:00:00Z",
        "2026-03-02T08:00Z",
        "2026-03-02T08:00:00+07",
        "2026-03-02T08:00:00+0700",
        "2026-03-02T08:00:00+24:00",
        "2026-03-02T08:00:00+07:60",
        "2026-03-02T24:00:00Z",
        "2026-03-02T08:60:00Z",
        "2026-03-02T08:00:60Z",
        "2026-03-02T08:00:00,5Z",
        "2026-03-02T08:00:00.Z",
        "2026-02-29T08:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "9999-12-31T23:59:60Z",
        "10000-01-01T00:00:00Z",
        "２０２６-03-02T08:00:00Z",
        " 2026-03-02T08:00:00Z",
        "2026-03-02T08:00:00Z\n",
        "2026-03-02T08:00:00Z\x00",
    ],
)
def test_a_time_that_is_not_rfc_3339_or_fits_no_calendar_is_refused(name: str, value: str) -> None:
    assert refused(received(**{name: value})) == f"$.{name}"
    checked = transcript.check_log(received(conversation_log=[user(timestamp=value)]))
    assert [item.fields for item in checked.unread] == [("timestamp",)] * bool(value)


@UNTIMED
@given(st.datetimes(timezones=st.just(UTC)), st.integers(-1439, 1439))
def test_a_time_means_the_same_at_every_offset(at: datetime, minutes: int) -> None:
    try:
        local = at.astimezone(timezone(timedelta(minutes=minutes)))
    except OverflowError:
        assume(False)  # noqa: FBT003  # its only parameter
    assert span(end_time=local.isoformat())[1] == at


@pytest.mark.parametrize("end", ["2026-03-02T07:59:59Z", "2026-03-02T14:59:59+07:00"])
def test_an_end_is_not_before_its_start(end: str) -> None:
    assert refused(received(start_time="2026-03-02T08:00:00Z", end_time=end)) == "$.end_time"


def test_a_conversation_may_begin_and_end_in_the_same_second() -> None:
    assert span(start_time="2026-03-02T08:00:00Z", end_time="2026-03-02T08:00:00") == (START, START)


def test_times_may_be_numbers_and_an_end_may_be_seconds_from_the_start() -> None:
    at = START.timestamp()
    assert span(start_time=at, end_time=at * 1000 + 60_000) == (START, END)
    assert span(start_time=int(at), end_time=60) == (START, END)
    assert refused(received(start_time=60)) == "$.start_time"
    assert refused(received(end_time=60)) == "$.end_time"


def test_null_times_are_as_good_as_none() -> None:
    assert span(start_time=None, end_time=None) == (None, None)


# --- the check of the accept path


def stamped(*stamps: str) -> list[dict[str, Any]]:
    return [user(timestamp=f"2026-03-02T08:00:{stamp}Z") for stamp in stamps]


@pytest.mark.parametrize(
    ("sent", "stamps", "span"),
    [
        ({}, (), (None, None)),
        ({}, ("10", "50"), (10, 50)),
        ({}, ("30",), (30, 30)),
        ({}, ("50", "10", "30"), (10, 50)),
        ({"start_time": "00"}, (), (0, None)),
        ({"end_time": "59"}, (), (None, 59)),
        ({"start_time": "00", "end_time": "59"}, ("10", "50"), (0, 59)),
        ({"start_time": "05"}, ("10", "50"), (5, 50)),
        ({"start_time": "55"}, ("10", "50"), (55, 55)),
        ({"end_time": "55"}, ("10", "50"), (10, 55)),
        ({"end_time": "05"}, ("10", "50"), (5, 5)),
    ],
)
def test_the_span_is_the_client_s_else_the_log_s_and_never_ends_before_it_starts(
    sent: dict[str, str], stamps: tuple[str, ...], span: tuple[int | None, int | None]
) -> None:
    times = {name: f"2026-03-02T08:00:{second}Z" for name, second in sent.items()}
    checked = transcript.check_log(received(conversation_log=stamped(*stamps), **times))
    found = tuple(None if at is None else (at - START).total_seconds() for at in (checked.started_at, checked.ended_at))
    assert found == span
    assert checked.turns == len(stamps)


def test_only_kept_items_count_and_only_their_times_matter() -> None:
    log = [
        {"role": "system", "content": "be kind", "timestamp": "2026-03-02T07:00:00Z"},
        user("", timestamp="2026-03-02T07:30:00Z"),
        user(timestamp="2026-03-02T08:00:00Z"),
        {"role": "assistant", "content": "ho", "timestamp": "2026-03-02T08:01:00Z"},
    ]
    checked = transcript.check_log(received(conversation_log=log))
    assert checked == transcript.CheckedLog(turns=2, exchanges=1, started_at=START, ended_at=END, user_turns=1)


def test_times_from_the_start_need_one_or_an_end() -> None:
    log = [user(secondsFromStart=10), user(time=30.5)]
    relative = transcript.check_log(received(conversation_log=log, start_time="2026-03-02T08:00:00Z"))
    assert (relative.started_at, relative.ended_at) == (START, START + timedelta(seconds=30.5))
    ending = transcript.check_log(received(conversation_log=log, end_time="2026-03-02T08:00:30.5Z"))
    assert (ending.started_at, ending.ended_at) == (START, START + timedelta(seconds=30.5))
    unknown = transcript.check_log(received(conversation_log=log))
    assert (unknown.started_at, unknown.ended_at) == (None, None)


# --- when it was said


def test_seconds_from_the_start_are_added_to_it() -> None:
    assert seconds(user(secondsFromStart=10), user(timestamp=1.5), user(timestamp="2026-03-02T08:00:40")) == [
        10,
        1.5,
        40,
    ]


def test_a_time_beyond_the_calendar_stops_at_its_end() -> None:
    last = datetime.max.replace(tzinfo=UTC)
    assert transcript.turns(json.dumps([user(time=9e7)]).encode(), last, last)[0].at == last


def test_a_time_that_was_sent_stays_as_it_was_whatever_the_order() -> None:
    assert seconds(*stamped("50", "10", "30")) == [50, 10, 30]


@pytest.mark.parametrize(
    ("count", "times"), [(0, []), (1, [0]), (2, [0, 60]), (3, [0, 30, 60]), (5, [0, 15, 30, 45, 60])]
)
def test_without_any_time_the_turns_are_spread_from_start_to_end(count: int, times: list[float]) -> None:
    assert seconds(*[user()] * count) == times


def test_a_missing_time_lies_between_its_nearest_known_neighbours() -> None:
    first, second = stamped("10", "40")
    assert seconds(user(), user(), first, user(), user(), second, user()) == [0, 5, 10, 20, 30, 40, 60]


def test_skipped_items_take_no_share_of_the_time() -> None:
    assert seconds(user(), {"role": "system", "content": "x"}, user(""), user(), user()) == [0, 30, 60]


def test_a_start_after_the_first_known_time_gives_way_to_it() -> None:
    early, late = user(timestamp="2026-03-02T07:59:50Z"), user(timestamp="2026-03-02T08:02:00Z")
    assert seconds(user(), early, late, user()) == [-10, -10, 120, 120]


def test_many_turns_over_all_of_time_overflow_nothing() -> None:
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    spread = transcript.turns(json.dumps([user()] * 2_000).encode(), first, last)
    assert (spread[0].at, spread[-1].at) == (first, last)


STAMPS = st.none() | st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat)


@UNTIMED
@given(st.lists(STAMPS, max_size=12), st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(UTC)))
def test_turns_with_ordered_times_are_in_order(stamps: list[str | None], one: datetime, other: datetime) -> None:
    known = iter(sorted(stamp for stamp in stamps if stamp is not None))
    log = [user(timestamp=None if stamp is None else next(known)) for stamp in stamps]
    spread = transcript.turns(json.dumps(log).encode(), min(one, other), max(one, other))
    assert all(before.at <= after.at for before, after in pairwise(spread))


# --- any log

WORDS = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(WORDS, below, max_size=3),
    max_leaves=6,
)
AUDIO = st.just({"data": "UklG" * 1100})
MORE = {
    "turn_id": st.none() | WORDS | st.integers(),
    "timestamp": STAMPS | st.floats(0, 2e12),
    "x": JSON,
    "audio": AUDIO,
}
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}, optional={"x": JSON})
    | st.fixed_dictionaries({"type": st.just("image_url")}, optional={"x": JSON})
    | WORDS,
    max_size=3,
)
VOICES = st.sampled_from(["user", "BOT", "assistant", "HumanMessage", "system", "END_USER", "narrator", "pika"])
KNOWN = st.one_of(
    *[
        st.fixed_dictionaries({who: VOICES, words: WORDS | PARTS}, optional=MORE)
        for who, words in (
            ("character", "content"),
            ("speaker", "text"),
            ("role", "content"),
            ("from", "value"),
            ("role", "parts"),
            ("sender", "message"),
        )
    ]
)


@UNTIMED
@given(st.lists(KNOWN | JSON, max_size=6), st.sampled_from([None, 1]))
def test_any_log_is_kept_as_it_was_sent_and_gives_the_turns_that_were_counted(
    log: list[Any], indent: int | None
) -> None:
    sent = json.dumps(log, indent=indent).encode()
    conversation = b'{"conversation_id":"a","user_id":"u","bot_id":"b","conversation_log":' + sent + b"}"
    read = decode(conversation)
    if b'"UklGUklG' not in sent:
        assert read.sent.log == sent
    try:
        checked = transcript.check_log(read)
    except errors.Invalid:
        return
    found = transcript.turns(read.sent.log, START, END)
    assert len(found) == checked.turns
    assert not any("\0" in turn.text or not turn.text.strip() for turn in found)
    # White space that was sent stays: of a log in its one form the turns are the same.
    assert found == transcript.turns(read.sent.compared, START, END)
