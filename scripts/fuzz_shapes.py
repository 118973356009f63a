"""The log shapes of all known vendors, as ``fuzz_bodies.py`` fills them; whoever meets another one adds it here.

In a template a pair stands for what the user's items and the bot's have there; ``TEXT`` is what was said, ``INDEX`` the
item's place, and the three times are those of the item. Nothing here knows how convo reads a log.
"""

from __future__ import annotations

from typing import Any

TEXT, INDEX, SECONDS, MILLIS, RFC3339 = "@text", "@index", "@seconds", "@millis", "@rfc3339"
_START = 1_764_300_000
_OPENAI = ("user", "assistant")
_AGENT = ("user", "agent")

SHAPES: dict[str, dict[str, Any]] = {
    "openai": {"role": _OPENAI, "content": TEXT},
    "openai-parts": {"role": _OPENAI, "content": [{"type": "text", "text": TEXT}]},
    "openai-audio": {"role": _OPENAI, "content": None, "audio": {"id": "a1", "transcript": TEXT}},
    "openai-realtime": {
        "id": "i1",
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": _OPENAI,
        "content": [{"type": ("input_audio", "output_audio"), "audio": None, "transcript": TEXT}],
    },
    "openai-responses": {
        "type": "message",
        "role": _OPENAI,
        "status": "completed",
        "content": [{"type": ("input_text", "output_text"), "text": TEXT}],
    },
    "openai-refusal": {
        "type": "message",
        "role": _OPENAI,
        "content": ([{"type": "input_text", "text": TEXT}], [{"type": "refusal", "refusal": TEXT}]),
    },
    "bedrock": {"role": _OPENAI, "content": [{"text": TEXT}]},
    "anthropic": {
        "role": _OPENAI,
        "content": [{"type": "text", "text": TEXT}, {"type": "tool_use", "id": "t", "name": "move", "input": {}}],
    },
    "gemini": {"role": ("user", "model"), "parts": [{"text": TEXT}]},
    "vercel-ai": {"id": "m1", "role": _OPENAI, "parts": [{"type": "step-start"}, {"type": "text", "text": TEXT}]},
    "livekit": {
        "id": "item_1",
        "type": "message",
        "role": _OPENAI,
        "content": [TEXT],
        "interrupted": False,
        "created_at": SECONDS,
    },
    "vapi": {"role": ("user", "bot"), "message": TEXT, "time": MILLIS, "secondsFromStart": INDEX},
    "retell": {"role": _AGENT, "content": TEXT, "metadata": {"response_id": INDEX}},
    "elevenlabs": {"role": _AGENT, "message": TEXT, "time_in_call_secs": INDEX, "tool_calls": None},
    "rasa": {"event": ("user", "bot"), "timestamp": SECONDS, "text": TEXT, "parse_data": {"intent": {"name": "x"}}},
    "sharegpt": {"from": ("human", "gpt"), "value": TEXT},
    "classic": {"character": ("USER_RESPONSE_CONVERSATION", "BOT_RESPONSE_CONVERSATION"), "content": TEXT},
    "pika": {"speaker": ("user", "pika"), "turn_id": INDEX, "text": TEXT, "timestamp": RFC3339},
    "oasst": {"message_id": "m1", "role": ("prompter", "assistant"), "text": TEXT, "lang": "en"},
    "customer-agent": {"role": ("customer", "agent"), "content": TEXT, "name": "Mira"},
    "caller-ai": {"speaker": ("caller", "ai"), "transcript": TEXT},
    "contact-lens": {"ParticipantRole": ("CUSTOMER", "AGENT"), "Content": TEXT, "BeginOffsetMillis": INDEX},
    "dialogflow": {"participantRole": ("END_USER", "AUTOMATED_AGENT"), "content": TEXT, "createTime": RFC3339},
}
SPEAKER_FIELDS = ("role", "event", "from", "character", "speaker", "ParticipantRole", "participantRole")

# Items that stand between the messages and are no turns.
SILENT: tuple[dict[str, Any], ...] = (
    {"role": "system", "content": "You help with deliveries."},
    {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
    {"type": "function_call", "call_id": "c1", "name": "move", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "ok"},
    {"type": "reasoning", "id": "rs1", "summary": []},
    {"type": "agent_handoff", "old_agent_id": "front", "new_agent_id": "desk"},
    {"role": "tool", "tool_call_id": "c1", "content": "moved"},
    {"event": "slot", "timestamp": 1764300005.0, "name": "day", "value": "friday"},
)


def item(shape: str, speaker: int, text: str, index: int) -> dict[str, Any]:
    """Make an item of a shape; ``speaker`` is 0 for the user and 1 for the bot."""
    times = {
        SECONDS: _START + index + 0.5,
        MILLIS: (_START + index) * 1000,
        RFC3339: f"2026-11-28T09:{index // 60 % 60:02}:{index % 60:02}Z",
    }
    made: dict[str, Any] = _filled(SHAPES[shape], speaker, {TEXT: text, INDEX: index, **times})
    return made


def _filled(template: Any, speaker: int, by: dict[str, Any]) -> Any:
    if isinstance(template, tuple):
        return _filled(template[speaker], speaker, by)
    if isinstance(template, list):
        return [_filled(below, speaker, by) for below in template]
    if isinstance(template, dict):
        return {key: _filled(below, speaker, by) for key, below in template.items()}
    return by.get(template, template) if isinstance(template, str) else template
