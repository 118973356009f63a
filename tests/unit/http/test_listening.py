from __future__ import annotations

import errno
import resource
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from convo.errors import Refused
from convo.http import listening as listening_sockets
from convo.settings import ConnectionSettings, ServerSettings, Settings


def test_accepted_sockets_find_out_that_their_peer_is_gone() -> None:
    settings = ConnectionSettings(
        tcp_keepidle_seconds=31, tcp_keepintvl_seconds=11, tcp_keepcnt=4, tcp_user_timeout_seconds=29
    )
    with socket.socket() as listening:
        listening_sockets.set_options(listening, settings)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            found = [accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
            assert found == [31, 11, 4, 29_000]


# --- an address that cannot be listened on


def refusal(server: ServerSettings) -> str:
    with pytest.raises(Refused) as refused:
        listening_sockets.listen(Settings(server=server), AsyncExitStack())
    return refused.value.detail


def test_a_port_in_use_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal(ServerSettings(port=port))
        assert f"server.port {port}: Address already in use; stop what listens there" in said
        assert said.endswith("choose another port with --port")


async def test_the_port_of_the_operations_is_chosen_by_its_own_setting() -> None:
    async with AsyncExitStack() as stack:
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        with pytest.raises(Refused, match=r"stop what listens there, or choose .* with server\.operations_port$"):
            listening_sockets.listen(
                Settings(server=ServerSettings(port=0, operations_port=taken.getsockname()[1])), stack
            )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_port_that_this_user_may_not_use_is_no_port_in_use(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def deny(_listening: socket.socket, _address: object) -> None:
        raise OSError(number, "denied")

    # The tests may run as root, who may use any port.
    monkeypatch.setattr(socket.socket, "bind", deny)
    said = refusal(ServerSettings(port=80))
    assert "server.port 80: denied; this user may not use a port below 1024" in said
    assert "--port" in said
    assert "stop what listens there" not in said


def test_a_host_that_is_not_this_machine_says_that_the_host_is_wrong() -> None:
    said = refusal(ServerSettings(host="192.0.2.1", port=0))
    assert said.endswith("choose an address of this machine with --host, or 0.0.0.0 for all of them")
    assert "port with" not in said


def limited(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> list[tuple[int, int]]:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    return limits


def test_files_are_raised_to_what_the_connections_need(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = limited(monkeypatch, 1024, 1 << 20)
    assert listening_sockets.room_for(10_000) == 10_000
    assert limits[-1] == (10_128, 1 << 20)


def test_where_the_system_allows_fewer_files_there_are_fewer_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = limited(monkeypatch, 512, 1024)
    with capture_logs() as told:
        assert listening_sockets.room_for(10_000) == 1024 - 128
    assert limits[-1] == (1024, 1024)
    assert (told[0]["event"], told[0]["possible"]) == ("connections_capped", 896)


def test_a_certificate_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    nonsense = tmp_path / "x.pem"
    nonsense.write_text("nonsense")
    nonsense.chmod(0o600)  # with the usual umask of a Debian user, the group could write it: refused for that
    for name in (nonsense, tmp_path / "none.pem"):
        settings: Any = ServerSettings(certfile=str(name), keyfile=str(name))
        with pytest.raises(Refused, match=r"server\.certfile"):
            listening_sockets.check_certificate(settings)
