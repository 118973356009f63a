"""The values of convo: what a client sends, what it is answered, what is found; pure data, no rules.

All are frozen. Times are aware datetimes in UTC unless a line says otherwise.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Speaker = Literal["user", "bot"]
EmotionName = Literal["interesting", "boring", "neutral", "angry", "happy", "sad"]
PartName = Literal["questions", "emotion", "memories"]
PartState = Literal["waiting", "done", "failed"]
JobState = Literal["ready", "leased", "done", "dead"]
Level = Literal["stranger", "acquaintance", "friend"]

PART_NAMES: tuple[PartName, ...] = ("questions", "emotion", "memories")
"""The parts of an analysis, in the order they are shown."""

# No control characters, no "/": an id stands in a path. The three characters at least keep "." and ".." out.
_ID_PATTERN = r"^[^\x00-\x1f\x7f-\x9f/]+\Z"
CANARY_USER = "convo:canary"
"""The user of convo's own test conversations; nobody else may use this id."""
Identifier = Annotated[str, Meta(min_length=3, max_length=255, pattern=_ID_PATTERN)]
Label = Annotated[str, Meta(max_length=255, pattern=r"^[^\x00]*\Z")]


class LogItem(Struct, frozen=True, kw_only=True, gc=False):
    """One item of a log as it was sent, in whichever known shape; what was not sent is ``UNSET``.

    The shapes: ``{character, content}``, ``{speaker, turn_id, text, timestamp}``, OpenAI's ``{role, content}``
    and ShareGPT's ``{from, value}``. ``transcript.turns`` tells them apart. What came out of JSON holds no cycle, so
    the collector need not look at it: hundreds of items a body are a good part of what it would visit.
    """

    character: str | None | UnsetType = UNSET
    speaker: str | None | UnsetType = UNSET
    role: str | None | UnsetType = UNSET
    from_: str | None | UnsetType = msgspec.field(name="from", default=UNSET)
    content: str | list[Any] | None | UnsetType = UNSET
    text: str | None | UnsetType = UNSET
    value: str | None | UnsetType = UNSET
    turn_id: str | int | None | UnsetType = UNSET
    timestamp: str | None | UnsetType = UNSET


class ConversationEnded(Struct, frozen=True, kw_only=True, gc=False):
    """The body of ``POST /v1/conversations/end``, as sent: nothing filled in, nothing normalised.

    ``start_time`` and ``end_time`` are RFC 3339 texts; the log may come under either spelling.
    """

    conversation_id: Identifier
    user_id: Identifier
    bot_id: Identifier
    bot_name: Label | None | UnsetType = UNSET
    bot_type: Label | None | UnsetType = UNSET
    agent_tag: Label | None | UnsetType = UNSET
    start_time: str | None | UnsetType = UNSET
    end_time: str | None | UnsetType = UNSET
    conversation_log: list[LogItem] | None | UnsetType = UNSET
    conversation_logs: list[LogItem] | None | UnsetType = UNSET


class Turn(Struct, frozen=True, kw_only=True, gc=False):
    """One thing said: who, what, when."""

    speaker: Speaker
    text: str
    at: datetime


class Conversation(Struct, frozen=True, kw_only=True):
    """What an analyst reads: one conversation with its turns in order."""

    conversation_id: str
    user_id: str
    bot_id: str
    digest: str
    turns: tuple[Turn, ...]


class Links(Struct, frozen=True, kw_only=True, gc=False):
    """Where to read more; paths, ids percent-encoded."""

    self: str
    log: str


class Receipt(Struct, frozen=True, kw_only=True, gc=False):
    """The answer to an accepted conversation; the same for every replay, for ever.

    ``turns`` counts the kept items of the log; ``received_at`` is the database's clock at the first commit.
    """

    conversation_id: str
    digest: str
    turns: int
    received_at: datetime
    links: Links


# --- what an analysis finds


class Questions(Struct, frozen=True, kw_only=True):
    """The questions that the user raised, in order."""

    questions: tuple[str, ...]


class Mood(Struct, frozen=True, kw_only=True):
    """How the user felt about the conversation as a whole."""

    emotion: EmotionName


class MemoryFact(Struct, frozen=True, kw_only=True):
    """One thing to remember about a user.

    ``key`` makes it unique for that user: the remote service's id, or the normalised fact itself.
    ``operation`` is what the finder says of it; only ADD can be new.
    """

    key: str
    text: str
    kind: str = "fact"
    operation: Literal["ADD", "UPDATE", "DELETE", "NONE"] = "ADD"


class Memories(Struct, frozen=True, kw_only=True):
    """What to remember from one conversation, before it is known which of it is new."""

    facts: tuple[MemoryFact, ...]


Finding = Questions | Mood | Memories
"""What one part of an analysis holds when it is done."""
