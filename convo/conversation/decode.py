"""The bytes of a request body become the conversation that was sent; what its log means is ``transcript``'s affair."""

from __future__ import annotations

import re

import msgspec

from convo import errors
from convo.conversation.model import ConversationEnded

_DECODER = msgspec.json.Decoder(ConversationEnded)
_ANY_JSON = msgspec.json.Decoder(msgspec.Raw)
_PATH = re.compile(r" - at `(\$[^`]*)`\Z")
# The Structs' patterns are for the decoder to read, not for people.
_WANTED = "must be text without control characters, and an id of 3 to 255 characters without `/`"
_MISSING = re.compile(r"missing required field `([^`]+)`")
# The decoder wants six bytes after the first half of a pair; where fewer are left it says that the input was truncated.
_LONE_AT_END = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89abAB][0-9a-fA-F]{2}(?:[^\\]|\\[^u])[^\\]{0,4}\Z")
_LONE_BYTES = 64
_LONE = "a \\u escape stands for half a character (a lone surrogate)"


def decode(body: bytes) -> ConversationEnded:
    """Decode the body of a finished conversation, as sent.

    Of duplicate keys the last one counts. Ignored fields are read past: they must be JSON, but may hold anything.

    Raises:
        BadRequest: the body is not JSON, not UTF-8, or nested deeper than any conversation is.
        Invalid: it is JSON, but not a conversation; the path names the field.
    """
    try:
        return _DECODER.decode(body)
    except msgspec.ValidationError as error:
        _require_json(body)
        raise _invalid(str(error)) from error
    except msgspec.DecodeError as error:
        raise _not_json(body, error) from error
    except UnicodeDecodeError as error:
        raise errors.BadRequest("the body is not UTF-8") from error
    except RecursionError as error:
        raise errors.BadRequest("the body is nested too deeply") from error


def _require_json(body: bytes) -> None:
    # A field that does not fit stops the decoder before it has seen the rest, which may not even be JSON.
    try:
        _ANY_JSON.decode(body)
    except msgspec.DecodeError as error:
        raise _not_json(body, error) from error
    except RecursionError as error:
        raise errors.BadRequest("the body is nested too deeply") from error


def _not_json(body: bytes, error: msgspec.DecodeError) -> errors.BadRequest:
    lone = "surrogate" in str(error) or ("truncated" in str(error) and _LONE_AT_END.search(body[-_LONE_BYTES:]))
    return errors.BadRequest(f"the body is not JSON: {_LONE if lone else error}")


def _invalid(text: str) -> errors.Invalid:
    at = _PATH.search(text)
    path = at[1] if at else "$"
    missing = _MISSING.search(text)
    if missing:
        path = f"{path}.{missing[1]}"
    if "matching regex" in text:
        return errors.Invalid(_WANTED, path=path)
    return errors.Invalid(text[: at.start()] if at else text, path=path)
