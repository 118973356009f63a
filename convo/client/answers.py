"""What convo answers, as values: a receipt, a conversation with what was found in it, a user's relationship.

A field that a newer server adds is skipped, so that an old client reads its answers, too.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from msgspec import UNSET, Struct, UnsetType


class Links(Struct, frozen=True, kw_only=True):
    """Where to read more: paths, ids percent-encoded."""

    self: str
    log: str


class UnreadItem(Struct, frozen=True, kw_only=True):
    """An item of the log that is stored and could not be read, and the names of its fields."""

    path: str
    fields: tuple[str, ...]


class Receipt(Struct, frozen=True, kw_only=True):
    """The receipt of a stored conversation; the same for ever.

    ``replayed``: an earlier request had stored it. ``state`` is ``expired`` where its content is no longer stored, and
    else empty. ``ignored`` names fields that are not stored, ``unread`` items of the log that are no turns.
    ``revision`` is above 1 where the log goes on that of an earlier body with this id.
    """

    conversation_id: str
    digest: str
    turns: int
    received_at: datetime
    links: Links
    ignored: tuple[str, ...] = ()
    unread: tuple[UnreadItem, ...] = ()
    state: str = ""
    revision: int = 1
    replayed: bool = False


class Score(Struct, frozen=True, kw_only=True):
    """The score of a conversation, and how it came about; ``final``: it cannot change any more."""

    value: int
    final: bool
    breakdown: dict[str, Any]
    weights_version: str


class PartCost(Struct, frozen=True, kw_only=True):
    """What one part has cost at one model; tokens are None where nothing says how many."""

    part: str
    by: str
    calls: int
    unknown_calls: int
    unpriced_calls: int
    tokens_in: int | None
    tokens_out: int | None
    tokens_cached: int | None
    price: float


class ConversationCost(Struct, frozen=True, kw_only=True):
    """What a conversation has cost at language models; not ``complete`` where calls are unknown or not priced."""

    price: float
    tokens_in: int | None
    tokens_out: int | None
    tokens_cached: int | None
    complete: bool
    parts: tuple[PartCost, ...]


class Conversation(Struct, frozen=True, kw_only=True):
    """A conversation and what was found in it so far.

    ``state`` is ``ready``, ``leased``, ``done``, ``dead`` or, of an older revision, ``superseded``. ``parts`` is by
    name: ``questions``, ``emotion``, ``memories``; what each holds is described under ``/docs``. ``cost`` is None where
    it was not asked for.
    """

    conversation_id: str
    user_id: str
    bot_id: str
    bot_name: str | None
    bot_type: str | None
    agent_tag: str | None
    language: str | None
    timezone: str | None
    metadata: dict[str, Any] | None
    started_at: datetime
    ended_at: datetime
    received_at: datetime
    digest: str
    turns: int
    revision: int = 1
    state: str
    attempts: int
    waits_for: str | None
    parked_since: datetime | None
    log_state: str
    parts: dict[str, Any]
    score: Score
    last_error: str | None
    links: Links
    cost: ConversationCost | None = None

    @property
    def ended(self) -> bool:
        """Whether the analysis has ended: complete, or as a dead letter."""
        return self.state in ("done", "dead", "superseded")


class ConversationSummary(Struct, frozen=True, kw_only=True):
    """One conversation of a list; the score is None until it is final."""

    conversation_id: str
    user_id: str
    bot_id: str
    started_at: datetime
    ended_at: datetime
    received_at: datetime
    turns: int
    state: str
    attempts: int
    score: int | None
    last_error: str | None
    links: Links


class Turn(Struct, frozen=True, kw_only=True):
    """One thing said: who (``user`` or ``bot``), what, when, and the name of the speaker where one was sent."""

    speaker: str
    text: str
    at: datetime
    name: str | None = None


class BotRelationship(Struct, frozen=True, kw_only=True):
    """What the conversations with one bot add to a relationship."""

    bot_id: str
    score: int
    level: str
    conversations: int
    last_emotion: str | None


class Relationship(Struct, frozen=True, kw_only=True):
    """The sum of a user's final scores over all bots; ``level`` is ``stranger``, ``acquaintance`` or ``friend``."""

    user_id: str
    score: int
    level: str
    conversations: int
    last_emotion: str | None


class Memory(Struct, frozen=True, kw_only=True):
    """One fact remembered about a user; ``conversation_id`` is None where that one is no longer stored."""

    text: str
    kind: str
    conversation_id: str | None
    first_seen_at: datetime


class Problem(Struct, frozen=True, kw_only=True):
    """What went wrong, in the form of RFC 9457; programs decide by ``code``."""

    status: int = 0
    code: str = ""
    detail: str = ""
    path: str | UnsetType = UNSET
    conversation_id: str | UnsetType = UNSET
    retry_after_seconds: float | UnsetType = UNSET


# --- pages


class ConversationPage(Struct, frozen=True, kw_only=True):
    """One page of conversations."""

    conversations: tuple[ConversationSummary, ...]
    next_cursor: str | None


class TurnPage(Struct, frozen=True, kw_only=True):
    """One page of a log's turns."""

    turns: tuple[Turn, ...]
    next_cursor: str | None


class BotPage(Struct, frozen=True, kw_only=True):
    """One page of a relationship's bots."""

    bots: tuple[BotRelationship, ...]
    next_cursor: str | None


class MemoryPage(Struct, frozen=True, kw_only=True):
    """One page of memories."""

    memories: tuple[Memory, ...]
    next_cursor: str | None
