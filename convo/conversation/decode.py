"""Reading the bytes of a request body: the conversation that was sent, its log as it was sent, what was ignored."""

from __future__ import annotations

import re
import sys
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

from convo import errors
from convo.conversation.audio import bytes_without_base64, omit_audio
from convo.conversation.found_log import LOG_NAMES, find_log, refuse_vcon
from convo.conversation.item_count import refuse_more_items, too_many_items
from convo.conversation.model import ConversationEnded
from convo.conversation.nesting import BODY_LEVELS_MAX, TOO_DEEP, is_nested_deeper, too_deep
from convo.conversation.sent import LEVELS_MAX, is_too_deep, items_of, read_json, read_log, write_json

IGNORED_MAX = 10
METADATA_BYTES_MAX = 16_384

_BOM = b"\xef\xbb\xbf"


class _Body(ConversationEnded, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A body of which all is kept."""


class _Usual(_Body, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """The same, with ids that are not checked yet: a regular expression takes as long as all the rest."""

    conversation_id: str
    user_id: str
    bot_id: str


_USUAL_DECODER = msgspec.json.Decoder(_Usual)
_DECODER = msgspec.json.Decoder(ConversationEnded)
_WHOLE_DECODER = msgspec.json.Decoder(_Body)
_FIELDS_DECODER = msgspec.json.Decoder(dict[str, Raw])
_ANY_JSON = msgspec.json.Decoder(Raw)
_KNOWN = ConversationEnded.__struct_encode_fields__
_IDS = ("conversation_id", "user_id", "bot_id")
_INTEGER = re.compile(rb"-?[0-9]{1,255}")
_NO_ITEMS = re.compile(rb"\s*(?:null|\[\s*\])\s*")
_NAME_CHARACTERS_MAX = 64

_PATH = re.compile(r" - at `(\$[^`]*)`\Z")
# The Structs' patterns are for the decoder to read, not for people.
_WANTED = "must be text without control characters, and an id of 1 to 255 characters other than `.` and `..`"
_WANTED_OF = {
    "$.language": "must be a BCP 47 language tag: vi, en-US, zh-Hant-TW",
    "$.timezone": "must be the IANA name of a time zone: Asia/Ho_Chi_Minh, UTC",
}
_MISSING = re.compile(r"missing required field `([^`]+)`")
# The decoder wants six bytes after the first half of a pair; where fewer are left it says that the input was truncated.
_LONE_AT_END = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89abAB][0-9a-fA-F]{2}(?:[^\\]|\\[^u])[^\\]{0,4}\Z")
_LONE_BYTES = 64
_LONE = "a \\u escape stands for half a character (a lone surrogate)"


class SentLog(Struct, frozen=True, gc=False):
    """A log as it was sent, but for recordings; ``compared`` is the form that the digest is made of.

    ``name`` is the field that it came in. Of a log that is null or missing, the bytes are those of an empty one.
    """

    name: str
    log: bytes
    items: list[Any]
    compared: bytes


class Received(Struct, frozen=True, gc=False):
    """A body that is read.

    ``metadata_compared`` is the form of ``ended.metadata`` that the digest is made of, empty where there is none.
    ``ignored`` names fields that are not kept. ``kept_bytes`` is the length of the body without recordings.
    """

    ended: ConversationEnded
    sent: SentLog
    metadata_compared: bytes
    ignored: tuple[str, ...]
    kept_bytes: int


def decode(body: bytes, *, kept_bytes_max: int = sys.maxsize, items_max: int = sys.maxsize) -> Received:
    """Decode the body of a finished conversation, as sent.

    Of duplicate keys the last one counts. Ignored fields are read past: they must be JSON of at most ``LEVELS_MAX``
    levels, but may hold anything, unless there is no log and one of them looks like it.

    Raises:
        TooLarge: without its recordings, the body is longer than ``kept_bytes_max``.
        BadRequest: the body is not JSON, or not UTF-8.
        Invalid: it is JSON, but not a conversation, its log has more than ``items_max`` items, or it is nested too
            deeply; the path names the field.
    """
    body = body.removeprefix(_BOM)
    # An item takes two bytes at least.
    if len(body) > kept_bytes_max or len(body) // 2 > items_max:
        return _decode_long(body, kept_bytes_max, items_max)
    return _log_at_the_end(body) or _decode(body)


def _decode_long(body: bytes, kept_bytes_max: int, items_max: int) -> Received:
    # As values JSON can take 30 times its length, so what is too long in any case is not read at all.
    if len(body) > kept_bytes_max and (kept_bytes := bytes_without_base64(body)) > kept_bytes_max:
        raise _too_large(kept_bytes, kept_bytes_max)
    refuse_more_items(body, items_max)
    received = _log_at_the_end(body) or _decode(body)
    if received.kept_bytes > kept_bytes_max:
        raise _too_large(received.kept_bytes, kept_bytes_max)
    if len(received.sent.items) > items_max:
        raise too_many_items(received.sent.name, items_max)
    if len(body) > kept_bytes_max:
        _forget_recordings(received)
    return received


def _forget_recordings(received: Received) -> None:
    """Let go of what is not stored, which may be 16 MB until the commit.

    The log as it was sent is there for digests of version 1, and no body of that version was longer than
    ``kept_bytes_max``. Each ``Raw`` would keep the whole body.
    """
    ended, sent = received.ended, received.sent
    for name in LOG_NAMES:
        msgspec.structs.force_setattr(ended, name, Raw(sent.log) if name == sent.name else UNSET)
    if ended.metadata is not UNSET:
        msgspec.structs.force_setattr(ended, "metadata", ended.metadata.copy())


def _too_large(kept_bytes: int, kept_bytes_max: int) -> errors.TooLarge:
    return errors.TooLarge(
        f"without its recordings the body has {kept_bytes} bytes, over web.body_bytes_max = {kept_bytes_max} bytes"
    )


def _log_at_the_end(body: bytes) -> Received | None:
    """Read a body whose last field is the log, as most are; ``None`` for any other, and for all that is wrong.

    The log is cut out and read once: the decoder would read past it first. If both what is cut out and what is left
    are JSON, and the body ends with the object that the log stood in, then they are what the whole body says.
    """
    key = _LOG_KEY.match(body, max(0, body.find(_LOG_KEY_START)))
    end = body.rfind(b"]") + 1
    if key is None or not end or len(body) - end > _END_BYTES_MAX:
        return None
    start = key.end()
    try:
        ended = _USUAL_DECODER.decode(b"%bnull%b" % (body[:start], body[end:]))
        name = _SPELLINGS[key[1]]
        if _LOGS(ended) != _CUT_OUT[name] or body[end:].strip() != b"}" or not all(map(_is_usual_id, _OWN_IDS(ended))):
            return None
        sent_log = body[start:end]
        sent = _sent_log(name, sent_log, tree=False)
        metadata_compared = b"" if ended.metadata is UNSET else _metadata_compared(ended.metadata)
    except (ValueError, RecursionError, errors.Invalid):
        return None
    msgspec.structs.force_setattr(ended, name, Raw(sent_log))
    omitted_bytes = len(sent_log) - len(sent.log) if sent.items else 0
    return Received(ended, sent, metadata_compared, (), len(body) - omitted_bytes)


def _is_usual_id(text: str) -> bool:
    """Return whether a text is an id for certain, as all but a few are: what is not is compared with the pattern."""
    return 0 < len(text) <= _ID_CHARACTERS_MAX and text.isprintable() and text not in _DOT_SEGMENTS


def _decode(body: bytes) -> Received:
    try:
        return _decode_any(body)
    except RecursionError as error:
        raise too_deep("$") from error
    except (errors.BadRequest, errors.Invalid) as error:
        # Another Python would have given up before it came to what is wrong.
        if error.detail != TOO_DEEP and is_nested_deeper(body, BODY_LEVELS_MAX):
            raise too_deep("$") from error
        raise


def _decode_any(body: bytes) -> Received:
    try:
        try:
            ended = _WHOLE_DECODER.decode(body)
        except msgspec.ValidationError:
            # A field that is not kept, or a value that does not fit: each costs a second look.
            return _field_by_field(body)
        return _received(ended, len(body))
    except msgspec.ValidationError as error:
        _require_json(body)
        raise _invalid(str(error)) from error
    except msgspec.DecodeError as error:
        raise _not_json(body, error) from error
    except UnicodeDecodeError as error:
        raise errors.BadRequest("the body is not UTF-8") from error
    except UnicodeEncodeError as error:
        raise errors.BadRequest(f"the body is not JSON: {_LONE}") from error


def _field_by_field(body: bytes) -> Received:
    try:
        fields = _FIELDS_DECODER.decode(body)
    except msgspec.ValidationError:
        _DECODER.decode(body)
        raise
    refuse_vcon(fields)
    kept = {name: _as_text(raw) if name in _IDS else raw for name, raw in fields.items() if name in _KNOWN}
    others = {name: raw for name, raw in fields.items() if name not in _KNOWN}
    # Written anew, the bytes of each value are what they were.
    ended = _DECODER.decode(msgspec.json.encode(kept))
    found = None
    if all(_NO_ITEMS.fullmatch(kept.get(name, b"null")) for name in LOG_NAMES) and (name := find_log(others)):
        found = name, others.pop(name)
    for name, raw in others.items():
        if len(raw) > LEVELS_MAX and is_nested_deeper(bytes(raw), LEVELS_MAX):
            raise too_deep(f"$.{name[:_NAME_CHARACTERS_MAX]}")
    ignored = tuple(name[:_NAME_CHARACTERS_MAX] for name in list(others)[:IGNORED_MAX])
    return _received(ended, len(body), found=found, ignored=ignored)


def _as_text(raw: Raw) -> Raw:
    """Write an integer id as text."""
    return Raw(b'"%s"' % bytes(raw)) if _INTEGER.fullmatch(raw) else raw


def _received(
    ended: ConversationEnded, body_bytes: int, *, found: tuple[str, Raw] | None = None, ignored: tuple[str, ...] = ()
) -> Received:
    sent, omitted_bytes = _NOTHING, 0
    for name, raw in (found,) if found else zip(LOG_NAMES, _LOGS(ended), strict=True):
        if raw is UNSET:
            continue
        log = _sent_log(name, raw, tree=found is not None)
        omitted_bytes += len(raw) - len(log.log) if log.items else 0
        if sent.items and log.items and sent.compared != log.compared:
            raise errors.Invalid("differs from conversation_log: send one of the two", path="$.conversation_logs")
        # An empty log is more than null, and null more than none at all.
        if not sent.items and (log.items or not sent.compared or log.compared == b"[]"):
            sent = log
    metadata_compared = b"" if ended.metadata is UNSET else _metadata_compared(ended.metadata)
    return Received(ended, sent, metadata_compared, ignored, body_bytes - omitted_bytes)


_OWN_IDS = attrgetter(*_IDS)
_ID_CHARACTERS_MAX = 255
_DOT_SEGMENTS = frozenset({".", ".."})
_LOGS = attrgetter(*LOG_NAMES)
_NOTHING = SentLog(LOG_NAMES[0], b"[]", [], b"")

_LOG_KEY_START = b'"conversation_log'
_LOG_KEY = re.compile(rb'"(conversation_logs?)"\s*:\s*(?=\[)')
_SPELLINGS = {name.encode(): name for name in LOG_NAMES}
_CUT_OUT = {name: tuple(Raw(b"null") if name == other else UNSET for other in LOG_NAMES) for name in LOG_NAMES}
# A body that ends with its log has only a brace and white space after it.
_END_BYTES_MAX = 64


def _sent_log(name: str, raw: Raw | bytes, *, tree: bool) -> SentLog:
    log = omit_audio(bytes(raw))
    value = read_log(log)
    if value is None:
        return SentLog(name, b"[]", [], b"null")
    if not isinstance(value, list) and not (tree and isinstance(value, dict)):
        raise errors.Invalid("must be a list of items", path=f"$.{name}")
    return SentLog(name, log, items_of(value), write_json(value))


def _metadata_compared(raw: Raw) -> bytes:
    value = read_json(raw)
    if len(raw) > METADATA_BYTES_MAX:
        raise errors.Invalid(f"must be at most {METADATA_BYTES_MAX} bytes of JSON", path="$.metadata")
    if value is not None and not isinstance(value, dict):
        raise errors.Invalid("must be an object", path="$.metadata")
    if is_too_deep(value):
        raise too_deep("$.metadata")
    return write_json(value)


def _require_json(body: bytes) -> None:
    # A field that does not fit stops the decoder before it has seen the rest, which may not even be JSON.
    try:
        _ANY_JSON.decode(body)
    except msgspec.DecodeError as error:
        raise _not_json(body, error) from error


def _not_json(body: bytes, error: msgspec.DecodeError) -> errors.BadRequest:
    if "hex escape" in str(error):
        # Of what it only reads past the decoder does not say what is wrong with an escape.
        try:
            read_json(body)
        except (msgspec.DecodeError, ValueError, RecursionError) as reason:
            return errors.BadRequest(f"the body is not JSON: {_LONE if 'surrogate' in str(reason) else error}")
    lone = "surrogate" in str(error) or ("truncated" in str(error) and _LONE_AT_END.search(body[-_LONE_BYTES:]))
    return errors.BadRequest(f"the body is not JSON: {_LONE if lone else error}")


def _invalid(text: str) -> errors.Invalid:
    at = _PATH.search(text)
    path = at[1] if at else "$"
    missing = _MISSING.search(text)
    if missing:
        path = f"{path}.{missing[1]}"
    if "matching regex" in text:
        return errors.Invalid(_WANTED_OF.get(path, _WANTED), path=path)
    return errors.Invalid(text[: at.start()] if at else text, path=path)
