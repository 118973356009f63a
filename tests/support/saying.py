"""Conversations made of what a user says, for the tests of the embedded analyst."""

from __future__ import annotations

from datetime import UTC, datetime

from convo.conversation.model import Conversation, Turn

_AT = datetime(2026, 3, 2, tzinfo=UTC)


def user_says(*said: str, bot: tuple[str, ...] = ()) -> Conversation:
    """Make a conversation of what a user says, after what a bot says."""
    users = tuple(Turn(speaker="user", text=text, at=_AT) for text in said)
    bots = tuple(Turn(speaker="bot", text=text, at=_AT) for text in bot)
    return Conversation(conversation_id="c-1", user_id="u-1", bot_id="b-1", digest="1:0", turns=(*bots, *users))
