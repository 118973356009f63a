from __future__ import annotations

import gzip
import hashlib
import json
import re

import pytest
from msgspec import structs

from scripts import fuzz_oddities, fuzz_shapes
from scripts.fuzz import accepted_wrongly, stored_wrongly
from scripts.fuzz_bodies import Body, kept, make
from scripts.fuzz_client import Answer

BODIES = [make(1, "test", number) for number in range(1500)]
PLAIN = next(body for body in BODIES if not body.odd and body.spoken > 1)


def inflated(body: Body) -> bytes:
    return gzip.decompress(body.content) if body.headers else body.content


def test_the_same_number_is_the_same_body() -> None:
    assert [make(1, "test", number) for number in range(100)] == BODIES[:100]
    assert make(2, "test", 0) != BODIES[0]


def test_all_shapes_and_all_oddities_come_up() -> None:
    assert {body.shape for body in BODIES} == set(fuzz_shapes.SHAPES)
    assert {odd for body in BODIES for odd in body.odd} >= {made.__name__.strip("_") for made in fuzz_oddities.ODDITIES}


def test_what_must_be_accepted_is_json_with_the_log_that_the_body_knows() -> None:
    sure = [body for body in BODIES if not body.may_refuse]

    assert len(sure) > len(BODIES) / 3
    for body in sure:
        value = json.loads(inflated(body).decode("utf-8-sig"))
        assert len(value[body.name]) >= body.spoken > 0
        assert body.log in inflated(body)


def test_a_body_knows_the_words_that_stand_in_it() -> None:
    for body in BODIES:
        assert all(json.dumps(words)[1:-1] in body.log.decode("utf-8", "replace") or
                   json.dumps(words, ensure_ascii=False)[1:-1] in body.log.decode("utf-8", "replace")
                   for words in body.words)  # fmt: skip


def test_a_changed_body_differs_in_one_text() -> None:
    changed = [body for body in BODIES if body.changed and not body.headers]

    assert len(changed) > len(BODIES) / 2
    assert all(len(body.changed) == len(body.content) + 1 for body in changed)


def test_an_item_fills_its_shape_for_either_speaker() -> None:
    user, bot = (fuzz_shapes.item("openai-refusal", speaker, "No, thanks.", 3) for speaker in (0, 1))

    assert user["content"] == [{"type": "input_text", "text": "No, thanks."}]
    assert bot == {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No, thanks."}]}
    assert fuzz_shapes.item("vapi", 0, "Hello", 3)["time"] == 1_764_300_003_000


# --- the checks


def receipt(turns: int, **fields: object) -> dict[str, object]:
    return {"turns": turns, "digest": "2:a", "links": {}, **fields}


def test_a_receipt_with_all_the_turns_is_right() -> None:
    assert accepted_wrongly(PLAIN, receipt(PLAIN.spoken)) == ""
    assert accepted_wrongly(PLAIN, {}) == "202 without a receipt"


def test_no_turns_of_what_was_spoken_is_a_finding_and_so_are_fewer() -> None:
    assert accepted_wrongly(PLAIN, receipt(0, unread=[{}])).startswith("202, turns 0, though somebody speaks")
    assert accepted_wrongly(PLAIN, receipt(PLAIN.spoken - 1)).startswith("202 with fewer turns")


def test_words_of_nobody_must_be_listed() -> None:
    unsure = structs.replace(PLAIN, spoken=0)

    assert accepted_wrongly(unsure, receipt(0, unread=[{"path": "$"}])) == ""
    assert accepted_wrongly(unsure, receipt(0)) == "202, turns 0, and nothing is listed as unread"


@pytest.mark.parametrize(
    ("name", "ignored", "wrong"),
    [
        ("payload", ["payload"], ""),
        ("payload", [], "202, turns 0, and payload is not listed as ignored"),
        ("messages", ["messages"], "202, turns 0, and the log under messages is not kept"),
    ],
)
def test_words_under_another_name_may_be_ignored_only_under_one_that_is_not_known(
    name: str, ignored: list[str], wrong: str
) -> None:
    unsure = structs.replace(PLAIN, spoken=0, name=name)

    assert accepted_wrongly(unsure, receipt(0, ignored=ignored)) == wrong


def test_a_log_as_sent_is_compared_byte_by_byte() -> None:
    other = re.sub(rb"[A-Za-z]", b"x", PLAIN.log, count=3)

    assert stored_wrongly(PLAIN, stored(PLAIN.log)) == ""
    assert stored_wrongly(PLAIN, stored(other)) == "the log as sent is not what was sent"
    spaced = b"[ " + PLAIN.log[1:]
    assert stored_wrongly(PLAIN, stored(spaced)) == "the log as sent has other bytes than were sent"


def stored(log: bytes) -> Answer:
    return Answer(status=200, headers={}, body=log)


def test_a_recording_is_kept_as_its_length_and_hash() -> None:
    data = "QUJD" * 2000
    sent = json.dumps([{"audio": {"data": data}, "n": 1e400}]).encode()
    as_text, as_bytes = (
        json.dumps([{"audio": {"data": omission}, "n": 1e400}]).encode()
        for omission in (
            {"omitted_bytes": 8000, "sha256": hashlib.sha256(data.encode()).hexdigest()},
            {"omitted_bytes": 6000, "sha256": hashlib.sha256(b"ABC" * 2000).hexdigest()},
        )
    )

    assert kept(sent, as_text)
    assert kept(sent, as_bytes)
    assert kept(sent, sent)
    assert not kept(sent, as_text.replace(b"8000", b"8001"))
    assert not kept(sent, sent.replace(b"QUJD", b"QUJE", 1))


def test_a_short_text_is_no_recording() -> None:
    sent = b'[{"audio": {"data": "QUJD"}}]'
    digest = hashlib.sha256(b"QUJD").hexdigest().encode()

    assert not kept(sent, b'[{"audio": {"data": {"omitted_bytes": 4, "sha256": "%s"}}}]' % digest)
