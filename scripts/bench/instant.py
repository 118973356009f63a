"""convo with an instant analyst, which finds nothing and only notes when it was asked: ``instant.py FILE serve …``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.analysis import local
from convo.commands import cli
from convo.conversation.model import Conversation, Memories, Mood, Questions
from scripts.bench.peers import marks


def questions(conversation: Conversation) -> Questions:
    """Note that the worker has started on this conversation."""
    marks.mark(conversation.conversation_id)
    return Questions(questions=())


def emotion(conversation: Conversation) -> Mood:  # noqa: ARG001  (called by this name)
    """Feel nothing."""
    return Mood(emotion="neutral")


def memories(conversation: Conversation) -> Memories:  # noqa: ARG001  (called by this name)
    """Remember nothing."""
    return Memories(facts=())


if __name__ == "__main__":
    marks.into(sys.argv[1])
    local.questions, local.emotion, local.memories = questions, emotion, memories
    sys.exit(cli.main(sys.argv[2:]))
