"""The parts of an analysis: for each its name, what it finds, who finds it here, what it is worth and how it is shown.

Open it to add or change a part. The store, the score, the answers and the documentation read the list ``PARTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct, defstruct

from convo.analysis import local
from convo.conversation.model import (
    Answered,
    Conversation,
    EmotionName,
    Finding,
    Memories,
    Mood,
    PartName,
    PartState,
    Questions,
)
from convo.conversation.score import EmotionShare, Share, Weights, emotion_share, share

MadeBy = Annotated[
    str | None, Meta(description="Who made it, with a version: `local/2`; null while nobody has.", examples=["local/2"])
]
PartVersion = Annotated[
    str | None,
    Meta(
        description="The version of what was asked, and of whom, or is to be.",
        examples=["p1:0f3c5a9d7e21"],
    ),
]
FailureText = Annotated[
    str | None, Meta(description="Why the last try failed, or why the part is skipped or refused; null else.")
]


class StoredFinding(Struct, frozen=True):
    """What one part found, and how many memories it added for its user."""

    finding: Finding
    new_memories: int = 0


class Part(Struct, frozen=True, kw_only=True):
    """One part of an analysis.

    ``points`` takes None while the part is not found. ``shown`` returns the fields of ``view`` that are this part's
    own; the others are the same for every part: ``state``, ``by``, ``error``, ``updated_at``. Of a part that was
    refused it returns ``state`` and ``error``.
    """

    name: PartName
    finding: type[Finding]
    analyst: Callable[[Conversation], Finding]
    share: type[Share | EmotionShare]
    points: Callable[[StoredFinding | None, Weights], Share | EmotionShare]
    view: type[Struct]
    shown: Callable[[StoredFinding], Mapping[str, object]]


# --- questions


class QuestionsView(Struct, frozen=True, kw_only=True):
    """The questions that the user raised, in order; null while the part is not done."""

    state: PartState
    by: MadeBy = None
    version: PartVersion = None
    questions: tuple[str, ...] | None = None
    error: FailureText = None
    updated_at: datetime | None = None


def _asked(stored: StoredFinding | None) -> tuple[str, ...] | None:
    return stored.finding.questions if stored and isinstance(stored.finding, Questions) else None


def _questions_points(stored: StoredFinding | None, weights: Weights) -> Share:
    asked = _asked(stored)
    return share(None if asked is None else len(asked), weights.question)


def _questions_shown(stored: StoredFinding) -> Mapping[str, object]:
    return _refused(stored) or {"questions": _asked(stored)}


def _refused(stored: StoredFinding) -> Mapping[str, object]:
    reason = "" if isinstance(stored.finding, Memories) else stored.finding.refused
    return {"state": "refused", "error": reason} if reason else {}


# --- emotion


Judged = Annotated[
    bool,
    Meta(description="False where the analyst does not know the language: `neutral` then says nothing."),
]


class EmotionView(Struct, frozen=True, kw_only=True):
    """How the user felt about the conversation as a whole; null while the part is not done."""

    state: PartState
    by: MadeBy = None
    version: PartVersion = None
    emotion: EmotionName | None = None
    judged: Judged = True
    error: FailureText = None
    updated_at: datetime | None = None


def emotion_of(stored: StoredFinding | None) -> EmotionName | None:
    """Return the emotion that was found, None where it is another finding or none, or the analyst refused."""
    mood = stored.finding if stored and isinstance(stored.finding, Mood) else None
    return mood.emotion if mood and not mood.refused else None


def _emotion_points(stored: StoredFinding | None, weights: Weights) -> EmotionShare:
    return emotion_share(emotion_of(stored), weights)


def _emotion_shown(stored: StoredFinding) -> Mapping[str, object]:
    refused = _refused(stored)
    if refused:
        return {**refused, "judged": False}
    mood = stored.finding if isinstance(stored.finding, Mood) else None
    return {"emotion": emotion_of(stored), "judged": mood is None or mood.judged}


# --- memories


UncertainNew = Annotated[
    bool,
    Meta(
        description="The memory service may have answered an earlier run, whose answer is lost: `new` may be too small"
        " and a memory may be missing."
    ),
]


class FoundMemory(Struct, frozen=True, kw_only=True):
    """One thing to remember, as this conversation's analysis said it; only an ADD can be new, once for a user."""

    text: str
    kind: str
    operation: Literal["ADD", "UPDATE", "DELETE", "NONE"]


class FoundMemoriesView(Struct, frozen=True, kw_only=True):
    """What to remember from one conversation, and how much of it was new for the user."""

    state: PartState
    by: MadeBy = None
    version: PartVersion = None
    memories: tuple[FoundMemory, ...] | None = None
    new: Annotated[int, Meta(ge=0)] | None = None
    uncertain: UncertainNew = False
    error: FailureText = None
    updated_at: datetime | None = None


def _memories_points(stored: StoredFinding | None, weights: Weights) -> Share:
    return share(stored.new_memories if stored else None, weights.memory)


def _memories_shown(stored: StoredFinding) -> Mapping[str, object]:
    memories = stored.finding if isinstance(stored.finding, Memories) else Memories(facts=())
    found = tuple(FoundMemory(text=fact.text, kind=fact.kind, operation=fact.operation) for fact in memories.facts)
    return {"memories": found, "new": stored.new_memories, "uncertain": memories.uncertain}


# --- a declared part


class DeclaredPartView(Struct, frozen=True, kw_only=True):
    """A part that was declared in `[parts]`: its answer fits the schema of its declaration."""

    state: PartState
    by: MadeBy = None
    version: PartVersion = None
    required: Annotated[bool, Meta(description="Whether the score waits for it.")] = False
    answer: Annotated[
        dict[str, Any] | None, Meta(description="What was found, by the schema of the part; null while nothing is.")
    ] = None
    error: FailureText = None
    updated_at: datetime | None = None


def shown_answer(finding: Finding) -> Mapping[str, object]:
    """Return what is a declared part's own in its view; of one that was refused its state and why."""
    if not isinstance(finding, Answered):
        return {}
    return {"state": "refused", "error": finding.refused} if finding.refused else {"answer": finding.answer}


PARTS: tuple[Part, ...] = (
    Part(
        name="questions",
        finding=Questions,
        analyst=local.questions,
        share=Share,
        points=_questions_points,
        view=QuestionsView,
        shown=_questions_shown,
    ),
    Part(
        name="emotion",
        finding=Mood,
        analyst=local.emotion,
        share=EmotionShare,
        points=_emotion_points,
        view=EmotionView,
        shown=_emotion_shown,
    ),
    Part(
        name="memories",
        finding=Memories,
        analyst=local.memories,
        share=Share,
        points=_memories_points,
        view=FoundMemoriesView,
        shown=_memories_shown,
    ),
)
"""Every default part, in the order in which answers show them."""

FINDINGS: Mapping[str, type[Finding]] = {part.name: part.finding for part in PARTS}
"""What each part finds, by its name."""

if TYPE_CHECKING:
    PartsView = Any
else:
    PartsView = defstruct(
        "PartsView",
        [(part.name, part.view) for part in PARTS],
        frozen=True,
        kw_only=True,
        module=__name__,
        namespace={"__doc__": "The parts of an analysis, each with a state of its own: default and declared ones."},
    )
