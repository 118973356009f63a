from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from convo.cloud_events import encode_event, encode_ping
from convo.event_types import EVENT_TYPES, EventType
from convo.store.event_rows import StoredEvent, event_id, parse_event_id
from convo.web.description.event_documents import event_documents
from convo.web.description.openapi import document

AT = datetime(2026, 11, 29, 10, 49, 16, tzinfo=UTC)
SCORE = {"value": 9, "weights_version": "w1:bf245fce", "breakdown": {}}
OWN: dict[EventType, dict[str, Any]] = {
    "conversation.accepted": {"turns": 3},
    "conversation.dead": {"reason": "llm: 400"},
    "conversation.erased": {},
    "part.done": {"part": "questions", "by": "local/2", "result": {"questions": []}},
    "relationship.level_changed": {"level": "friend", "before": "stranger", "score": 13},
    "user.erased": {},
}


def stored(kind: EventType, data: str | None = "{}", **fields: Any) -> StoredEvent:
    of_user = kind in ("relationship.level_changed", "user.erased")
    ids = {"conversation_id": None if of_user else "talk-1", "user_id": "mia", "bot_id": None if of_user else "pika"}
    return StoredEvent(number=7, salt=255, sequence=9, type=kind, at=AT, data=data, **{**ids, **fields})


@pytest.mark.parametrize("kind", OWN)
def test_an_event_of_each_type_is_as_it_is_described(kind: EventType) -> None:
    body = encode_event(stored(kind, json.dumps(OWN[kind])))
    msgspec.json.decode(body, type=event_documents()[kind])
    found = json.loads(body)
    assert found["data"].items() >= OWN[kind].items()
    assert found["subject"] == ("mia" if "conversation_id" not in found["data"] else "talk-1")
    assert (found["id"], found["sequence"], found["time"]) == ("7-000000000000ff", 9, "2026-11-29T10:49:16Z")


def test_an_event_of_what_was_erased_has_neither_subject_nor_data() -> None:
    found = json.loads(encode_event(stored("part.done", None, conversation_id=None, user_id=None, bot_id=None)))
    assert found.keys() == {
        *("specversion", "id", "source", "type", "time", "tenant", "sequence", "datacontenttype"),
    }


def test_an_event_of_a_conversation_that_is_recorded_carries_its_trace() -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    found = json.loads(encode_event(stored("part.done", trace=f"{parent} vendor=x")))
    assert (found["traceparent"], found["tracestate"]) == (parent, "vendor=x")
    alone = json.loads(encode_event(stored("part.done", trace=parent)))
    assert alone["traceparent"] == parent
    assert "tracestate" not in alone


def test_a_ping_has_no_sequence() -> None:
    found = json.loads(encode_ping("ping_1", AT))
    assert (found["type"], found["id"], found["data"]) == ("webhook.ping", "ping_1", {})
    assert "sequence" not in found


def test_every_type_is_described_as_a_webhook() -> None:
    described = document()["webhooks"]
    assert described.keys() == EVENT_TYPES.keys()
    for kind, one in described.items():
        schema = one["post"]["requestBody"]["content"]["application/cloudevents+json"]["schema"]
        named = document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        assert named["properties"]["type"]["enum"] == [kind]
        assert {"id", "time"} <= set(named["required"])


def test_an_id_is_read_back_and_nothing_else_is_one() -> None:
    assert parse_event_id(event_id(4711, 12)) == (4711, 12)
    for text in ("", "4711", "4711-12", "0-0000000000000c", "-1-0000000000000c", "9" * 19 + "-0000000000000c", "x-y"):
        assert parse_event_id(text) is None, text
