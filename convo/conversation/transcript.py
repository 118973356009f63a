"""Any known shape of log becomes turns, and turns the text a model reads; it knows neither the clock nor the store."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from convo import errors
from convo.conversation.model import ConversationEnded, LogItem, Speaker, Turn
from convo.conversation.score import count_exchanges

_Said = str | list[Any] | None | UnsetType
_Kept = tuple[Speaker, str, datetime | None]
_Voices = dict[str, Speaker | None]

# None: known, and not part of what user and bot said to each other.
_CHARACTERS: _Voices = {
    "BOT_RESPONSE_CONVERSATION": "bot",
    "USER_RESPONSE_CONVERSATION": "user",
    "BOT": "bot",
    "PIKA": "bot",
    "USER": "user",
}
_SPEAKERS: _Voices = {"pika": "bot", "user": "user"}
_ROLES: _Voices = {
    "user": "user",
    "assistant": "bot",
    "system": None,
    "developer": None,
    "tool": None,
    "function": None,
}
_SENDERS: _Voices = {"human": "user", "user": "user", "gpt": "bot", "assistant": "bot", "system": None}

# "input_text" and "output_text" are what OpenAI's Responses API calls the parts that Chat Completions calls "text".
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})

# Deeper content could be read here and then overflow a deeper stack in the worker: a job that cannot be run.
_CONTENT_LEVELS_MAX = 32

# The ranges are fromisoformat's to check, but for 24:00 and offsets of 60 minutes and more, which some versions take.
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ](?!24)[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:[Zz]|[+-][0-9]{2}:[0-5][0-9])"
)
_TIME_WANTED = "must be an RFC 3339 time with its offset, within the years 1 to 9999 in UTC: 2026-03-02T08:00:00Z"

_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODER = msgspec.json.Decoder(list[LogItem])


class Checked(Struct, frozen=True, kw_only=True):
    """What the accept path knows of a conversation that can be analysed.

    ``turns`` counts the kept items, ``exchanges`` what ``score.count_exchanges`` makes of them. The times are the
    client's, else the log's earliest and latest, else ``None``; where both are known, ``started_at`` is never after
    ``ended_at``.
    """

    turns: int
    exchanges: int
    started_at: datetime | None
    ended_at: datetime | None


def check(ended: ConversationEnded) -> Checked:
    """Check everything that the analysis will rely on, in one pass over the log.

    Raises:
        Invalid: a time, a speaker or an item that cannot be used, or two different logs; the path names it.
    """
    start, end = span(ended)
    name, items = read_log(ended)
    speakers: list[Speaker] = []
    times: list[datetime] = []
    for index, item in enumerate(items):
        # Most logs are characters and their words, without times; each of hundreds of items is seen on the accept path.
        who, said = _CHARACTERS.get(item.character), item.content  # type: ignore[arg-type]
        if who and type(said) is str and said[:1].isalnum() and item.timestamp is UNSET:
            speakers.append(who)
        elif (kept := _keep(item, name, index)) is not None:
            speakers.append(kept[0])
            times += [kept[2]] if kept[2] is not None else []
    if times and start is None:
        start = min(times) if end is None else min(*times, end)
    if times and end is None:
        end = max(times) if start is None else max(*times, start)
    return Checked(turns=len(speakers), exchanges=count_exchanges(speakers), started_at=start, ended_at=end)


def read_log(ended: ConversationEnded) -> tuple[str, list[LogItem]]:
    """Read the one log under either spelling, with the name of its field; missing, null or empty is no items.

    Raises:
        Invalid: both spellings hold something, and not the same.
    """
    one, other = _list(ended.conversation_log), _list(ended.conversation_logs)
    if one and other and not _alike(one, other):
        raise errors.Invalid("differs from conversation_log: send one of the two", path="$.conversation_logs")
    return ("conversation_logs", other) if other and not one else ("conversation_log", one)


def span(ended: ConversationEnded) -> tuple[datetime | None, datetime | None]:
    """Read the start and the end that the client sent, in UTC; ``None`` for what it did not send.

    Raises:
        Invalid: not RFC 3339 with an offset, outside the years 1 to 9999 in UTC, or an end not after its start.
    """
    start = _sent_time(ended.start_time, "$.start_time")
    end = _sent_time(ended.end_time, "$.end_time")
    if start is not None and end is not None and end <= start:
        raise errors.Invalid("must be after start_time", path="$.end_time")
    return start, end


def turns(
    items: Iterable[LogItem], started_at: datetime, ended_at: datetime, *, name: str = "conversation_log"
) -> tuple[Turn, ...]:
    """Turn the items of a log, in whichever known shapes, into turns with a time each.

    A missing time is interpolated between its nearest known neighbours; a first turn without one was said at
    ``started_at``, a last one at ``ended_at``. Times that were sent stay as they are, in whatever order.
    ``name`` is the field that the log came in, for the path of an error.

    Raises:
        Invalid: an item that ``check`` refuses, too.
    """
    kept = _kept(items, name)
    times = _filled([at for _, _, at in kept], started_at, ended_at)
    return tuple(Turn(speaker=who, text=said, at=at) for (who, said, _), at in zip(kept, times, strict=True))


def text(turns: Iterable[Turn]) -> str:
    """Write the turns as a model reads them: one line a turn, ``user: …`` or ``bot: …``.

    White space within a turn becomes single spaces, so that no turn can pose as another one.
    """
    return "\n".join(f"{turn.speaker}: {' '.join(turn.text.split())}" for turn in turns)


def encode_log(items: Sequence[LogItem]) -> bytes:
    """Encode a log as sent: the JSON bytes, keys sorted, that are both digested and stored."""
    return _ENCODER.encode(items)


def decode_log(log_bytes: bytes) -> list[LogItem]:
    """Decode what ``encode_log`` made, to equal items."""
    return _DECODER.decode(log_bytes)


# --- the log and its items


def _list(log: list[LogItem] | None | UnsetType) -> list[LogItem]:
    return log if isinstance(log, list) else []


def _alike(one: list[LogItem], other: list[LogItem]) -> bool:
    for name, items in (("conversation_log", one), ("conversation_logs", other)):
        for index, item in enumerate(items):
            if isinstance(item.content, list):
                _refuse_deep(item.content, name, index)
    return encode_log(one) == encode_log(other)


def _kept(items: Iterable[LogItem], name: str) -> list[_Kept]:
    found: list[_Kept] = []
    for index, item in enumerate(items):
        # As in `check`: most items need no more of a look than this.
        who, said = _CHARACTERS.get(item.character), item.content  # type: ignore[arg-type]
        if who and type(said) is str and said[:1].isalnum() and item.timestamp is UNSET and "\0" not in said:
            found.append((who, said, None))
        elif (kept := _keep(item, name, index)) is not None:
            found.append(kept)
    return found


def _keep(item: LogItem, name: str, index: int) -> _Kept | None:
    """Read one item: who said what and when; None where nobody said anything."""
    if isinstance(item.content, list):
        _refuse_deep(item.content, name, index)
    at = _item_time(item.timestamp, name, index) if isinstance(item.timestamp, str) else None
    field, voice, voices, said = _shape(item, name, index)
    if voice not in voices:
        raise _bad_item(f"must be one of {', '.join(voices)}", name, index, f".{field}")
    who = voices[voice]
    if who is not None and (words := _words(item, said, name, index)):
        return who, words, at
    return None


def _shape(item: LogItem, name: str, index: int) -> tuple[str, str, _Voices, _Said]:
    if isinstance(item.character, str):
        return "character", item.character, _CHARACTERS, item.content
    if isinstance(item.speaker, str):
        return "speaker", item.speaker, _SPEAKERS, item.text
    if isinstance(item.role, str):
        return "role", item.role, _ROLES, item.content
    if isinstance(item.from_, str):
        return "from", item.from_, _SENDERS, item.value
    raise _bad_item("needs character, speaker, role or from to say who spoke", name, index)


def _words(item: LogItem, said: _Said, name: str, index: int) -> str:
    if isinstance(said, str):
        words = said
    elif isinstance(said, list):
        words = "\n".join(_part_texts(said, name, index))
    elif item.content or item.text or item.value:
        # Nothing said is an empty turn, but words under another shape's name must not be lost in silence.
        raise _bad_item("has its words in another field than its shape has", name, index)
    else:
        return ""
    # PostgreSQL's text cannot hold NUL, and nobody has ever said it.
    if "\0" in words:
        words = words.replace("\0", "")
    return "" if words.isspace() else words


def _part_texts(parts: list[Any], name: str, index: int) -> Iterator[str]:
    for number, part in enumerate(parts):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise _bad_item("must be a part with a type", name, index, f".content[{number}]")
        if part["type"] not in _TEXT_PARTS:
            continue
        if not isinstance(part.get("text"), str):
            raise _bad_item("must be text", name, index, f".content[{number}].text")
        yield part["text"]


def _refuse_deep(content: list[Any], name: str, index: int) -> None:
    level: list[list[Any] | dict[str, Any]] = [content]
    for _ in range(_CONTENT_LEVELS_MAX):
        level = [below for outer in level for below in _values(outer) if isinstance(below, list | dict)]
        if not level:
            return
    raise _bad_item(f"is nested deeper than {_CONTENT_LEVELS_MAX} levels", name, index, ".content")


def _values(outer: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer


def _bad_item(detail: str, name: str, index: int, below: str = "") -> errors.Invalid:
    return errors.Invalid(detail, path=f"$.{name}[{index}]{below}")


# --- times


def _item_time(value: str, name: str, index: int) -> datetime:
    try:
        return _instant(value)
    except (ValueError, OverflowError) as error:
        raise _bad_item(_TIME_WANTED, name, index, ".timestamp") from error


def _sent_time(value: str | None | UnsetType, path: str) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        return _instant(value)
    except (ValueError, OverflowError) as error:
        raise errors.Invalid(_TIME_WANTED, path=path) from error


def _instant(value: str) -> datetime:
    # fromisoformat alone reads far more than RFC 3339, naive times among it.
    if _TIME.fullmatch(value) is None:
        raise ValueError("not RFC 3339")
    if ":59:60" in value:
        return _instant(value.replace(":59:60", ":59:59")) + timedelta(seconds=1)
    at = datetime.fromisoformat(value.upper())
    return at if at.tzinfo is UTC else at.astimezone(UTC)


def _filled(times: list[datetime | None], started_at: datetime, ended_at: datetime) -> list[datetime]:
    known = [at for at in times if at is not None]
    if len(known) == len(times):
        return known
    filled = list(times)
    # What the client says of start and end may contradict the log: the times of the turns then win.
    if filled[0] is None:
        filled[0] = min([started_at, *known[:1]])
    if filled[-1] is None:
        filled[-1] = max([ended_at, *known[-1:]])
    return list(_interpolated(filled))


def _interpolated(times: list[datetime | None]) -> Iterator[datetime]:
    anchors = [(index, at) for index, at in enumerate(times) if at is not None]
    for (index, at), (next_index, next_at) in pairwise(anchors):
        steps = next_index - index
        # In whole microseconds: many turns times many years would overflow a timedelta.
        apart = (next_at - at) // timedelta.resolution
        for step in range(steps):
            yield at + timedelta.resolution * (apart * step // steps)
    yield anchors[-1][1]
