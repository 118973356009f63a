"""The routes of webhooks: register, change and remove endpoints, ping one, read its attempts, send events again."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from msgspec import UNSET, Struct

from convo.conversation.tenant import Tenant
from convo.errors import Forbidden, Invalid
from convo.event_types import EVENT_TYPES, EventType
from convo.settings import WebSettings
from convo.standard_webhooks import signing_key
from convo.store import webhooks
from convo.store.audit_log import Caller
from convo.store.deliveries import note_ping, ping_target
from convo.store.event_rows import parse_event_id
from convo.store.postgres import Postgres
from convo.store.webhooks import Attempt, ReplayFilter, Webhook, WebhookChange, WebhookDraft
from convo.web import queries
from convo.web.description import webhook_views
from convo.web.description.messages import Answer, encode
from convo.web.door import RouteRequest
from convo.web.json_body import read_json_body
from convo.webhooks.sending import Sender

_PRINTABLE = re.compile(r"[\x21-\x7e]+")


def _tenant_of(request: RouteRequest) -> Tenant:
    """Return whose endpoints a caller sees.

    Raises:
        Forbidden: the key is bound to some bots, and an endpoint is the whole tenant's.
    """
    if request.reach.bots is not None:
        raise Forbidden(
            "this key is bound to bots, and webhooks are of all bots: use a key without --bots (convo key new)"
        )
    return request.reach.tenant


class WebhookRoutes(Struct, frozen=True, kw_only=True):
    """The routes, with what they need; ``changed`` is called when the courier has something to look at.

    ``types`` are those of the events that are appended here.
    """

    settings: WebSettings
    postgres: Postgres
    sender: Sender
    types: Collection[EventType]
    changed: Callable[[], None]

    async def make(self, request: RouteRequest, caller: Caller) -> Answer:
        """Register an endpoint; it is pinged at once.

        Raises:
            Invalid, BadRequest, UnsupportedMedia, TooLarge: what was sent is not valid.
            TooMany: there are as many as there may be.
        """
        sent = await read_json_body(request, webhook_views.NewWebhook, self.settings)
        self._check_types(sent.types)
        _check_url(sent.url)
        _check_secret(sent.secret)
        draft = WebhookDraft(url=sent.url, types=sent.types, bots=sent.bots, secret=sent.secret)
        made, secret = await webhooks.make_webhook(self.postgres, _tenant_of(request), draft, caller)
        self.changed()
        view = webhook_views.NewWebhookView(**_shown(made), secret=secret)
        return Answer(status=201, body=encode(view), headers=[("Location", f"/v1/webhooks/{made.webhook_id}")])

    async def many(self, request: RouteRequest) -> Answer:
        """Answer with every endpoint."""
        found = await webhooks.list_webhooks(self.postgres, _tenant_of(request))
        view = webhook_views.WebhooksView(webhooks=tuple(map(_view, found)))
        return Answer(status=200, body=encode(view))

    async def one(self, webhook_id: str, request: RouteRequest) -> Answer:
        """Answer with one endpoint.

        Raises:
            NotFound: there is none of this id.
        """
        found = await webhooks.read_webhook(self.postgres, _tenant_of(request), webhook_id)
        return Answer(status=200, body=encode(_view(found)))

    async def change(self, webhook_id: str, request: RouteRequest, caller: Caller) -> Answer:
        """Change an endpoint.

        Raises:
            NotFound: there is none of this id.
            Invalid, BadRequest, UnsupportedMedia, TooLarge: what was sent is not valid.
        """
        sent = await read_json_body(request, webhook_views.SentChange, self.settings)
        if sent.types is not UNSET:
            self._check_types(sent.types)
        if sent.url is not UNSET:
            _check_url(sent.url)
        change = WebhookChange(url=sent.url, types=sent.types, bots=sent.bots, active=sent.active)
        changed = await webhooks.change_webhook(self.postgres, _tenant_of(request), webhook_id, change, caller)
        self.changed()
        return Answer(status=200, body=encode(_view(changed)))

    async def rotate(self, webhook_id: str, request: RouteRequest, caller: Caller) -> Answer:
        """Give an endpoint another secret.

        Raises:
            NotFound: there is none of this id.
            Invalid, BadRequest, UnsupportedMedia, TooLarge: what was sent is not valid.
        """
        sent = await read_json_body(request, webhook_views.NewSecret, self.settings)
        _check_secret(sent.secret)
        found, secret = await webhooks.rotate_secret(
            self.postgres, _tenant_of(request), webhook_id, sent.secret, caller
        )
        self.changed()
        return Answer(status=200, body=encode(webhook_views.NewWebhookView(**_shown(found), secret=secret)))

    async def delete(self, webhook_id: str, request: RouteRequest, caller: Caller) -> Answer:
        """Remove an endpoint.

        Raises:
            NotFound: there is none of this id.
        """
        await webhooks.delete_webhook(self.postgres, _tenant_of(request), webhook_id, caller)
        self.changed()
        return Answer(status=200, body=encode(webhook_views.WebhookDeletedView(id=webhook_id)))

    async def ping(self, webhook_id: str, request: RouteRequest) -> Answer:
        """Ping an endpoint now; one that was new is active if it answers.

        Raises:
            NotFound: there is none of this id.
            DeadlineExceeded: the request's time is over before the endpoint's.
        """
        target = await ping_target(self.postgres, _tenant_of(request), webhook_id)
        outcome = (await self.sender.ping(target.url, target.secrets)).outcome
        await note_ping(self.postgres, webhook_id, target.version, outcome)
        self.changed()
        view = webhook_views.WebhookPingView(
            id=webhook_id,
            good=outcome.good,
            status=outcome.status,
            error=outcome.error,
            answer=_text(outcome.answer),
            seconds=outcome.seconds,
        )
        return Answer(status=200, body=encode(view))

    async def attempts(self, webhook_id: str, request: RouteRequest) -> Answer:
        """Answer with a page of attempts.

        Raises:
            NotFound: there is none of this id.
            Invalid: the limit or the cursor is not valid.
        """
        query = request.query
        limit = queries.limit_of(query, self.settings.list_rows_max)
        found = await webhooks.read_attempts(
            self.postgres, _tenant_of(request), webhook_id, queries.cursor_of(query), limit
        )
        cursor = queries.cursor_after(found[limit - 1].number) if len(found) > limit else None
        view = webhook_views.AttemptsView(attempts=tuple(map(_attempt, found[:limit])), next_cursor=cursor)
        return Answer(status=200, body=encode(view))

    async def replay(self, webhook_id: str, request: RouteRequest) -> Answer:
        """Have events sent again.

        Raises:
            NotFound: there is no such endpoint, or no such event.
            Invalid: a filter or the cursor is not valid.
        """
        query = request.query
        wanted = ReplayFilter(
            since=queries.since_of(query),
            until=queries.time_of(query, "until"),
            type=_type_of(query),
            event=_event_of(query),
            after=queries.cursor_of(query) or 0,
        )
        found = await webhooks.replay(self.postgres, _tenant_of(request), webhook_id, wanted)
        self.changed()
        cursor = None if found.next_after is None else queries.cursor_after(found.next_after)
        return Answer(status=202, body=encode(webhook_views.ReplayView(events=found.count, next_cursor=cursor)))

    def _check_types(self, types: Collection[EventType]) -> None:
        if not self.types:
            raise Invalid(
                "there are no events: events.types chooses none; choose some there and restart", path="$.types"
            )
        missing = sorted(set(types) - set(self.types))
        if missing:
            raise Invalid(
                f"there are no events of the type {missing[0]}: add it to events.types, which is"
                f" {', '.join(self.types)}",
                path="$.types",
            )


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        parts, port, host = urlsplit(""), None, None
    whole = parts.scheme in ("http", "https") and bool(host) and port != 0 and _PRINTABLE.fullmatch(url)
    if not whole or "@" in parts.netloc or parts.fragment:
        raise Invalid(
            "it must be an http:// or https:// address of a host, in ASCII, without a login and a fragment",
            path="$.url",
        )


def _check_secret(secret: str) -> None:
    try:
        if secret:
            signing_key(secret)
    except ValueError as error:
        raise Invalid(f"the secret is not valid: {error}", path="$.secret") from None


def _type_of(query: Mapping[str, str]) -> EventType | None:
    asked = query.get("type")
    for kind in EVENT_TYPES:
        if kind == asked:
            return kind
    if asked is None:
        return None
    raise Invalid(f"type={asked!r} is not one of {', '.join(EVENT_TYPES)}", path="type")


def _event_of(query: Mapping[str, str]) -> tuple[int, int] | None:
    text = query.get("event")
    if text is None:
        return None
    for name in ("since", "until", "type", "cursor"):
        if name in query:
            raise Invalid(f"event names one event; {name} is for many", path=name)
    found = parse_event_id(text)
    if found is None:
        raise Invalid(f"event={text!r} is not the id of an event", path="event")
    return found


def _shown(found: Webhook) -> dict[str, Any]:
    same = {
        name: getattr(found, name)
        for name in webhook_views.WebhookView.__struct_fields__
        if name in Webhook.__struct_fields__
    }
    return {"id": found.webhook_id, **same}


def _view(found: Webhook) -> webhook_views.WebhookView:
    return webhook_views.WebhookView(**_shown(found))


def _attempt(found: Attempt) -> webhook_views.AttemptView:
    return webhook_views.AttemptView(
        event_id=found.event_id,
        at=found.at,
        status=found.status,
        error=found.error,
        answer=_text(found.answer),
        seconds=round(found.seconds, 4),
    )


def _text(answer: bytes) -> str:
    return answer.decode("utf-8", "replace").replace("\0", "�")
