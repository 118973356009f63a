"""Finding a log that stands under another name than ``conversation_log``, so that no words are lost in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Raw

from convo import errors
from convo.conversation.item import hints_at_a_turn, is_turn_like
from convo.conversation.sent import items_of, read_json

LOG_NAMES = ("conversation_log", "conversation_logs")
OTHER_LOG_NAMES = (
    *("messages", "transcript", "turns", "history", "items", "mapping", "conversation", "dialogue", "dialog"),
    *("events", "utterances", "log", "logs", "chat", "chat_history", "message_history", "conversations"),
    *("transcript_object", "transcripts", "sentences", "segments", "entries", "conversation_history"),
)
"""The names under which a log is read where there is none under its own, in order of precedence."""

# A list of objects of such a name is nothing else, whatever the objects hold.
_CERTAIN_NAMES = {"messages", "transcript", "turns", "utterances", "chat_history", "message_history"}

_LEVELS_MAX = 3
_PATH_CHARACTERS_MAX = 198
_TEXT_OR_MORE = (b"[", b"{", b'"')


def find_log(fields: Mapping[str, Raw]) -> str | None:
    """Return the name of the field that holds the log of a body that has none under its own name.

    Raises:
        Invalid: there is one where it is not read; the text names the field that was found and the one that is meant.
    """
    read = {name: _read(raw) for name, raw in fields.items()}
    for name in OTHER_LOG_NAMES:
        if name in read and any(_is_of_a_log(item, name) for item in items_of(read[name])):
            return name
    for name in OTHER_LOG_NAMES:
        if isinstance(read.get(name), str) and read[name].strip():
            raise _elsewhere(name, "holds a text")
    for name, value in read.items():
        for path in _lists_of_turns(name, value, 0):
            raise _elsewhere(path, "holds objects with a speaker and words")
    return None


def refuse_vcon(fields: Mapping[str, Raw]) -> None:
    """Refuse the IETF's vCon, signed or not, by its name.

    Raises:
        Invalid: the body is a vCon.
    """
    if "conversation_id" in fields:
        return
    plain = "vcon" in fields or {"parties", "dialog"} <= fields.keys() or {"uuid", "parties"} <= fields.keys()
    if plain or {"payload", "signatures"} <= fields.keys() or {"ciphertext", "recipients"} <= fields.keys():
        raise errors.Invalid(
            "this is a vCon, which is not read: send conversation_id, user_id, bot_id and the dialog as"
            " conversation_log, a list of {role, content, timestamp}",
            path="$",
        )


def _read(raw: Raw) -> Any:
    try:
        return read_json(raw) if bytes(memoryview(raw)[:1]) in _TEXT_OR_MORE else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # A field that is not stored may hold anything.
        return None


def _is_of_a_log(item: object, name: str) -> bool:
    if name in _CERTAIN_NAMES:
        return isinstance(item, dict) and bool(item)
    return is_turn_like(item) or hints_at_a_turn(item)


def _lists_of_turns(path: str, value: Any, level: int) -> Iterator[str]:
    if isinstance(value, list):
        if any(is_turn_like(item) or hints_at_a_turn(item, wholly=True) for item in value):
            yield path
    elif isinstance(value, dict) and level < _LEVELS_MAX:
        # Cut, for otherwise a long name would be copied for each of the many fields below it.
        before = path[:_PATH_CHARACTERS_MAX]
        for key, below in value.items():
            if isinstance(below, list | dict):
                yield from _lists_of_turns(f"{before}.{key}", below, level + 1)


def _elsewhere(path: str, what: str) -> errors.Invalid:
    path = path[:_PATH_CHARACTERS_MAX]
    return errors.Invalid(
        f"{path} {what}, and there is no conversation_log: send the log as conversation_log, a list of objects"
        f" such as {{role, content, timestamp}} (a list is read as well under {', '.join(OTHER_LOG_NAMES)})",
        path=f"$.{path}",
    )
