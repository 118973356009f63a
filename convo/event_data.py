"""What an event holds, by its type: the ``data`` of a CloudEvent that a receiver gets.

Open it to give a type another field. The ids stand in columns of their own (``store/outbox.py``), all else is one JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from convo.analysis.scoring import Breakdown
from convo.conversation.model import Level, PartName
from convo.event_types import EventType


class OfConversation(Struct, frozen=True, kw_only=True):
    """Of which conversation it is, whose, and with which bot."""

    conversation_id: str
    user_id: str
    bot_id: str


class AcceptedData(OfConversation, frozen=True, kw_only=True):
    """A stored conversation and the number of its turns."""

    turns: int


class RevisedData(OfConversation, frozen=True, kw_only=True):
    """The revision that was stored, by its number from 2, and the number of its turns."""

    revision: int
    turns: int


class ScoreData(Struct, frozen=True, kw_only=True):
    """A final score, how it came about, and by which weights."""

    value: int
    breakdown: Breakdown
    weights_version: str


class AnalysedData(OfConversation, frozen=True, kw_only=True):
    """The final score, and what each part found: the same as ``GET /v1/conversations/{conversation_id}`` shows."""

    score: ScoreData
    parts: Mapping[PartName, Mapping[str, Any]]


class DeadData(OfConversation, frozen=True, kw_only=True):
    """Why the job was buried."""

    reason: str


class PartDoneData(OfConversation, frozen=True, kw_only=True):
    """What one part found, and by whom. ``new_memories`` counts those that were not known before."""

    part: PartName
    by: str
    result: Mapping[str, Any]
    new_memories: int | UnsetType = UNSET


class ErasedData(Struct, frozen=True, kw_only=True):
    """The conversation that was erased, and whose it was; null where its content had expired before."""

    conversation_id: str
    user_id: str | None


class LevelData(Struct, frozen=True, kw_only=True):
    """The level that a user has now, the one before, and the sum of all scores."""

    user_id: str
    level: Level
    before: Level
    score: int


class UserErasedData(Struct, frozen=True, kw_only=True):
    """The user who was erased."""

    user_id: str


DATA_OF: Mapping[EventType, type[Struct]] = {
    "conversation.accepted": AcceptedData,
    "conversation.analysed": AnalysedData,
    "conversation.dead": DeadData,
    "conversation.erased": ErasedData,
    "conversation.revised": RevisedData,
    "part.done": PartDoneData,
    "relationship.level_changed": LevelData,
    "user.erased": UserErasedData,
}
"""By type, what an event of it holds."""
