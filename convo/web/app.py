"""The Quart-Trio app: serves every route of the catalogue under any ASGI server on Trio.

Open this file for what the framework does by itself: unknown paths, other methods, bodies that it refuses. What a route
does is elsewhere: ``dispatch`` names its function.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Self, cast
from urllib.parse import quote, unquote_to_bytes

import trio
from quart import Response, g, request
from quart.wrappers.response import ResponseBody
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from convo import errors
from convo.http.asgi import EXTENSION
from convo.http.http1 import origin_form
from convo.http.request_body import too_large
from convo.http.wire import PIECE_BYTES
from convo.observe import log_records
from convo.runtime.deadline import deadline
from convo.settings import WebSettings
from convo.web.description.messages import METHODS, Answer, AnswerStream, Head, problem, with_headers
from convo.web.description.routes import ROUTES, Route
from convo.web.dispatch import Api, route_functions
from convo.web.door import RouteFunction, RouteRequest, answered
from convo.web.raw_path import path_values, routing_path, sent_host, sent_path

# In a request's scope: why its path cannot be read. It is then routed by a path that no route has.
_REFUSAL, _NO_PATH = "convo.refusal", "/%FF"


def make_app(api: Api) -> QuartTrio:
    """Make the app that serves every route of the catalogue."""
    app = QuartTrio("convo", static_folder=None)
    # "//" is not "/": the answer is 404, not a redirect.
    app.url_map.merge_slashes = False
    # OPTIONS is answered like any other method that a route does not accept: with our own 405.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    web = api.settings.web
    # How much of a body Quart reads before it answers 413. Its own time limits are off: our deadlines hold instead.
    app.config.update(MAX_CONTENT_LENGTH=web.raw_bytes_max, BODY_TIMEOUT=None, RESPONSE_TIMEOUT=None)
    functions = route_functions(api)
    for route in ROUTES:
        view = _view(api, route, functions[route.name])
        app.add_url_rule(route.rule, route.name, view, methods=[route.method.upper()])

    # This is where Quart documents that an app is wrapped; mypy sees a method that is assigned to.
    finishing = _finishing(_routing(app.asgi_app), web.request_seconds)
    app.asgi_app = api.reading.reads.until_sent(finishing)  # type: ignore[method-assign,assignment]

    @app.errorhandler(HTTPException)
    async def refused(error: HTTPException) -> Response:
        head, on_operations = _head(), _on_operations(api)

        async def serve() -> Answer:
            if (refusal := cast("Any", request.scope).get(_REFUSAL)) is not None:
                raise refusal
            if api.door.browsers.checks or on_operations:
                api.door.browsers.check(head, on_operations=on_operations)
            if on_operations:
                raise errors.NotFound(f"there is nothing at {_sent()!r} on the operations' address")
            return _preflight(api, head, error) or _framework_problem(error, web)

        return await _respond(api, "unmatched", head, serve)

    return app


_Asgi = Callable[[Any, Any, Any], Awaitable[None]]


def _routing(app: _Asgi) -> _Asgi:
    """Let routes be matched by the path as it was sent: a decoded one no longer shows which ``/`` is an id's."""

    async def routing(scope: Any, receive: Any, send: Any) -> None:
        await app(_with_path(scope) if scope["type"] == "http" else scope, receive, send)

    return routing


def _with_path(scope: Any) -> Any:
    try:
        _check_target(scope)
    except errors.BadRequest as error:
        return {**scope, "path": _NO_PATH, _REFUSAL: error}
    return {**scope, "path": routing_path(scope)}


def _check_target(scope: Any) -> None:
    """Check that what was sent as a path is one; else the framework looks for a path behind any scheme, and may fail.

    Raises:
        BadRequest: it is none, or not UTF-8: decoded with replacements, different paths would name the same id.
    """
    raw = scope.get("raw_path")
    path, _ = origin_form(quote(scope["path"], safe="/:*[]@").encode() if raw is None else raw)
    if not path.startswith(b"/") and (path != b"*" or scope["method"] != "OPTIONS"):
        raise errors.BadRequest("the target is neither a path nor an http:// address")
    try:
        unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise errors.BadRequest("the path is not UTF-8") from None


def _finishing(app: _Asgi, seconds: float) -> _Asgi:
    """Let every answer be sent completely, within ``seconds``.

    It also sets the header that our own connection gives every answer.

    At the end of an answer hypercorn reports to the app that the client is gone, and Quart-Trio then cancels the very
    ``send`` that was about to reuse or close the connection: the next request on it would never be answered.
    """

    async def finishing(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if EXTENSION in scope.get("extensions", ()):
            # Our own connection does not do that, and bounds every send itself.
            await app(scope, receive, send)
            return

        async def finish(part: Any) -> None:
            if part["type"] == "http.response.start":
                part = {**part, "headers": [*part["headers"], (b"x-content-type-options", b"nosniff")]}
            last = part["type"] == "http.response.body" and not part.get("more_body", True)
            with suppress(errors.DeadlineExceeded), trio.CancelScope(shield=last), deadline("web.answer", seconds):
                await send(part)

        await app(scope, receive, finish)

    return finishing


def _view(api: Api, route: Route, function: RouteFunction) -> Callable[..., Awaitable[Response]]:
    rule, read_body, web = route.rule, _body_reader(api.settings.web), api.settings.web

    async def view(**values: str) -> Response:
        head = _head()

        async def serve() -> Answer:
            asked = RouteRequest(
                head=head,
                read=lambda grow: read_body(head, grow),
                next_piece=_piece_reader(head, web),
                values=path_values(values),
                if_none_match=request.headers.get("If-None-Match", ""),
                on_operations=_on_operations(api),
            )
            return await api.door.pass_on(route, asked, function)

        return await _respond(api, rule, head, serve)

    return view


def _body_reader(web: WebSettings) -> Callable[[Head, Callable[[int], None]], Awaitable[bytes]]:
    async def read(head: Head, grow: Callable[[int], None]) -> bytes:
        try:
            with deadline("web.body", web.request_seconds, since=head.started):
                body = cast("bytes", await request.get_data(cache=False))
        except RequestEntityTooLarge:
            raise too_large(web) from None
        g.body_read = True
        grow(len(body))
        return body

    return read


def _piece_reader(head: Head, web: WebSettings) -> Callable[[], Awaitable[bytes]]:
    rest = memoryview(b"")

    async def next_piece() -> bytes:
        nonlocal rest
        g.body_begun = True
        while not rest:
            try:
                with deadline("web.body", web.request_seconds, since=head.started):
                    arrived = await anext(request.body, None)
            except RequestEntityTooLarge:
                raise too_large(web) from None
            if arrived is None:
                g.body_read = True
                return b""
            rest = memoryview(arrived)
        # The framework may hold all of the body already.
        piece, rest = rest[:PIECE_BYTES], rest[PIECE_BYTES:]
        return bytes(piece)

    return next_piece


def _head() -> Head:
    """Return what the framework knows of the request; its first byte arrived a moment earlier than ``started``."""
    authorization = request.headers.get("Authorization", "")
    return Head(
        method=request.method,
        path=request.path,
        peer=request.remote_addr or "",
        started=trio.current_time(),
        content_type=request.headers.get("Content-Type", ""),
        content_encoding=request.headers.get("Content-Encoding", ""),
        content_length=request.content_length,
        request_timeout=request.headers.get("Request-Timeout", ""),
        authorization=authorization,
        accept=request.headers.get("Accept", ""),
        accept_language=request.headers.get("Accept-Language", ""),
        host=sent_host(request.scope) or request.headers.get("Host", ""),
        origin=request.headers.get("Origin", ""),
        sec_fetch_site=request.headers.get("Sec-Fetch-Site", ""),
        served_at=(request.scope["server"] or ("", None))[0],
        query=request.query_string.decode("latin-1"),
        last_event_id=request.headers.get("Last-Event-ID", ""),
        traceparent=request.headers.get("Traceparent", ""),
        tracestate=",".join(request.headers.getlist("Tracestate")),
        cookie="" if authorization else request.headers.get("Cookie", ""),
        csrf_token=request.headers.get("X-CSRF-Token", ""),
    )


def _sent() -> str:
    return sent_path(request.scope)


def _on_operations(api: Api) -> bool:
    _, port = request.scope["server"] or ("", None)
    # A socket whose client was gone at once has port 0, too.
    return bool(port) and port == api.settings.server.operations_port


async def _respond(api: Api, label: str, head: Head, serve: Callable[[], Awaitable[Answer]]) -> Response:
    answer = await answered(label, head, api.settings, serve)
    if api.door.browsers.shares:
        answer = api.door.browsers.shared(head, answer)
    if api.settings.observe.access_log:
        log_records.request_answered(
            route=label,
            method=head.method if head.method in METHODS else "other",
            status=answer.status,
            seconds=trio.current_time() - head.started,
            peer=head.peer,
            key_id=log_records.request_key.get(),
        )
    return _response(answer, api.settings.web)


class _Pieces(ResponseBody):
    """The body of an answer that comes in pieces; each is sent under the deadline of ``_finishing``."""

    def __init__(self, stream: AnswerStream, write_seconds: float) -> None:
        self._stream = stream
        self._write_seconds = write_seconds
        self._given_at: float | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stream.end()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        # A client that did not take the last piece in time gets no other one.
        if self._given_at is not None and trio.current_time() >= self._given_at + self._write_seconds:
            raise StopAsyncIteration
        piece = await self._stream.next_piece()
        if not piece:
            raise StopAsyncIteration
        self._given_at = trio.current_time()
        return piece


def _response(answer: Answer, web: WebSettings) -> Response:
    body: bytes | _Pieces = answer.body
    if answer.stream is not None and request.method == "HEAD":
        answer.stream.end()
    elif answer.stream is not None:
        body = _Pieces(answer.stream, web.request_seconds)
    response = Response(cast("Any", body), status=answer.status, content_type=answer.content_type)
    for name, value in answer.headers:
        response.headers[name] = value
    if (answer.status >= 400 or g.get("body_begun", False)) and _has_unread_body():
        # The rest of the body would be read as the next request.
        response.headers["Connection"] = "close"
    return response


def _has_unread_body() -> bool:
    sent = bool(request.content_length) or "Transfer-Encoding" in request.headers
    return sent and not g.get("body_read", False)


def _preflight(api: Api, head: Head, error: HTTPException) -> Answer | None:
    """Answer what a browser asks before it sends the request of a page that is allowed to."""
    asks = head.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
    if not (asks and isinstance(error, MethodNotAllowed)):
        return None
    return api.door.browsers.preflight(head, error.valid_methods or ())


def _framework_problem(error: HTTPException, web: WebSettings) -> Answer:
    """Turn an error that the framework raised itself into one of our problems."""
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        answer = problem(errors.MethodNotAllowed(f"{request.method} is not accepted here; send {allowed}"))
        return with_headers(answer, ("Allow", allowed))
    if isinstance(error, NotFound):
        return problem(errors.NotFound(f"there is nothing at {_sent()!r}; see /docs"))
    if isinstance(error, RequestEntityTooLarge):
        return problem(too_large(web))
    status = error.code or 500
    return problem(errors.BadRequest("the request cannot be read") if status < 500 else errors.ConvoError())
