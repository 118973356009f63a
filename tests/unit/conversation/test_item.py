from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from convo.conversation.item import is_turn_like, read_item

# One item of each vendor, and what it says.
SAID: dict[str, tuple[dict[str, Any], str, str]] = {
    "ElevenLabs": ({"role": "agent", "message": "hi", "tool_calls": [], "time_in_call_secs": 3}, "bot", "hi"),
    "Vapi": ({"role": "bot", "message": "hi", "time": 1764300001000, "secondsFromStart": 1.0}, "bot", "hi"),
    "Retell": ({"role": "agent", "content": "hi", "words": [{"word": "hi", "start": 0.1, "end": 0.2}]}, "bot", "hi"),
    "Bland": ({"id": 1, "user": "assistant", "text": "hi", "created_at": "2026-03-02T08:00:00"}, "bot", "hi"),
    "Ultravox": ({"role": "MESSAGE_ROLE_USER", "text": "hi", "medium": "x"}, "user", "hi"),
    "Hume": ({"type": "assistant_message", "message": {"role": "assistant", "content": "hi"}}, "bot", "hi"),
    "Hume history": ({"role": "AGENT", "type": "AGENT_MESSAGE", "message_text": "hi"}, "bot", "hi"),
    "LiveKit": ({"type": "message", "role": "user", "content": ["hi", "there"]}, "user", "hi\nthere"),
    "Rasa": ({"event": "bot", "text": "hi", "data": {"buttons": None}}, "bot", "hi"),
    "Gemini": ({"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": "hi"}]}, "bot", "hi"),
    "ADK": ({"author": "user", "content": {"role": "user", "parts": [{"text": "hi"}]}}, "user", "hi"),
    "Bedrock": ({"role": "assistant", "content": [{"text": "hi"}, {"toolUse": {"name": "x"}}]}, "bot", "hi"),
    "Anthropic": (
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}]},
        "bot",
        "hi",
    ),
    "Assistants": (
        {"role": "assistant", "content": [{"type": "text", "text": {"value": "hi", "annotations": []}}]},
        "bot",
        "hi",
    ),
    "Responses": ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "bot", "no"),
    "Chat Completions refusal": ({"role": "assistant", "content": None, "refusal": "no"}, "bot", "no"),
    "Chat Completions audio": ({"role": "assistant", "content": None, "audio": {"transcript": "hi"}}, "bot", "hi"),
    "Realtime": (
        {"role": "user", "content": [{"type": "input_audio", "audio": None, "transcript": "hi"}]},
        "user",
        "hi",
    ),
    "Vercel 5": ({"role": "user", "parts": [{"type": "step-start"}, {"type": "text", "text": "hi"}]}, "user", "hi"),
    "Vercel 4": ({"role": "user", "content": "hi", "parts": [{"type": "text", "text": "hi"}]}, "user", "hi"),
    "Cohere": ({"role": "CHATBOT", "message": "hi"}, "bot", "hi"),
    "LangChain": ({"type": "human", "data": {"content": "hi", "additional_kwargs": {}}}, "user", "hi"),
    "LangChain flat": ({"type": "ai", "content": "hi"}, "bot", "hi"),
    "LangChain class": ({"type": "AIMessageChunk", "content": "hi"}, "bot", "hi"),
    "ChatGPT export": (
        {"id": "n", "message": {"author": {"role": "assistant"}, "content": {"content_type": "text", "parts": ["hi"]}}},
        "bot",
        "hi",
    ),
    "OASST": ({"role": "prompter", "text": "hi"}, "user", "hi"),
    "ShareGPT": ({"from": "bing", "value": "hi"}, "bot", "hi"),
    "Dialogflow": ({"participantRole": "END_USER", "content": "hi", "languageCode": "vi"}, "user", "hi"),
    "Dialogflow agent": ({"participantRole": "AUTOMATED_AGENT", "content": "hi"}, "bot", "hi"),
    "Connect": ({"ParticipantId": "AGENT", "ParticipantRole": "CUSTOMER", "Content": "hi"}, "user", "hi"),
    "Bot Framework": (
        {"type": "message", "from": {"id": "x", "role": "user", "name": "Mira"}, "text": "hi"},
        "user",
        "hi",
    ),
    "Intercom": ({"part_type": "comment", "author": {"type": "user", "id": "1"}, "body": "hi"}, "user", "hi"),
    "Zendesk": ({"author": {"type": "business"}, "content": {"type": "text", "text": "hi"}}, "bot", "hi"),
    "Chatwoot": ({"sender_type": "contact", "content": "hi", "message_type": 0}, "user", "hi"),
    "caller": ({"speaker": "Caller", "utterance": "hi"}, "user", "hi"),
    "customer": ({"speaker": "customer", "text": "hi"}, "user", "hi"),
    "untyped strings": ({"role": "user", "content": [["hi"], {"text": "you"}]}, "user", "hi\nyou"),
}


@pytest.mark.parametrize("vendor", SAID)
def test_the_words_are_found_where_a_vendor_keeps_them(vendor: str) -> None:
    item, who, words = SAID[vendor]
    reading = read_item(item)
    assert (reading.who, reading.words, reading.unread) == (who, words, False)


@pytest.mark.parametrize(
    "item",
    [
        {"role": "system", "content": "be kind"},
        {"role": "developer", "content": [{"type": "input_text", "text": "be kind"}]},
        {"role": "tool", "tool_call_id": "1", "content": "ok"},
        {"role": "function", "name": "f", "content": "ok"},
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "ok"},
        {"role": "tool_calls", "toolCalls": [{}], "message": ""},
        {"role": "tool_call_result", "name": "f", "result": "ok"},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "ok"},
        {"type": "web_search_call", "id": "1", "status": "completed"},
        {"type": "agent_handoff", "old_agent_id": "a", "new_agent_id": "b"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"text": "x"}}]},
        {"role": "user", "content": [{"type": "tool_result", "content": "ok"}]},
        {"role": "user", "content": [{"toolResult": {"content": [{"text": "ok"}]}}]},
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"text": "x"}}}]},
        {"role": "assistant", "parts": [{"type": "tool-search", "output": {"text": "x"}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"event": "slot", "name": "day", "value": "friday"},
        {"event": "action", "name": "action_listen"},
        {"id": "root", "message": None, "parent": None, "children": ["a"]},
        {"id": "n", "message": {"author": {"role": "tool"}, "content": {"content_type": "text", "parts": ["ok"]}}},
        {"role": "user", "content": "", "id": "x", "created_at": 5},
        {"role": "user", "content": " \0"},
    ],
)
def test_what_is_no_speech_is_no_turn_and_nothing_unread(item: dict[str, Any]) -> None:
    reading = read_item(item)
    assert (reading.who, reading.unread) == (None, False)


@pytest.mark.parametrize(
    "item",
    [
        {"content": "hi"},
        {"speaker": "A", "text": "hi"},
        {"speaker": 0, "text": "hi"},
        {"agent": "agent_1", "message": "hi"},
        {"role": "user", "phrase": "hi"},
        {"role": "user", "content": {"phrase": "hi"}},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "UklGRg=="}}]},
        {"role": "user", "audio": "UklGRg=="},
        {"role": "user", "content": 1},
        {"media_channel": 1, "transcript": "hi"},
        {"direction": "incoming", "payload": {"text": "hi"}},
        {"contentType": "PlainText", "content": "hi"},
        {},
        None,
        "hi",
        3,
        ["user", "hi"],
    ],
)
def test_what_cannot_be_read_is_unread_with_its_fields(item: Any) -> None:
    reading = read_item(item)
    assert (reading.who, reading.unread) == (None, True)
    assert reading.missed == (tuple(item) if isinstance(item, dict) else ())


@pytest.mark.parametrize(
    ("item", "name"),
    [
        ({"role": "user", "name": "Mom"}, "Mom"),
        ({"role": "user", "speaker": "Mom"}, "Mom"),
        ({"role": "user", "sender_name": "Mom"}, "Mom"),
        ({"from": {"role": "user", "name": "Mom"}}, "Mom"),
        ({"author": {"role": "user", "name": "  Mom "}}, "Mom"),
        ({"role": "user", "speaker": "user"}, None),
        ({"role": "user", "name": " "}, None),
        ({"role": "user", "name": 5}, None),
        ({"role": "user", "name": "x" * 300}, "x" * 255),
    ],
)
def test_a_turn_keeps_the_speaker_s_name(item: dict[str, Any], name: str | None) -> None:
    assert read_item({**item, "text": "hi"}).name == name


@pytest.mark.parametrize(
    ("times", "at"),
    [
        ({"timestamp": "2025-11-28T03:20:00"}, datetime(2025, 11, 28, 3, 20, tzinfo=UTC)),
        ({"created_at": 1764300000}, datetime(2025, 11, 28, 3, 20, tzinfo=UTC)),
        ({"createdAt": 1764300000000}, datetime(2025, 11, 28, 3, 20, tzinfo=UTC)),
        ({"secondsFromStart": 1.0, "time": 1764300000000}, datetime(2025, 11, 28, 3, 20, tzinfo=UTC)),
        ({"time": 7, "secondsFromStart": 1.5}, timedelta(seconds=1.5)),
        ({"time_in_call_secs": 3}, timedelta(seconds=3)),
        ({"start_ms": 1500}, timedelta(seconds=1.5)),
        ({"start_time": "0.1"}, timedelta(seconds=0.1)),
        ({"timestamp": None}, None),
    ],
)
def test_the_time_of_an_item_is_found_under_any_of_its_names(times: dict[str, Any], at: object) -> None:
    reading = read_item({"role": "user", "content": "hi", **times})
    assert (reading.at, reading.unread) == (at, False)


def test_a_time_that_cannot_be_read_is_named_and_the_words_stay() -> None:
    reading = read_item({"role": "user", "content": "hi", "time": "10:32"})
    assert (reading.who, reading.words, reading.at, reading.missed) == ("user", "hi", None, ("time",))


@pytest.mark.parametrize(
    ("item", "like"),
    [
        ({"role": "user", "content": "hi"}, True),
        ({"role": "agent", "name": "Kim"}, False),
        ({"type": "user", "value": "vip"}, False),
        ({"event": "user", "text": "hi"}, True),
        ({"type": "human", "content": "hi"}, True),
        ({"from": "human", "value": "hi"}, True),
        ("user", False),
    ],
)
def test_a_turn_beyond_doubt_has_a_strong_speaker_and_words(item: object, *, like: bool) -> None:
    assert is_turn_like(item) is like
