from __future__ import annotations

from typing import Any

import jsonschema_rs
import msgspec
import pytest

from convo import errors
from convo.conversation import decode, transcript, voices
from convo.web.description import log_items, samples
from tests.support.describing import check_fits


@pytest.mark.parametrize("shape", samples.SENT)
def test_a_sample_request_of_each_shape_is_accepted(shape: str) -> None:
    ended = decode.decode(msgspec.json.encode(samples.SENT[shape]))
    assert transcript.check_log(ended).turns == 2


def test_the_speakers_that_the_description_names_are_known() -> None:
    assert {voices.voice_of(name) for name in log_items.USER_EXAMPLES} == {"user"}
    assert {voices.voice_of(name) for name in log_items.BOT_EXAMPLES} == {"bot"}
    assert {voices.voice_of(name) for name in log_items.NEITHER_EXAMPLES} == {"none"}


@pytest.mark.parametrize(
    "item",
    [
        {"character": "BOT", "content": None},
        {"speaker": "user", "text": "x", "turn_id": "3", "timestamp": "2026-03-02T08:00:00Z", "more": 1},
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}, "y"], "timestamp": 1.5},
        {"role": "model", "parts": [{"text": "x"}]},
        {"from": "human"},
        {"sender": "customer", "body": "x"},
    ],
)
def test_the_schema_takes_what_the_transcript_takes(item: dict[str, Any]) -> None:
    check_fits({"$ref": "#/components/schemas/LogItem"}, item)
    transcript.check_log(decode.decode(sent_with(item)))


@pytest.mark.parametrize(
    "fields",
    [
        {"conversation_id": 4711, "metadata": {"a": 1}, "language": "vi", "timezone": "UTC"},
        {"conversation_log": None, "start_time": 1772438400, "metadata": None},
    ],
)
def test_the_schema_of_a_body_takes_what_is_taken(fields: dict[str, Any]) -> None:
    body = samples.SENT["character"] | {"end_time": None} | fields
    check_fits({"$ref": "#/components/schemas/ConversationEnded"}, body)
    transcript.check_log(decode.decode(msgspec.json.encode(body)))


@pytest.mark.parametrize(
    "fields", [{"conversation_id": ""}, {"metadata": []}, {"language": "en_US"}, {"user_id": ".."}]
)
def test_the_schema_of_a_body_refuses_what_is_refused(fields: dict[str, Any]) -> None:
    body = samples.SENT["character"] | fields
    with pytest.raises(jsonschema_rs.ValidationError):
        check_fits({"$ref": "#/components/schemas/ConversationEnded"}, body)
    with pytest.raises(errors.Invalid):
        decode.decode(msgspec.json.encode(body))


def sent_with(item: dict[str, Any]) -> bytes:
    return msgspec.json.encode(samples.SENT["character"] | {"conversation_log": [item]})
