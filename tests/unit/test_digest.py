from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convo import errors
from convo.conversation import transcript
from convo.conversation.decode import decode
from convo.conversation.digest import digest, same
from convo.conversation.model import ConversationEnded, LogItem

# A busy machine is no failure.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

IDS = {"conversation_id": "abc", "user_id": "usr", "bot_id": "bot"}


def digested(body: dict[str, Any] | str) -> str:
    ended = decode((body if isinstance(body, str) else json.dumps(body)).encode())
    return digest(ended, transcript.encode_log(transcript.read_log(ended)[1]))


BODIES: dict[str, dict[str, Any]] = {
    "ids only": IDS,
    "null name": IDS | {"bot_name": None},
    "null log": IDS | {"conversation_log": None},
    "empty log": IDS | {"conversation_logs": []},
    "everything": IDS
    | {
        "bot_name": "Pika",
        "bot_type": "TALK",
        "agent_tag": "v7",
        "start_time": "2026-03-02T08:00:00Z",
        "end_time": "2026-03-02T15:04:23.5+07:00",
        "conversation_logs": [{"character": "BOT_RESPONSE_CONVERSATION", "content": "Hi!"}],
    },
    "characters": IDS
    | {"conversation_logs": [{"character": "PIKA", "content": "Hi"}, {"character": "USER", "content": ""}]},
    "speakers": IDS
    | {"conversation_log": [{"speaker": "user", "turn_id": 1, "text": "Hi", "timestamp": "2026-03-02T08:00:00Z"}]},
    "roles": IDS
    | {
        "conversation_log": [
            {"role": "system", "content": "Be kind"},
            {"role": "user", "content": "Hi", "turn_id": "1"},
        ]
    },
    "parts": IDS
    | {
        "conversation_log": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "x": 1.0}]}
        ]
    },
    "sharegpt": IDS
    | {"conversation_log": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho", "timestamp": None}]},
    "unicode": IDS
    | {
        "user_id": "Nguyễn Văn Ánh",
        "bot_name": "😀\u2028\u007f",
        "conversation_log": [{"role": "user", "content": 'Con chào bạn! e\u0301 é \u0000 \\ " / \n \u001f'}],
    },
    "large numbers": IDS
    | {"conversation_log": [{"role": "user", "turn_id": 10**30, "content": [{"type": "x", "n": [-0.0, 1e300]}]}]},
}

GOLDEN = {
    "ids only": "1:0a0aef09522f904de7682aee70a5f3065ef97d0e0bd2fdae3b3c903d18f30db1",
    "null name": "1:2f9ba44bb2dad6793bc9a916ce402617d3aeb9cf724ff3e88cf8cc28e0436ab4",
    "null log": "1:25bebc482ea76c6f0392c352af3cf3dd4db93ece91ceeb75781d908223bf0c9a",
    "empty log": "1:c79c0bd2fad6415432040e3641483b286ecd0bd5b88c405412c375cc2d4b34ea",
    "everything": "1:433c402fcc6d5078a7bfd757645cbb31c223a3a5db168fed6c732c5b7625da8d",
    "characters": "1:3bf144273717771721d4bd5dbb9b41605ec122f0ee6bebc6719b42a4361e7c08",
    "speakers": "1:1bee75ecaa18475a7368b1d257b5d31a3d175cf8c46cf2044656954b79830e68",
    "roles": "1:201691ae55c4b0563ccd77cb2dbfd2da41e3dd9a550618d67ee28db77462bd7f",
    "parts": "1:0b83cd1055c41bb7b7d363a52abb1bb36a7bf2603d90ec54d06b47905d53452a",
    "sharegpt": "1:a731a98a9edc346113d3b23bb229b895e48b6863bea66467b0635e9b2cf495de",
    "unicode": "1:0db75222fd4f9e72d49f61bf2bb7aae8f8c11f866aa21ae4aeb29f89bf27a75b",
    "large numbers": "1:5a96e1677e4c6ed9b85c133bf361c1e5094891fef97a2ec649c4347b46e31b17",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_digest_is_for_ever(name: str) -> None:
    assert digested(BODIES[name]) == GOLDEN[name]


def test_the_golden_bodies_all_differ() -> None:
    assert len(set(GOLDEN.values())) == len(BODIES) == 12


@pytest.mark.parametrize("name", ["ids only", "null name", "everything", "characters", "sharegpt"])
def test_version_1_is_the_sha_256_of_compact_json_with_sorted_keys_and_one_name_for_the_log(name: str) -> None:
    body = {("conversation_log" if key == "conversation_logs" else key): value for key, value in BODIES[name].items()}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert digested(body) == "1:" + hashlib.sha256(canonical.encode()).hexdigest()


def test_the_fields_of_version_1_are_all_there_are() -> None:
    # A new field needs a digest of version 2, and version 1 must go on leaving it out.
    assert ConversationEnded.__struct_fields__ == (
        *("conversation_id", "user_id", "bot_id", "bot_name", "bot_type", "agent_tag", "start_time", "end_time"),
        *("conversation_log", "conversation_logs"),
    )
    assert LogItem.__struct_encode_fields__ == (
        *("character", "speaker", "role", "from", "content", "text", "value", "turn_id", "timestamp"),
    )


LOG = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "log",
    [
        {"conversation_logs": LOG},
        {"conversation_log": LOG, "conversation_logs": LOG},
        {"conversation_log": None, "conversation_logs": LOG},
        {"conversation_log": LOG, "conversation_logs": []},
    ],
)
def test_both_spellings_of_the_log_are_one(log: dict[str, Any]) -> None:
    assert digested(IDS | log) == digested(IDS | {"conversation_log": LOG})


@pytest.mark.parametrize("name", ["bot_name", "start_time", "conversation_log", "conversation_logs"])
def test_null_differs_from_what_was_not_sent(name: str) -> None:
    assert digested(IDS | {name: None}) != digested(IDS)


def test_null_an_empty_log_and_no_log_are_three_things_under_either_spelling() -> None:
    logs: list[dict[str, Any]] = [{}, {"conversation_log": None}, {"conversation_log": []}]
    assert len({digested(IDS | log) for log in logs}) == 3
    assert digested(IDS | {"conversation_log": None}) == digested(IDS | {"conversation_logs": None})
    assert digested(IDS | {"conversation_log": []}) == digested(
        IDS | {"conversation_log": None, "conversation_logs": []}
    )


def test_what_is_not_recognised_is_not_digested() -> None:
    known = {"role": "user", "content": "Hi"}
    assert digested(IDS | {"mood": 1, "conversation_log": [known | {"name": "x"}]}) == digested(
        IDS | {"conversation_log": [known]}
    )


def test_the_same_content_is_the_same_under_the_stored_version() -> None:
    ended, other = decode(json.dumps(IDS).encode()), decode(json.dumps(IDS | {"bot_id": "bob"}).encode())
    stored = digest(ended, b"[]")
    assert same(stored, ended, b"[]")
    assert not same(stored, other, b"[]")


@pytest.mark.parametrize("stored", ["2:" + "0" * 64, "11:" + "0" * 64, "", "0" * 64])
def test_a_digest_of_an_unknown_version_is_neither_a_replay_nor_a_conflict(stored: str) -> None:
    with pytest.raises(errors.Unavailable) as caught:
        same(stored, decode(json.dumps(IDS).encode()), b"[]")
    assert (caught.value.status, caught.value.retryable) == (503, True)


# --- any body

NAMES = ("conversation_id", "user_id", "bot_id", "bot_name", "bot_type", "agent_tag", "start_time", "end_time")
ID = st.text("abcé😀-", min_size=3, max_size=6)
LABEL = st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
WORDS = st.text(max_size=6)
PART = st.fixed_dictionaries(
    {"type": st.just("text"), "text": WORDS}, optional={"a": st.integers() | st.dictionaries(WORDS, st.booleans())}
)
ITEM = st.dictionaries(
    st.sampled_from(["character", "speaker", "role", "from", "text", "value"]), st.none() | WORDS
).flatmap(
    lambda item: st.fixed_dictionaries(
        {key: st.just(value) for key, value in item.items()},
        optional={
            "content": st.none() | WORDS | st.lists(PART, max_size=2),
            "turn_id": st.none() | st.integers() | WORDS,
        },
    )
)
BODY = st.fixed_dictionaries(
    {"conversation_id": ID, "user_id": ID, "bot_id": ID},
    optional=dict.fromkeys(NAMES[3:], LABEL) | {"conversation_log": st.none() | st.lists(ITEM, max_size=3)},
)


def shuffled(value: Any, random: Any) -> Any:
    if isinstance(value, dict):
        keys = list(value)
        random.shuffle(keys)
        return {key: shuffled(value[key], random) for key in keys}
    return [shuffled(below, random) for below in value] if isinstance(value, list) else value


@UNTIMED
@given(
    body=BODY,
    random=st.randoms(use_true_random=False),
    indent=st.sampled_from([None, 1, "\t"]),
    ascii_only=st.booleans(),
)
def test_order_of_keys_white_space_and_escapes_do_not_matter(
    body: dict[str, Any], random: Any, indent: int | str | None, *, ascii_only: bool
) -> None:
    text = json.dumps(shuffled(body, random), indent=indent, ensure_ascii=ascii_only)
    assert digested(text) == digested(body)


@UNTIMED
@given(BODY, BODY)
def test_two_bodies_have_one_digest_only_if_they_are_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (digested(one) == digested(other)) == (one == other)


@UNTIMED
@given(BODY, st.data())
def test_any_change_of_a_recognised_value_changes_the_digest(body: dict[str, Any], data: st.DataObject) -> None:
    changed = json.loads(json.dumps(body))
    log = changed.get("conversation_log")
    target = data.draw(st.sampled_from([changed, *(log or [])]), label="where")
    name = data.draw(
        st.sampled_from(sorted(NAMES if target is changed else LogItem.__struct_encode_fields__)), label="what"
    )
    values = ID if name in IDS else LABEL
    target[name] = data.draw(
        values.filter(lambda value: name not in target or value != target[name]), label="new value"
    )
    assert digested(changed) != digested(body)


@UNTIMED
@given(BODY.filter(lambda body: bool(body.get("conversation_log"))), st.data())
def test_any_item_dropped_doubled_or_moved_changes_the_digest(body: dict[str, Any], data: st.DataObject) -> None:
    log = body["conversation_log"]
    at = data.draw(st.integers(0, len(log) - 1))
    for other in (log[:at] + log[at + 1 :], log[:at] + log[at : at + 1] * 2 + log[at + 1 :]):
        assert digested(body | {"conversation_log": other}) != digested(body)
    if log != log[::-1]:
        assert digested(body | {"conversation_log": log[::-1]}) != digested(body)


def test_the_digest_is_made_of_the_very_bytes_that_are_stored() -> None:
    ended = msgspec.convert(IDS | {"conversation_log": LOG}, ConversationEnded)
    assert digest(ended, b'[{"stored":1}]') != digest(ended, b'[{"stored":2}]')
