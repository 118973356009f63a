"""One client connection: HTTP/1.1 with a deadline on every read and write; it knows the accept route by name.

A connection is one linear coroutine under one cancel scope, whose deadline is moved from phase to phase:

    handshake   TLS only
    idle        nothing has come of a next request; ends at once when the process stops
    head        from its first byte
    body        as a whole, and no slower than a rate
    handler     the request's budget, which has its own deadlines inside; here only the backstop
    write       64 KiB of the answer, until the kernel has them
    linger      what a client still sends after it was refused, or it would not see why; a scope of its own

The accept route is called directly; all others go through the ASGI app. An exception ends this connection and no other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from io import BytesIO

import trio
from msgspec import Struct

from convo.config import Settings
from convo.errors import BadRequest, ConvoError, DeadlineExceeded, Overloaded, RequestTimeout
from convo.observe import events, metrics
from convo.web import http1
from convo.web.app import ACCEPT
from convo.web.asgi import App, CutShort, Exchange, scope_of
from convo.web.body import Body, Chunked, Sized
from convo.web.conversations import Intake
from convo.web.crowd import Crowd
from convo.web.door import METHODS, Answer, Head, answered, problem, too_large, with_headers
from convo.web.forwarded import Proxies
from convo.web.http1 import RequestHead
from convo.web.wire import PIECE_BYTES, Gone, Stream, Wire, addresses, wire_of

# What the request's own deadlines leave to the answer they make; only who outstays them meets the backstop.
_BACKSTOP_SECONDS = 0.25
# How much of its time a request may lose to a deadline that is not moved: less than the door keeps for its last words.
_EARLY = 1 / 400
_ACCEPT_TARGETS = (ACCEPT.encode(), ACCEPT.encode() + b"?")
_NOTHING = Sized(0)
_NO_SCOPE = nullcontext()


class Door(Struct, frozen=True, kw_only=True):
    """What all connections of a process share."""

    settings: Settings
    intake: Intake
    app: App
    crowd: Crowd
    proxies: Proxies


async def serve_connection(door: Door, stream: Stream) -> None:
    """Serve one client until it or we end it; nothing that it does comes out of here, and no bug of ours."""
    with _contained(door.crowd):
        wire, transport = wire_of(stream)
        with closing(wire):
            await _serve(door.crowd, Connection(door, wire, transport))


async def _serve(crowd: Crowd, connection: Connection) -> None:
    try:
        if crowd.enter(connection):
            with _contained(crowd, connection.fail):
                await connection.run()
            await connection.take_leave()
        else:
            await connection.turn_away()
    finally:
        connection.leave()


@contextmanager
def _contained(crowd: Crowd, then: Callable[[], None] | None = None) -> Iterator[None]:
    try:
        yield
    except* Exception as errors:  # noqa: BLE001  (one connection's bug is that connection's end, and nobody else's)
        if then is not None:
            then()
        for error in errors.exceptions:
            crowd.tell_failed(error)


class Connection:
    """One client, from its first byte to its last."""

    __slots__ = (
        "_answering", "_app", "_body", "_body_began", "_body_bytes", "_crowd", "_door", "_ended", "_eof",
        "_expects", "_farewell", "_gone", "_idle_until", "_intake", "_lingers", "_method", "_now",
        "_operations", "_request", "_rest", "_route", "_scope", "_server", "_settings", "_started", "_until",
        "_web", "_wire", "peer", "phase",
    )  # fmt: skip

    def __init__(self, door: Door, wire: Wire, transport: trio.SocketStream) -> None:
        self._door = door
        self._app = door.app
        self._crowd = door.crowd
        self._intake = door.intake
        self._settings = door.settings.connection
        self._web = door.settings.web
        self._wire = wire
        self._now = trio.lowlevel.current_clock().current_time  # trio.current_time() by the short way
        self.peer, self._server = addresses(transport)
        self._operations = self._server[1] == door.settings.server.operations_port
        self._scope = trio.CancelScope()
        self.phase = "idle"
        self._rest = b""  # what was read and belongs to nothing yet
        self._idle_until = 0.0
        self._eof = False  # the client has ended its side
        self._gone = False  # the client has broken off
        self._lingers = False
        self._farewell = b""
        self._ended = ""
        self._forget_request()

    def _forget_request(self) -> None:
        self._request: RequestHead | None = None
        self._body: Body = _NOTHING
        self._body_began = -1.0
        self._body_bytes = 0
        self._expects = False
        self._answering = False  # something of the answer is written
        self._route = "unread"
        self._method = "other"
        self._started = 0.0
        self._until = math.inf  # the end of its budget

    # --- from the beginning to the end

    async def run(self) -> None:
        """Answer request after request."""
        while True:
            with self._scope:
                await self._answer_all()
            if not self._may_idle_on():
                break
            self._scope = trio.CancelScope(deadline=self._idle_until)
        if self._scope.cancelled_caught:
            self._out_of_time()

    async def _answer_all(self) -> None:
        try:
            if self._wire.encrypted:
                self._enter("handshake", self._now() + self._settings.handshake_seconds)
                await self._wire.open()
            while await self._next_request():
                pass
        except Gone:
            self._ended = "gone"
        except ConvoError as error:
            await self._refuse(error)

    async def turn_away(self) -> None:
        """Say that there is no room, and end."""
        self._ended = "full"
        # Under TLS nothing can be said before the handshake, which is what there is no room for.
        if not self._wire.encrypted:
            self._say_at_the_end(Overloaded("there are as many connections as there may be", retry_after_seconds=1))
            with self._crowd.seeing_off() as there_is_time:
                if there_is_time:
                    await self.take_leave()

    def dismiss(self) -> None:
        """End, if nothing is under way and nothing is about to be."""
        if self.phase == "idle" and not self._wire.pending():
            self._scope.cancel()

    def fail(self) -> None:
        """Say, where nothing is said yet, that something went wrong with us."""
        self._ended = "error"
        self._say_at_the_end(ConvoError("an unexpected error; it is in the log"))

    def leave(self) -> None:
        """Be forgotten."""
        self._crowd.leave(self)
        metrics.connection_ended_total.labels(self._ended or "stopped").inc()

    def _enter(self, phase: str, until: float, *, early: float = 0.0) -> None:
        """Begin a phase; a deadline up to ``early`` seconds before its own stays, for to move it is dear."""
        self.phase = phase
        if not until - early <= self._scope.deadline <= until:
            self._scope.deadline = until

    def _idle(self) -> None:
        """Let the time begin to run in which the next request has to begin.

        The end of the last request's time may stay the scope's deadline until it has come: most clients are back
        before, and nothing is torn where nothing was read.
        """
        if self.phase != "idle" or not self._idle_until:
            self._idle_until = self._now() + self._settings.keep_alive_seconds
            self._enter("idle", self._idle_until, early=0.0 if self._wire.encrypted else math.inf)

    def _may_idle_on(self) -> bool:
        """Tell whether only the last request's time is over, which was answered."""
        left = self._scope.cancelled_caught and self.phase == "idle" and not self._crowd.draining
        return left and self._now() < self._idle_until

    def _out_of_time(self) -> None:
        phase = self.phase
        if phase == "idle" and self._crowd.draining:
            self._ended = "drained"
            return
        self._ended = f"{phase}_deadline"
        metrics.deadline_exceeded_total.labels(f"connection.{phase}").inc()
        if phase == "write":
            self._wire.abort()
        elif phase in ("head", "body") and not self._now() >= self._until:
            self._say_at_the_end(RequestTimeout(f"the request's {phase} took too long"))
        elif phase in ("body", "handler"):
            self._say_at_the_end(DeadlineExceeded(f"connection.{phase}", self._until - self._started))

    def _say_at_the_end(self, error: ConvoError) -> None:
        if not self._answering:
            self._farewell = self._answer_to(error)

    async def _refuse(self, error: ConvoError) -> None:
        self._ended = "refused"
        if not self._answering:
            self._lingers = True
            self._enter("write", self._now() + self._settings.write_seconds)
            await self.send(self._answer_to(error))

    def _answer_to(self, error: ConvoError) -> bytes:
        """Answer what never came to a route, and count it as the routes count theirs."""
        answer = problem(error)
        seconds = self._now() - (self._started or self._now())
        metrics.requests_total.labels(self._route, self._method, str(answer.status)).inc()
        self._log_access(answer.status, seconds)
        answer = with_headers(answer, ("Server-Timing", f"total;dur={seconds * 1000:.2f}"))
        return self._written(answer, keep=False)

    async def take_leave(self) -> None:
        """Say what is left to say, and read on for a while: what stays unread would take the answer with it."""
        if not (self._farewell or self._lingers):
            return
        self.phase = "linger"
        with trio.CancelScope(deadline=self._now() + self._settings.linger_seconds):
            try:
                if self._farewell:
                    await self._send_all(self._farewell)
                self._wire.finish()
                while await self._wire.receive_remains():
                    pass
            except Gone:
                pass

    # --- one request

    async def _next_request(self) -> bool:
        """Answer one request; false when there cannot be another one."""
        end = await self._next_head()
        if end < 0:
            return False
        raw, self._rest = self._rest[:end], self._rest[end:]
        request = http1.read_head(raw, self._settings.target_bytes_max)
        self._request = request
        self._method = request.method if request.method in METHODS else "other"
        self._body = Chunked() if request.length is None else Sized(request.length)
        self._expects = request.expects
        if request.method == "POST" and _is_accept(request.target) and not self._operations:
            keep = await self._accept(request)
        else:
            keep = await self._pass_on(request)
        if not keep:
            self._ended = self._ended or "answered"
            self._lingers = self._lingers or not self._body.done
        self._forget_request()
        return keep

    async def _next_head(self) -> int:
        """Return how long the next head is; less than nothing when there is none."""
        if not self._rest:
            if self._crowd.draining:
                self._ended = "drained"
                return -1
            self._idle()
            if not await self._more():
                self._ended = "closed"
                return -1
        self._started = self._now()
        end = self._find_end()
        return end if end >= 0 else await self._rest_of_head()

    async def _rest_of_head(self) -> int:
        self._enter("head", self._started + self._settings.head_seconds)
        end = -1
        while end < 0:
            if not await self._more():
                self._ended = "closed"
                return -1
            end = self._find_end()
        metrics.wait_seconds.labels("connection.head").observe(self._now() - self._started)
        return end

    def _find_end(self) -> int:
        while self._rest.startswith(b"\r\n"):
            self._rest = self._rest[2:]
        return http1.find_end(self._rest, self._settings.head_bytes_max, self._settings.target_bytes_max)

    async def _more(self) -> bool:
        """Wait for bytes; false when none will come. Raises: Gone."""
        if self._eof:
            return False
        data = await self._wire.receive()
        self._rest = self._rest + data if self._rest else data
        self._eof = not data
        return not self._eof

    async def _accept(self, request: RequestHead) -> bool:
        """Hand a finished conversation to the same function that the app's route calls."""
        self._route = ACCEPT
        field = request.fields.get
        head = Head(
            method=request.method,
            path=ACCEPT,
            peer=self._client(request),
            started=self._started,
            content_type=field(b"content-type", b"").decode("latin-1"),
            content_encoding=field(b"content-encoding", b"").decode("latin-1"),
            content_length=request.length,
            request_timeout=field(b"request-timeout", b"").decode("latin-1"),
            authorization=field(b"authorization", b"").decode("latin-1"),
        )

        def serve() -> Awaitable[Answer]:
            return self._intake.receive(head, self._whole_body)

        answer = await answered(ACCEPT, head, self._door.settings, serve, self._bound)
        keep = self.keeps()
        await self.send(self._written(answer, keep=keep))
        seconds = self._now() - self._started
        metrics.wait_seconds.labels("web.request").observe(seconds)
        self._log_access(answer.status, seconds)
        return keep

    def _bound(self, seconds: float) -> AbstractContextManager[object]:
        # Our own scope is there already, and another one would cost as much as reading the head.
        self._until = self._started + seconds
        self._enter("handler", self._until, early=seconds * _EARLY)
        return _NO_SCOPE

    async def _pass_on(self, request: RequestHead) -> bool:
        """Let the app answer."""
        self._route = "app"
        self._bound(self._web.request_seconds + _BACKSTOP_SECONDS)
        exchange = Exchange(self, request)
        scope = scope_of(request, encrypted=self._wire.encrypted, client=self._client(request), server=self._server)
        await self._app(scope, exchange.receive, exchange.send)
        if self._gone:
            raise Gone
        if exchange.refusal is not None:
            raise exchange.refusal
        if not exchange.ended:
            self._ended = "error" if exchange.begun else "closed"
            if not self._eof:
                raise ConvoError("the app did not answer")
        return exchange.keep

    def _client(self, request: RequestHead) -> str:
        proxies = self._door.proxies
        return proxies.client(request.fields, self.peer) if proxies.trusts(self.peer) else self.peer

    def _log_access(self, status: int, seconds: float) -> None:
        if self._door.settings.observe.access_log:
            events.request_answered(route=self._route, method=self._method, status=status, seconds=seconds)

    # --- its body

    async def _whole_body(self, grow: Callable[[int], None]) -> bytes:
        """Read the body, which is in memory once; ``grow`` is told how much each piece of it brings.

        Raises:
            TooLarge: it is over the limit.
            BadRequest: it cannot be read, or ends too early.
            Overloaded: there is no room for it.
        """
        limit = self._web.body_bytes_max
        first = await self.body_piece()
        grow(len(first))
        if self._body.done:
            return first
        # What BytesIO holds it gives away without a copy.
        whole = BytesIO()
        whole.write(first)
        while not self._body.done:
            if whole.tell() > limit:
                raise too_large(self._web)
            piece = await self.body_piece()
            grow(len(piece))
            whole.write(piece)
        return whole.getvalue()

    @property
    def body_done(self) -> bool:
        """Whether all of the body was taken."""
        return self._body.done

    async def body_piece(self) -> bytes:
        """Return the next piece of the body, empty behind the last.

        Raises:
            BadRequest: it cannot be read.
            CutShort: it ends too early.
        """
        body = self._body
        while not body.done:
            if self._rest:
                piece, self._rest = body.take(self._rest)
                self._body_bytes += len(piece)
                if body.done and self._body_began >= 0:
                    metrics.wait_seconds.labels("connection.body").observe(self._now() - self._body_began)
                if piece:
                    return piece
            else:
                await self._more_of_body()
        return b""

    async def _more_of_body(self) -> None:
        if self._body_began < 0:
            self._body_began = self._now()
        if self._expects:
            self._expects = False
            await self.send(http1.CONTINUE)
            self._answering = False
        if not self._answering:
            self._enter("body", self._body_deadline())
        try:
            more = await self._more()
        except Gone:
            self._gone = True
            more = False
        if not more:
            raise CutShort("the connection ended in the middle of the body")
        if not self._answering:
            self._enter("handler", self._until)

    def _body_deadline(self) -> float:
        settings = self._settings
        earned = settings.body_patience_seconds + self._body_bytes / settings.body_bytes_per_second_min
        return min(self._body_began + min(earned, settings.body_seconds), self._until)

    # --- its answer

    def keeps(self) -> bool:
        """Decide whether there can be another request after this one, and take what is here of an unread body."""
        body = self._body
        if self._rest and not body.done:
            try:
                _, self._rest = body.take(self._rest)
            except BadRequest:
                return False
        return self._request is not None and self._request.keep_alive and body.done and not self._crowd.draining

    def date(self) -> bytes:
        """Return the lines that stand in every answer."""
        return _dates.line()

    async def send(self, data: bytes) -> None:
        """Write it; nothing happens when the client is gone."""
        self._answering = True
        if self._gone:
            return
        try:
            await self._send_all(data)
        except Gone:
            self._gone = True

    async def _send_all(self, data: bytes) -> None:
        sent = self._wire.send_now(data)
        if sent < len(data):
            await self._send_rest(memoryview(data)[sent:])

    async def _send_rest(self, rest: memoryview) -> None:
        phase, until, began = self.phase, self._scope.deadline, self._now()
        self._enter("write", began + self._settings.write_seconds)
        left = PIECE_BYTES
        while rest:
            sent = await self._wire.send(rest)
            rest = rest[sent:]
            left -= sent
            if left <= 0:
                left += PIECE_BYTES
                self._scope.deadline = self._now() + self._settings.write_seconds
        took = self._now() - began
        metrics.wait_seconds.labels("connection.write").observe(took)
        # The handler's time stood still meanwhile.
        self._enter(phase, until + took)

    async def until_gone(self) -> None:
        """Return when the client has broken off.

        That its side has ended says nothing: it may have sent all it wanted and still wait for the answer.
        """
        try:
            while len(self._rest) < PIECE_BYTES and await self._more():
                pass
        except Gone:
            self._gone = True
            return
        await trio.sleep_forever()

    def _written(self, answer: Answer, *, keep: bool) -> bytes:
        headers = answer.headers
        if not keep:
            headers = [*headers, ("connection", "close")]
        elif self._request is not None and self._request.version == "1.0":
            headers = [*headers, ("connection", "keep-alive")]
        return http1.whole(answer.status, headers, answer.content_type, answer.body, _dates.line())


def _is_accept(target: bytes) -> bool:
    return target == _ACCEPT_TARGETS[0] or target.startswith(_ACCEPT_TARGETS[1])


class _Dates:
    """The lines with the date, written once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        now = int(time.time())
        if now != self._second:
            self._second, self._line = now, http1.date_line(now)
        return self._line


_dates = _Dates()
