from __future__ import annotations

import hashlib
import inspect
import logging
import resource
import socket
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import trio
from hypercorn.trio import run as seam
from structlog.testing import capture_logs

from convo.config import ConnectionSettings, ServerSettings
from convo.errors import Refused
from convo.web import server

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


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux")
def test_accepted_sockets_find_out_that_their_peer_is_gone() -> None:
    settings = ConnectionSettings(
        tcp_keepidle_seconds=31, tcp_keepintvl_seconds=11, tcp_keepcnt=4, tcp_user_timeout_seconds=29
    )
    with socket.socket() as listening:
        server.set_options(listening, settings)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            found = [accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
            assert found == [31, 11, 4, 29_000]


def limited(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> list[tuple[int, int]]:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    return limits


def test_files_are_raised_to_what_the_connections_need(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = limited(monkeypatch, 1024, 1 << 20)
    assert server._room_for(10_000) == 10_000
    assert limits[-1] == (10_128, 1 << 20)


def test_where_the_system_allows_fewer_files_there_are_fewer_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = limited(monkeypatch, 512, 1024)
    with capture_logs() as told:
        assert server._room_for(10_000) == 1024 - 128
    assert limits[-1] == (1024, 1024)
    assert (told[0]["event"], told[0]["possible"]) == ("connections_capped", 896)


async def test_trios_cry_for_sockets_becomes_an_event_now_and_then() -> None:
    logger = logging.getLogger("trio.serve_listeners")
    with capture_logs() as told, server._telling_of_slow_accepts():
        for _ in range(20):
            logger.error("accept returned %s (%s)", "EMFILE", "Too many open files")
    assert [(one["event"], one["reason"]) for one in told] == [
        ("accept_slowed", "accept returned EMFILE (Too many open files)")
    ]
    assert not logger.filters


def test_a_certificate_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    nonsense = tmp_path / "x.pem"
    nonsense.write_text("nonsense")
    for name in (nonsense, tmp_path / "none.pem"):
        settings: Any = ServerSettings(certfile=str(name), keyfile=str(name))
        with pytest.raises(Refused, match=r"server\.certfile"):
            server.check_certificate(settings)
