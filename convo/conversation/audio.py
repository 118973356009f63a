"""Leaving recordings out of a log: their base64 text is replaced by its length and its hash, all else stays as it was.

A recording is a text of more than 4 KB of base64 in one of these places, whatever stands around it:

- under ``audio_data``, ``audio_base64``, ``audio_bytes``, ``audio_content`` or ``base64_audio``, in any spelling of
  these names (``audioData``, …), and under ``audio`` itself;
- under ``data``, ``bytes``, ``base64``, ``content``, ``payload``, ``chunk`` or ``body``, in any depth below ``audio``
  or ``input_audio``, ``output_audio``, ``recording``, or beside a field whose value starts with ``audio/`` (a media
  type: ``mime_type``, ``mediaType``, …) or a ``type`` that is a kind of audio;
- anywhere as a ``data:audio/…;base64,`` URL.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from convo.conversation.sent import read_json
from convo.conversation.voices import bare

AUDIO_TEXT_MIN = 4097

_AUDIO_FIELDS = frozenset({"audio", "audiodata", "audiobase64", "audiobytes", "audiocontent", "base64audio"})
_DATA_FIELDS = frozenset({"data", "bytes", "base64", "content", "payload", "chunk", "body"})
_AUDIO_PLACES = frozenset({"audio", "inputaudio", "outputaudio", "recording"})
_AUDIO_TYPES = frozenset({"audio", "inputaudio", "outputaudio", "recording", "voice"})
# A slash may be written as ``\\/``, and a line may end in ``\\n``. A URL begins with its media type.
_TEXT = re.compile(rb'(?<!\\)"((?:data:audio[A-Za-z0-9.+=;/\\-]{1,100},)?[A-Za-z0-9+/=_\\-]{%d,}+)"' % AUDIO_TEXT_MIN)
_ESCAPES = ((b"\\/", b"/"), (b"\\n", b"\n"), (b"\\r", b"\r"))
# No text of that length avoids all the windows: one in about 4,000 bytes is looked at, and the pattern is tried only
# where a window could be base64. To search a whole log for the pattern would take as long as reading it, and 2 s for
# 16 MB of quotes, in which no other thread gets the interpreter.
_WINDOW_BYTES = 64
_STEP_BYTES = AUDIO_TEXT_MIN - _WINDOW_BYTES
_URL_BYTES_MAX = 128
_MARK = re.compile(rb"audio-([0-9]{1,9})-")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=_\\-]")


def omit_audio(log: bytes) -> bytes:
    """Return the JSON of a log with every recording in it replaced by ``{"omitted_bytes": n, "sha256": "…"}``.

    Both are of the text as it was sent: base64, not decoded. A log without one is returned as it is.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError: it cannot be read.
    """
    if len(log) < AUDIO_TEXT_MIN:
        return log
    texts = [text for text in _long_texts(log) if b"\\" not in _unescaped(text[1])]
    if not texts:
        return log
    # The log is read with a mark in the place of each text, to see in which places the texts stand.
    mark = _unused(log)
    marked = _replaced(log, {text: b'"%s%d"' % (mark, number) for number, text in enumerate(texts)})
    urls = {number for number, text in enumerate(texts) if text[1].startswith(b"data:")}
    found = urls | {int(value[len(mark) :]) for value in _audio(read_json(marked)) if value.startswith(mark.decode())}
    return _replaced(log, {texts[number]: _omission(texts[number][1]) for number in sorted(found)})


def bytes_without_base64(data: bytes) -> int:
    """Return how long a JSON text is without its long texts of base64, which may all be recordings."""
    return len(data) - sum(len(text[1]) for text in _long_texts(data))


def _long_texts(log: bytes) -> Iterator[re.Match[bytes]]:
    at = end = 0
    while at <= len(log) - _WINDOW_BYTES:
        if _NOT_BASE64.search(log, at, at + _WINDOW_BYTES):
            at += _STEP_BYTES
            continue
        # A text that began a step earlier would have filled the window before this one.
        start = log.rfind(b'"', max(end, at - _STEP_BYTES - _URL_BYTES_MAX), at)
        text = _TEXT.match(log, start) if start >= 0 else None
        if text:
            yield text
            at = end = text.end()
        else:
            # Whatever this is, no text can begin in it.
            after = _NOT_BASE64.search(log, at)
            at = len(log) if after is None else after.end()


def _unused(log: bytes) -> bytes:
    # All that are used are found in one pass: to look for one after the other took 1.2 s for a log with 16,000 of them.
    used = set(_MARK.findall(log))
    number = 0
    while b"%d" % number in used:
        number += 1
    return b"audio-%d-" % number


def _replaced(log: bytes, by: dict[re.Match[bytes], bytes]) -> bytes:
    pieces: list[bytes] = []
    end = 0
    for text, replacement in by.items():
        pieces += (log[end : text.start()], replacement)
        end = text.end()
    return b"".join((*pieces, log[end:]))


def _omission(text: bytes) -> bytes:
    sent = _unescaped(text)
    return b'{"omitted_bytes":%d,"sha256":"%s"}' % (len(sent), hashlib.sha256(sent).hexdigest().encode())


def _unescaped(text: bytes) -> bytes:
    for escape, character in _ESCAPES:
        text = text.replace(escape, character)
    return text


def _audio(value: Any, *, below_audio: bool = False) -> Iterator[str]:
    """Yield the texts that stand where recordings do."""
    if isinstance(value, list):
        for below in value:
            yield from _audio(below, below_audio=below_audio)
    elif isinstance(value, dict):
        beside_audio = below_audio or _is_audio(value)
        for key, below in value.items():
            name = bare(key)
            if isinstance(below, str):
                if name in _AUDIO_FIELDS or (beside_audio and name in _DATA_FIELDS):
                    yield below
            else:
                yield from _audio(below, below_audio=beside_audio or name in _AUDIO_PLACES)


def _is_audio(value: dict[str, Any]) -> bool:
    kind = value.get("type")
    return (isinstance(kind, str) and bare(kind) in _AUDIO_TYPES) or any(
        isinstance(below, str) and below[:6].lower() == "audio/" for below in value.values()
    )
