"""A log as it was sent: reading the items out of its bytes, and the one form in which two logs are compared.

Two logs are the same where their items are: white space, the order of the keys and the way a character is escaped do
not matter, for a client may write its JSON anew for a retry. All else does, and numbers are compared as they are
written: ``1.0`` is not ``1.00``. Of two equal keys in one object the last one counts. (To compare the bytes themselves
would make a conflict of such a retry, which no client could mend.)
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

LEVELS_MAX = 100
"""How deep an item may be nested: the worker that reads it again stands on a deeper stack than the accept path."""

_DECODER = msgspec.json.Decoder(float_hook=lambda text: Raw(text.encode()))
_ENCODER = msgspec.json.Encoder(order="sorted")
# Python reads no longer integer from a text.
_DIGITS_MAX = 4000


class PlainItem(Struct, frozen=True, kw_only=True, gc=False):
    """An item of one of the four oldest formats with nothing else in it.

    Most logs are nothing but these. Read as Structs they take three quarters of the time that dictionaries do.
    """

    who: str
    words: str
    turn_id: str | int | UnsetType = UNSET
    timestamp: str | UnsetType = UNSET


class _ByCharacter(PlainItem, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    who: str = msgspec.field(name="character")
    words: str = msgspec.field(name="content")


class _BySpeaker(PlainItem, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    who: str = msgspec.field(name="speaker")
    words: str = msgspec.field(name="text")


class _ByRole(PlainItem, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    who: str = msgspec.field(name="role")
    words: str = msgspec.field(name="content")


class _ByFrom(PlainItem, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    who: str = msgspec.field(name="from")
    words: str = msgspec.field(name="value")


PLAIN_TYPES = frozenset({_ByCharacter, _BySpeaker, _ByRole, _ByFrom})
"""To be asked with ``type(item) in``: of a Struct ``isinstance`` takes as long as reading the item."""

_FIRST_FIELD = re.compile(rb'\[\s*\{\s*"(character|speaker|role|from)"')
_PLAIN_DECODERS: dict[bytes, msgspec.json.Decoder[Any]] = {
    b"character": msgspec.json.Decoder(list[_ByCharacter]),
    b"speaker": msgspec.json.Decoder(list[_BySpeaker]),
    b"role": msgspec.json.Decoder(list[_ByRole]),
    b"from": msgspec.json.Decoder(list[_ByFrom]),
}


def read_log(log: bytes) -> Any:
    """Read a log as it was sent: ``PlainItem``s if all its items are of one plain format, else as ``read_json`` does.

    ``write_json`` makes the same bytes of both.
    """
    first = _FIRST_FIELD.match(log)
    if first:
        try:
            return _PLAIN_DECODERS[first[1]].decode(log)
        except msgspec.ValidationError:
            pass
    return read_json(log)


def read_json(data: bytes | Raw) -> Any:
    """Read JSON, as it is compared: a float, and an integer of thousands of digits, as the ``Raw`` bytes of its text.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: it is not JSON, or nested too deeply.
    """
    try:
        return _DECODER.decode(data)
    except msgspec.ValidationError:
        # There is one number that it does not read: an integer that is too long.
        return json.loads(bytes(data), parse_int=_long_int, parse_float=_raw)


def write_json(value: Any) -> bytes:
    """Write what ``read_json`` returned in one form: no white space, sorted keys, only the escapes that JSON needs."""
    return _ENCODER.encode(value)


def items_of(value: Any) -> list[Any]:
    """Return the items of a log that is read: a list's, or the nodes of ChatGPT's tree from its root on."""
    if isinstance(value, list):
        return value
    return _nodes(value) if isinstance(value, dict) else []


def is_too_deep(value: Any) -> bool:
    """Return whether a value is nested deeper than ``LEVELS_MAX``."""
    if isinstance(value, dict) and not any(isinstance(below, list | dict) for below in value.values()):
        return False
    level = [value]
    for _ in range(LEVELS_MAX):
        level = [
            below
            for outer in level
            if isinstance(outer, list | dict)
            for below in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(below, list | dict)
        ]
        if not level:
            return False
    return True


def _nodes(tree: dict[str, Any]) -> list[Any]:
    """Return the nodes of a tree whose nodes name their children, each before its children; the rest as they stand."""
    ordered: dict[str, Any] = {}
    parents = {key: node.get("parent") if isinstance(node, dict) else None for key, node in tree.items()}
    waiting = [key for key, parent in parents.items() if not isinstance(parent, str) or parent not in tree]
    waiting.reverse()
    while waiting:
        key = waiting.pop()
        if key not in ordered and key in tree:
            node = ordered[key] = tree[key]
            children = node.get("children") if isinstance(node, dict) else None
            if isinstance(children, list):
                waiting += [child for child in reversed(children) if isinstance(child, str)]
    return [*ordered.values(), *(node for key, node in tree.items() if key not in ordered)]


def _long_int(text: str) -> int | Raw:
    return int(text) if len(text) < _DIGITS_MAX else Raw(text.encode())


def _raw(text: str) -> Raw:
    return Raw(text.encode())
