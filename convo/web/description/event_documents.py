"""The schema of each type of event as a receiver gets it: a CloudEvent with the data of that type."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, defstruct

from convo.cloud_events import CloudEvent
from convo.event_data import DATA_OF
from convo.event_types import EVENT_TYPES, EventType


@cache
def event_documents() -> Mapping[EventType, type[Struct]]:
    """Return a Struct for each type, whose schema is that of its events."""
    return {kind: _document(kind) for kind in EVENT_TYPES}


def _document(kind: EventType) -> type[Struct]:
    name = "".join(word.capitalize() for word in kind.replace("_", ".").split(".")) + "Event"
    return defstruct(
        name,
        [("type", Literal[kind]), ("data", DATA_OF[kind] | UnsetType, UNSET)],
        bases=(CloudEvent,),
        frozen=True,
        kw_only=True,
        module=__name__,
        namespace={"__doc__": EVENT_TYPES[kind]},
    )
