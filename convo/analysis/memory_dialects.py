"""The dialects of memory services as data: paths, names of fields, headers. Open it to add one.

The paths of mem0 are those of its hosted service (https://api.mem0.ai) in each version, and those of its own server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from convo.analysis.memory_answers import ServiceAnswer, read_extraction, read_mem0
from convo.settings import MemorySettings


class ApiPaths(Struct, frozen=True, kw_only=True):
    """Where a service takes a conversation, lists what it knows of a user, tells what became of an event, and deletes.

    Empty where it does not. With ``filters`` the list is asked for by POST. ``delete`` is one memory, ``delete_user``
    all of a user.
    """

    add: str
    list: str = ""
    event: str = ""
    delete: str = ""
    delete_user: str = ""
    filters: bool = False


class MemoryDialect(Struct, frozen=True, kw_only=True):
    """What a conversation is sent as, how an answer is read, and in which headers the key stands."""

    turns_field: str
    names_conversation: bool
    read: Callable[[bytes], ServiceAnswer]
    key_headers: dict[str, str] = field(default_factory=dict)


MEMORY_DIALECTS = {
    "extract_facts": MemoryDialect(
        turns_field="conversation",
        names_conversation=True,
        read=read_extraction,
        key_headers={"authorization": "Bearer {}"},
    ),
    # The hosted service reads the one header, the self-hosted server the other; there a Bearer would be read as a JWT.
    "mem0": MemoryDialect(
        turns_field="messages",
        names_conversation=False,
        read=read_mem0,
        key_headers={"authorization": "Token {}", "x-api-key": "{}"},
    ),
}
_HOSTED_PATHS: dict[str, Any] = {
    "event": "/v1/event/{event_id}/",
    "delete": "/v1/memories/{memory_id}/",
    "delete_user": "/v1/memories/?user_id={user_id}",
}
_BY_VERSION = {
    # It takes no deletion.
    ("extract_facts", ""): ApiPaths(add="/extract_facts"),
    # As mem0's own server has them, and any that the address points into (http://host/v1).
    ("mem0", ""): ApiPaths(
        add="/memories",
        list="/memories",
        event="/event/{event_id}/",
        delete="/memories/{memory_id}",
        delete_user="/memories?user_id={user_id}",
    ),
    ("mem0", "v1"): ApiPaths(add="/v1/memories/", list="/v1/memories/", **_HOSTED_PATHS),
    ("mem0", "v2"): ApiPaths(add="/v1/memories/", list="/v2/memories/", filters=True, **_HOSTED_PATHS),
    ("mem0", "v3"): ApiPaths(add="/v3/memories/add/", list="/v3/memories/", filters=True, **_HOSTED_PATHS),
}


def api_paths(settings: MemorySettings) -> ApiPaths:
    """Return the paths that the settings name, and the dialect's own for the others."""
    own = _BY_VERSION[settings.dialect, settings.api_version]
    return ApiPaths(
        add=settings.add_path or own.add,
        # mem0's own server has one path for both.
        list=settings.list_path or (settings.add_path if own.list == own.add else "") or own.list,
        event=settings.event_path or own.event,
        delete=settings.delete_path or own.delete,
        delete_user=settings.delete_user_path or own.delete_user,
        filters=own.filters,
    )
