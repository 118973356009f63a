"""Makes the bodies that a client posts, and reads them as the accept path does."""

from __future__ import annotations

import json
from typing import Any

from convo.conversation.decode import Received, decode

IDS = {"conversation_id": "abc", "user_id": "usr", "bot_id": "bot"}


def body(**fields: Any) -> bytes:
    """Write the body of a conversation of these fields, with ids where none are given."""
    return json.dumps(IDS | fields, ensure_ascii=False).encode("utf-8", "surrogatepass")


def received(**fields: Any) -> Received:
    """Read the body of a conversation of these fields."""
    return decode(body(**fields))
