"""SIGHUP: a process reads its certificate and the clients' keys again, and goes on."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.support.certificates import der, made, trusting_all
from tests.support.doors import get
from tests.support.running import Running, read_answer, running
from tests.system.test_connection_process import key_made


def address(convo: Running) -> tuple[str, int]:
    url = urlsplit(convo.url)
    return url.hostname or "", url.port or 0


def shown(convo: Running) -> bytes | None:
    with (
        socket.create_connection(address(convo), 20) as plain,
        trusting_all().wrap_socket(plain, server_hostname="localhost") as client,
    ):
        return client.getpeercert(binary_form=True)


def soon(true: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not true() and time.monotonic() < until:
        time.sleep(0.05)
    return true()


def test_sighup_replaces_the_certificate_and_a_broken_one_changes_nothing(database: str, tmp_path: Path) -> None:
    cert, key = made(tmp_path, "one")
    new, new_key = made(tmp_path, "two")
    first, second = der(cert), der(new)
    settings = {"server.certfile": str(cert), "server.keyfile": str(key), "jobs.workers": "0"}
    with running(tmp_path, database, settings) as convo:
        assert shown(convo) == first
        with (
            socket.create_connection(address(convo), 20) as plain,
            trusting_all().wrap_socket(plain, server_hostname="localhost") as before,
        ):
            cert.write_bytes(new.read_bytes())
            convo.signal(signal.SIGHUP)
            assert soon(lambda: "certificate_kept" in convo.output), "the key is still that of the old one"
            assert shown(convo) == first
            key.write_bytes(new_key.read_bytes())
            convo.signal(signal.SIGHUP)
            assert soon(lambda: "certificate_reloaded" in convo.output)
            assert shown(convo) == second
            before.sendall(get("/livez"))
            assert b" 200 " in read_answer(before), "a connection from before goes on"
        convo.signal(signal.SIGTERM)
        assert convo.ended() == 0


def test_sighup_reads_the_keys_at_once(database: str, tmp_path: Path) -> None:
    settings = {"auth.keys": "true", "auth.refresh_seconds": "86400", "jobs.workers": "0"}
    with running(tmp_path, database, settings) as convo:
        headers = {"Authorization": f"Bearer {key_made(tmp_path, database)}"}

        def status() -> int:
            return httpx.get(f"{convo.url}/v1/conversations", headers=headers).status_code

        status()
        convo.signal(signal.SIGHUP)
        assert soon(lambda: status() == 200)
        assert convo.process.poll() is None
