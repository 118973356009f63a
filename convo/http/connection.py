"""One client connection: reads requests, has them answered, and writes the answers, with a deadline on every wait.

Open this file for what happens between a client's first byte and its last. A connection is one coroutine under one
cancel scope; ``phases`` moves that scope's deadline. An exception ends this connection and no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext

import trio

from convo.errors import ConvoError, DeadlineExceeded, Overloaded, RequestTimeout
from convo.http import http1
from convo.http.asgi import Exchange, asgi_scope
from convo.http.connections import Connections
from convo.http.context import DirectTarget, ServerContext
from convo.http.http1 import RequestHead
from convo.http.phases import PhasedStream
from convo.http.request_body import RequestBody
from convo.http.request_heads import RequestHeads
from convo.http.wire import ClientGone, Stream, Wire, addresses, wire_of
from convo.observe import log_records, metrics
from convo.runtime.precedence import ACCEPTS
from convo.web.description.messages import METHODS, Answer, AnswerStream, Head, Read, problem, with_headers

# A request's own deadlines answer it. This much later the connection answers in their place, if they did not.
_BACKSTOP_SECONDS = 0.25
# How much earlier than asked a request's deadline may be, because moving it costs: a share of its time, and always less
# than the accept route keeps for its answer (accept._ANSWER_SECONDS).
_EARLY, _EARLY_SECONDS_MAX = 1 / 400, 0.02
_NO_SCOPE = nullcontext()
# The header fields that a route may ask for, if they were sent: most were not.
_TEXTS = {
    b"authorization": "authorization",
    b"content-encoding": "content_encoding",
    b"content-type": "content_type",
    b"host": "host",
    b"last-event-id": "last_event_id",
    b"origin": "origin",
    b"request-timeout": "request_timeout",
    b"sec-fetch-site": "sec_fetch_site",
}
_observe_request = metrics.wait_seconds.labels("web.request").observe


async def serve_connection(
    context: ServerContext, stream: Stream, kind: Callable[..., ClientConnection] | None = None
) -> None:
    """Serve one client until it or we end the connection, which is of a ``kind``; no exception leaves this function."""
    with _contained(context.connections):
        wire, transport = wire_of(stream)
        with closing(wire):
            await _serve(context.connections, (kind or ClientConnection)(context, wire, transport))


async def _serve(connections: Connections, connection: ClientConnection) -> None:
    try:
        if connections.add(connection):
            with _contained(connections, connection.fail):
                await connection.run()
            await connection.linger()
        else:
            await connection.turn_away()
    finally:
        connection.end()


@contextmanager
def _contained(connections: Connections, then: Callable[[], None] | None = None) -> Iterator[None]:
    try:
        yield
    except* Exception as errors:  # noqa: BLE001  (a bug ends one connection and no other)
        if then is not None:
            then()
        for error in errors.exceptions:
            connections.log_failed(error)


# no deadline: PhasedStream.carry opens one scope around all that a connection does, and each phase moves its deadline
class ClientConnection:
    """One client, from its first byte to its last."""

    __slots__ = (
        "_body", "_connections", "_context", "_direct", "_ended", "_heads", "_is_counted", "_last_answer", "_lingers",
        "_method", "_now", "_refused", "_request", "_route", "_server", "_settings", "_stream", "_traces", "peer",
    )  # fmt: skip

    def __init__(self, context: ServerContext, wire: Wire, transport: trio.SocketStream) -> None:
        self._context = context
        self._connections = context.connections
        self._settings = context.settings.connection
        self._traces = context.settings.otel.records
        self._stream = PhasedStream(wire, self._settings)
        # trio.current_time() looks the clock up at each call; this is called several times a request.
        self._now = now = trio.lowlevel.current_clock().current_time
        self._heads = RequestHeads(self._stream, self._settings, now)
        self._body = RequestBody(self._stream, self._settings, context.settings.web, now)
        self.peer, self._server = addresses(transport)
        # On the operations' own address only the app answers: it knows which routes are served there.
        port = context.settings.server.operations_port
        on_operations = bool(port) and self._server[1] == port
        self._direct = {} if on_operations else context.direct
        self._lingers, self._refused, self._is_counted = False, False, False
        self._last_answer, self._ended = b"", ""
        self._forget_request()

    def _forget_request(self) -> None:
        self._request: RequestHead | None = None
        self._heads.forget()
        self._body.forget()
        self._stream.answer_begun = False
        self._route = "unread"
        self._method = "other"

    # --- from the beginning to the end

    async def run(self) -> None:
        """Answer request after request."""
        if not await self._stream.run(self._answer_all):
            self._out_of_time()

    async def _answer_all(self) -> None:
        try:
            await self._stream.open()
            while await self._next_request():
                pass
        except ClientGone:
            self._ended = "gone"
        except ConvoError as error:
            await self._refuse_request(error)

    async def turn_away(self) -> None:
        """Answer that there is no room, and end."""
        self._ended = "full"
        # Under TLS no answer is possible before the handshake, and that is what there is no room for.
        if not self._stream.encrypted:
            self._answer_last(Overloaded("the limit of open connections is reached", retry_after_seconds=1))
            with self._connections.refusing() as may_linger:
                if may_linger:
                    await self.linger()

    @property
    def phase(self) -> str:
        """What it waits for at present."""
        return self._stream.phase

    def end_if_idle(self) -> None:
        """End, if no request is under way and none has begun to arrive."""
        self._stream.end_if_idle()

    def fail(self) -> None:
        """End after an exception of ours: with a 500, if no answer is begun."""
        self._ended = "error"
        self._answer_last(ConvoError("an unexpected error; the log has the details"))

    def end(self) -> None:
        """Take this connection out of those that are open, and count its end by its reason."""
        self._connections.remove(self)
        metrics.connection_ended_total.labels(self._ended or "stopped").inc()

    def _out_of_time(self) -> None:
        phase = self.phase
        if phase == "idle" and self._connections.draining:
            self._ended = "drained"
            return
        self._ended = f"{phase}_deadline"
        metrics.deadline_exceeded_total.labels(f"connection.{phase}").inc()
        if phase in ("write", "stream"):
            self._stream.abort()
        elif phase in ("head", "body") and not self._now() >= self._body.until:
            self._answer_last(RequestTimeout(f"the request's {phase} took too long"))
        elif phase in ("body", "handler"):
            self._answer_last(DeadlineExceeded(f"connection.{phase}", self._body.until - self._heads.started))

    def _answer_last(self, error: ConvoError) -> None:
        """Have ``linger`` write the answer: the scope that a write needs is cancelled, or was never opened."""
        if not self._stream.answer_begun:
            self._last_answer = self._answer_to(error)

    async def _refuse_request(self, error: ConvoError) -> None:
        self._ended = "refused"
        if not self._stream.answer_begun:
            self._lingers = True
            self._stream.enter("write", self._now() + self._settings.write_seconds)
            await self._stream.send(self._answer_to(error))

    def _answer_to(self, error: ConvoError) -> bytes:
        """Return the answer to a request that reached no route, counted like those that did."""
        answer = problem(error)
        seconds = self._now() - (self._heads.started or self._now())
        metrics.requests_total.labels(self._route, self._method, str(answer.status)).inc()
        self._log_access(answer.status, seconds)
        answer = with_headers(answer, ("Server-Timing", f"total;dur={seconds * 1000:.2f}"))
        return self._written(answer, keep=False)

    async def linger(self) -> None:
        """Write the last answer, if there is one, and let the client read it before the connection is closed."""
        if self._last_answer or self._lingers:
            await self._stream.linger(self._last_answer)

    # --- one request

    async def _next_request(self) -> bool:
        """Answer one request; false when there cannot be another one."""
        stream = self._stream
        if self._connections.draining and not stream.rest and not stream.pending():
            self._ended = "drained"
            return False
        raw = await self._heads.next()
        if not raw:
            self._ended = "closed"
            return False
        request = http1.read_head(raw, self._settings.target_bytes_max)
        self._request = request
        self._method = request.method if request.method in METHODS else "other"
        self._body.begin(request.length, expects=request.expects)
        path, _, query = request.target.partition(b"?")
        target = self._direct.get(path)
        direct = target if target is not None and request.method == target.method else None
        if direct is not None and not (direct.takes_turns or self._refused):
            try:
                keep = await self._call_direct(direct, request, query, self._read_first)
            finally:
                if self._is_counted:
                    self._is_counted = False
                    ACCEPTS.end()
        else:
            self._bound(self._context.settings.web.request_seconds + _BACKSTOP_SECONDS)
            async with self._context.turns.turn(self._client(request)):
                if direct is not None:
                    keep = await self._call_direct(direct, request, query, self._body.whole)
                else:
                    keep = await self._call_app(request)
        if not keep:
            self._ended = self._ended or "answered"
            # Closed with unread bytes, the socket would discard the answers.
            self._lingers = self._lingers or not self._body.done or bool(self._stream.rest)
        self._forget_request()
        return keep

    async def _read_first(self, grow: Callable[[int], None]) -> bytes:
        """Read the body of a request that takes no turns; from now on other work waits for its answer."""
        body = await self._body.whole(grow)
        ACCEPTS.begin()
        self._is_counted = True
        return body

    async def _call_direct(self, target: DirectTarget, request: RequestHead, query: bytes, read: Read) -> bool:
        """Answer without the app, which ``read`` reads the body for; false when there cannot be another request."""
        self._route = target.path
        head = self._head(target, request, query)
        answer = await target.answer(head, read, self._body.piece, self._bound)
        keep = self._keeps() and answer.stream is None
        if answer.stream is None:
            await self._stream.send(self._written(answer, keep=keep))
        else:
            await self._send_stream(answer, answer.stream)
        self._refused = 400 <= answer.status < 500
        seconds = self._now() - self._heads.started
        _observe_request(seconds)
        self._log_access(answer.status, seconds)
        return keep

    def _head(self, target: DirectTarget, request: RequestHead, query: bytes) -> Head:
        fields = request.fields
        texts = {_TEXTS[name]: value.decode("latin-1") for name, value in fields.items() if name in _TEXTS}
        if target.takes_turns and b"accept" in fields:
            texts["accept"] = fields[b"accept"].decode("latin-1")
        if fields.get(b"cookie") and not texts.get("authorization"):
            texts["cookie"] = fields[b"cookie"].decode("latin-1")
            texts["csrf_token"] = fields.get(b"x-csrf-token", b"").decode("latin-1")
        if self._traces and fields.get(b"traceparent"):
            texts["traceparent"] = fields[b"traceparent"].decode("latin-1")
            texts["tracestate"] = fields.get(b"tracestate", b"").decode("latin-1")
        return Head(
            method=request.method,
            path=target.path,
            peer=self._client(request),
            started=self._heads.started,
            content_length=request.length,
            served_at=self._server[0],
            query=query.decode("latin-1") if query else "",
            **texts,
        )

    async def _send_stream(self, answer: Answer, pieces: AnswerStream) -> None:
        """Write an answer that comes in pieces, each under a deadline of its own; the connection ends with it."""
        stream, request = self._stream, self._request
        chunks = request is not None and request.version == "1.1"
        try:
            await stream.send(http1.streamed(answer.status, answer.headers, answer.content_type, chunks=chunks))
            while not stream.gone:
                stream.enter("stream", self._now() + pieces.piece_seconds)
                piece = await pieces.next_piece()
                # Who has such an answer sends nothing: what comes is the end of its side, or fills memory.
                if not piece or (stream.pending() and not await stream.silent()):
                    break
                await stream.send(http1.chunk(piece) if chunks else piece)
            if chunks:
                await stream.send(http1.LAST_CHUNK)
        finally:
            pieces.end()
        self._ended = "stream"

    def _bound(self, seconds: float) -> AbstractContextManager[object]:
        # The connection's own scope is open already, and another one would cost as much as reading the head.
        self._body.until = until = self._heads.started + seconds
        self._stream.enter("handler", until, early=min(seconds * _EARLY, _EARLY_SECONDS_MAX))
        return _NO_SCOPE

    async def _call_app(self, request: RequestHead) -> bool:
        """Let the app answer; false when there cannot be another request."""
        self._route = "app"
        exchange = Exchange(self._stream, self._body, request, self._keeps)
        scope = asgi_scope(request, encrypted=self._stream.encrypted, client=self._client(request), server=self._server)
        await self._context.app(scope, exchange.receive, exchange.send)
        if self._stream.gone:
            raise ClientGone
        if exchange.refusal is not None:
            raise exchange.refusal
        if not exchange.ended:
            self._ended = "error" if exchange.begun else "closed"
            if not self._stream.eof:
                raise ConvoError("the app did not answer")
        return exchange.keep

    def _client(self, request: RequestHead) -> str:
        proxies = self._context.proxies
        return proxies.client(request.fields, self.peer) if proxies.trusts(self.peer) else self.peer

    def _log_access(self, status: int, seconds: float) -> None:
        if self._context.settings.observe.access_log:
            request = self._request
            peer = self.peer if request is None else self._client(request)
            key_id = log_records.request_key.get()
            log_records.request_answered(
                route=self._route, method=self._method, status=status, seconds=seconds, peer=peer, key_id=key_id
            )
            # A connection is one task: its next request may come with another key, or with none.
            log_records.request_key.set(None)

    def _keeps(self) -> bool:
        """Decide whether another request can follow; skip what has arrived of a body that no one reads."""
        taken = self._body.skip()
        if self._heads.too_many_wait():
            self._ended = "pipelined"
            return False
        return taken and self._request is not None and self._request.keep_alive and not self._connections.draining

    def _written(self, answer: Answer, *, keep: bool) -> bytes:
        headers = answer.headers
        if not keep:
            headers = [*headers, ("connection", "close")]
        elif self._request is not None and self._request.version == "1.0":
            headers = [*headers, ("connection", "keep-alive")]
        return http1.whole(answer.status, headers, answer.content_type, answer.body, http1.date_line(int(time.time())))
