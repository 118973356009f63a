"""Which function answers which route of the catalogue, for both servers.

Open this file after adding a row to ``description.routes``: the row's function is named here, once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from msgspec import Struct

from convo.http.addresses import client_network
from convo.http.context import DirectTarget
from convo.observe import log_records
from convo.settings import Settings
from convo.store.audit_log import Caller
from convo.web import documentation, queries
from convo.web.accept import AcceptRoute
from convo.web.auditing import AuditLogRoute
from convo.web.batch import BatchRoute
from convo.web.capacity import CapacityRoute
from convo.web.conversations import ReadRoutes
from convo.web.dead_letters import DeadLetterRoutes
from convo.web.description.messages import Answer, Bound, Head, NextPiece, Read
from convo.web.description.routes import ROUTES, Route
from convo.web.door import Door, RouteFunction, RouteRequest, answered
from convo.web.erasing import EraseRoutes
from convo.web.event_stream import EventStreams
from convo.web.explaining import ExplainRoute
from convo.web.figures import InstallationFigures
from convo.web.live import LiveStreams
from convo.web.operations import OperationsRoutes
from convo.web.reanalysing import ReanalyseRoute
from convo.web.session_routes import SessionRoutes
from convo.web.webhooks import WebhookRoutes


class Api(Struct, frozen=True, kw_only=True):
    """What answers requests: the checks that each of them passes, and the objects behind the routes."""

    settings: Settings
    door: Door
    intake: AcceptRoute
    reading: ReadRoutes
    explaining: ExplainRoute
    auditing: AuditLogRoute
    erasing: EraseRoutes
    operations: OperationsRoutes
    capacity: CapacityRoute
    webhooks: WebhookRoutes
    streams: EventStreams
    live: LiveStreams
    figures: InstallationFigures
    sessions: SessionRoutes
    reanalysing: ReanalyseRoute


def route_functions(api: Api) -> Mapping[str, RouteFunction]:
    """Return the function of each route, by the name of its row in the catalogue."""
    reading, operations = api.reading, api.operations
    dead = DeadLetterRoutes(
        jobs=reading.jobs, rows_max=api.settings.web.list_rows_max, revived=reading.revived, shared=reading.shared
    )
    return {
        "end_conversation": lambda request: api.intake.receive(request.head, request.read, request.reach),
        "end_conversations": BatchRoute(intake=api.intake).receive,
        "list_conversations": lambda request: reading.many(request.query, request.reach),
        "read_conversation": lambda request: reading.one(
            request.values["conversation_id"], request.query, request.if_none_match, request.reach
        ),
        "read_log": lambda request: reading.log(
            request.values["conversation_id"], request.query, request.if_none_match, _caller(request), request.reach
        ),
        "explain_conversation": lambda request: api.explaining.explain(
            request.values["conversation_id"], request.reach
        ),
        "retry_conversation": lambda request: reading.retry(
            request.values["conversation_id"], _caller(request), request.reach
        ),
        "reanalyse_conversation": lambda request: api.reanalysing.reanalyse(
            request.values["conversation_id"], request, _caller(request)
        ),
        "acknowledge_conversation": lambda request: reading.acknowledge(
            request.values["conversation_id"], _caller(request), request.reach
        ),
        "erase_conversation": lambda request: api.erasing.conversation(
            request.values["conversation_id"], request.query, _caller(request), request.reach
        ),
        "erase_user": lambda request: api.erasing.user(
            request.values["user_id"], request.query, _caller(request), request.reach
        ),
        "read_dead_reasons": lambda request: dead.by_reason(request.query, request.reach),
        "retry_dead_letters": lambda request: dead.retry(request.query, _caller(request), request.reach),
        "read_relationship": lambda request: reading.relationship(
            request.values["user_id"], request.query, request.reach
        ),
        "read_relationship_history": lambda request: reading.history(
            request.values["user_id"], request.query, request.reach
        ),
        "list_memories": lambda request: reading.memories(request.values["user_id"], request.query, request.reach),
        **_webhook_functions(api.webhooks),
        "stream_events": api.streams.stream,
        "stream_live": api.live.stream,
        "list_audit_log": lambda request: api.auditing.page(request.query, request.reach),
        "show_capacity": lambda request: api.capacity.show(request.query),
        "begin_session": api.sessions.begin,
        "read_session": api.sessions.show,
        "end_session": api.sessions.end,
        "read_figures": lambda request: api.figures.show(
            queries.since_seq_of(request.query),
            whole=api.door.authority.reaches_all(log_records.request_key.get(), request.reach),
        ),
        "list_alerts": lambda _: operations.show_alerts(),
        "test_alerts": lambda _: operations.test_alerts(),
        "acknowledge_alert": lambda request: operations.acknowledge_alert(request, _caller(request)),
        "live": lambda _: operations.livez(),
        "ready": lambda _: operations.readyz(),
        "metrics": lambda request: operations.metrics(request.head.accept),
        "tasks": lambda request: operations.tasks(None if _is_trusted(api, request) else request.head.peer),
        "index": lambda request: documentation.show_index(request.head, api.settings),
        "wall": lambda request: documentation.show_wall(request.head, api.settings),
        "asset": lambda request: documentation.answer_asset(
            request.values["version"], request.values["asset"], request.if_none_match, api.settings
        ),
        "openapi": lambda _: documentation.show_openapi(),
        "docs": lambda _: documentation.show_docs(),
        "handbook": lambda request: documentation.answer_topic(request.values["topic"], api.settings.web),
    }


def _webhook_functions(routes: WebhookRoutes) -> Mapping[str, RouteFunction]:
    return {
        "make_webhook": lambda request: routes.make(request, _caller(request)),
        "list_webhooks": routes.many,
        "read_webhook": lambda request: routes.one(request.values["webhook_id"], request),
        "change_webhook": lambda request: routes.change(request.values["webhook_id"], request, _caller(request)),
        "delete_webhook": lambda request: routes.delete(request.values["webhook_id"], request, _caller(request)),
        "rotate_webhook_secret": lambda request: routes.rotate(request.values["webhook_id"], request, _caller(request)),
        "ping_webhook": lambda request: routes.ping(request.values["webhook_id"], request),
        "list_webhook_attempts": lambda request: routes.attempts(request.values["webhook_id"], request),
        "replay_webhook": lambda request: routes.replay(request.values["webhook_id"], request),
    }


def _caller(request: RouteRequest) -> Caller:
    """Return who sent a request that has passed the door."""
    return Caller(key_id=log_records.request_key.get(), address=client_network(request.head.peer) or None)


def _is_trusted(api: Api, request: RouteRequest) -> bool:
    """Tell whether the caller has shown a key, or has come to the operations' own address."""
    return api.settings.auth.keys or request.on_operations


def direct_targets(api: Api) -> Mapping[bytes, DirectTarget]:
    """Return what a connection of ours calls without the framework, by the path of the request's target."""
    functions = route_functions(api)
    return {route.path.encode(): _direct(api, route, functions[route.name]) for route in ROUTES if route.direct}


def _direct(api: Api, route: Route, function: RouteFunction) -> DirectTarget:
    settings, pass_on, rule, browsers = api.settings, api.door.pass_on, route.rule, api.door.browsers

    def answer(head: Head, read: Read, next_piece: NextPiece, bound: Bound | None) -> Awaitable[Answer]:
        request = RouteRequest(head=head, read=read, next_piece=next_piece)
        # Only an accept is in such a hurry that its time has no name in what waits.
        bound = bound if route.takes_conversation else None
        return answered(rule, head, settings, lambda: pass_on(route, request, function), bound)

    async def shared(head: Head, read: Read, next_piece: NextPiece, bound: Bound | None) -> Answer:
        return browsers.shared(head, await answer(head, read, next_piece, bound))

    return DirectTarget(
        method=route.method.upper(),
        path=route.path,
        takes_turns=not route.takes_conversation,
        answer=shared if browsers.shares else answer,
    )
