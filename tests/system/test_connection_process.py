from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from convo.config import Settings
from tests.doors import END, get, post, statuses
from tests.running import ROOT, Running, ended, free_port, query, read_answer, running, until_ended

QUICK = {"shutdown.intake_seconds": "2", "shutdown.workers_seconds": "1", "jobs.workers": "0"}


def connected(convo: Running) -> socket.socket:
    address = urlsplit(convo.url)
    return socket.create_connection((address.hostname or "", address.port or 0), 20)


def resident_bytes(pid: int) -> int:
    return int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) << 10


def connections(convo: Running) -> int:
    told = httpx.get(f"{convo.url}/metrics").text
    return int(sum(float(one) for one in re.findall(r"^convo_connections\{.*\} (\S+)$", told, re.MULTILINE)))


@contextmanager
def many_files(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"the system allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- the stop


def test_whatever_clients_do_the_process_stops_within_its_grace(database: str, tmp_path: Path) -> None:
    stuck = [
        b"", b"GE", post("talk-1")[0], get("/openapi.json") * 400, b"nonsense\r\n\r\n",
        get("/livez"), b"".join(post("talk-2")), get("/v1/conversations/none?wait=60"),
    ]  # fmt: skip
    with running(tmp_path, database, QUICK) as convo, ExitStack() as stack:
        for sent in stuck * 10:
            client = stack.enter_context(connected(convo))
            client.settimeout(0)
            with suppress(BlockingIOError):
                client.sendall(sent)
        time.sleep(0.3)
        began = time.monotonic()
        convo.signal(signal.SIGTERM)
        assert convo.ended() == 0
        assert time.monotonic() - began < 15
        with pytest.raises(ConnectionRefusedError):
            connected(convo)
    assert query(database, "SELECT count(*) FROM conversation WHERE conversation_id = 'talk-2'")[0][0] == 1


# --- as many as there may be


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process")
def test_without_file_descriptors_clients_wait_and_nothing_is_lost(database: str, tmp_path: Path) -> None:
    with running(tmp_path, database, QUICK) as convo:
        # The database's connections are open before there are no more files.
        assert httpx.get(f"{convo.url}/v1/conversations").status_code == 200
        assert httpx.post(f"{convo.url}{END}", json=ended("first-1")).status_code == 202
        used = len(list(Path(f"/proc/{convo.pid}/fd").iterdir()))
        _, hard = resource.prlimit(convo.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(convo.pid, resource.RLIMIT_NOFILE, (used + 5, hard))
        clients = [connected(convo) for _ in range(30)]
        for number, client in enumerate(clients):
            client.sendall(b"".join(post(f"talk-{number}", "Connection: close")))
        got = [read_answer(client) for client in clients]
        for client in clients:
            client.close()
        assert [statuses(one) for one in got] == [[202]] * 30
        with ExitStack() as stack:
            for _ in range(30):
                stack.enter_context(connected(convo))
            deadline = time.monotonic() + 20
            while "accept_slowed" not in convo.said and time.monotonic() < deadline:
                time.sleep(0.05)
        assert convo.said.count("accept_slowed") == 1
        assert httpx.get(f"{convo.url}/livez", timeout=20).status_code == 200


# What one idle connection may cost, in bytes.
IDLE_BYTES = 12 << 10
IDLE = 5000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_five_thousand_idle_connections_cost_little(database: str, tmp_path: Path) -> None:
    with running(tmp_path, database, QUICK) as convo, many_files(IDLE + 500), ExitStack() as stack:
        for _ in range(50):
            with connected(convo) as warm:
                warm.sendall(get("/livez"))
                read_answer(warm)
        before = resident_bytes(convo.pid)
        for _ in range(IDLE):
            client = stack.enter_context(connected(convo))
            client.sendall(get("/", "X: y" * 500, method="DELETE"))
            assert statuses(read_answer(client)) == [404]
        assert connections(convo) >= IDLE
        each = (resident_bytes(convo.pid) - before) / IDLE
        print(f"{each:.0f} bytes each")
        assert each < IDLE_BYTES
        assert httpx.post(f"{convo.url}{END}", json=ended("talk-1")).status_code == 202


# --- the access log


def test_every_request_has_its_line_when_they_are_asked_for(database: str, tmp_path: Path) -> None:
    with running(tmp_path, database, QUICK | {"observe.access_log": "true"}) as convo:
        with connected(convo) as client:
            for sent in (b"".join(post("talk-1")), get("/livez"), b"nonsense\r\n\r\n"):
                client.sendall(sent)
                read_answer(client)
        convo.stop()
        lines = [line for line in convo.said.splitlines() if "request_answered" in line]
    found = [(one["route"], one["method"], one["status"]) for one in map(_fields, lines)]
    assert found == [(END, "POST", "202"), ("/livez", "GET", "200"), ("unread", "other", "400")]


def _fields(line: str) -> dict[str, str]:
    return {key: value.strip('"') for key, value in re.findall(r'"(\w+)":\s*("[^"]*"|\d+)', line)}


# --- behind a real nginx


@contextmanager
def nginx(folder: Path, convo: Running) -> Iterator[str]:
    """Run nginx with our sample configuration, but for the addresses."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx")
    port = free_port()
    sample = (ROOT / "scripts/deploy/nginx.conf").read_text()
    own = sample.replace("127.0.0.1:30020", urlsplit(convo.url).netloc).replace(
        "listen 8080", f"listen 127.0.0.1:{port}"
    )
    assert own.count(str(port)) == 1
    folder.mkdir()
    (folder / "convo.conf").write_text(own)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        # Started by root its workers would be somebody who may not write here.
        f"{'user root;' if os.getuid() == 0 else ''}\n"
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\n"
        f"http {{ access_log off;\n{paths} include {folder}/convo.conf; }}\n"
    )
    with subprocess.Popen(["nginx", "-p", str(folder), "-c", str(main)], stderr=subprocess.DEVNULL) as process:
        try:
            _await_port(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _await_port(port: int) -> None:
    for _ in range(200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    pytest.fail("nginx does not listen")


def test_behind_a_real_nginx_everything_is_served(database: str, tmp_path: Path) -> None:
    settings = {"server.trusted_proxies": "127.0.0.1", "clients.requests_per_second": "1000", "jobs.workers": "2"}
    with (
        running(tmp_path / "data", database, settings) as convo,
        nginx(tmp_path / "nginx", convo) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        before = connections(convo)
        answer = client.get("/livez")
        for number in range(300):
            answer = client.post(END, json=ended(f"talk-{number}"), headers={"X-Forwarded-For": "6.6.6.6"})
            assert answer.status_code == 202
        told = until_ended(client, answer.json()["links"]["self"])
        assert told["score"]["final"] is True
        assert client.post(END, content=iter([b'{"user_id": ', b"1}"])).status_code == 415
        assert client.post(END, content=bytes(3 << 20), headers={"Content-Type": "application/json"}).status_code == 413
        assert client.get("/docs").status_code == 200
        assert client.head("/livez").status_code == 200
        # nginx keeps its connections to us: 300 posts came over a few.
        assert connections(convo) - before < 10
        ended_by = re.findall(r'convo_connection_ended_total\{reason="(\w+)"\}', httpx.get(f"{convo.url}/metrics").text)
        assert set(ended_by) <= {"closed", "answered", "gone"}


def test_the_sample_of_nginx_stands_on_the_ladder() -> None:
    sample = (ROOT / "scripts/deploy/nginx.conf").read_text()
    settings = Settings()

    def seconds(name: str) -> list[float]:
        return [float(one) for one in re.findall(rf"^\s+{name} (\d+)s;", sample, re.MULTILINE)]

    kept, _ = seconds("keepalive_timeout")
    assert kept == settings.ladder.gateway_keep_alive_seconds < settings.connection.keep_alive_seconds
    assert seconds("proxy_read_timeout") == seconds("proxy_send_timeout") == [settings.ladder.gateway_seconds]
