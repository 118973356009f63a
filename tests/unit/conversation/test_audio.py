from __future__ import annotations

import base64
import hashlib
import json
import time
from typing import Any

import pytest

from convo.conversation.audio import AUDIO_TEXT_MIN, bytes_without_base64, omit_audio

AUDIO = base64.b64encode(bytes(range(256)) * 13).decode()[: AUDIO_TEXT_MIN + 3]
WORDS = "A" * 5000


def omitted(text: str = AUDIO) -> dict[str, Any]:
    return {"omitted_bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


@pytest.mark.parametrize(
    "place",
    [
        {"audio": {"data": "*"}},
        {"content": [{"type": "input_audio", "input_audio": {"data": "*", "format": "wav"}}]},
        {"content": [{"type": "output_audio", "audio": "*"}]},
        {"parts": [{"inlineData": {"mimeType": "audio/wav", "data": "*"}}]},
        {"content": [{"audio": {"format": "wav", "source": {"bytes": "*"}}}]},
        {"content": [{"type": "audio", "source": {"type": "base64", "media_type": "audio/mpeg", "data": "*"}}]},
        {"type": "audio", "data": "*"},
        {"audioContent": "*"},
    ],
)
def test_a_recording_becomes_its_length_and_hash(place: dict[str, Any]) -> None:
    item = {"role": "user", "words": WORDS + "!", **place}
    log = json.dumps([item, {"role": "assistant", "content": "Hm"}], indent=1)
    expected = log.replace('"*"', json.dumps(omitted(), separators=(",", ":")))
    assert omit_audio(log.replace("*", AUDIO).encode()).decode() == expected


def test_a_recording_as_a_url_is_left_out_whole() -> None:
    url = f"data:audio/wav;base64,{AUDIO}"
    log = json.dumps([{"role": "user", "url": url}], separators=(",", ":"))
    assert json.loads(omit_audio(log.encode())) == [{"role": "user", "url": omitted(url)}]


def test_slashes_and_line_breaks_may_be_escaped() -> None:
    text = AUDIO[:3000] + "\n" + AUDIO[3000:] + "/"
    log = json.dumps([{"audio": {"data": text}}]).replace("/", r"\/")
    assert json.loads(omit_audio(log.encode())) == [{"audio": {"data": omitted(text)}}]


@pytest.mark.parametrize(
    "log",
    [
        [],
        [{"audio": {"data": AUDIO[: AUDIO_TEXT_MIN - 1]}}],
        [{"role": "user", "content": WORDS}],
        [{"image": {"data": AUDIO}}],
        [{"type": "image", "source": {"media_type": "image/png", "data": AUDIO}}],
        [{"audio": {"data": AUDIO + "!"}}],
        [{"content": f'say "{AUDIO}" aloud'}],
        [{AUDIO: "audio"}],
    ],
)
def test_all_else_stays_as_it_was(log: object) -> None:
    sent = json.dumps(log).encode()
    assert omit_audio(sent) == sent


def test_the_same_text_elsewhere_stays() -> None:
    log = json.dumps([{"content": AUDIO, "audio": {"data": AUDIO}, "x": [AUDIO]}])
    assert json.loads(omit_audio(log.encode())) == [{"content": AUDIO, "audio": {"data": omitted()}, "x": [AUDIO]}]


def test_what_looks_like_the_marks_of_the_reading_is_left_alone() -> None:
    log = json.dumps([{"data": "audio-0-0", "audio": {"data": AUDIO, "chunk": "audio-0-7"}}])
    assert json.loads(omit_audio(log.encode())) == [
        {"data": "audio-0-0", "audio": {"data": omitted(), "chunk": "audio-0-7"}}
    ]


@pytest.mark.parametrize("before", range(0, 4200, 37))
def test_a_recording_is_found_wherever_it_stands(before: int) -> None:
    log = json.dumps([{"content": "é " * before, "audio": {"data": AUDIO}}], ensure_ascii=False)
    assert omit_audio(log.encode()) != log.encode()


@pytest.mark.parametrize("before", [0, 1, 63, 64, 65, 4_030, 4_032, 4_033, 4_034, 4_096, 4_097, 8_066, 9_999])
@pytest.mark.parametrize("size", [AUDIO_TEXT_MIN, AUDIO_TEXT_MIN + 1, 9_000])
def test_a_recording_is_found_wherever_it_begins(before: int, size: int) -> None:
    for filler in ("x ", "A"):
        log = json.dumps(
            [{"x": (filler * before)[:before], "audio": "A" * size}, {"url": "data:audio/wav;base64," + "B" * size}]
        )
        assert omit_audio(log.encode()).count(b'"omitted_bytes"') == 2


def test_sixteen_megabytes_of_anything_are_looked_through_at_once() -> None:
    began = time.process_time()
    for data in (b'"', b'"' * 4_000 + b"A" * 64, b'":', b"{},"):
        bytes_without_base64((data * ((1 << 24) // len(data) + 1))[: 1 << 24])
    assert time.process_time() - began < 1.0
