"""The points and the levels: the weights of ``[score]``, what a count is worth, and the level of a user's sum.

Open it to change points or levels. Which parts a score has stands in ``analysis/part.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from convo.conversation.model import EmotionName, Level, Speaker

_INTEGER_MAX = 2**31 - 1
"""The largest value of a PostgreSQL integer, in which scores are stored."""

Weight = Annotated[int, Meta(ge=0, le=1000)]
EmotionPoints = Annotated[int, Meta(ge=-1000, le=1000)]
ConversationMax = Annotated[int, Meta(ge=0, le=_INTEGER_MAX)]
Threshold = Annotated[int, Meta(ge=1, le=_INTEGER_MAX)]


class Weights(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[score]`` section: points for one of each, and where the levels begin.

    ``conversation_max`` is the most that one conversation gives; 0 is no cap.
    """

    turn: Weight = 1
    question: Weight = 3
    memory: Weight = 5
    interesting: EmotionPoints = 15
    boring: EmotionPoints = -15
    neutral: EmotionPoints = 0
    happy: EmotionPoints = 0
    sad: EmotionPoints = 0
    angry: EmotionPoints = 0
    conversation_max: ConversationMax = 500
    acquaintance_from: Threshold = 500
    friend_from: Threshold = 3000

    def __post_init__(self) -> None:
        if self.friend_from <= self.acquaintance_from:
            raise ValueError(
                f"friend_from ({self.friend_from}) must be more than acquaintance_from ({self.acquaintance_from}): "
                "nobody could become an acquaintance"
            )


class Share(Struct, frozen=True, kw_only=True):
    """The points of one thing counted; a count that is not known yet is ``None`` and gives no points."""

    count: int | None
    weight: int
    points: int


class EmotionShare(Struct, frozen=True, kw_only=True):
    """The points of the emotion; ``None`` while it is not known."""

    name: EmotionName | None
    points: int


class CapShare(Struct, frozen=True, kw_only=True):
    """The most that one conversation gives, and the points (0 or below) that this takes off."""

    max: int
    points: int


def weights_version(weights: Weights, points: Mapping[str, object] | None = None) -> str:
    """Name these weights by their values: ``"w1:"`` and 8 hexadecimal digits.

    ``points`` are those of declared parts, by name; without any the name is that of the weights alone.
    """
    values = msgspec.json.encode([weights, points] if points else weights, order="sorted")
    return "w1:" + hashlib.sha256(values).hexdigest()[:8]


def count_exchanges(speakers: Sequence[Speaker]) -> int:
    """Count the exchanges: two neighbours of different speakers, no turn in two of them (bot, user, bot is one)."""
    count = 0
    unanswered: Speaker | None = None
    for speaker in speakers:
        answers = unanswered is not None and speaker != unanswered
        count += answers
        unanswered = None if answers else speaker
    return count


def share(count: int | None, weight: int) -> Share:
    """Give ``weight`` points for one of each; none while the count is not known."""
    return Share(count=count, weight=weight, points=(count or 0) * weight)


def emotion_share(emotion: EmotionName | None, weights: Weights) -> EmotionShare:
    """Give the points of this emotion; none while it is not known."""
    return EmotionShare(name=emotion, points=0 if emotion is None else getattr(weights, emotion))


def cap_share(points: int, weights: Weights) -> CapShare | None:
    """Take off what one conversation has over ``conversation_max`` points; ``None`` where there is no cap."""
    most = weights.conversation_max
    return CapShare(max=most, points=min(0, most - points)) if most else None


def within_bounds(points: int) -> int:
    """Return the value of so many points: never below 0, nor above what a PostgreSQL integer holds."""
    return min(max(points, 0), _INTEGER_MAX)


def level(total: int, weights: Weights) -> Level:
    """Name the level that a user's sum of scores has reached."""
    if total >= weights.friend_from:
        return "friend"
    return "acquaintance" if total >= weights.acquaintance_from else "stranger"
