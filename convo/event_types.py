"""The types of events that convo can append to its outbox (``store/outbox.py``), and what each means.

Open it to add a type. The setting ``events.types``, the handbook and the description of webhooks are made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

EventType = Literal[
    "conversation.accepted",
    "conversation.analysed",
    "conversation.dead",
    "conversation.erased",
    "conversation.revised",
    "part.done",
    "relationship.level_changed",
    "user.erased",
]
WebhookState = Literal["new", "active", "off"]
"""What becomes of an endpoint: ``new`` until it has answered a ping."""

EVENT_TYPES: Mapping[EventType, str] = {
    "conversation.accepted": "A conversation is stored. A replay is no event.",
    "conversation.analysed": "All parts are found: the score, with how it came about, and what each part found. It "
    "comes again after a revision and after a promotion: the last one holds.",
    "conversation.dead": "The job was buried, with the reason. It may be retried, and be analysed after all.",
    "conversation.erased": "A conversation was erased: erase what you have of it.",
    "conversation.revised": "A longer log of a conversation is stored. It is analysed, and then counts instead.",
    "part.done": "One part is found. The others may still be missing.",
    "relationship.level_changed": "A user's sum of scores has reached another level, or has fallen to one.",
    "user.erased": "A user was erased: erase what you have of the user.",
}
"""Each type, with what it means."""
