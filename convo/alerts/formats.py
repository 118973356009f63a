"""What is shown and sent of an alert, and the form each sink takes: open it to change a message or add a sink's form.

The generic webhook is JSON signed by the Standard Webhooks scheme (standardwebhooks.com); Slack and Google Chat take
their own form, and keep who may post in the address itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct

from convo.alerts.rules import KINDS, Alert, AlertLevel, Change, explain_link

if TYPE_CHECKING:
    # What only shows alerts needs no database.
    from convo.store.open_alerts import Acknowledgement

_MARKS: Mapping[Change, str] = {
    "raised": "🔴",
    "lasting": "🟠",
    "escalated": "🔴",
    "acknowledged": "🟡",
    "resolved": "🟢",
    "test": "🔵",
}


class EvidenceView(Struct, frozen=True, kw_only=True):
    """What it is based on: figures by name, at most ten conversations, and where each says why it waits."""

    figures: dict[str, float | int | str]
    ids: Annotated[tuple[str, ...], Meta(max_length=10)] = ()
    explain: Annotated[tuple[str, ...], Meta(max_length=10)] = ()


class AlertView(Struct, frozen=True, kw_only=True):
    """One alert: a condition of a component, from when to when, and what to do about it."""

    type: str
    component: str
    level: AlertLevel
    trigger: str
    do: str
    raised_at: datetime
    ended_at: Annotated[datetime | None, Meta(description="Null while it lasts.")] = None
    count: Annotated[int, Meta(ge=1, description="How often it happened in that time.")] = 1
    told: Annotated[int, Meta(ge=0, description="How often it was notified; folded and capped ones are not.")] = 0
    evidence: EvidenceView
    process: Annotated[str, Meta(description="The process that raised it.")]
    handbook: Annotated[str, Meta(description="Where the handbook describes it.")] = ""
    acknowledged_at: Annotated[
        datetime | None, Meta(description="When somebody acknowledged it; null while nobody has.")
    ] = None
    acknowledged_by: str | None = None


class Notification(Struct, frozen=True, kw_only=True):
    """One change of one alert, as it is sent; ``id`` is the same at every attempt to deliver it."""

    id: str
    change: Change
    at: datetime
    alert: AlertView


class _Event(Struct, frozen=True, kw_only=True):
    type: str
    timestamp: datetime
    data: AlertView


def view(  # noqa: PLR0913  (what is not known of an alert by itself)
    alert: Alert,
    *,
    raised_at: datetime,
    ended_at: datetime | None,
    process: str,
    public_url: str = "",
    acknowledged: Acknowledgement | None = None,
) -> AlertView:
    """Make what is shown and sent of an alert; its links begin with ``public_url``."""
    found = alert.condition
    return AlertView(
        type=found.type,
        component=found.component,
        level=found.level,
        trigger=found.trigger,
        do=do(found.type),
        raised_at=raised_at,
        ended_at=ended_at,
        count=alert.count,
        told=alert.notified,
        evidence=EvidenceView(
            figures=found.evidence.figures,
            ids=found.evidence.ids,
            explain=tuple(f"{public_url}{explain_link(one)}" for one in found.evidence.ids),
        ),
        process=process,
        handbook=f"{public_url}{handbook_path(found.type)}",
        acknowledged_at=None if acknowledged is None else acknowledged.at,
        acknowledged_by=None if acknowledged is None else acknowledged.by,
    )


def handbook_path(kind: str) -> str:
    """Return the path at which the handbook describes a type of alert; of a test it is the whole page."""
    return f"/docs/alerts#{kind.lower()}" if kind in KINDS else "/docs/alerts"


def do(kind: str) -> str:
    """Return the one line of what to do; a test has none of the types."""
    return KINDS[kind].do if kind in KINDS else "Nothing: it is a test."


# --- the bodies


def webhook_body(message: Notification) -> bytes:
    """Write the generic webhook's JSON: ``type`` (``alert.raised``), ``timestamp`` and ``data``."""
    event = _Event(type=f"alert.{message.change}", timestamp=message.at, data=message.alert)
    return msgspec.json.encode(event)


def slack_body(message: Notification) -> bytes:
    """Write what Slack's incoming webhooks take; what it would read as markup is escaped."""
    return msgspec.json.encode({"text": "\n".join(map(_escaped, _lines(message)))})


def google_chat_body(message: Notification) -> bytes:
    """Write what Google Chat's incoming webhooks take."""
    return msgspec.json.encode({"text": "\n".join(_lines(message))})


def plain_lines(message: Notification) -> list[str]:
    """Write a message as lines for a person, without any markup."""
    alert = message.alert
    return [f"{alert.level} {alert.type} {message.change}: {alert.component}", *_more_lines(message)]


def _lines(message: Notification) -> list[str]:
    alert = message.alert
    head = f"{_MARKS[message.change]} *{alert.level} {alert.type}* {message.change}: {alert.component}"
    return [head, *_more_lines(message)]


def _more_lines(message: Notification) -> list[str]:
    alert = message.alert
    figures = ", ".join(f"{name} {value}" for name, value in alert.evidence.figures.items())
    times = f", {alert.count} times" if alert.count > 1 else ""
    return [
        f"{alert.trigger} (since {alert.raised_at:%Y-%m-%d %H:%M:%S}Z{times})",
        *([figures] if figures else []),
        *([f"Acknowledged by {alert.acknowledged_by}"] if alert.acknowledged_by else []),
        f"Do: {alert.do}",
        f"Handbook: {alert.handbook}",
        *alert.evidence.explain,
    ]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
