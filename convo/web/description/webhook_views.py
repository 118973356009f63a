"""What the routes of webhooks take and answer: endpoints, pings, attempts and what is sent again."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from convo.event_types import EventType, WebhookState

WebhookUrl = Annotated[
    str, Meta(max_length=2000, description="An http:// or https:// address without a login and a fragment.")
]
SentTypes = Annotated[
    tuple[EventType, ...], Meta(max_length=50, description="Only events of these types; an empty list: of all types.")
]
SentBots = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=255)], ...],
    Meta(max_length=1000, description="Only events of these bots, and those that are of no bot; an empty list: all."),
]
SentSecret = Annotated[
    str, Meta(max_length=100, description="`whsec_` and the base64 of 24 to 64 bytes; without it one is made.")
]


class NewWebhook(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An endpoint that is to be registered."""

    url: WebhookUrl
    types: SentTypes = ()
    bots: SentBots = ()
    secret: SentSecret = ""


class SentChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is changed of an endpoint; what is not sent stays."""

    url: WebhookUrl | UnsetType = UNSET
    types: SentTypes | UnsetType = UNSET
    bots: SentBots | UnsetType = UNSET
    active: Annotated[bool, Meta(description="`true` switches it on, after a ping; `false` off.")] | UnsetType = UNSET


class NewSecret(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The secret that an endpoint gets."""

    secret: SentSecret = ""


class WebhookView(Struct, frozen=True, kw_only=True):
    """One endpoint."""

    id: str
    url: str
    types: tuple[EventType, ...]
    bots: tuple[str, ...]
    state: Annotated[
        WebhookState, Meta(description="`new` until it has answered a ping, then `active`; `off`: it gets nothing.")
    ]
    reason: Annotated[str | None, Meta(description="Why it is off.")]
    created_at: datetime
    failing_since: Annotated[datetime | None, Meta(description="Since then every attempt has failed.")]
    old_secret_until: Annotated[
        datetime | None, Meta(description="Until then events are also signed with the secret before this one.")
    ]
    confirmed: Annotated[
        int, Meta(description="Events up to this `sequence` are confirmed, or tried apart from the others.")
    ]


class NewWebhookView(WebhookView, frozen=True, kw_only=True):
    """One endpoint with its secret, which is shown here only."""

    secret: str


class WebhooksView(Struct, frozen=True, kw_only=True):
    """Every endpoint, the oldest first."""

    webhooks: tuple[WebhookView, ...]


class WebhookDeletedView(Struct, frozen=True, kw_only=True):
    """The endpoint that is no more."""

    id: str


class WebhookPingView(Struct, frozen=True, kw_only=True):
    """What came of a ping."""

    id: str
    good: bool
    status: Annotated[int | None, Meta(description="Null where nothing was answered.")]
    error: str | None
    answer: Annotated[str, Meta(description="The first bytes of what was answered.")]
    seconds: float


class AttemptView(Struct, frozen=True, kw_only=True):
    """One attempt to deliver an event or a ping."""

    event_id: str
    at: datetime
    status: Annotated[int | None, Meta(description="Null where nothing was answered.")]
    error: Annotated[str | None, Meta(description="Null where the event was confirmed.")]
    answer: Annotated[str, Meta(description="The first bytes of what was answered.")]
    seconds: float


class AttemptsView(Struct, frozen=True, kw_only=True):
    """A page of attempts, newest first."""

    attempts: tuple[AttemptView, ...]
    next_cursor: str | None = None


class ReplayView(Struct, frozen=True, kw_only=True):
    """How many events are sent again; with `next_cursor` there may be more."""

    events: int
    next_cursor: str | None = None
