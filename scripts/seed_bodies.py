"""Bodies to post: read from a file, renamed, repeated and grown; it knows no server and no clock.

Two kinds of file are read: JSON Lines, one ``POST /v1/conversations/end`` body a line, and the Topical-Chat format,
one object of ``id -> {content: [{message, agent, ...}]}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import count as count_from
from itertools import cycle, islice
from pathlib import Path
from typing import Any

Body = dict[str, Any]

SAMPLES = Path(__file__).with_name("samples.jsonl")
TOPICAL_USERS = 40

_BOTS = {"bot", "pika", "bot_response_conversation", "assistant", "gpt", "agent_1"}


class BadSource(Exception):
    """The file holds no bodies that can be posted; the text names the place and the reason."""


def read_bodies(path: Path) -> list[Body]:
    """Read every conversation of a file, in either format, in the file's order.

    Raises:
        BadSource: it cannot be read, is neither format, or holds nothing.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # The path is in the text of an OSError, too.
        raise BadSource(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    bodies = [_checked(path, number, body) for number, body in enumerate(_parsed(path, text), 1)]
    if not bodies:
        raise BadSource(f"{path}: there are no conversations in it")
    return bodies


def _parsed(path: Path, text: str) -> Iterable[object]:
    # Three cases: one object that is a body (JSON Lines of one line), one object of conversations by id, many lines.
    try:
        whole = json.loads(text)
    except ValueError:
        return _lines(path, text)
    if isinstance(whole, dict) and "conversation_id" not in whole:
        return _topical_bodies(path, whole)
    return [whole]


def _lines(path: Path, text: str) -> Iterator[object]:
    # Not splitlines(): it also breaks at U+2028, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise BadSource(f"{path}, line {number}: not JSON ({error})") from error


def _checked(path: Path, number: int, body: object) -> Body:
    if not isinstance(body, dict) or not isinstance(body.get("conversation_id"), str):
        raise BadSource(f"{path}, conversation {number}: not an object with a conversation_id")
    # Only tests use what is expected of a sample; the server does not get it.
    return {key: value for key, value in body.items() if key != "expected"}


def _topical_bodies(path: Path, conversations: dict[str, Any]) -> Iterator[Body]:
    for number, (name, conversation) in enumerate(conversations.items()):
        try:
            log = [_topical_item(item) for item in conversation["content"]]
        except (KeyError, TypeError) as error:
            raise BadSource(f"{path}, {name!r}: neither a body nor a Topical-Chat conversation") from error
        yield {
            "conversation_id": f"tc-{name}",
            "user_id": f"tc-user-{number % TOPICAL_USERS:03d}",
            "bot_id": "topical-chat",
            "bot_name": "Topical Chat",
            "conversation_log": log,
        }


def _topical_item(item: Body) -> Body:
    # Agent 1 plays the bot: the data set has two people and no bot.
    return {"character": "BOT" if item["agent"] == "agent_1" else "USER", "content": item["message"]}


def prepare(
    source: list[Body], *, count: int | None = None, size_kb: float = 0, prefix: str = "", run: str = ""
) -> Iterator[Body]:
    """Yield ``count`` bodies (by default each of the source once), renamed so that another content has another id.

    ``prefix`` stands before users and conversations, ``run`` before conversations only. A source that is too short is
    gone round again, the copies numbered. ``size_kb`` is the least size of a body in kilobytes (1,000 bytes).
    """
    wanted = len(source) if count is None else count
    grown = f"-{size_kb:g}kb" if size_kb else ""
    for number in islice(count_from(), wanted):
        place, copy = number % len(source), number // len(source)
        body = grow(source, place, int(size_kb * 1000)) if size_kb else dict(source[place])
        body["conversation_id"] = f"{prefix}{run}{body['conversation_id']}{grown}" + (f"-{copy + 1}" if copy else "")
        body["user_id"] = f"{prefix}{body.get('user_id', '')}"
        yield body


def grow(source: list[Body], place: int, size_bytes: int) -> Body:
    """Lengthen one body to at least ``size_bytes`` with the turns of the conversations that follow it in the source.

    The items become ``{character, content}``, since a log is of one shape. Text is repeated only where the whole
    source is smaller than the size.
    """
    body = {key: value for key, value in source[place].items() if not key.startswith("conversation_log")}
    log: list[Body] = []
    body["conversation_log"] = log
    size, own = len(encode(body)), len(log_of(source[place]))
    for item in _items_from(source, place):
        if size >= size_bytes and len(log) >= own:
            break
        log.append(item)
        size += len(encode(item)) + 1
    return body


def _items_from(source: list[Body], place: int) -> Iterator[Body]:
    # A source without a single item would be read for ever.
    if any(map(log_of, source)):
        for body in islice(cycle(source), place, None):
            yield from map(plain_item, log_of(body))


def log_of(body: Body) -> list[Body]:
    """Find the log under either of its two names."""
    log: list[Body] = body.get("conversation_log") or body.get("conversation_logs") or []
    return log


def plain_item(item: Body) -> Body:
    """Turn an item of any known shape into ``{character, content}``."""
    who = item.get("character") or item.get("speaker") or item.get("role") or item.get("from") or ""
    said = next((item[key] for key in ("content", "text", "value") if item.get(key)), "")
    if isinstance(said, list):
        said = " ".join(part.get("text", "") for part in said if isinstance(part, dict))
    return {"character": "BOT" if str(who).lower() in _BOTS else "USER", "content": said}


def encode(value: object) -> bytes:
    """Encode as the bytes that are posted."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # a lone surrogate has no bytes of its own, but JSON can spell it
        return json.dumps(value, separators=(",", ":")).encode()
