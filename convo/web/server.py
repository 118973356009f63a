"""The HTTP server: hypercorn keeps configuration, TLS, start and stop, and each client gets our own connection.

The seam is one name: what ``hypercorn.trio.run.worker_serve`` looks up as ``TCPServer``. It is looked up in a copy of
that function with a namespace of its own, so that nothing of hypercorn is changed for others in this process.
``tests/unit/test_server.py`` fails when an upgrade moves anything that this relies on.
"""

from __future__ import annotations

import logging
import resource
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, cast

from hypercorn.config import Config
from hypercorn.trio import run as seam
from hypercorn.utils import wrap_app

from convo.config import ConnectionSettings, ServerSettings, Settings
from convo.errors import Refused
from convo.observe import events
from convo.web.app import Api, make_app
from convo.web.asgi import App
from convo.web.connection import Door, serve_connection
from convo.web.crowd import Crowd, Sparsely
from convo.web.forwarded import Proxies
from convo.web.wire import Stream

# Open files that are not client connections: the database's, remote services', logs, and some to spare.
_OTHER_FILES = 128


async def serve(listening: socket.socket, api: Api, stopping: Callable[[], Awaitable[None]]) -> None:
    """Serve ``api`` until ``stopping`` returns, then for at most ``shutdown.intake_seconds`` what is under way.

    ``listening`` is ours from now on.
    """
    settings = api.settings
    proxies = Proxies(settings.server)
    most = _room_for(settings.connection.connections_max)
    crowd = Crowd(settings.connection, proxies, most)
    app = make_app(api)
    door = Door(settings=settings, intake=api.intake, app=cast("App", app), crowd=crowd, proxies=proxies)

    async def until_stopping() -> None:
        await stopping()
        crowd.drain()

    with _telling_of_slow_accepts():
        await _worker_serve(door)(
            wrap_app(app, 0, "asgi"), _config(listening, settings), shutdown_trigger=until_stopping
        )


def _worker_serve(door: Door) -> Callable[..., Awaitable[None]]:
    """Return hypercorn's server with our connection in the place of its own."""

    def connect(_app: Any, _config: Any, _context: Any, _state: Any, stream: Stream) -> Awaitable[None]:
        return serve_connection(door, stream)

    theirs = seam.worker_serve
    ours = FunctionType(theirs.__code__, {**theirs.__globals__, "TCPServer": connect}, theirs.__name__)
    ours.__kwdefaults__ = theirs.__kwdefaults__
    return ours


def _config(listening: socket.socket, settings: Settings) -> Config:
    config = Config()
    # hypercorn's from here on: it is closed when the stop begins, and whoever connects then is told at once.
    config.bind = [f"fd://{listening.detach()}"]
    config.graceful_timeout = settings.shutdown.intake_seconds
    config.alpn_protocols = ["http/1.1"]
    # hypercorn listens once more, with its own number
    config.backlog = settings.server.backlog
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    if settings.server.certfile:
        config.certfile, config.keyfile = settings.server.certfile, settings.server.keyfile
    return config


def check_certificate(settings: ServerSettings) -> None:
    """Read the certificate and its key, where TLS is asked for.

    Raises:
        Refused: they cannot be read, or do not belong together.
    """
    if not settings.certfile:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.certfile, settings.keyfile)
    except OSError as error:
        raise Refused(
            f"server.certfile {settings.certfile} and server.keyfile {settings.keyfile} cannot be used: {error};"
            " name a PEM file with the certificate chain and one with its key"
        ) from error


# --- the listening socket


def set_options(listening: socket.socket, settings: ConnectionSettings) -> None:
    """Set what accepted sockets inherit: that a peer which vanished is found out."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = "TCP_KEEPALIVE" if sys.platform == "darwin" else "TCP_KEEPIDLE"
    for name, value in (
        (idle, settings.tcp_keepidle_seconds),
        ("TCP_KEEPINTVL", settings.tcp_keepintvl_seconds),
        ("TCP_KEEPCNT", settings.tcp_keepcnt),
        ("TCP_USER_TIMEOUT", settings.tcp_user_timeout_seconds * 1000),  # macOS has none
    ):
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _room_for(wanted: int) -> int:
    """Raise what the system lets us open, and return how many connections that leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    possible = max(1, soft - min(_OTHER_FILES, soft // 2))
    events.connections_capped(wanted=wanted, possible=possible)
    return possible


@contextmanager
def _telling_of_slow_accepts() -> Iterator[None]:
    """Tell as an event of ours what trio logs when the system has no more sockets, ten times a second."""
    tell = Sparsely[str](lambda reason, unsaid: events.accept_slowed(reason=reason, unsaid=unsaid))

    def tell_instead(record: logging.LogRecord) -> bool:
        tell(record.getMessage())
        return False

    logger = logging.getLogger("trio.serve_listeners")
    logger.addFilter(tell_instead)
    try:
        yield
    finally:
        logger.removeFilter(tell_instead)
