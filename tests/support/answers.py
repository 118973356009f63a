"""Answers of the API for tests of what draws and of what calls: one conversation, one row of a list."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from convo.analysis.part import EmotionView, FoundMemoriesView, FoundMemory, PartsView, QuestionsView, StoredFinding
from convo.analysis.scoring import score
from convo.conversation.model import Memories, Mood, PartName, Questions
from convo.conversation.score import Weights
from convo.web.description import views

AT = datetime(2026, 3, 2, 8, 4, 23, tzinfo=UTC)

NOTHING_YET = PartsView(
    questions=QuestionsView(state="waiting"),
    emotion=EmotionView(state="waiting"),
    memories=FoundMemoriesView(state="waiting"),
)
ALL_FOUND = PartsView(
    questions=QuestionsView(state="done", by="local/2", questions=("Why?", "How far?"), updated_at=AT),
    emotion=EmotionView(state="done", by="local/2", emotion="interesting", updated_at=AT),
    memories=FoundMemoriesView(
        state="done",
        by="mem0/1",
        memories=(FoundMemory(text="has a dog called Waffles", kind="pet", operation="ADD"),),
        new=1,
        updated_at=AT,
    ),
)

FINDINGS_OF_ALL: dict[PartName, StoredFinding] = {
    "questions": StoredFinding(Questions(questions=("Why?", "How far?"))),
    "emotion": StoredFinding(Mood(emotion="interesting")),
    "memories": StoredFinding(Memories(facts=()), new_memories=1),
}


def a_view(**changes: Any) -> views.ConversationView:
    """Make the answer for one conversation that is done."""
    view = views.ConversationView(
        conversation_id="c-1",
        user_id="mia",
        bot_id="pika-v2",
        bot_name="Pika",
        bot_type=None,
        agent_tag="bedtime",
        language=None,
        timezone=None,
        metadata=None,
        started_at=AT,
        ended_at=AT,
        received_at=AT,
        digest="1:abc",
        turns=4,
        revision=1,
        state="done",
        attempts=1,
        parts=ALL_FOUND,
        score=score(2, FINDINGS_OF_ALL, Weights()),
        waits_for=None,
        parked_since=None,
        log_state="stored",
        last_error=None,
        links=views.links("c-1"),
    )
    return msgspec.structs.replace(view, **changes)


def a_row(name: str = "c-1", **changes: Any) -> views.ConversationSummary:
    """Make one row of a list."""
    row = views.ConversationSummary(
        conversation_id=name,
        user_id="mia",
        bot_id="pika-v2",
        started_at=AT,
        ended_at=AT,
        received_at=AT,
        turns=4,
        state="done",
        attempts=1,
        score=28,
        last_error=None,
        links=views.links(name),
    )
    return msgspec.structs.replace(row, **changes)
