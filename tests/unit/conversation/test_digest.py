from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from convo import errors
from convo.conversation.decode import decode
from convo.conversation.digest import _digest_1, compact, digest, expand, same
from tests.support.bodies import IDS

# A busy machine is no failure.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def encoded(body: dict[str, Any] | str) -> bytes:
    return (body if isinstance(body, str) else json.dumps(body)).encode()


def digested(body: dict[str, Any] | str) -> str:
    return digest(decode(encoded(body)))


def digested_1(body: dict[str, Any]) -> str | None:
    return _digest_1(decode(encoded(body)).ended)


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

GOLDEN_1 = {
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


# All that version 2 covers and version 1 does not.
MORE: dict[str, dict[str, Any]] = {
    "integer ids": {"conversation_id": 4711, "user_id": 42, "bot_id": 7},
    "metadata": IDS | {"metadata": {"b": [1.50, None], "a": "é"}, "language": "vi", "timezone": "Asia/Ho_Chi_Minh"},
    "nulls": IDS | {"metadata": None, "language": None, "timezone": None},
    "number times": IDS | {"start_time": 1764300000, "end_time": 1764300001.5},
    "whole items": IDS
    | {"conversation_log": [{"role": "user", "parts": [{"text": "Hi"}], "created_at": 1764300000.10, "x": {"y": [0]}}]},
    "another name": IDS | {"messages": [{"role": "user", "content": "Hi"}]},
    "odd items": IDS | {"conversation_log": [{"role": "user", "content": "Hi"}, 3, None, "x", [1.0]]},
}
GOLDEN_2 = {
    "ids only": "2:373ce4b07a7f208057003051819911faa1d9c177ab4b98fd727db16b455b4c93",
    "null name": "2:fa1156a14f9926d0d46cf48a6fe020395cc61454469d46e49c68b0392d1d8094",
    "null log": "2:7a12d77e5c6ce095c2d2b31d4a827d96a7282b9d2d45f835f4e15664c369710f",
    "empty log": "2:12ba01103dbfda4ad291b338fe84ebde8c063eac374973e9e97dc03c653d1797",
    "everything": "2:2d672443e3e2370dbe9cf0ac7978066f13c547e99a8aaedd468dcc08d620e1da",
    "characters": "2:6075a4d2cd51f1eab3919b22d694c5a4f80add7aa7ff44de18a096892d3bf57b",
    "speakers": "2:50a2e54f0fb9a8037c16763adbf57a5fc8142475c6388e4c180425cae0d047fa",
    "roles": "2:46d7363f91affe6da10a1cd31282fbf99256fc60f33f7bf6c5d406c83560edfc",
    "parts": "2:26e3d14619df5622c25d00b369644fbc656b28f73d58fdac750250f87de69055",
    "sharegpt": "2:705a467f169ef722453d70524193b3dfc39a05bd5966f82c6ac4897e0725556c",
    "unicode": "2:e19b447a0c9736a707753ddb581fa6d99d6adb4a3b632b1fe356cf52b3fd1c02",
    "large numbers": "2:c10cf8b90f2c30b738795740921bd6077ee79ae10fb9c0144116090d1b40e5a7",
    "integer ids": "2:1d59323a1770d1e055f6e5ab11d5b341ad634d35cc6accd62b85fb302802f193",
    "metadata": "2:4d66c2f1185a3b0a33b1e894981aab512755e7ae548757a32bd39dbf23e97fc3",
    "nulls": "2:98dc1b87fc3f74727e6de1b33c21fabe7397b14434fc177cac9f2529b6cfed4f",
    "number times": "2:73900389b83ccd0f8a9bc4113f152810008849f7e6948aba22ff419028efd6cb",
    "whole items": "2:aee1d1d491eca2f9ec782298b4b6e27776e1aee22434f455ebacba3641839815",
    "another name": "2:f829be0e62e00ebd1915269bce73e1147d86018d0b308e479e4af9c91dd46013",
    "odd items": "2:0134ae61fd1eb50ebf5770a7ddf710dff7ce46ecaa13a9a9f1e34d0ed2fc1635",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_digest_of_version_1_is_for_ever(name: str) -> None:
    assert digested_1(BODIES[name]) == GOLDEN_1[name]
    received = decode(encoded(BODIES[name]))
    assert same(GOLDEN_1[name], digest(received), received.ended)


@pytest.mark.parametrize("name", [*BODIES, *MORE])
def test_a_digest_of_version_2_is_for_ever(name: str) -> None:
    assert digested((BODIES | MORE)[name]) == GOLDEN_2[name]


def test_the_golden_bodies_all_differ() -> None:
    assert len(set(GOLDEN_1.values())) == len(BODIES) == 12
    assert len(set(GOLDEN_2.values())) == len(BODIES) + len(MORE)


@pytest.mark.parametrize("name", ["ids only", "null name", "everything", "characters", "sharegpt"])
def test_version_1_is_the_sha_256_of_compact_json_with_sorted_keys_and_one_name_for_the_log(name: str) -> None:
    body = {("conversation_log" if key == "conversation_logs" else key): value for key, value in BODIES[name].items()}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert digested_1(body) == "1:" + hashlib.sha256(canonical.encode()).hexdigest()


def test_version_2_is_the_sha_256_of_three_lines() -> None:
    body = IDS | {"bot_name": "Pika", "metadata": {"b": 1, "a": [2]}, "conversation_log": [{"role": "user", "a": "Hi"}]}
    lines = [
        '[false,"bot","Pika",false,"abc",false,false,"usr",false,false]',
        '15 {"a":[2],"b":1}',
        '[{"a":"Hi","role":"user"}]',
    ]
    assert digested(body) == "2:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_version_1_leaves_out_what_it_did_not_know() -> None:
    known = IDS | {"conversation_log": [{"role": "user", "content": "Hi"}]}
    more = known | {"metadata": {"a": 1}, "language": "vi", "mood": 1}
    more["conversation_log"] = [{"role": "user", "content": "Hi", "name": "Mom"}]
    assert digested_1(more) == digested_1(known)
    assert digested_1(IDS | {"messages": known["conversation_log"]}) == digested_1(IDS)


@pytest.mark.parametrize("item", [{"role": 1}, {"content": {"text": "Hi"}}, {"timestamp": 5}, "Hi", {"turn_id": 1.5}])
def test_what_version_1_could_not_accept_is_no_replay_of_it(item: object) -> None:
    received = decode(encoded(IDS | {"conversation_log": [item]}))
    assert digested_1(IDS | {"conversation_log": [item]}) is None
    assert not same(GOLDEN_1["ids only"], digest(received), received.ended)


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


def test_a_field_of_the_body_that_is_not_recognised_is_not_digested() -> None:
    assert digested(IDS | {"mood": 1}) == digested(IDS)


def test_an_integer_id_is_its_decimal_text() -> None:
    assert digested(IDS | {"user_id": 42}) == digested(IDS | {"user_id": "42"})


def test_a_log_under_another_name_is_the_same_log() -> None:
    assert digested(IDS | {"messages": LOG}) == digested(IDS | {"conversation_log": LOG})


def test_the_same_content_is_the_same_under_the_present_version() -> None:
    one, other = decode(encoded(IDS)), decode(encoded(IDS | {"bot_id": "bob"}))
    assert same(digest(one), digest(one), one.ended)
    assert not same(digest(one), digest(other), other.ended)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.0", "1.00"),
        ("1.0", "1"),
        ("1e5", "1E5"),
        ("1e400", "1e401"),
        ("9" * 5000, "9" * 4999 + "8"),
        ("0.1", "0.10000000000000000001"),
        ("-0.0", "0.0"),
        ("1", '"1"'),
        ("null", '""'),
        ("[]", "{}"),
        ("[]", "[null]"),
    ],
)
def test_values_are_compared_as_they_are_written(one: str, other: str) -> None:
    body = '{"conversation_id":"abc","user_id":"usr","bot_id":"bot","conversation_log":[{"role":"user","x":%s}]}'
    assert digested(body % one) != digested(body % other)


def test_a_plain_log_has_the_digest_that_it_has_among_others() -> None:
    body = '{"conversation_id":"abc","user_id":"usr","bot_id":"bot","conversation_log":[%s]}'
    plain, odd = '{"role":"user","content":"Hi \\u00e9","turn_id":7}', '{"turn_id":7,"content":"Hi é","role":"user"}'
    assert digested(body % plain) == digested(body % odd)


@pytest.mark.parametrize("stored", ["3:" + "0" * 64, "11:" + "0" * 64, "", "0" * 64])
def test_a_digest_of_an_unknown_version_is_neither_a_replay_nor_a_conflict(stored: str) -> None:
    with pytest.raises(errors.Unavailable) as caught:
        same(stored, digested(IDS), decode(encoded(IDS)).ended)
    assert (caught.value.status, caught.value.retryable) == (503, True)


# --- any body

ID = st.text("abcé😀-", min_size=3, max_size=6)
LABEL = st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
WORDS = st.text(max_size=6)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(WORDS, below, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(["character", "speaker", "role", "from", "text", "value", "content", "turn_id", "x", "audio"])
ITEM = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": WORDS}),
    st.fixed_dictionaries({"role": st.just("user"), "parts": st.lists(st.fixed_dictionaries({"text": WORDS}))}),
    st.dictionaries(FIELDS, ANYTHING, max_size=4),
    ANYTHING,
)
LABELS = ("bot_name", "bot_type", "agent_tag", "start_time", "end_time")
BODY = st.fixed_dictionaries(
    {"conversation_id": ID, "user_id": ID, "bot_id": ID, "conversation_log": st.none() | st.lists(ITEM, max_size=3)},
    optional=dict.fromkeys(LABELS, LABEL)
    | {"metadata": st.dictionaries(WORDS, ANYTHING, max_size=2), "language": st.sampled_from(["vi", "en-US", None])},
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
    equal = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digested(one) == digested(other)) == equal


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every value within one, as its container and its key or index."""
    pairs = (
        list(value.items() if isinstance(value, dict) else enumerate(value)) if isinstance(value, dict | list) else []
    )
    return [(value, key) for key, _ in pairs] + [place for _, below in pairs for place in places(below)]


@UNTIMED
@given(BODY, ANYTHING, st.data())
def test_any_one_value_changed_changes_the_digest(body: dict[str, Any], new: Any, data: st.DataObject) -> None:
    changed = json.loads(json.dumps(body))
    found = [place for part in ("conversation_log", "metadata") for place in places(changed.get(part))]
    assume(found)
    where, key = data.draw(st.sampled_from(found), label="where")
    assume(json.dumps(where[key]) != json.dumps(new))
    where[key] = new
    assert digested(changed) != digested(body)


@UNTIMED
@given(BODY.filter(lambda body: bool(body.get("conversation_log"))), st.data())
def test_any_item_dropped_doubled_or_moved_changes_the_digest(body: dict[str, Any], data: st.DataObject) -> None:
    log = body["conversation_log"]
    at = data.draw(st.integers(0, len(log) - 1))
    for other in (log[:at] + log[at + 1 :], log[:at] + log[at : at + 1] * 2 + log[at + 1 :]):
        assert digested(body | {"conversation_log": other}) != digested(body)
    if json.dumps(log, sort_keys=True) != json.dumps(log[::-1], sort_keys=True):
        assert digested(body | {"conversation_log": log[::-1]}) != digested(body)


HASH = hashlib.sha256(b"any").hexdigest()


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        (f"1:{HASH}", 33),
        (f"2:{HASH}", 33),
        (f"99:{HASH}", 33),
        # Of no form that is known today: the text itself, behind one byte.
        (f"100:{HASH}", 69),
        (f"01:{HASH}", 68),
        (f"0:{HASH}", 67),
        (f"2:{HASH.upper()}", 67),
        ("3:abc", 6),
        ("", 1),
    ],
)
def test_a_stored_digest_reads_back_as_the_text_it_was(text: str, bytes_: int) -> None:
    assert expand(compact(text)) == text
    assert len(compact(text)) == bytes_
