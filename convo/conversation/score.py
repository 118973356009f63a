"""What a conversation is worth, and what a user's sum makes of the relationship; how it is found is others' affair."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from convo.conversation.model import EmotionName, Level, Speaker

_INTEGER_MAX = 2**31 - 1
"""The largest value of a PostgreSQL integer, in which scores are stored."""

Weight = Annotated[int, Meta(ge=0, le=1000)]
EmotionPoints = Annotated[int, Meta(ge=-1000, le=1000)]
Threshold = Annotated[int, Meta(ge=1, le=_INTEGER_MAX)]


class Weights(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[score]`` section: points for one of each, points of each emotion, and where the levels begin."""

    turn: Weight = 1
    question: Weight = 3
    memory: Weight = 5
    interesting: EmotionPoints = 15
    boring: EmotionPoints = -15
    neutral: EmotionPoints = 0
    happy: EmotionPoints = 0
    sad: EmotionPoints = 0
    angry: EmotionPoints = 0
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


class Breakdown(Struct, frozen=True, kw_only=True):
    """Every input of a score, with what it gave."""

    exchanges: Share
    questions: Share
    memories: Share
    emotion: EmotionShare


class Score(Struct, frozen=True, kw_only=True):
    """What a conversation is worth; ``final`` once every part of its analysis is in."""

    value: int
    final: bool
    breakdown: Breakdown
    weights_version: str


def weights_version(weights: Weights) -> str:
    """Name these weights by their values: ``"w1:"`` and 8 hexadecimal digits."""
    values = msgspec.json.encode(weights, order="sorted")
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


def score(
    *, exchanges: int, questions: int | None, new_memories: int | None, emotion: EmotionName | None, weights: Weights
) -> Score:
    """Score one conversation; a part that is ``None`` gives no points and keeps the score from being final.

    The value is never below 0, nor above what a PostgreSQL integer holds.
    """
    breakdown = Breakdown(
        exchanges=_share(exchanges, weights.turn),
        questions=_share(questions, weights.question),
        memories=_share(new_memories, weights.memory),
        emotion=EmotionShare(name=emotion, points=0 if emotion is None else getattr(weights, emotion)),
    )
    return Score(
        value=min(max(_points(breakdown), 0), _INTEGER_MAX),
        final=None not in (questions, new_memories, emotion),
        breakdown=breakdown,
        weights_version=weights_version(weights),
    )


def level(total: int, weights: Weights) -> Level:
    """Name the level that a user's sum of scores has reached."""
    if total >= weights.friend_from:
        return "friend"
    return "acquaintance" if total >= weights.acquaintance_from else "stranger"


def _share(count: int | None, weight: int) -> Share:
    return Share(count=count, weight=weight, points=(count or 0) * weight)


def _points(breakdown: Breakdown) -> int:
    shares = (breakdown.exchanges, breakdown.questions, breakdown.memories, breakdown.emotion)
    return sum(share.points for share in shares)
