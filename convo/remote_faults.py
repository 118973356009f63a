"""Reads what a service says is wrong out of the body of its answer, in the forms that public services have.

The texts that it finds are for comparing only: a service may quote in them what it was sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

# In order: OpenAI's and most others', Google's, and names of classes (DeploymentNotFound, BadRequestError).
_CODE = re.compile(r"[a-z0-9_.-]{1,64}|[A-Z][A-Z0-9_]{1,63}|[A-Z][A-Za-z]{1,47}", re.ASCII)
_MESSAGE_CHARS_MAX = 2_000
_BOM = b"\xef\xbb\xbf"
_ERROR_STATUSES = range(400, 600)
_WORD_KEYS = ("code", "type", "status", "reason", "name", "error_code", "error_type")


class RemoteFault(Struct, frozen=True, kw_only=True):
    """What a service says is wrong.

    ``code`` may be shown. ``words`` are all its codes, types and reasons in lower case, ``message`` its sentences in
    lower case, ``parameter`` the field of the request that it names, ``status`` the HTTP status that stands in the
    body. Empty, or None, where it says nothing of the kind.
    """

    code: str = ""
    words: frozenset[str] = frozenset()
    message: str = ""
    parameter: str = ""
    status: int | None = None


def decoded(body: bytes) -> Any:
    """Decode a body as JSON, with or without a byte-order mark; None where it is none."""
    try:
        return msgspec.json.decode(body.removeprefix(_BOM))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def fault_in(body: bytes) -> RemoteFault:
    """Read the body of a refusal; where it is no JSON, all of it is the message."""
    value = decoded(body)
    if value is None:
        return RemoteFault(message=_text(body.decode("utf-8", "replace")))
    error = _error_of(value)
    return RemoteFault() if error is None else _fault(error)


def fault_in_value(value: Any) -> RemoteFault | None:
    """Read the error in the decoded body of an answer that is good by its status; None where there is none."""
    if isinstance(value, list):
        return next((found for one in value[:10] if (found := fault_in_value(one)) is not None), None)
    if not isinstance(value, dict):
        return None
    marked = (
        value.get("error") or value.get("errors") or value.get("object") == "error" or value.get("success") is False
    )
    error = _error_of(value) if marked else None
    return None if error is None else _fault(error)


# --- the forms


def _error_of(value: Any) -> dict[str, Any] | None:  # noqa: PLR0911  (one form each)
    """Find the error: ``{"error": …}``, the same in a list, ``errors``, ``detail``, or the object itself."""
    match value:
        case [first, *_]:
            return _error_of(first)
        case {"error": dict(error)} if error:
            # Anthropic's and mem0's siblings say what it is, too.
            return {**{key: value[key] for key in _WORD_KEYS if key in value}, **error}
        case {"error": str(message)} if message:
            return {**value, "message": message}
        case {"error": [first, *_]} | {"errors": [first, *_]} | {"detail": [first, *_]}:
            return _listed(first)
        case {"detail": dict(error)}:
            return error
        case {"detail": str(message)}:
            return {**value, "message": message}
        case dict():
            return value
        case _:
            return None


def _listed(first: Any) -> dict[str, Any]:
    match first:
        # FastAPI's: where it is wrong, and how.
        case {"loc": [*places], "msg": str(message), **others}:
            parameter = ".".join(str(place) for place in places if place != "body")
            return {"param": parameter, "message": message, "type": others.get("type")}
        case dict():
            return first
        case _:
            return {"message": str(first)}


def _fault(error: dict[str, Any]) -> RemoteFault:
    words = [word for word in _words(error, 0) if _CODE.fullmatch(word)]
    parameter = error.get("param")
    texts = [text for text in (error.get("message"), error.get("msg"), *_upstream(error)) if isinstance(text, str)]
    return RemoteFault(
        code=next((word for word in _shown_first(error, words) if not word.isdigit()), ""),
        words=frozenset(word.lower() for word in words),
        message=_text("\n".join(texts)),
        parameter=parameter if isinstance(parameter, str) else "",
        status=next((status for key in ("code", "status", "statusCode") if (status := _status(error.get(key)))), None),
    )


def _shown_first(error: dict[str, Any], words: list[str]) -> list[str]:
    # Google's own code is a number, and its status the same for all mistakes: the reason says which it was.
    reasons = [word for word in _words(error.get("details"), 1) if word in words]
    return reasons + words if _status(error.get("code")) else words


def _words(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, list):
        for one in value[:10]:
            yield from _words(one, depth + 1)
    elif isinstance(value, dict) and depth <= 3:
        yield from (value[key] for key in _WORD_KEYS if isinstance(value.get(key), str))
        for key in ("innererror", "details", "metadata", "content_filter_result"):
            yield from _words(value.get(key), depth + 1)
        if value.get("flagged_input") is not None:
            yield "flagged_input"


def _upstream(error: dict[str, Any]) -> Iterator[Any]:
    """Yield what a router hands on of the server behind it."""
    metadata = error.get("metadata")
    if isinstance(metadata, dict):
        yield metadata.get("raw")
    details = error.get("details")
    yield details if isinstance(details, str) else None


def _status(value: Any) -> int | None:
    number = int(value) if isinstance(value, str) and re.fullmatch(r"\d{3}", value) else value
    return number if isinstance(number, int) and number in _ERROR_STATUSES else None


def _text(text: str) -> str:
    return text[:_MESSAGE_CHARS_MAX].lower()
