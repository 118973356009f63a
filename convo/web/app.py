"""The Quart-Trio app: routes to the plain functions, and their answers to responses; it decides nothing itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import trio
from msgspec import Struct
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from convo import errors
from convo.config import Settings
from convo.deadline import deadline
from convo.observe import events
from convo.web.asgi import EXTENSION
from convo.web.catalog import scope_of
from convo.web.conversations import Intake
from convo.web.door import Answer, Head, answered, problem, too_large, with_headers
from convo.web.explaining import Explaining
from convo.web.operations import Operations
from convo.web.reading import Reading

ACCEPT = "/v1/conversations/end"
_CONVERSATION = "/v1/conversations/<conversation_id>"
_USER = "/v1/users/<user_id>"


class Api(Struct, frozen=True, kw_only=True):
    """Everything the routes call."""

    settings: Settings
    intake: Intake
    reading: Reading
    explaining: Explaining
    operations: Operations


def make_app(api: Api) -> QuartTrio:
    """Make the app that serves every route of convo, under any ASGI server on trio."""
    app = QuartTrio("convo", static_folder=None)
    # "//" is no other spelling of "/": nothing is there, and nobody is sent elsewhere.
    app.url_map.merge_slashes = False
    # OPTIONS is a method like any other: where it is not taken, our own 405 says so.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    web = api.settings.web
    # What Quart reads of a body before it says 413; its own limits in time are left to our deadlines.
    app.config.update(MAX_CONTENT_LENGTH=web.body_bytes_max, BODY_TIMEOUT=None, RESPONSE_TIMEOUT=None)
    _route_intake(app, api)
    _route_reading(app, api)
    _route_operations(app, api)

    # Quart's own place for what stands around an app; mypy sees a method assigned to.
    app.asgi_app = _finishing(app.asgi_app, web.request_seconds)  # type: ignore[method-assign,assignment]

    @app.errorhandler(HTTPException)
    async def refused(error: HTTPException) -> Response:
        async def serve() -> Answer:
            return _framework_problem(error, api.settings)

        return await _serve(api, "unmatched", _head(), serve)

    return app


_Asgi = Callable[[Any, Any, Any], Awaitable[None]]


def _finishing(app: _Asgi, seconds: float) -> _Asgi:
    """Let every answer come to its end, within ``seconds``.

    At the end of an answer hypercorn tells the app that the client is gone, and Quart-Trio then cancels the very
    ``send`` that was about to recycle or close the connection: the next request on it would never be answered.
    """

    async def finishing(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if EXTENSION in scope.get("extensions", ()):
            # Our own connection does no such thing, and bounds every send itself.
            await app(scope, receive, send)
            return

        async def finish(part: Any) -> None:
            last = part["type"] == "http.response.body" and not part.get("more_body", True)
            with suppress(errors.DeadlineExceeded), trio.CancelScope(shield=last), deadline("web.answer", seconds):
                await send(part)

        await app(scope, receive, finish)

    return finishing


def _route_intake(app: QuartTrio, api: Api) -> None:
    web = api.settings.web

    @app.post(ACCEPT)
    async def end() -> Response:
        head = _head()

        async def read(grow: Callable[[int], None]) -> bytes:
            try:
                with deadline("web.body", web.request_seconds, since=head.started):
                    body = cast("bytes", await request.get_data(cache=False))
            except RequestEntityTooLarge:
                raise too_large(web) from None
            g.body_read = True
            grow(len(body))
            return body

        async def serve() -> Answer:
            return await api.intake.receive(head, read)

        return await _serve(api, ACCEPT, head, serve)


def _head() -> Head:
    """Say what the framework knows of the request; its first byte came a moment before this."""
    return Head(
        method=request.method,
        path=request.path,
        peer=request.remote_addr or "",
        started=trio.current_time(),
        content_type=request.headers.get("Content-Type", ""),
        content_encoding=request.headers.get("Content-Encoding", ""),
        content_length=request.content_length,
        request_timeout=request.headers.get("Request-Timeout", ""),
        authorization=request.headers.get("Authorization", ""),
    )


def _route_reading(app: QuartTrio, api: Api) -> None:
    reading = api.reading

    def route(rule: str, function: Callable[..., Awaitable[Answer]], method: str = "GET") -> None:
        needs = scope_of(method, rule)

        async def view(**values: str) -> Response:
            head = _head()

            async def serve() -> Answer:
                api.intake.readiness.check()
                headers = api.intake.let_in(head, needs)
                if any("\x00" in value for value in values.values()):
                    raise errors.NotFound("no id holds a NUL character")
                ids = {name: value for name, value in values.items() if name == "conversation_id"}
                try:
                    with events.bound(**ids):
                        return with_headers(await function(**values), *headers)
                except errors.ConvoError as error:
                    error.conversation_id = values.get("conversation_id")
                    raise

            return await _serve(api, rule, head, serve)

        app.add_url_rule(rule, f"{method} {rule}", view, methods=[method])

    async def one(conversation_id: str) -> Answer:
        return await reading.one(conversation_id, request.args, request.headers.get("If-None-Match", ""))

    async def log(conversation_id: str) -> Answer:
        return await reading.log(conversation_id, request.headers.get("If-None-Match", ""))

    async def many() -> Answer:
        return await reading.many(request.args)

    async def memories(user_id: str) -> Answer:
        return await reading.memories(user_id, request.args)

    route("/v1/conversations", many)
    route(_CONVERSATION, one)
    route(f"{_CONVERSATION}/log", log)
    route(f"{_CONVERSATION}/explain", api.explaining.explain)
    route(f"{_CONVERSATION}/retry", reading.retry, "POST")
    route(f"{_CONVERSATION}/acknowledge", reading.acknowledge, "POST")
    route(f"{_USER}/relationship", reading.relationship)
    route(f"{_USER}/memories", memories)


def _route_operations(app: QuartTrio, api: Api) -> None:
    operations = api.operations

    def route(rule: str, function: Callable[[], Awaitable[Answer]], method: str = "GET") -> None:
        needs = scope_of(method, rule)

        async def view() -> Response:
            head = _head()

            async def serve() -> Answer:
                if not _on_operations(api):
                    api.intake.authority.check(head.authorization, needs)
                return await function()

            return await _serve(api, rule, head, serve)

        app.add_url_rule(rule, f"{method} {rule}", view, methods=[method])

    route("/livez", operations.livez)
    route("/readyz", operations.readyz)
    route("/metrics", operations.metrics)
    route("/v1/alerts", operations.show_alerts)
    route("/v1/alerts/test", operations.test_alerts, "POST")
    route("/debug/tasks", lambda: operations.tasks(None if _is_trusted(api) else _head().peer))
    route("/openapi.json", operations.openapi)
    route("/docs", operations.docs)


# What is there on the address of the operations, and needs no key there.
_OPERATIONS = frozenset({"/livez", "/readyz", "/metrics", "/debug/tasks"})


def _on_operations(api: Api) -> bool:
    _, port = request.scope["server"] or ("", None)
    return port == api.settings.server.operations_port


def _is_trusted(api: Api) -> bool:
    """Tell whether whoever asks has shown a key, or comes by the operations' own address."""
    return api.settings.auth.keys or _on_operations(api)


async def _serve(api: Api, route: str, head: Head, serve: Callable[[], Awaitable[Answer]]) -> Response:
    async def served() -> Answer:
        if route not in _OPERATIONS and _on_operations(api):
            raise errors.NotFound(f"{', '.join(sorted(_OPERATIONS))} are here, and nothing else")
        return await serve()

    answer = await answered(route, head, api.settings, served)
    if api.settings.observe.access_log:
        events.request_answered(
            route=route, method=head.method, status=answer.status, seconds=trio.current_time() - head.started
        )
    return _response(answer)


def _response(answer: Answer) -> Response:
    response = Response(answer.body, status=answer.status, content_type=answer.content_type)
    for name, value in answer.headers:
        response.headers[name] = value
    if answer.status >= 400 and _has_unread_body():
        # What is left of it would stand where the next request begins.
        response.headers["Connection"] = "close"
    return response


def _has_unread_body() -> bool:
    sent = bool(request.content_length) or "Transfer-Encoding" in request.headers
    return sent and not g.get("body_read", False)


def _framework_problem(error: HTTPException, settings: Settings) -> Answer:
    """Turn what the framework refused by itself into one of our problems."""
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        answer = problem(errors.MethodNotAllowed(f"{request.method} is not taken here; send {allowed}"))
        return with_headers(answer, ("Allow", allowed))
    if isinstance(error, NotFound):
        return problem(errors.NotFound(f"there is nothing at {request.path!r}; see /docs"))
    if isinstance(error, RequestEntityTooLarge):
        return problem(too_large(settings.web))
    status = error.code or 500
    return problem(errors.BadRequest("the request cannot be read") if status < 500 else errors.ConvoError())
