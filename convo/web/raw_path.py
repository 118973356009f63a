"""Makes, of a request's path as it was sent, the path that routes are matched by: each route has one spelling.

Open this file for what percent-encoding means in a path. Outside ids, nothing is decoded and nothing is left out: a
gateway that guards ``/debug`` by its name, and a server that reads ``/%64ebug`` or ``//debug`` as the same, would let
in whom the gateway shut out. An id is decoded once, after matching, so that ``%2F`` in it is data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

# RFC 9112 3.2.2: a server takes a target with a scheme and an authority, too.
_ABSOLUTE = re.compile(r"https?://([^/?#]+)", re.IGNORECASE)
IDS = ("conversation_id", "user_id")
"""The values in a path that are ids: any text, so they are percent-encoded."""


def sent_path(scope: Mapping[str, Any]) -> str:
    """Return the path of an ASGI scope as it was sent, without what stands before it in an absolute target."""
    raw = scope.get("raw_path")
    sent = quote(scope["path"]) if raw is None else raw.decode("latin-1")
    absolute = None if sent.startswith("/") else _ABSOLUTE.match(sent)
    return sent if absolute is None else sent[absolute.end() :] or "/"


def sent_host(scope: Mapping[str, Any]) -> str:
    """Return the host in an absolute target, which counts in the place of the ``Host`` field; empty in any other."""
    absolute = _ABSOLUTE.match((scope.get("raw_path") or b"").decode("latin-1"))
    return absolute[1] if absolute else ""


def routing_path(scope: Mapping[str, Any]) -> str:
    """Return the path of an ASGI scope for matching."""
    path = sent_path(scope)
    if path.startswith("/") and not path.startswith("//"):
        return path
    # The framework adds a slash at the beginning or drops all but one, and takes the path out of any URL: "//livez",
    # "livez" and "ftp://livez/livez" would be "/livez".
    return f"/%2F{path.lstrip('/')}"


def path_values(segments: Mapping[str, str]) -> dict[str, str]:
    """Decode the segments that are ids, and leave every other one as it was sent."""
    return {name: unquote(segment) if name in IDS else segment for name, segment in segments.items()}
