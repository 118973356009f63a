"""The routes for operators: ``/livez``, ``/readyz``, ``/metrics``, ``/debug/tasks`` and ``/v1/alerts``."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec
import trio
from msgspec import Struct, structs

from convo.alerts.delivery import SinkQueue
from convo.alerts.keeper import Alerts
from convo.alerts.rules import KINDS
from convo.errors import ConvoError, Forbidden, Invalid
from convo.http.turns import end_turn
from convo.observe import metrics
from convo.runtime import tasks, threads
from convo.runtime.deadline import deadline
from convo.settings import WebSettings
from convo.store.audit_log import Caller
from convo.web.description import service_views
from convo.web.description.messages import Answer, encode
from convo.web.door import RouteRequest
from convo.web.json_body import read_json_body
from convo.web.pings import DATABASE_PING, Pings
from convo.web.readiness import Readiness

_METRICS_SECONDS = _TASKS_SECONDS = 5.0
_RETRY_AFTER = "1"


class SharedAnswer:
    """Makes one answer for all who wait for one: whoever asks while one is made gets the next."""

    def __init__(self, make: Callable[[], Awaitable[bytes]]) -> None:
        self._make = make
        self._one = trio.Lock()
        self._begun = self._made = 0
        self._body = b""

    async def body(self) -> bytes:
        """Return an answer that was begun after this call."""
        least = self._begun + 1
        if self._one.locked():
            end_turn()
        async with self._one:
            if self._made < least:
                self._begun += 1
                number = self._begun
                self._body = await self._make()
                self._made = number
            return self._body


async def _in_thread(make: Callable[[], bytes]) -> bytes:
    # What the thread works has an account of its own, and accepts are answered meanwhile.
    end_turn()
    return await threads.OPERATIONS.call_behind(make)  # no deadline: the caller's


# Some 20 ms of work each, in slices: each step of the loop would wait for a thread that works.
_give_way = partial(threads.give_way, to_accepts=True)
_write_metrics = partial(_in_thread, partial(metrics.exposition, _give_way))
_write_openmetrics = partial(_in_thread, partial(metrics.openmetrics_exposition, _give_way))


async def _write_tasks() -> bytes:
    root = await tasks.tree()

    def make() -> bytes:
        count = sum(1 for _ in tasks.flat(root))
        return encode(service_views.TasksView(pid=os.getpid(), tasks=count, root=root))

    with deadline("web.tasks", _TASKS_SECONDS):
        return await _in_thread(make)


class OperationsRoutes(Struct, frozen=True, kw_only=True):
    """The routes for operators, with what they need.

    ``check_stores`` raises while the database stores nothing. ``learnt`` returns what was learnt of a server.
    """

    readiness: Readiness
    pings: Pings
    check_stores: Callable[[], None]
    alerts: Alerts
    settings: WebSettings = WebSettings()
    learnt: Mapping[str, Callable[[], str]] = {}
    exposition: SharedAnswer = msgspec.field(default_factory=lambda: SharedAnswer(_write_metrics))
    openmetrics: SharedAnswer = msgspec.field(default_factory=lambda: SharedAnswer(_write_openmetrics))
    every_task: SharedAnswer = msgspec.field(default_factory=lambda: SharedAnswer(_write_tasks))

    async def livez(self) -> Answer:
        """Answer that the process runs; that it answers at all shows that its loop runs."""
        return Answer(status=200, body=encode(service_views.LiveView()))

    async def readyz(self) -> Answer:
        """Answer whether requests can be served, with the last ping of each dependency."""
        found = self.pings.shown()
        try:
            self.check_stores()
        except ConvoError as error:
            # It may answer and store nothing: a commit has failed a moment ago.
            if found[DATABASE_PING].ok:
                found[DATABASE_PING] = structs.replace(found[DATABASE_PING], ok=False, detail=error.detail)
        phase = self.readiness.phase
        # Only the database decides: without the model or the memory service, conversations are still stored safely.
        status = phase if phase != "open" else "ready" if found[DATABASE_PING].ok else "unavailable"
        shown = {name: self._with_learnt(name, view) for name, view in found.items()}
        view = service_views.ReadyView(status=status, dependencies=shown, warnings=self.readiness.shown_warnings)
        if status == "ready":
            return Answer(status=200, body=encode(view))
        return Answer(status=503, body=encode(view), headers=[("Retry-After", _RETRY_AFTER)])

    def _with_learnt(self, name: str, view: service_views.DependencyView) -> service_views.DependencyView:
        learnt = self.learnt[name]() if name in self.learnt else ""
        return structs.replace(view, takes=learnt) if learnt else view

    async def metrics(self, accept: str = "") -> Answer:
        """Answer with the metrics in Prometheus' text format, or in OpenMetrics', which has exemplars, if asked to."""
        openmetrics = metrics.takes_openmetrics(accept)
        with deadline("web.metrics", _METRICS_SECONDS):
            # Some milliseconds of work: too long for the loop, which all requests share.
            body = await (self.openmetrics if openmetrics else self.exposition).body()
        kind = metrics.OPENMETRICS_TYPE if openmetrics else metrics.CONTENT_TYPE
        return Answer(status=200, body=body, content_type=kind)

    async def tasks(self, peer: str | None) -> Answer:
        """Answer with every task and where it waits; ``peer`` is the client's address, None for a trusted client.

        Raises:
            Forbidden: ``peer`` is not an address of this machine.
        """
        if peer is not None and not _is_here(peer):
            raise Forbidden(f"/debug is for this machine's own addresses, not for {peer or 'an unknown one'}")
        return Answer(status=200, body=await self.every_task.body())

    async def show_alerts(self) -> Answer:
        """Answer with the active and the recent alerts of this process."""
        shown = self.alerts.show()
        view = service_views.AlertsView(active=shown.active, recent=shown.recent, leads=shown.leads, sinks=shown.sinks)
        return Answer(status=200, body=encode(view))

    async def test_alerts(self) -> Answer:
        """Send a test alert to every sink at once, and answer with the result of each."""
        message = self.alerts.test_message()
        found: dict[str, service_views.SinkTestView] = {}

        async def send(queue: SinkQueue) -> None:
            failure = await queue.test(message)
            name = queue.sink.name
            found[name] = service_views.SinkTestView(sink=name, ok=failure is None, detail=failure)

        async with trio.open_nursery() as nursery:
            for queue in self.alerts.sinks.every:
                nursery.start_soon(send, queue)
        in_order = tuple(found[queue.sink.name] for queue in self.alerts.sinks.every)
        return Answer(status=200, body=encode(service_views.AlertsTestView(sinks=in_order)))

    async def acknowledge_alert(self, request: RouteRequest, caller: Caller) -> Answer:
        """Note that somebody has taken up the alerts of a type, and answer with those that this is about.

        Raises:
            Invalid, BadRequest, UnsupportedMedia, TooLarge: what was sent is not valid.
            NotFound: no alert like that lasts.
            Unavailable: the database does not answer, and this process has no such alert.
        """
        sent = await read_json_body(request, service_views.AlertToAcknowledge, self.settings)
        if sent.type not in KINDS:
            raise Invalid(f"{sent.type!r} is no type of alert; /docs/alerts lists them", path="$.type")
        found = await self.alerts.open.acknowledge(sent.type, sent.component, sent.by, caller)
        shown = tuple(
            service_views.AcknowledgedAlertView(
                type=one.type,
                component=one.component,
                acknowledged_by=one.acknowledged.by,
                acknowledged_at=one.acknowledged.at,
            )
            for one in found
            if one.acknowledged is not None
        )
        return Answer(status=200, body=encode(service_views.AcknowledgedAlertsView(alerts=shown)))


def _is_here(peer: str) -> bool:
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
