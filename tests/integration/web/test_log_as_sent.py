from __future__ import annotations

import base64
import gzip
import itertools
import json
import random
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from convo.conversation.audio import omit_audio
from convo.settings import WebSettings
from tests.support.running import ended

END = "/v1/conversations/end"
JSON = {"Content-Type": "application/json"}
WEB = WebSettings()
AUDIO = base64.b64encode(random.Random(13).randbytes(4_000)).decode()
FIXED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=30,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
_numbers = itertools.count(1)

# --- what a log may hold

NAMES = st.text("abcdefgxyz_", min_size=1, max_size=8)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | TEXTS
)
VALUES = st.recursive(
    SCALARS, lambda below: st.lists(below, max_size=3) | st.dictionaries(NAMES, below, max_size=3), max_leaves=8
)
UNKNOWN = st.dictionaries(NAMES.map("x_{}".format), VALUES, max_size=3)
AUDIO_PARTS = st.sampled_from(
    [
        {"audio": {"data": AUDIO}},
        {"input_audio": {"format": "wav", "data": AUDIO}},
        {"audioData": AUDIO},
        {"parts": [{"mime_type": "audio/ogg", "data": AUDIO}]},
    ]
)
TURNS = st.builds(
    lambda who, words, unknown, audio: {**who, **words, **unknown, **audio},
    st.sampled_from([{"role": "user"}, {"character": "BOT_RESPONSE_CONVERSATION"}, {"speaker": "customer"}]),
    st.builds(lambda field, text: {field: "So " + text}, st.sampled_from(["content", "text", "message"]), TEXTS),
    UNKNOWN,
    st.just({}) | AUDIO_PARTS,
)
# What is changed may be the one thing that makes an item a turn, and a log without any is refused.
SPOKEN = {"role": "assistant", "content": "Hello"}
LOGS = st.builds(lambda turn, others: [SPOKEN, turn, *others], TURNS, st.lists(TURNS | VALUES, max_size=3))


def new_id() -> str:
    return f"sent/{next(_numbers)}"


def post(client: httpx.Client, conversation_id: str, log: bytes) -> httpx.Response:
    # The bytes of the log are the test's own: neither sorted nor without white space.
    head = json.dumps(ended(conversation_id, conversation_log=None)).encode()
    return client.post(
        END, content=head.replace(b'"conversation_log": null', b'"conversation_log": ' + log), headers=JSON
    )


def sent(client: httpx.Client, conversation_id: str) -> bytes:
    answer = client.get(f"/v1/conversations/{quote(conversation_id, safe='')}/log", params={"as": "sent"})
    assert answer.status_code == 200, answer.text
    return answer.content


def scalars(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, below in pairs for found in scalars(below, (*path, key))]
    return [path]


def changed(value: Any, draw: Any) -> Any:
    """Return the value with one byte of it changed, as JSON is written."""
    if isinstance(value, str):
        if not value:
            return "a"
        at = draw(st.integers(0, len(value) - 1))
        other = "a" if value[at] != "a" else "b"
        return value[:at] + other + value[at + 1 :]
    if isinstance(value, bool) or value is None:
        return {True: False, False: True, None: 0}[value]
    if isinstance(value, int):
        return value + 1
    return 0.5 if value != 0.5 else 0.25


def with_one_change(log: list[Any], draw: Any) -> list[Any]:
    other: list[Any] = json.loads(json.dumps(log))
    path = draw(st.sampled_from(scalars(other)))
    place: Any = other
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = changed(place[path[-1]], draw)
    return other


@FIXED
@given(st.data(), LOGS, st.sampled_from([{"ensure_ascii": True, "indent": 1}, {"ensure_ascii": False}]))
def test_any_log_is_given_back_as_it_was_sent_and_any_change_of_it_is_a_conflict(
    client: httpx.Client, data: st.DataObject, log: list[Any], style: dict[str, Any]
) -> None:
    conversation_id = new_id()
    written = json.dumps(log, **style).encode()
    first = post(client, conversation_id, written)
    assert first.status_code == 202, (first.text, written)
    assert sent(client, conversation_id) == omit_audio(written)
    assert (AUDIO[:200].encode() in written) == (b"omitted_bytes" in sent(client, conversation_id))
    for replay in (written, json.dumps(log, ensure_ascii=not style["ensure_ascii"]).encode()):
        again = post(client, conversation_id, replay)
        assert (again.status_code, again.headers.get("Idempotent-Replayed")) == (202, "true")
        assert again.content == first.content
    for _ in range(3):
        other = post(client, conversation_id, json.dumps(with_one_change(log, data.draw)).encode())
        assert other.status_code == 409, (other.text, written)
    assert sent(client, conversation_id) == omit_audio(written)


# --- how long a body may be, with its recordings and without


def recorded(bytes_: int, **fields: Any) -> bytes:
    """A body of so many bytes of base64 and 5 KB of words."""
    item = {"role": "user", "content": "Hello " * 800, "audio": {"data": "UklG" * (bytes_ // 4)}}
    return json.dumps(ended(new_id(), conversation_log=[item], **fields)).encode()


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_recordings_do_not_count_as_words(client: httpx.Client, encoding: str) -> None:
    body = recorded(3_000_000)
    packed = gzip.compress(body) if encoding else body
    answer = client.post(END, content=packed, headers={**JSON, "Content-Encoding": encoding})
    assert answer.status_code == 202, answer.text
    assert answer.json()["turns"] == 1
    kept = sent(client, json.loads(body)["conversation_id"])
    assert b'"omitted_bytes":3000000' in kept
    assert len(kept) < 6_000


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_413_names_the_limit_that_was_exceeded(client: httpx.Client, encoding: str) -> None:
    # As many bytes as one limit allows: in recordings they are too many for it, elsewhere for the other.
    for body, name in (
        (recorded(WEB.raw_bytes_max), "web.raw_bytes_max = 16777216"),
        (recorded(100_000, more="x " * (WEB.body_bytes_max // 2)), "web.body_bytes_max = 2097152"),
        (recorded(100_000)[:-1] + b" " * WEB.body_bytes_max + b"}", "web.body_bytes_max = 2097152"),
    ):
        packed = gzip.compress(body) if encoding else body
        answer = client.post(END, content=packed, headers={**JSON, "Content-Encoding": encoding})
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert name in answer.json()["detail"]
