"""The HTTP server: hypercorn does configuration, TLS, start and stop; each connection is served by our own code.

hypercorn's own connection is replaced because one request can crash it, and a client that never reads can hold it for
ever. The replacement is one name: ``hypercorn.trio.run.worker_serve`` looks up ``TCPServer``. It is looked up in a copy
of that function with its own namespace, so that hypercorn stays unchanged for others in this process.
``tests/unit/http/test_server.py`` fails if an upgrade changes anything that this relies on.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio import run as seam
from hypercorn.utils import wrap_app

from convo.http.asgi import App
from convo.http.certificate import Certificate
from convo.http.connection import ClientConnection, serve_connection
from convo.http.connections import Connections
from convo.http.context import DirectTarget, ServerContext
from convo.http.forwarded import Proxies
from convo.http.listening import room_for
from convo.http.recorded import RecordedConnection
from convo.http.wire import Stream
from convo.observe import log_records
from convo.observe.throttle import Throttle
from convo.runtime.signals import reload_observers
from convo.settings import Settings

_SLOW_ACCEPT_SECONDS = 5.0


async def serve_http(
    listening: Sequence[socket.socket],
    settings: Settings,
    app: App,
    direct: Mapping[bytes, DirectTarget],
    stopping: Callable[[], Awaitable[None]],
) -> None:
    """Serve the targets in ``direct``, and all others by ``app``, until ``stopping`` returns.

    Requests under way then have ``shutdown.intake_seconds`` to end. The ``listening`` sockets are closed here.
    """
    proxies = Proxies(settings.server)
    most = room_for(settings.connection.connections_max)
    connections = Connections(settings.connection, proxies, most)
    context = ServerContext(settings=settings, direct=direct, app=app, connections=connections, proxies=proxies)

    async def until_stopping() -> None:
        await stopping()
        connections.drain()

    config = _config(listening, settings)
    with _logging_slow_accepts(), _reloading(config.certificate):
        await _worker_serve(context)(wrap_app(cast("Any", app), 0, "asgi"), config, shutdown_trigger=until_stopping)


def _worker_serve(context: ServerContext) -> Callable[..., Awaitable[None]]:
    """Return hypercorn's server with our connection instead of its own."""
    # Chosen once: where nothing is recorded, no request asks.
    kind = RecordedConnection if context.settings.otel.records else ClientConnection

    def connect(_app: Any, _config: Any, _context: Any, _state: Any, stream: Stream) -> Awaitable[None]:
        return serve_connection(context, stream, kind)

    theirs = seam.worker_serve
    ours = FunctionType(theirs.__code__, {**theirs.__globals__, "TCPServer": connect}, theirs.__name__)
    ours.__kwdefaults__ = theirs.__kwdefaults__
    return ours


class _Config(Config):
    """hypercorn's configuration, but with a certificate of ours: hypercorn reads it once and never again."""

    certificate: Certificate | None = None

    @property
    def ssl_enabled(self) -> bool:
        return self.certificate is not None

    def create_ssl_context(self) -> Any:
        return self.certificate


def _reloading(certificate: Certificate | None) -> AbstractContextManager[object]:
    return nullcontext() if certificate is None else reload_observers.adding(certificate.reload_soon)


def _config(listening: Sequence[socket.socket], settings: Settings) -> _Config:
    config = _Config()
    # hypercorn closes them when the stop begins, so that a client that connects then is refused at once.
    config.bind = [f"fd://{one.detach()}" for one in listening]
    config.graceful_timeout = settings.shutdown.intake_seconds
    # hypercorn calls listen() again, with its own backlog.
    config.backlog = settings.server.backlog
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    if settings.server.certfile:
        config.certificate = Certificate(settings.server)
    return config


@contextmanager
def _logging_slow_accepts() -> Iterator[None]:
    """Log in our own form what Trio logs ten times a second while the system has no more sockets."""
    throttle = Throttle(_SLOW_ACCEPT_SECONDS)

    def log_instead(record: logging.LogRecord) -> bool:
        suppressed = throttle.due("slow", trio.current_time())
        if suppressed is not None:
            log_records.accept_slowed(reason=record.getMessage(), suppressed=suppressed)
        return False

    logger = logging.getLogger("trio.serve_listeners")
    logger.addFilter(log_instead)
    try:
        yield
    finally:
        logger.removeFilter(log_instead)
