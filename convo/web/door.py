"""The checks that every request passes before its route function, and what becomes of an error: an answer.

Open this file to change who may call what, how long a request may take, or how a request is counted. Both servers, the
framework's and our own connection, come through here.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from types import MappingProxyType

import trio
from msgspec import Struct, structs

from convo.conversation.tenant import WHOLE_DEFAULT, Reach
from convo.errors import BadRequest, ConvoError, DeadlineExceeded, Invalid, NotFound, UnsupportedMedia
from convo.http.request_body import too_large
from convo.ladder import slow_seconds
from convo.observe import log_records, metrics, tracing
from convo.observe.kept_request import kept_request
from convo.observe.tracing import Span
from convo.runtime.deadline import deadline
from convo.settings import Settings, WebSettings
from convo.web import queries
from convo.web.authority import Authority
from convo.web.browsers import Browsers
from convo.web.clients import AnswerHeaders, Clients
from convo.web.description.messages import JSON, METHODS, Answer, Head, NextPiece, Read, problem, with_headers
from convo.web.description.routes import ROUTES, Route
from convo.web.raw_path import IDS
from convo.web.readiness import Readiness
from convo.web.session_check import SentSession

_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
# Not a dict: msgspec would copy it for every request.
_NO_VALUES: Mapping[str, str] = MappingProxyType({})


class RouteRequest(Struct, frozen=True, kw_only=True, gc=False):
    """What a route function is called with; ``values`` are those in the path, ``query`` those that the door read.

    ``reach`` is what its caller reaches, by the key.
    ``spend`` counts one more request against the client's limit, for a route that stands for many.
    """

    head: Head
    read: Read
    next_piece: NextPiece
    spend: Callable[[], None] = lambda: None
    values: Mapping[str, str] = _NO_VALUES
    query: Mapping[str, str] = _NO_VALUES
    if_none_match: str = ""
    on_operations: bool = False
    reach: Reach = WHOLE_DEFAULT


RouteFunction = Callable[[RouteRequest], Awaitable[Answer]]


class Door(Struct, frozen=True, kw_only=True):
    """What the checks need: who may call, whether the process is ready, the keys, and what each client has sent."""

    browsers: Browsers
    readiness: Readiness
    authority: Authority
    clients: Clients
    raw_bytes_max: int

    def pass_on(self, route: Route, request: RouteRequest, function: RouteFunction) -> Awaitable[Answer]:
        """Answer a request by its route function, if it passes the checks of its route.

        What can be checked without waiting is checked by the call itself: each coroutine more is paid at every wait.

        Raises:
            UnknownHost, CrossSite: as ``Browsers.check``.
            NotFound: the route is not served on the operations' own address, or a value in the path can be no id.
            Unavailable: the database is not migrated yet.
            Unauthorized, Forbidden, TooManyRequests, KeysUnavailable: as ``let_in``.
            Invalid: the query holds a parameter that the route does not take, or an id in the path is a dot segment.
        """
        if self.browsers.checks or request.on_operations:
            self.browsers.check(request.head, on_operations=request.on_operations)
        if request.on_operations:
            if not route.on_operations:
                raise NotFound(f"this address serves only {_ON_OPERATIONS}")
            return function(_with_query(route, request))
        if route.needs_database:
            self.readiness.check()
        if route.takes_conversation and self.authority.asks_no_key and not self.clients.limits_addresses:
            return function(_with_query(route, request))
        return self._let_in_and_pass(route, request, function)

    async def _let_in_and_pass(self, route: Route, request: RouteRequest, function: RouteFunction) -> Answer:
        reach, headers = await self.let_in(route, request.head)
        if reach is not WHOLE_DEFAULT:
            request = structs.replace(request, reach=reach)
        if route.takes_batch:
            request = structs.replace(request, spend=partial(self._spend_again, request.head, reach))
        request = _with_query(route, request)
        if not request.values:
            return with_headers(await function(request), *headers)
        _check_values(request.values)
        return with_headers(await self._with_id(request, function), *headers)

    async def _with_id(self, request: RouteRequest, function: RouteFunction) -> Answer:
        conversation_id = request.values.get("conversation_id")
        if conversation_id is None:
            return await function(request)
        try:
            with log_records.bound(conversation_id=conversation_id):
                return await function(request)
        except ConvoError as error:
            error.conversation_id = conversation_id
            # "end" may be an id, so it is looked for; but whoever means the other route has to learn of its method.
            if isinstance(error, NotFound) and request.head.path in _POSTED:
                error.detail += f"; to send a conversation to {request.head.path}, use POST"
            raise

    async def let_in(self, route: Route, head: Head) -> tuple[Reach, AnswerHeaders]:
        """Check the request's key against the route's scope, and count the request against its client's limit.

        Return what the caller reaches, and the headers that report the limit.

        Raises:
            Unauthorized, Forbidden: the key is missing, unknown, lacks the scope, or does not reach so far.
            CrossSite: a browser's session stands for the key, and the request comes for a page of another site.
            TooManyRequests: the client is over its limit, or its address has shown too many wrong keys.
            KeysUnavailable: no key can be checked now.
        """
        session = self._session(head) if route.scope is not None and head.cookie else None
        key = await self.authority.check(
            head.authorization, route.scope, head.peer, of_all=route.of_all, session=session
        )
        if key is not None:
            log_records.request_key.set(key.key_id)
        reach = WHOLE_DEFAULT if key is None else key.reach
        if not route.needs_database:
            return reach, ()
        bytes_ = 0
        if route.takes_conversation or route.takes_batch:
            # A body without a length may become as large as the limit; one that announces more is refused at the limit.
            bytes_ = self.raw_bytes_max if head.content_length is None else min(head.content_length, self.raw_bytes_max)
        if key is None:
            return reach, self.clients.spend_at(head.peer, bytes_)
        return reach, self.clients.spend(key.key_id, bytes_, key.requests_per_second, reach.tenant.name)

    def _session(self, head: Head) -> SentSession | None:
        """Return the session of a browser among the cookies of a request, which must come for a page of ours.

        Raises:
            CrossSite: it has one, and comes for a page of another site.
        """
        if not self.authority.sessions.cookie.find(head.cookie)[0]:
            return None
        self.browsers.check_page(head)
        return SentSession(cookie=head.cookie, csrf=head.csrf_token, changes=head.method not in _READING)

    def _spend_again(self, head: Head, reach: Reach) -> None:
        """Count one more request of a client that was let in. Raises: TooManyRequests."""
        key_id = log_records.request_key.get()
        if key_id is None:
            self.clients.spend_at(head.peer, 0)
        else:
            self.clients.spend(key_id, 0, self.authority.requests_per_second(key_id), reach.tenant.name)


def _with_query(route: Route, request: RouteRequest) -> RouteRequest:
    query = request.head.query
    return structs.replace(request, query=queries.read_query(query, route.query_names)) if query else request


def _check_values(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        if "\x00" in value:
            raise NotFound("no id contains a NUL character")
        # A client, a proxy or a server may take such a segment out of a path: no stored id is one.
        if name in IDS and value in (".", ".."):
            raise Invalid(f"{value!r} cannot be an id", path=name)


_POSTED = {route.path for route in ROUTES if route.method == "post" and "{" not in route.path}
_RECORDED = frozenset(route.rule for route in ROUTES if route.needs_database)
_READING = ("GET", "HEAD")
_ON_OPERATIONS = ", ".join(sorted(route.path for route in ROUTES if route.on_operations))


def check_head(head: Head, settings: WebSettings) -> None:
    """Check what the head says of the body, before the body is read.

    Raises:
        UnsupportedMedia: the content type is not JSON.
        TooLarge: the announced body is over the limit.
    """
    kind = head.content_type
    if kind != JSON:
        kind = kind.partition(";")[0].strip().lower()
    if kind != JSON and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMedia(f"content type {head.content_type!r} is not supported; send {JSON}")
    if head.content_length is not None and head.content_length > settings.raw_bytes_max:
        raise too_large(settings, head.content_length)


def budget_seconds(head: Head, settings: WebSettings) -> float:
    """Return how long the whole request may take: ``web.request_seconds``, or less if the client asks for less.

    Raises:
        BadRequest: ``Request-Timeout`` is not a number of seconds, or is 0.
    """
    asked = head.request_timeout
    if not asked or not (asked := asked.strip()):
        return settings.request_seconds
    seconds = float(asked) if _SECONDS.fullmatch(asked) else 0.0
    # 0 would end every request before it begins: whoever sends it does not mean it.
    if not seconds:
        raise BadRequest(
            f"Request-Timeout {asked[:40]!r} is not a number of seconds, above 0 and of at most nine digits",
            path="Request-Timeout",
        )
    return min(settings.request_seconds, seconds)


async def answered(
    route: str,
    head: Head,
    settings: Settings,
    serve: Callable[[], Awaitable[Answer]],
    bound: Callable[[float], AbstractContextManager[object]] | None = None,
) -> Answer:
    """Serve one request within its budget and return an answer in any case: errors end here, bugs too.

    ``route`` is its label in metrics and logs. A caller with a cancel scope of its own gives ``bound``: a second scope
    would cost as much as reading the head.
    """
    method = head.method if head.method in METHODS else "other"
    span = _begun(route, method, head) if tracing.records() else None
    try:
        budget = budget_seconds(head, settings.web)
        with deadline("web.request", budget, since=head.started) if bound is None else bound(budget):
            answer = await serve()
    except ConvoError as error:
        answer = problem(error)
    except Exception as error:  # noqa: BLE001  (a bug ends one request and no other)
        log_records.request_failed(route=route, method=method, error=error)
        answer = problem(ConvoError("an unexpected error; the log has the details"))
    except BaseException as error:
        # The client is gone, or the connection's own deadline has run out.
        if span is not None:
            span.fail(error)
            _leave(span)
        raise
    seconds = trio.current_time() - head.started
    metrics.requests_total.labels(route, method, str(answer.status)).inc()
    # This counts our own limit: a client that shortens its budget and misses it is no fault of ours.
    if answer.code == DeadlineExceeded.code and not head.request_timeout:
        metrics.requests_on_deadline_total.inc()
    if seconds > slow_seconds(settings.alerts.slow_request_seconds, settings.web.request_seconds):
        log_records.slow_request(route=route, method=method, status=answer.status, seconds=seconds)
    if span is not None:
        _end(span, answer)
    if answer.timed:
        return answer
    return with_headers(answer, ("Server-Timing", f"total;dur={seconds * 1000:.2f}"))


def _begun(route: str, method: str, head: Head) -> Span | None:
    """Begin the span of a request, if it is to be recorded; probes and what operators read are not."""
    if route not in _RECORDED:
        return None
    # Most requests end here: what only a recorded one needs comes behind it.
    span = tracing.begin_span(route, "server", head.traceparent, head.tracestate)
    if span is not None:
        span.began_seconds_ago(trio.current_time() - head.started)
        span.name, span.wait = f"{method} {route}", "web.request"
        span.attributes |= {"http.request.method": method, "http.route": route}
        if (kept := kept_request()) is not None:
            kept.begin(span)
        span.enter()
    return span


def _end(span: Span, answer: Answer) -> None:
    span.attributes["http.response.status_code"] = answer.status
    if answer.code:
        span.attributes["error.type"] = answer.code
    if answer.status >= 500:
        span.error = answer.code or str(answer.status)
    _leave(span, streams=answer.stream is not None)


def _leave(span: Span, *, streams: bool = False) -> None:
    """Leave the span to the connection, which ends it when the answer is written; end it where there is none."""
    span.leave()
    kept = kept_request()
    if kept is None:
        span.end()
    else:
        kept.answer(streams=streams)
