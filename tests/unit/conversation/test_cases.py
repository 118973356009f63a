from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from convo import errors
from convo.conversation import transcript
from convo.conversation.decode import decode

CASES = Path(__file__).parents[2] / "cases"
BODIES: dict[str, list[dict[str, Any]]] = json.loads((CASES / "bodies.json").read_text("utf-8"))
VCONS = json.loads((CASES / "vcon.json").read_text("utf-8"))

# What each of a case's bodies must become: who speaks, in order (u, b), and how many items are listed as unread; or the
# path of the field at fault, and what the text must name.
PLAIN: list[tuple[str, int | str]] = [("ub", 0)]
EXPECTED: dict[str, Sequence[tuple[str, int | str]]] = {
    "angry-in-other-language": PLAIN * 2,
    "arabic-question-mark": PLAIN,
    "bare-array": PLAIN,
    "bedrock": PLAIN,
    "bom": PLAIN,
    "choices-null": PLAIN,
    "compressed-answer": PLAIN,
    "content-filter": PLAIN,
    "content-list": PLAIN,
    "dialogflow-id": PLAIN,
    "error-in-200": PLAIN,
    "groq-413-tpm": PLAIN,
    "key-refused-with-400": PLAIN,
    "livekit": [("bub", 0)],
    "mem0-pending-results": PLAIN,
    "memory-redirect": PLAIN,
    "no-response-format": PLAIN,
    "numeric-ids": [("ub", 0), ("u", 0)],
    "openai-audio-reply": [("b", 1)],
    "openai-realtime": [("bubu", 0)],
    "openai-responses": PLAIN,
    "rasa": PLAIN,
    "reopened": [("ub", 0), ("ubu", 0)],
    "responses-refusal": PLAIN,
    "retry-delay-in-body": PLAIN * 6,
    "same-second": PLAIN,
    "schema-never-again": PLAIN * 3,
    "split-utterance": [("uuub", 0)],
    "temperature": PLAIN,
    "think-unpaired": PLAIN,
    "twilio-botpress-lex": [("$.conversation_log[0]", "media_channel"), ("$.conversation_log[0]", "direction")],
    "vapi-mapped": [("bub", 0)],
    "vercel-ai-v5": PLAIN,
}


def test_every_case_that_holds_a_body_is_tried() -> None:
    assert {name: len(bodies) for name, bodies in BODIES.items()} == {
        name: len(expected) for name, expected in EXPECTED.items()
    }


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name in sorted(BODIES) for number in range(len(BODIES[name]))]
)
def test_a_body_of_a_case_is_read_or_refused_by_name(name: str, number: int) -> None:
    sent = json.dumps(BODIES[name][number], ensure_ascii=False).encode()
    sent = b"\xef\xbb\xbf" + sent if name == "bom" else sent
    expected, more = EXPECTED[name][number]
    if isinstance(more, str):
        with pytest.raises(errors.Invalid) as caught:
            transcript.check_log(decode(sent))
        assert caught.value.path == expected
        assert more in caught.value.detail
        return
    received = decode(sent)
    checked = transcript.check_log(received)
    at = transcript.span(decode(b'{"conversation_id":"a","user_id":"u","bot_id":"b","end_time":2e9}').ended)[1]
    assert at is not None
    turns = transcript.turns(received.sent.log, checked.started_at or at, checked.ended_at or at)
    assert "".join(turn.speaker[0] for turn in turns) == expected
    assert (checked.turns, len(checked.unread)) == (len(expected), more)
    assert json.loads(received.sent.log) == BODIES[name][number]["conversation_log"]


@pytest.mark.parametrize("vcon", [one["vcon"] for one in VCONS], ids=[one["case"] for one in VCONS])
def test_a_vcon_is_refused_by_its_name(vcon: dict[str, Any]) -> None:
    with pytest.raises(errors.Invalid, match="vCon"):
        decode(json.dumps(vcon).encode())
