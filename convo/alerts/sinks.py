"""Opens the sinks of the settings: those that get every alert, and those of the people who are on call.

Open it to add a sink; its form stands in ``formats``, or in a module of its own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from msgspec import Struct

from convo.alerts import formats
from convo.alerts.delivery import HttpSink, LogSink, Sink, SinkBody, SinkHeaders, SinkQueue
from convo.alerts.formats import Notification
from convo.alerts.pagerduty import PagerDutySink
from convo.outbound import OutboundClient
from convo.settings import AlertsSettings, Secret, Settings
from convo.standard_webhooks import signed, signing_key


class OpenSinks(Struct, frozen=True, kw_only=True):
    """The queues of the sinks: of those that get every alert, and of each person of the rotation."""

    shared: tuple[SinkQueue, ...]
    people: Mapping[str, tuple[SinkQueue, ...]] = {}

    @property
    def every(self) -> tuple[SinkQueue, ...]:
        """All of them."""
        return (*self.shared, *(queue for queues in self.people.values() for queue in queues))


@asynccontextmanager
async def open_sinks(settings: Settings) -> AsyncIterator[OpenSinks]:
    """Open a queue for the log, for each address that is set, and for each way in which a person is notified.

    Raises:
        ConfigError: a file of an authority cannot be read.
    """
    async with AsyncExitStack() as stack:
        opening = _Opening(settings, stack)
        shared: list[Sink] = [LogSink()]
        shared += [await opening.address(*one) for one in _addresses(settings.alerts) if one[1]]
        shared += [one async for one in opening.personal("", settings.alerts.pagerduty_key, settings.alerts.email_to)]
        people: dict[str, tuple[SinkQueue, ...]] = {}
        for name, person in settings.oncall.people.items():
            to = (person.email,) if person.email else ()
            sinks = [one async for one in opening.personal(f".{name}", person.pagerduty_key, to)]
            if person.slack_url:
                sinks.append(await opening.address(f"slack.{name}", person.slack_url, formats.slack_body, _unsigned))
            people[name] = tuple(SinkQueue(sink, settings.alerts) for sink in sinks)
        yield OpenSinks(shared=tuple(SinkQueue(sink, settings.alerts) for sink in shared), people=people)


class _Opening:
    """Opens sinks, which are closed with ``stack``."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack

    async def address(self, name: str, url: Secret, body: SinkBody, headers: SinkHeaders) -> Sink:
        client, seconds = await self._client(name), self._settings.alerts.deliver_seconds
        return HttpSink(name=name, client=client, url=url, seconds=seconds, body=body, headers=headers)

    async def personal(self, whose: str, key: Secret, to: tuple[str, ...]) -> AsyncIterator[Sink]:
        """Yield the sinks that both the settings of all and those of a person may have."""
        alerts = self._settings.alerts
        if key:
            name = f"pagerduty{whose}"
            yield PagerDutySink(
                name=name,
                client=await self._client(name),
                url=Secret(alerts.pagerduty_url),
                key=key,
                seconds=alerts.deliver_seconds,
                public_url=self._settings.server.public_url,
            )
        if to:
            # Python's client for SMTP is imported where a mail server is set.
            from convo.alerts.mail import MailSink  # noqa: PLC0415

            yield MailSink(f"email{whose}", to, self._settings.smtp, alerts.deliver_seconds)

    async def _client(self, name: str) -> OutboundClient:
        # A client reads the trusted authorities, which takes longer than all else at a start: none without an address.
        alerts = self._settings.alerts
        client = OutboundClient(name, seconds=alerts.deliver_seconds, ca_file=alerts.ca_file, verify=alerts.verify)
        return await self._stack.enter_async_context(client)


def _addresses(settings: AlertsSettings) -> Iterator[tuple[str, Secret, SinkBody, SinkHeaders]]:
    yield "webhook", settings.webhook_url, formats.webhook_body, partial(_signed, settings.webhook_secret)
    yield "slack", settings.slack_url, formats.slack_body, _unsigned
    yield "google_chat", settings.google_chat_url, formats.google_chat_body, _unsigned


def _signed(secret: Secret, message: Notification, body: bytes) -> Mapping[str, str]:
    # The receiver compares it with its own wall clock: the time of this attempt, not that of the alert.
    return signed(message.id, int(time.time()), body, [signing_key(secret.reveal())])


def _unsigned(_message: Notification, _body: bytes) -> Mapping[str, str]:
    return {}
