"""``/livez``, ``/readyz``, ``/metrics``, ``/debug/tasks``, ``/openapi.json`` and ``/docs``; it knows no framework."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Awaitable, Callable, Mapping

import trio
from msgspec import Struct

from convo import tasks
from convo.alerts.delivery import Outbox
from convo.alerts.keeper import Alerts
from convo.deadline import deadline
from convo.errors import ConvoError, Forbidden
from convo.observe import metrics
from convo.web import answers, docs, openapi
from convo.web.door import Answer, encode
from convo.web.readiness import Readiness

Ping = Callable[[], Awaitable[None]]
DATABASE = "database"
_METRICS_SECONDS = 5.0
_RETRY_AFTER = "1"


class Operations(Struct, frozen=True, kw_only=True):
    """What the operational routes work with; ``pings`` asks each dependency, by name, for nothing."""

    readiness: Readiness
    pings: Mapping[str, Ping]
    alerts: Alerts

    async def livez(self) -> Answer:
        """Answer that the process lives and its loop turns."""
        return Answer(status=200, body=encode(answers.LiveView()))

    async def readyz(self) -> Answer:
        """Answer whether requests can be served, with each dependency's ping and its time."""
        found: dict[str, answers.DependencyView] = {}

        async def ask(name: str, ping: Ping) -> None:
            found[name] = await _pinged(ping)

        async with trio.open_nursery() as nursery:
            for name, ping in self.pings.items():
                nursery.start_soon(ask, name, ping)
        phase = self.readiness.phase
        # Only the database decides: what the analysis needs may be away, and conversations are still safe here.
        status = phase if phase != "open" else "ready" if found[DATABASE].ok else "unavailable"
        in_order = {name: found[name] for name in self.pings}
        view = answers.ReadyView(status=status, dependencies=in_order, warnings=tuple(self.readiness.warnings))
        if status == "ready":
            return Answer(status=200, body=encode(view))
        return Answer(status=503, body=encode(view), headers=[("Retry-After", _RETRY_AFTER)])

    async def metrics(self) -> Answer:
        """Answer with the figures in Prometheus' text form."""
        with deadline("web.metrics", _METRICS_SECONDS):
            # Some milliseconds of work: too long for the loop.
            body = await trio.to_thread.run_sync(metrics.exposition, abandon_on_cancel=True)
        return Answer(status=200, body=body, content_type=metrics.CONTENT_TYPE)

    async def tasks(self, peer: str | None) -> Answer:
        """Answer with every task and where it waits; ``peer`` is whoever asks, None where a key was shown.

        Raises:
            Forbidden: without keys, ``peer`` is not an address of this machine itself.
        """
        if peer is not None and not _is_here(peer):
            raise Forbidden(f"/debug is for this machine's own addresses, not for {peer or 'one without an address'}")
        root = tasks.tree()
        count = sum(1 for _ in tasks.flat(root))
        return Answer(status=200, body=encode(answers.TasksView(pid=os.getpid(), tasks=count, root=root)))

    async def show_alerts(self) -> Answer:
        """Answer with the alerts of this process, those that last and those that ended lately."""
        shown = self.alerts.show()
        view = answers.AlertsView(active=shown.active, recent=shown.recent, leads=shown.leads, sinks=shown.sinks)
        return Answer(status=200, body=encode(view))

    async def test_alerts(self) -> Answer:
        """Send a test alert through every sink at once, and answer how each took it."""
        message = self.alerts.test_message()
        found: dict[str, answers.SinkTestView] = {}

        async def send(outbox: Outbox) -> None:
            failure = await outbox.test(message)
            name = outbox.sink.name
            found[name] = answers.SinkTestView(sink=name, ok=failure is None, detail=failure)

        async with trio.open_nursery() as nursery:
            for outbox in self.alerts.outboxes:
                nursery.start_soon(send, outbox)
        in_order = tuple(found[outbox.sink.name] for outbox in self.alerts.outboxes)
        return Answer(status=200, body=encode(answers.AlertsTestView(sinks=in_order)))

    async def openapi(self) -> Answer:
        """Answer with the description of this API."""
        return Answer(status=200, body=encode(openapi.document()))

    async def docs(self) -> Answer:
        """Answer with a page that shows the description."""
        return Answer(status=200, body=docs.page().encode(), content_type="text/html; charset=utf-8")


def _is_here(peer: str) -> bool:
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


async def _pinged(ping: Ping) -> answers.DependencyView:
    started = trio.current_time()
    try:
        await ping()
    except ConvoError as error:
        return answers.DependencyView(ok=False, seconds=trio.current_time() - started, detail=error.detail)
    return answers.DependencyView(ok=True, seconds=trio.current_time() - started)
