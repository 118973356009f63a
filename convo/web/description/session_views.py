"""What the routes of a browser's session take and answer."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct


class NewSession(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key that a session is to stand for."""

    key: Annotated[str, Meta(max_length=200, description="`convo_…`, as `convo key new` has printed it.")]


class SessionView(Struct, frozen=True, kw_only=True):
    """A session, and what its key may do."""

    keys: Literal[True] = True
    expires_at: Annotated[datetime, Meta(description="When it ends, by itself or with its key.")]
    csrf: Annotated[
        str, Meta(description="To be sent as `X-CSRF-Token` with every request but GET and HEAD. Keep it in memory.")
    ]
    name: Annotated[str, Meta(description="The name of the key.")]
    key_id: str
    tenant: str
    bots: Annotated[tuple[str, ...] | None, Meta(description="The bots that the key is bound to; null: all.")]
    scopes: tuple[str, ...]


class NoKeysView(Struct, frozen=True, kw_only=True):
    """The server asks for no keys (`auth.keys`): there is nothing to sign in to."""

    keys: Literal[False] = False


class SessionEndedView(Struct, frozen=True, kw_only=True):
    """The session is over."""

    ended: Literal[True] = True
