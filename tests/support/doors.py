"""Our connection over real sockets without a database: a small ASGI app, and an accept route that stores at once."""

from __future__ import annotations

import atexit
import json
import math
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
import trio
from hypercorn.utils import wrap_app

from convo.config import load_settings
from convo.http import listening as listening_sockets
from convo.http import server
from convo.http.asgi import App, AsgiMessage
from convo.http.connections import Connections
from convo.http.context import ServerContext
from convo.http.forwarded import Proxies
from convo.settings import Settings
from convo.store.group import Submitted
from convo.store.intake import Accept, Committer, Stored
from convo.web.accept import AcceptRoute
from convo.web.admission import Admission
from convo.web.authority import Authority
from convo.web.browsers import Browsers
from convo.web.clients import Clients
from convo.web.dispatch import Api, direct_targets
from convo.web.door import Door
from convo.web.readiness import Readiness
from tests.support.running import _variables, ended

END = "/v1/conversations/end"
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]


class AtOnce:
    """A committer that stores in memory as soon as ``open`` is set."""

    wait_seconds = math.inf

    def __init__(self) -> None:
        self.open = trio.Event()
        self.open.set()
        self.begun = trio.Event()
        self.stored: list[str] = []

    def enqueue(self, accept: Accept, until: float, then: Callable[[], None]) -> Submitted[Accept, Stored]:
        submitted: Submitted[Accept, Stored] = Submitted(accept, until, then)
        submitted.answer(self._store(accept))
        return submitted

    async def accept(self, accept: Accept, until: float | None = None) -> Stored:
        self.begun.set()
        await self.open.wait()
        await trio.lowlevel.checkpoint()
        return self._store(accept)

    def _store(self, accept: Accept) -> Stored:
        name = accept.ended.conversation_id
        replayed = name in self.stored
        self.stored.append(name)
        now = datetime.now(UTC)
        return Stored(
            conversation_id=name,
            digest=accept.digest,
            turns=accept.turns,
            received_at=now,
            notes=accept.notes,
            state="",
            replayed=replayed,
            seq=len(self.stored),
        )


class Served:
    """A server that is ready."""

    def __init__(self, port: int, connections: Connections, committer: AtOnce, stop: trio.Event) -> None:
        self.port = port
        self.connections = connections
        self.committer = committer
        self.stop = stop
        self.stopped = trio.Event()
        self.streams: list[trio.SocketStream] = []

    async def connect(self) -> trio.SocketStream:
        """Return a connection that is closed with the server, if not before."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.streams.append(stream)
        return stream

    async def ask(self, *sent: bytes, then_end: bool = False) -> bytes:
        """Send it, and read to the end of the connection."""
        async with await self.connect() as stream:
            for piece in sent:
                await stream.send_all(piece)
            if then_end:
                await stream.send_eof()
            return await rest_of(stream)


async def echo(scope: AsgiMessage, receive: Receive, send: Send) -> None:
    """Answer with what arrived: the target, the length of the body, and the client."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    said = {
        "path": scope["path"],
        "query": scope["query_string"].decode(),
        "body": len(body),
        "client": scope["client"][0],
    }
    await answer(send, json.dumps(said).encode())


async def answer(send: Send, body: bytes, *pieces: bytes, status: int = 200, headers: Any = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for piece in (body, *pieces):
        await send({"type": "http.response.body", "body": piece, "more_body": bool(pieces)})
    if pieces:
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _with_lifespan(app: App) -> App:
    async def whole(scope: AsgiMessage, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await app(scope, receive, send)

    return whole


@asynccontextmanager
async def opened(
    app: App = echo, given: Mapping[str, str] | None = None, *, intake: AcceptRoute | None = None
) -> AsyncIterator[Served]:
    """Run a server with deadlines short enough to wait for; settings are ``given`` by name."""
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            settings = short(given or {})
            with socket.socket() as listening:
                listening_sockets.set_options(listening, settings.connection)
                listening.bind(("127.0.0.1", 0))
                listening.listen(settings.server.backlog)
                served = Served(listening.getsockname()[1], _connections(settings), AtOnce(), trio.Event())
                nursery.start_soon(_serve, listening, settings, app, served, intake)
                try:
                    yield served
                finally:
                    nursery.cancel_scope.cancel()
                    for stream in served.streams:
                        stream.socket.close()


def short(given: Mapping[str, str]) -> Settings:
    quick = {"linger_seconds": "0.3", "write_seconds": "0.3", "head_seconds": "0.3", "body_patience_seconds": "0.3"}
    return load_settings(None, _variables({f"connection.{name}": value for name, value in quick.items()} | dict(given)))


def _connections(settings: Settings) -> Connections:
    return Connections(settings.connection, Proxies(settings.server), settings.connection.connections_max)


async def _serve(
    listening: socket.socket, settings: Settings, app: App, served: Served, intake: AcceptRoute | None
) -> None:
    api = made_api(settings, intake or accept_route(settings, cast("Committer", served.committer)))
    context = ServerContext(
        settings=settings,
        direct=direct_targets(api),
        app=app,
        connections=served.connections,
        proxies=Proxies(settings.server),
    )

    async def stopping() -> None:
        await served.stop.wait()
        served.connections.drain()

    await server._worker_serve(context)(
        wrap_app(cast("Any", _with_lifespan(app)), 0, "asgi"),
        server._config([listening], settings),
        shutdown_trigger=stopping,
    )
    served.stopped.set()


def accept_route(
    settings: Settings, committer: Committer, *, kind: type[AcceptRoute] = AcceptRoute, admission: Any = None
) -> AcceptRoute:
    """Make the accept route of a process that is ready."""
    return kind(
        settings=settings.web,
        items_max=settings.intake.items_max,
        committer=committer,
        readiness=ready(),
        admission=admission or Admission(settings.intake, settings.web.request_seconds),
    )


def ready() -> Readiness:
    readiness = Readiness()
    readiness.open()
    return readiness


def made_api(settings: Settings, intake: AcceptRoute) -> Api:
    """Make what answers requests, with nothing behind the other routes."""
    nothing = cast("Any", None)
    door = Door(
        browsers=Browsers(settings),
        readiness=ready(),
        authority=Authority(settings.auth, nothing),
        clients=Clients(settings.clients),
        raw_bytes_max=settings.web.raw_bytes_max,
    )
    return Api(
        settings=settings,
        door=door,
        intake=intake,
        reading=Mock(),
        explaining=Mock(),
        auditing=Mock(),
        erasing=Mock(),
        webhooks=Mock(),
        streams=Mock(),
        live=Mock(),
        figures=Mock(),
        sessions=Mock(),
        reanalysing=Mock(),
        operations=Mock(),
        capacity=Mock(),
    )


# --- what is sent to it


def get(
    target: str = "/", *fields: str, method: str = "GET", version: str = "HTTP/1.1", host: str = "localhost"
) -> bytes:
    lines = [f"{method} {target} {version}", *([f"Host: {host}"] if host else []), *fields]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"


def post(name: str, *fields: str, body: bytes | None = None) -> tuple[bytes, bytes]:
    """Return the head and the body of a finished conversation."""
    body = json.dumps(ended(name)).encode() if body is None else body
    typed = any(field.lower().startswith("content-type") for field in fields)
    kind = () if typed else ("Content-Type: application/json",)
    size = () if any("chunked" in field for field in fields) else (f"Content-Length: {len(body)}",)
    return get(END, *kind, *size, *fields, method="POST"), body


async def rest_of(stream: trio.abc.ReceiveStream) -> bytes:
    """Read to the end, or to the reset."""
    got = b""
    try:
        while piece := await stream.receive_some(65536):
            got += piece
    except trio.BrokenResourceError:
        pass
    return got


async def one_of(stream: trio.abc.ReceiveStream, got: bytes = b"") -> tuple[bytes, bytes]:
    """Read one answer of announced length; return it, and what came after it."""
    while b"\r\n\r\n" not in got:
        got += await stream.receive_some(65536) or _ended(got)
    head, _, rest = got.partition(b"\r\n\r\n")
    size = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
    length = int(size[1]) if size else 0
    while len(rest) < length:
        rest += await stream.receive_some(65536) or _ended(got)
    return head + b"\r\n\r\n" + rest[:length], rest[length:]


def _ended(got: bytes) -> bytes:
    raise AssertionError(f"the connection ended after {got!r}")


def statuses(got: bytes) -> list[int]:
    return [int(one) for one in re.findall(rb"HTTP/1\.1 (\d{3}) ", got)]


def body_of(got: bytes) -> Any:
    return json.loads(got.partition(b"\r\n\r\n")[2])


@cache
def certificate() -> tuple[str, str, ssl.SSLContext]:
    """Return the files of a certificate made for this run and its key, and a client's context that trusts it."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = Path(tempfile.mkdtemp(prefix="convo-tls-"))
    atexit.register(shutil.rmtree, folder)
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key, "-out", cert]
    subprocess.run([*command, *name], check=True, capture_output=True)
    return cert, key, ssl.create_default_context(cafile=cert)
