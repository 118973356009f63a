"""Reading one item of a log: who spoke, the words, the time and the name, in any format that is in use."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, cast

import msgspec
from msgspec import UNSET, Struct

from convo.conversation import voices
from convo.conversation.model import Speaker
from convo.conversation.sent import PLAIN_TYPES, PlainItem
from convo.conversation.times import Moment, moment
from convo.conversation.voices import Voice, bare

# A message may stand in an item (ChatGPT's nodes, LangChain's ``data``), its parts in a message, their text in a part.
_LEVELS_MAX = 8
_FIELDS_MAX = 10
_FIELD_CHARACTERS_MAX = 64
_NAME_CHARACTERS_MAX = 255

ItemFields = dict[str, Any]


class ItemReading(Struct, frozen=True, gc=False):
    """What one item says.

    ``who`` is ``None`` where the item is no turn. ``missed`` names the fields that could not be read: of an item that
    is no turn all of its fields, of a turn the time.
    """

    who: Speaker | None = None
    words: str = ""
    at: Moment | None = None
    name: str | None = None
    missed: tuple[str, ...] = ()
    unread: bool = False


_SILENT = ItemReading()

_CLASSIC_KEYS = {"role", "content", "timestamp", "id"}
_TEXT_PARTS = {"text", "input_text", "output_text"}


def read_item(item: object) -> ItemReading:
    """Read one item; never fails, whatever it holds."""
    return read_classic(item) or read_any(item)


def read_classic(item: object) -> ItemReading | None:
    """Read an item that needs no search: a plain one, or a role with text parts. ``None`` where it is another one."""
    if type(item) in PLAIN_TYPES:
        plain = cast("PlainItem", item)
        who: object = plain.who
        words: object = plain.words
        stamp: object = None if plain.timestamp is UNSET else plain.timestamp
    elif isinstance(item, dict) and item.keys() <= _CLASSIC_KEYS:
        who, words, stamp = item.get("role"), item.get("content"), item.get("timestamp")
        words = _plain_parts(words) if isinstance(words, list) else words
    else:
        return None
    voice = voices.PLAIN_SPEAKERS.get(who) if isinstance(who, str) else None
    if voice is None or not isinstance(words, str) or "\0" in words or not words.strip():
        return None
    try:
        return ItemReading(voice, words, None if stamp is None else moment(stamp))
    except (ValueError, OverflowError):
        return None


def _plain_parts(parts: list[Any]) -> str | None:
    try:
        if all(len(part) == 2 and part["type"] in _TEXT_PARTS for part in parts):
            return "\n".join([part["text"] for part in parts])
    except (KeyError, TypeError):
        pass
    return None


def read_any(item: object) -> ItemReading:
    """Read an item of any format."""
    if type(item) in PLAIN_TYPES:
        item = msgspec.to_builtins(item)
    if not isinstance(item, dict):
        return ItemReading(unread=True)
    return _SILENT if voices.is_silent_type(item.get("type")) else _read_fields(item)


def _read_fields(item: ItemFields) -> ItemReading:
    fields = {bare(key): value for key, value in item.items()}
    voice, holder = _voice(fields)
    if voice == "none":
        return _SILENT
    if voice is None:
        return _nobody(item, fields)
    found: list[str] = []
    missed = _say(fields, found)
    if words := _cleaned(found):
        at, odd_times = _time(item, holder)
        name = _name(fields, holder)
        return ItemReading(who=voice, words=words, at=at, name=name, missed=odd_times, unread=bool(odd_times))
    if missed or any(_is_odd(key, value) for key, value in fields.items()):
        return _unread(item)
    return _SILENT


def is_turn_like(item: object) -> bool:
    """Return whether an item of a list under an unknown name is a turn beyond doubt."""
    if not isinstance(item, dict):
        return False
    # A list of tags may well hold ``{"type": "user", "value": "vip"}``.
    strong = {key: value for key, value in item.items() if bare(key) not in voices.WEAK_WORD_FIELDS}
    weak = not any(voices.voice_of(value) for key, value in item.items() if bare(key) in voices.STRONG_SPEAKER_FIELDS)
    return read_item(strong if weak else item).who is not None


def hints_at_a_turn(item: object, *, wholly: bool = False) -> bool:
    """Return whether an item that may be no turn names a speaker, known or not, or holds words; ``wholly``: both."""
    if not isinstance(item, dict):
        return False
    fields = {bare(key): value for key, value in item.items() if bare(key) not in voices.WEAK_WORD_FIELDS}
    found: list[str] = []
    _say(fields, found)
    hints = bool(_cleaned(found)), any(not _is_blank(fields.get(field)) for field in voices.STRONG_SPEAKER_FIELDS)
    return all(hints) if wholly else any(hints)


# --- who


def _voice(fields: ItemFields) -> tuple[Voice | None, ItemFields]:
    """Find whose an item is, and the object that holds its message, which may be one level below."""
    for holder in _holders(fields):
        for field in voices.SPEAKER_FIELDS:
            value = holder.get(field)
            if value is not None and (voice := _voice_in(value)) is not None:
                return voice, holder
    return None, fields


def _holders(fields: ItemFields) -> Iterator[ItemFields]:
    yield fields
    for key in ("message", "content", "data", "kwargs"):
        below = fields.get(key)
        if isinstance(below, dict):
            yield {bare(name): value for name, value in below.items()}


def _voice_in(value: object) -> Voice | None:
    if isinstance(value, dict):
        speaker = {bare(key): below for key, below in value.items()}
        return next((voice for part in voices.SPEAKER_PARTS if (voice := voices.voice_of(speaker.get(part)))), None)
    return voices.voice_of(value)


def _nobody(item: ItemFields, fields: ItemFields) -> ItemReading:
    # Rasa's slots and actions, and what only organises a log, such as the root of ChatGPT's tree.
    if voices.is_silent_event(fields.get("event")) or voices.is_call(fields.get("type")):
        return _SILENT
    if item and all(_is_blank(value) or key in ("id", "parent", "children") for key, value in fields.items()):
        return _SILENT
    return _unread(item)


def _name(fields: ItemFields, holder: ItemFields) -> str | None:
    for place in (holder, fields) if holder is not fields else (fields,):
        for key in voices.NAME_FIELDS:
            if name := _as_name(place.get(key)):
                return name
        for key in voices.SPEAKER_FIELDS:
            value = place.get(key)
            if isinstance(value, dict):
                speaker = {bare(name): below for name, below in value.items()}
                found = next((name for part in voices.NAME_FIELDS if (name := _as_name(speaker.get(part)))), None)
                if found and voices.voice_of(found) is None:
                    return found
        # In a group the role says whose side it is, and the speaker who it was.
        for key in ("speaker", "sender", "author", "from", "participant"):
            if (name := _as_name(place.get(key))) and voices.voice_of(name) is None:
                return name
    return None


def _as_name(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    name = value.replace("\0", "").strip()[:_NAME_CHARACTERS_MAX]
    return name or None


# --- what was said


def _say(fields: ItemFields, found: list[str]) -> bool:
    """Collect an item's words from the first field that has any; return whether something spoken has none."""
    missed = False
    for field in voices.WORD_FIELDS:
        value = fields.get(field)
        if field in voices.OBJECT_FIELDS and not isinstance(value, dict):
            missed |= not _is_blank(value)
        elif value is not None:
            missed |= _collect(value, found, 0)
            if any(not _is_blank(words) for words in found):
                return missed
    return missed


def _collect(value: object, found: list[str], level: int) -> bool:
    if isinstance(value, str):
        found.append(value)
        return False
    if isinstance(value, list) and level < _LEVELS_MAX:
        missed = [_collect(part, found, level + 1) for part in value]
        return any(missed)
    if isinstance(value, dict) and level < _LEVELS_MAX:
        return _collect_part({bare(key): below for key, below in value.items()}, found, level)
    return value is not None


def _collect_part(part: ItemFields, found: list[str], level: int) -> bool:
    kind = part.get("type")
    if voices.is_silent_part(kind, part.get("contenttype")):
        return False
    # Gemini marks the parts that are thoughts.
    if part.get("thought") is True or any(key in voices.SILENT_PART_FIELDS for key in part):
        return False
    before = len(found)
    missed = False
    for field in voices.PART_WORD_FIELDS:
        below = part.get(field)
        if below is not None and (isinstance(below, dict) or field not in voices.OBJECT_FIELDS):
            missed |= _collect(below, found, level + 1)
            if len(found) > before:
                return missed
    return (
        missed
        or voices.is_audio_part(kind)
        or any(not _is_blank(below) for key, below in part.items() if key != "type")
    )


def _cleaned(found: list[str]) -> str:
    words = "\n".join(found)
    # PostgreSQL's text cannot hold NUL, and nobody has ever said it.
    if "\0" in words:
        words = words.replace("\0", "")
    return "" if words.isspace() else words


# --- when


def _time(item: ItemFields, holder: ItemFields) -> tuple[Moment | None, tuple[str, ...]]:
    """Find when an item was said: an instant before a distance, and that of a field that names its unit first."""
    instants: list[datetime] = []
    distances: list[tuple[bool, timedelta]] = []
    odd: list[str] = []
    for fields in (item, holder):
        for key, value in fields.items():
            name = bare(key)
            if name not in voices.TIME_FIELDS or _is_blank(value):
                continue
            unit = voices.TIME_FIELDS[name]
            try:
                at = moment(value, unit)
            except (ValueError, OverflowError):
                odd.append(key[:_FIELD_CHARACTERS_MAX])
            else:
                if isinstance(at, datetime):
                    instants.append(at)
                else:
                    distances.append((unit is None, at))
    if instants:
        return instants[0], ()
    return (min(distances)[1], ()) if distances else (None, tuple(dict.fromkeys(odd)))


# --- what could not be read


def _unread(item: ItemFields) -> ItemReading:
    return ItemReading(missed=tuple(key[:_FIELD_CHARACTERS_MAX] for key in list(item)[:_FIELDS_MAX]), unread=True)


def _is_odd(key: str, value: object) -> bool:
    """Return whether a field of an item without words may hold some all the same."""
    if key in voices.NUMBER_FIELDS:
        return _has_words(value)
    return key not in voices.SIDE_FIELDS and key not in voices.WORD_FIELDS and not _is_blank(value)


def _has_words(value: object) -> bool:
    if isinstance(value, str):
        return len(value.split(None, 2)) > 1
    if isinstance(value, dict):
        return any(_has_words(below) for below in value.values())
    return isinstance(value, list) and any(_has_words(below) for below in value)


def _is_blank(value: object) -> bool:
    if isinstance(value, str):
        stripped = value.replace("\0", "")
        return not stripped or stripped.isspace()
    if isinstance(value, dict):
        return all(_is_blank(below) for below in value.values())
    if isinstance(value, list):
        return all(_is_blank(below) for below in value)
    return value is None
