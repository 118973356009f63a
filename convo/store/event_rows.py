"""A stored event as its readers get it, and the id by which the outside knows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from convo.conversation.identity import DEFAULT_TENANT
from convo.event_types import EventType
from convo.store.reaching import TENANT_NAME

_ID = re.compile(r"([1-9][0-9]{0,18})-([0-9a-f]{14})")

EVENT_COLUMNS = f"""
    event.number, salt, sequence, type, at, conversation_id, user_id, bot_id, data, trace,
    {TENANT_NAME.format("event.tenant")} AS tenant
"""
"""What ``stored_event`` takes."""

LAST_SEQUENCE = "SELECT last_sequence FROM event_counter"
"""The last number that was given in the order of events; 0 for none."""


class StoredEvent(Struct, frozen=True, kw_only=True):
    """An event with its number in the order, of the ``tenant`` of this name.

    ``data`` is its JSON, None where what it was about has been erased. ``trace`` is the stored context of the trace of
    its conversation, None where that is not recorded.
    """

    number: int
    salt: int
    sequence: int
    type: EventType
    at: datetime
    conversation_id: str | None
    user_id: str | None
    bot_id: str | None
    data: str | None
    tenant: str = DEFAULT_TENANT
    trace: str | None = None

    @property
    def id(self) -> str:
        """Return its id, which stays the same for ever."""
        return event_id(self.number, self.salt)

    @property
    def order_key(self) -> str:
        """What events wait for each other by: the user, or the event alone where it is of nobody any more."""
        return f"event {self.number}" if self.user_id is None else f"user {self.tenant}/{self.user_id}"


class EventPage(Struct, frozen=True, kw_only=True):
    """The next events that a receiver wants, and up to which number was looked."""

    events: Sequence[StoredEvent]
    looked_to: int


def stored_event(row: Mapping[str, Any]) -> StoredEvent:
    """Make an event of a row."""
    return StoredEvent(**{name: row[name] for name in StoredEvent.__struct_fields__})


def event_id(number: int, salt: int) -> str:
    """Return the id of an event."""
    return f"{number}-{salt:014x}"


def parse_event_id(text: str) -> tuple[int, int] | None:
    """Return the number and the salt of an id; None where it is none."""
    found = _ID.fullmatch(text)
    if found is None:
        return None
    number, salt = int(found[1]), int(found[2], 16)
    return (number, salt) if number < 1 << 63 else None
