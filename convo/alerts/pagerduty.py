"""Sends alerts to PagerDuty by its Events API v2: raised triggers an incident, acknowledged and resolved move it on.

Open it to change what an incident shows. Each alert has one incident, known by ``dedup_key``: what one process raises
for all keeps it when another process takes over.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import msgspec
from msgspec import Struct

from convo.alerts.delivery import HttpSink
from convo.alerts.formats import Notification
from convo.alerts.rules import KINDS, AlertLevel, Change
from convo.outbound import OutboundClient
from convo.settings import Secret

EventAction = Literal["trigger", "acknowledge", "resolve"]

_SEVERITIES: Mapping[AlertLevel, str] = {"CRITICAL": "critical", "HIGH": "error", "MEDIUM": "warning", "LOW": "info"}
_ACTIONS: Mapping[Change, tuple[EventAction, ...]] = {
    "raised": ("trigger",),
    "lasting": ("trigger",),
    "escalated": ("trigger",),
    "acknowledged": ("acknowledge",),
    "resolved": ("resolve",),
    # An incident that a test leaves open would be one more to clear away.
    "test": ("trigger", "resolve"),
}
# The API's own limits.
_SUMMARY_CHARS = 1024
_DEDUP_CHARS = 255


class PagerDutySink(Struct, frozen=True, kw_only=True):
    """One service of PagerDuty, by its routing key; ``public_url`` tells installations apart that share one."""

    name: str
    client: OutboundClient
    url: Secret
    key: Secret
    seconds: float
    public_url: str

    async def send(self, message: Notification) -> None:
        """Send what a message means to an incident, each event under the deadline ``alerts.deliver``.

        Raises:
            RemoteError: it is not taken; retryable where it may be a moment later.
        """
        for action in _ACTIONS[message.change]:
            sink = HttpSink(
                name=self.name,
                client=self.client,
                url=self.url,
                seconds=self.seconds,
                body=partial(self._event, action),
                headers=lambda _message, _body: {},
            )
            await sink.send(message)  # no deadline: the sink sets its own

    def _event(self, action: EventAction, message: Notification) -> bytes:
        return msgspec.json.encode(pagerduty_event(message, action, self.key.reveal(), self.public_url))


def pagerduty_event(message: Notification, action: EventAction, key: str, public_url: str) -> dict[str, Any]:
    """Make one event for PagerDuty."""
    alert = message.alert
    event: dict[str, Any] = {"routing_key": key, "event_action": action, "dedup_key": _dedup_key(message, public_url)}
    if action != "trigger":
        return event
    event["client"] = "convo"
    # Its links must be whole addresses.
    if public_url:
        event["client_url"] = public_url
        event["links"] = [{"href": alert.handbook, "text": "What to do"}]
    event["payload"] = {
        "summary": f"{alert.type} {alert.component}: {alert.trigger}"[:_SUMMARY_CHARS],
        "source": alert.process,
        "severity": _SEVERITIES[alert.level],
        "timestamp": alert.raised_at,
        "component": alert.component,
        "class": alert.type,
        "custom_details": {
            "do": alert.do,
            "handbook": alert.handbook,
            "count": alert.count,
            "figures": alert.evidence.figures,
            "conversations": alert.evidence.explain,
        },
    }
    return event


def _dedup_key(message: Notification, public_url: str) -> str:
    alert = message.alert
    if message.change == "test":
        return message.id
    # The host's name before the folder may be another one after a restart.
    shared = alert.type in KINDS and KINDS[alert.type].shared
    process = "all" if shared else alert.process.rpartition("/")[2]
    return f"convo:{alert.type}:{alert.component}:{process}:{public_url}"[:_DEDUP_CHARS]
