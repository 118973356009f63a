"""A client of convo for Python programs: ``AsyncClient`` on Trio or asyncio, ``Client`` without either.

It needs httpx and msgspec, and nothing else of convo. Both are used in a ``with`` block, which closes what they hold;
both read every answer whole, send what can succeed unchanged again under the same id, and end every call in time.

    with Client("http://127.0.0.1:30020") as convo:
        receipt = convo.post({"conversation_id": "c-1", "user_id": "u-1", "bot_id": "b-1", "conversation_log": [...]})
        found = convo.wait(receipt.conversation_id, seconds=30)
"""

from __future__ import annotations

from convo.client.answers import (
    BotRelationship,
    Conversation,
    ConversationSummary,
    Memory,
    Receipt,
    Relationship,
    Turn,
)
from convo.client.async_client import AsyncClient, Attempt, Body
from convo.client.faults import (
    ClientError,
    Conflict,
    Erased,
    Expired,
    Forbidden,
    Invalid,
    NotConvo,
    NotFound,
    NotReached,
    ProblemError,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
)
from convo.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "Attempt",
    "Body",
    "BotRelationship",
    "Client",
    "ClientError",
    "Conflict",
    "Conversation",
    "ConversationSummary",
    "Erased",
    "Expired",
    "Forbidden",
    "Invalid",
    "Memory",
    "NotConvo",
    "NotFound",
    "NotReached",
    "ProblemError",
    "Receipt",
    "Relationship",
    "TooLarge",
    "TooManyRequests",
    "Turn",
    "Unauthorized",
    "Unavailable",
    "UnsupportedMedia",
]
