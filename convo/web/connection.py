"""One client connection: HTTP/1.1 with a deadline on every read and write; it knows the accept route by name.

A connection is one linear coroutine under one cancel scope, whose deadline is moved from phase to phase (``channel``).
The accept route is called directly; all others go through the ASGI app. An exception ends this connection and no other.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext

import trio
from msgspec import Struct

from convo.config import Settings
from convo.errors import ConvoError, DeadlineExceeded, Overloaded, RequestTimeout
from convo.observe import events, metrics
from convo.web import http1
from convo.web.app import ACCEPT
from convo.web.asgi import App, Exchange, scope_of
from convo.web.channel import Channel
from convo.web.conversations import Intake
from convo.web.crowd import Crowd
from convo.web.door import METHODS, Answer, Head, answered, problem, with_headers
from convo.web.forwarded import Proxies
from convo.web.http1 import RequestHead
from convo.web.incoming import Incoming
from convo.web.wire import Gone, Stream, Wire, addresses, wire_of

# What the request's own deadlines leave to the answer they make; only who outstays them meets the backstop.
_BACKSTOP_SECONDS = 0.25
# How much of its time a request may lose to a deadline that is not moved: a part of it, and always less than the door
# keeps for its last words (conversations._ANSWER_SECONDS).
_EARLY, _EARLY_SECONDS_MAX = 1 / 400, 0.02
_ACCEPT_TARGETS = (ACCEPT.encode(), ACCEPT.encode() + b"?")
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
        "_app", "_body", "_channel", "_crowd", "_door", "_ended", "_farewell", "_intake", "_lingers", "_method", "_now",
        "_operations", "_request", "_route", "_server", "_settings", "_started", "_web", "peer",
    )  # fmt: skip

    def __init__(self, door: Door, wire: Wire, transport: trio.SocketStream) -> None:
        self._door = door
        self._app = door.app
        self._crowd = door.crowd
        self._intake = door.intake
        self._settings = door.settings.connection
        self._web = door.settings.web
        self._channel = Channel(wire, self._settings)
        self._now = now = trio.lowlevel.current_clock().current_time  # trio.current_time() by the short way
        self._body = Incoming(self._channel, self._settings, self._web, now)
        self.peer, self._server = addresses(transport)
        self._operations = self._server[1] == door.settings.server.operations_port
        self._lingers = False
        self._farewell = b""
        self._ended = ""
        self._forget_request()

    def _forget_request(self) -> None:
        self._request: RequestHead | None = None
        self._body.forget()
        self._channel.said = False
        self._route = "unread"
        self._method = "other"
        self._started = 0.0

    # --- from the beginning to the end

    async def run(self) -> None:
        """Answer request after request."""
        if not await self._channel.carry(self._answer_all):
            self._out_of_time()

    async def _answer_all(self) -> None:
        try:
            await self._channel.open()
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
        if not self._channel.encrypted:
            self._say_at_the_end(Overloaded("there are as many connections as there may be", retry_after_seconds=1))
            with self._crowd.seeing_off() as there_is_time:
                if there_is_time:
                    await self.take_leave()

    @property
    def phase(self) -> str:
        """What it waits for."""
        return self._channel.phase

    def dismiss(self) -> None:
        """End, if nothing is under way and nothing is about to be."""
        self._channel.dismiss()

    def fail(self) -> None:
        """Say, where nothing is said yet, that something went wrong with us."""
        self._ended = "error"
        self._say_at_the_end(ConvoError("an unexpected error; it is in the log"))

    def leave(self) -> None:
        """Be forgotten."""
        self._crowd.leave(self)
        metrics.connection_ended_total.labels(self._ended or "stopped").inc()

    def _out_of_time(self) -> None:
        phase = self.phase
        if phase == "idle" and self._crowd.draining:
            self._ended = "drained"
            return
        self._ended = f"{phase}_deadline"
        metrics.deadline_exceeded_total.labels(f"connection.{phase}").inc()
        if phase == "write":
            self._channel.abort()
        elif phase in ("head", "body") and not self._now() >= self._body.until:
            self._say_at_the_end(RequestTimeout(f"the request's {phase} took too long"))
        elif phase in ("body", "handler"):
            self._say_at_the_end(DeadlineExceeded(f"connection.{phase}", self._body.until - self._started))

    def _say_at_the_end(self, error: ConvoError) -> None:
        if not self._channel.said:
            self._farewell = self._answer_to(error)

    async def _refuse(self, error: ConvoError) -> None:
        self._ended = "refused"
        if not self._channel.said:
            self._lingers = True
            self._channel.enter("write", self._now() + self._settings.write_seconds)
            await self._channel.send(self._answer_to(error))

    def _answer_to(self, error: ConvoError) -> bytes:
        """Answer what never came to a route, and count it as the routes count theirs."""
        answer = problem(error)
        seconds = self._now() - (self._started or self._now())
        metrics.requests_total.labels(self._route, self._method, str(answer.status)).inc()
        self._log_access(answer.status, seconds)
        answer = with_headers(answer, ("Server-Timing", f"total;dur={seconds * 1000:.2f}"))
        return self._written(answer, keep=False)

    async def take_leave(self) -> None:
        """Say what is left to say, where there is something."""
        if self._farewell or self._lingers:
            await self._channel.see_off(self._farewell)

    # --- one request

    async def _next_request(self) -> bool:
        """Answer one request; false when there cannot be another one."""
        end = await self._next_head()
        if end < 0:
            return False
        channel = self._channel
        raw, channel.rest = channel.rest[:end], channel.rest[end:]
        request = http1.read_head(raw, self._settings.target_bytes_max)
        self._request = request
        self._method = request.method if request.method in METHODS else "other"
        self._body.begin(request.length, expects=request.expects)
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
        channel = self._channel
        if not channel.rest:
            if self._crowd.draining and not channel.pending():
                self._ended = "drained"
                return -1
            channel.idle()
            if not await channel.more():
                self._ended = "closed"
                return -1
        self._started = self._now()
        end = self._find_end()
        return end if end >= 0 else await self._rest_of_head()

    async def _rest_of_head(self) -> int:
        self._channel.enter("head", self._started + self._settings.head_seconds)
        end = -1
        while end < 0:
            if not await self._channel.more():
                self._ended = "closed"
                return -1
            end = self._find_end()
        metrics.wait_seconds.labels("connection.head").observe(self._now() - self._started)
        return end

    def _find_end(self) -> int:
        channel = self._channel
        while channel.rest.startswith(b"\r\n"):
            channel.rest = channel.rest[2:]
        return http1.find_end(channel.rest, self._settings.head_bytes_max, self._settings.target_bytes_max)

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
            return self._intake.receive(head, self._body.whole)

        answer = await answered(ACCEPT, head, self._door.settings, serve, self._bound)
        keep = self.keeps()
        await self._channel.send(self._written(answer, keep=keep))
        seconds = self._now() - self._started
        metrics.wait_seconds.labels("web.request").observe(seconds)
        self._log_access(answer.status, seconds)
        return keep

    def _bound(self, seconds: float) -> AbstractContextManager[object]:
        # Our own scope is there already, and another one would cost as much as reading the head.
        self._body.until = until = self._started + seconds
        self._channel.enter("handler", until, early=min(seconds * _EARLY, _EARLY_SECONDS_MAX))
        return _NO_SCOPE

    async def _pass_on(self, request: RequestHead) -> bool:
        """Let the app answer."""
        self._route = "app"
        self._bound(self._web.request_seconds + _BACKSTOP_SECONDS)
        exchange = Exchange(self, request)
        scope = scope_of(request, encrypted=self._channel.encrypted, client=self._client(request), server=self._server)
        await self._app(scope, exchange.receive, exchange.send)
        if self._channel.gone:
            raise Gone
        if exchange.refusal is not None:
            raise exchange.refusal
        if not exchange.ended:
            self._ended = "error" if exchange.begun else "closed"
            if not self._channel.eof:
                raise ConvoError("the app did not answer")
        return exchange.keep

    def _client(self, request: RequestHead) -> str:
        proxies = self._door.proxies
        return proxies.client(request.fields, self.peer) if proxies.trusts(self.peer) else self.peer

    def _log_access(self, status: int, seconds: float) -> None:
        if self._door.settings.observe.access_log:
            events.request_answered(route=self._route, method=self._method, status=status, seconds=seconds)

    # --- what an exchange asks of it

    def keeps(self) -> bool:
        """Decide whether there can be another request after this one, and take what is here of an unread body."""
        taken = self._body.skip()
        return taken and self._request is not None and self._request.keep_alive and not self._crowd.draining

    def date(self) -> bytes:
        """Return the lines that stand in every answer."""
        return _dates.line()

    async def send(self, data: bytes) -> None:
        """Write it; nothing happens when the client is gone."""
        await self._channel.send(data)

    @property
    def body_done(self) -> bool:
        """Whether all of the body was taken."""
        return self._body.done

    async def body_piece(self) -> bytes:
        """Return the next piece of the body, empty behind the last. Raises: BadRequest, CutShort."""
        return await self._body.piece()

    async def until_gone(self) -> None:
        """Return when the client has broken off."""
        await self._channel.until_gone()

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
