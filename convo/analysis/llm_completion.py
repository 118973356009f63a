"""Reads the body of a chat completion: the texts in it, why the model stopped, and an error that stands in it.

Servers put the text in different places: in parts, in tool calls, in an event stream, beside it or in the thoughts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from convo.analysis.llm_usage import USAGE_KEYS, Tokens, usage_in
from convo.remote_faults import RemoteFault, fault_in_value


class Completion(Struct, frozen=True, kw_only=True):
    """What one answer holds: its texts, the likeliest first, why the model stopped, its refusal, and an error in it.

    ``choices`` is false where the answer has no choice at all. ``tokens`` is None where it names none.
    """

    texts: tuple[str, ...] = ()
    finish_reason: str = ""
    refusal: str = ""
    fault: RemoteFault | None = None
    choices: bool = True
    tokens: Tokens | None = None


def completion_in(body: bytes) -> Completion | None:
    """Read the body of an answer, also an event stream or lines of JSON; None where it is none of these."""
    text = _decoded_text(body)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _merged(_lines(text))
    if isinstance(value, list):
        # A list of one answer, or of the pieces of one.
        value = value[0] if len(value) == 1 else _merged(iter(value))
    return _completion(value) if isinstance(value, dict) else None


def _decoded_text(body: bytes) -> str | None:
    encoding = "utf-16" if body[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return body.decode(encoding)
    except UnicodeDecodeError:
        return None


def _lines(text: str) -> Iterator[Any]:
    """Yield the JSON values of an event stream's ``data`` lines, or of a text with one value on each line."""
    for line in text.splitlines():
        data = line.removeprefix("data:").strip()
        if not data.startswith(("{", "[")) or data == "[DONE]":
            continue
        try:
            yield json.loads(data)
        except (ValueError, RecursionError):
            continue


def _merged(pieces: Iterator[Any]) -> dict[str, Any] | None:
    """Put the pieces of one answer together: the texts of their deltas, the last reason, and any error."""
    whole: dict[str, Any] = {}
    texts: dict[str, str] = {}
    reason = None
    for piece in pieces:
        if not isinstance(piece, dict):
            continue
        whole |= {key: piece[key] for key in ("error", "errors", *USAGE_KEYS) if piece.get(key)}
        choice = _first_choice(piece)
        if choice is None:
            continue
        reason = choice.get("finish_reason") or reason
        delta = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        for key, text in _pieces_of(delta):
            texts[key] = texts.get(key, "") + text
    if texts or reason:
        arguments = [{"function": {"arguments": texts.pop("arguments")}}] if "arguments" in texts else None
        whole["choices"] = [{"message": {**texts, "tool_calls": arguments}, "finish_reason": reason}]
    return whole or None


def _pieces_of(delta: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(delta, dict):
        return
    for key in ("content", "reasoning_content", "reasoning", "refusal"):
        yield key, _joined(delta.get(key))
    for call in _listed(delta.get("tool_calls")):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            yield "arguments", function["arguments"]


def _first_choice(value: dict[str, Any]) -> dict[str, Any] | None:
    """Return the first choice of an answer; Ollama's own form has none, and its message stands outside."""
    if isinstance(value.get("message"), dict) and "choices" not in value:
        return {"message": value["message"], "finish_reason": value.get("done_reason")}
    return next((choice for choice in _listed(value.get("choices")) if isinstance(choice, dict)), None)


def _completion(value: dict[str, Any]) -> Completion | None:
    fault = fault_in_value(value)
    choice = _first_choice(value)
    if choice is None:
        blocked = value.get("promptFeedback") or value.get("prompt_feedback")
        if isinstance(blocked, dict) and (blocked.get("blockReason") or blocked.get("block_reason")):
            return Completion(finish_reason="content_filter", tokens=usage_in(value))
        # What is neither null nor a list is an answer of another kind.
        known = fault is not None or value.get("choices") in (None, [])
        return Completion(fault=fault, choices=False, tokens=usage_in(value)) if known else None
    message = choice.get("message")
    message = message if isinstance(message, dict) else {"content": message or choice.get("text")}
    refusal = message.get("refusal")
    return Completion(
        texts=tuple(text for text in _texts(message) if text.strip()),
        finish_reason=str(choice.get("finish_reason") or "").lower(),
        refusal=refusal if isinstance(refusal, str) else "",
        fault=fault or fault_in_value(choice) or fault_in_value(message),
        tokens=usage_in(value),
    )


def _texts(message: dict[str, Any]) -> Iterator[str]:
    parsed = message.get("parsed")
    if isinstance(parsed, dict | list):
        yield json.dumps(parsed)
    content = message.get("content")
    if isinstance(content, dict) and "text" not in content:
        yield json.dumps(content)
    yield _joined(content)
    for call in [*_listed(message.get("tool_calls")), {"function": message.get("function_call")}]:
        yield from _arguments(call)
    # Last, because thoughts may hold drafts: some servers put the whole answer there.
    yield _joined(message.get("reasoning_content"))
    yield _joined(message.get("reasoning"))


def _arguments(call: Any) -> Iterator[str]:
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(arguments, str):
        yield arguments
    elif isinstance(arguments, dict | list):
        yield json.dumps(arguments)


def _joined(content: Any) -> str:
    """Return a content's text: itself, or its parts of text without those of thinking."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return _joined(content.get("text")) if "think" not in str(content.get("type")) else ""
    return "".join(map(_joined, content)) if isinstance(content, list) else ""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
