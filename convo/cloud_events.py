"""Events as the outside gets them: CloudEvents 1.0 in JSON.

Open it to change what every event has. What an event of a type holds stands in ``event_data``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from convo.conversation.identity import DEFAULT_TENANT
from convo.observe.trace_context import read_stored_context
from convo.store.event_rows import StoredEvent

EVENT_CONTENT_TYPE = "application/cloudevents+json"
PING = "webhook.ping"
"""The type of what is posted to find out whether an endpoint answers."""

_SOURCE = "/convo"


class CloudEvent(Struct, frozen=True, kw_only=True):
    """One event; without `subject` and `data` where what it was about has been erased."""

    specversion: str = "1.0"
    id: Annotated[str, Meta(description="Stays the same at every delivery: an id that you know is a repetition.")]
    source: str = _SOURCE
    type: str
    time: datetime
    tenant: str = DEFAULT_TENANT
    sequence: (
        Annotated[int, Meta(ge=1, description="Rises from event to event; one order for the whole installation.")]
        | UnsetType
    ) = UNSET
    subject: Annotated[str, Meta(description="The conversation, or the user where it is of a user.")] | UnsetType = (
        UNSET
    )
    traceparent: (
        Annotated[str, Meta(description="The trace of the conversation, where that is recorded (W3C trace context).")]
        | UnsetType
    ) = UNSET
    tracestate: Annotated[str, Meta(description="What came with that trace.")] | UnsetType = UNSET
    datacontenttype: str = "application/json"
    data: Any = UNSET


def encode_event(event: StoredEvent) -> bytes:
    """Write a stored event."""
    subject = event.conversation_id or event.user_id
    context = None if event.trace is None else read_stored_context(event.trace)
    return _ENCODER.encode(
        CloudEvent(
            id=event.id,
            type=event.type,
            time=event.at,
            tenant=event.tenant,
            sequence=event.sequence,
            subject=UNSET if subject is None else subject,
            traceparent=UNSET if context is None else context.traceparent,
            tracestate=UNSET if context is None or not context.state else context.state,
            data=UNSET if event.data is None else _data(event, event.data),
        )
    )


def encode_ping(ping_id: str, at: datetime) -> bytes:
    """Write a ping."""
    return _ENCODER.encode(CloudEvent(id=ping_id, type=PING, time=at, data={}))


def _data(event: StoredEvent, data: str) -> Raw:
    """Put the ids, which stand in columns of their own, before what else the event holds."""
    ids: dict[str, str | None] = {}
    if event.conversation_id is not None:
        ids["conversation_id"] = event.conversation_id
    # Of a conversation that had expired before it was erased nobody knows whose it was.
    if event.user_id is not None or ids:
        ids["user_id"] = event.user_id
    if event.bot_id is not None and event.type != "conversation.erased":
        ids["bot_id"] = event.bot_id
    own = data.strip()
    written = _ENCODER.encode(ids)
    return Raw(written if own == "{}" else written[:-1] + b"," + own[1:].encode())


_ENCODER = msgspec.json.Encoder()
