"""Opens the listening sockets: their addresses, and the options that connections inherit."""

from __future__ import annotations

import errno
import resource
import socket
import sys
from contextlib import AsyncExitStack

from convo.errors import Refused
from convo.http.certificate import read_certificate
from convo.observe import log_records
from convo.settings import ConnectionSettings, ServerSettings, Settings

# Open files that are not client connections: those of the database, remote services and logs, and a reserve.
_OTHER_FILES = 128


def listen(settings: Settings, stack: AsyncExitStack) -> list[socket.socket]:
    """Listen on the service's address, and on the operations' own address if there is one.

    Raises:
        Refused: an address is in use or not ours, or the certificate cannot be used.
    """
    server = settings.server
    check_certificate(server)
    addresses = [("server", server.host, server.port)]
    if server.operations_port:
        addresses.append(("server.operations", server.operations_host, server.operations_port))
    return [stack.enter_context(_listen_on(*address, settings)) for address in addresses]


def _listen_on(name: str, host: str, port: int, settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    set_options(listening, settings.connection)
    try:
        listening.bind((host, port))
        listening.listen(settings.server.backlog)
    except OSError as error:
        listening.close()
        setting = name + ("." if name == "server" else "_")
        raise Refused(
            f"cannot listen on {setting}host {host} {setting}port {port}: {error.strerror}; {_remedy(error, setting)}"
        ) from error
    return listening


def _remedy(error: OSError, setting: str) -> str:
    """Return what to do about an address that cannot be listened on."""
    host, port = (f"--{part}" if setting == "server." else f"{setting}{part}" for part in ("host", "port"))
    if isinstance(error, PermissionError):
        return (
            f"this user may not use a port below 1024: choose one from there on with {port}, or allow it on this"
            " machine, e.g. by `sudo sysctl net.ipv4.ip_unprivileged_port_start=80`"
        )
    if error.errno == errno.EADDRINUSE:
        return f"stop what listens there, or choose another port with {port}"
    return f"choose an address of this machine with {host}, or 0.0.0.0 for all of them"


def url_of(listening: socket.socket, settings: Settings) -> str:
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    scheme = "https" if settings.server.certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def check_certificate(settings: ServerSettings) -> None:
    """Check that the certificate and its key can be used, if TLS is configured.

    Raises:
        Refused: as ``read_certificate``.
    """
    if settings.certfile:
        read_certificate(settings)


def set_options(listening: socket.socket, settings: ConnectionSettings) -> None:
    """Set the options that accepted sockets inherit: by them the kernel detects a peer that has vanished."""
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


def room_for(wanted: int) -> int:
    """Raise the limit of open files, and return how many of the ``wanted`` connections it leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    possible = max(1, soft - min(_OTHER_FILES, soft // 2))
    log_records.connections_capped(wanted=wanted, possible=possible)
    return possible
