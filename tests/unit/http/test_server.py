from __future__ import annotations

import hashlib
import inspect
import logging
import socket
from typing import Any
from unittest.mock import Mock

import pytest
import trio
from hypercorn.trio import run as seam
from structlog.testing import capture_logs

from convo.http import server
from convo.http.connection import ClientConnection
from convo.http.recorded import RecordedConnection
from convo.settings import OtelSettings, Settings

# hypercorn 0.18.0. Whoever upgrades reads the new worker_serve, sees that what server.py says of it still holds, and
# writes the new number here.
WORKER_SERVE = "8dc8347a9fc357ca334f8c3e4bcf0368176510a96d434f21a5eb4c9ec4103726"


SEAM: Any = seam


def test_the_seam_is_where_it_was() -> None:
    source = inspect.getsource(seam.worker_serve)
    assert hashlib.sha256(source.encode()).hexdigest() == WORKER_SERVE
    assert "TCPServer" in seam.worker_serve.__code__.co_names
    assert "TCPServer" in vars(seam)
    assert seam.worker_serve.__closure__ is None
    called = list(inspect.signature(SEAM.TCPServer).parameters)
    assert called == ["app", "config", "context", "state", "stream"]
    assert list(inspect.signature(seam.worker_serve).parameters) == [
        "app", "config", "sockets", "shutdown_trigger", "task_status",
    ]  # fmt: skip
    # What is accepted is handed to the handler as it is, and closed behind it.
    listeners = inspect.getsource(trio._highlevel_serve_listeners)
    assert "handler_nursery.start_soon(_run_handler, stream, handler)" in listeners
    assert 'logging.getLogger("trio.serve_listeners")' in listeners


def test_hypercorn_itself_is_left_as_it_is() -> None:
    theirs = SEAM.TCPServer
    ours: Any = server._worker_serve(Mock())
    assert SEAM.TCPServer is theirs
    assert ours.__globals__["TCPServer"] is not theirs
    assert ours.__kwdefaults__ == seam.worker_serve.__kwdefaults__


@pytest.mark.parametrize(
    ("otel", "kind"),
    [
        (OtelSettings(), ClientConnection),
        (OtelSettings(endpoint="http://c", traces=False, logs=True), ClientConnection),
        (OtelSettings(endpoint="http://c"), RecordedConnection),
    ],
    ids=["off", "log records alone", "traces"],
)
def test_only_a_process_that_records_traces_has_connections_that_do(
    otel: OtelSettings, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(server, "serve_connection", lambda _context, _stream, kind: served.append(kind))
    ours: Any = server._worker_serve(Mock(settings=Settings(otel=otel)))
    ours.__globals__["TCPServer"](None, None, None, None, Mock())
    assert served == [kind]


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux")
async def test_trios_complaint_about_sockets_is_logged_now_and_then() -> None:
    logger = logging.getLogger("trio.serve_listeners")
    with capture_logs() as told, server._logging_slow_accepts():
        for _ in range(20):
            logger.error("accept returned %s (%s)", "EMFILE", "Too many open files")
    assert [(one["event"], one["reason"]) for one in told] == [
        ("accept_slowed", "accept returned EMFILE (Too many open files)")
    ]
    assert not logger.filters
