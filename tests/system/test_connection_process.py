from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.doors import END, get, post, statuses
from tests.support.running import Running, ended, query, read_answer, running

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
            while "accept_slowed" not in convo.output and time.monotonic() < deadline:
                time.sleep(0.05)
        assert convo.output.count("accept_slowed") == 1
        assert httpx.get(f"{convo.url}/livez", timeout=20).status_code == 200


# What one idle connection may cost, in bytes.
IDLE_BYTES = 12 << 10


# What one costs shows at two thousand; five thousand take the processor for a quarter of a minute.
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("idle", [2_000, pytest.param(5_000, marks=pytest.mark.long)])
def test_thousands_of_idle_connections_cost_little(database: str, tmp_path: Path, idle: int) -> None:
    with running(tmp_path, database, QUICK) as convo, many_files(idle + 500), ExitStack() as stack:
        for _ in range(50):
            with connected(convo) as warm:
                warm.sendall(get("/livez"))
                read_answer(warm)
        before = resident_bytes(convo.pid)
        for _ in range(idle):
            client = stack.enter_context(connected(convo))
            client.sendall(get("/nothing", "X: y" * 500, method="DELETE"))
            assert statuses(read_answer(client)) == [404]
        assert connections(convo) >= idle
        each = (resident_bytes(convo.pid) - before) / idle
        print(f"{each:.0f} bytes each")
        assert each < IDLE_BYTES
        assert httpx.post(f"{convo.url}{END}", json=ended("talk-1")).status_code == 202


# --- the access log


def test_every_request_has_its_line_when_they_are_asked_for(database: str, tmp_path: Path) -> None:
    wrong = b"MYDOG /v1/conversations/my-dog?q=my-dog HTTP/1.1\r\nHost: x\r\nX: my-dog\r\n\r\n"
    with running(tmp_path, database, QUICK | {"observe.access_log": "true", "auth.keys": "true"}) as convo:
        key = key_made(tmp_path, database)
        bearer = f"Authorization: Bearer {key}"
        with connected(convo) as client:
            until = time.monotonic() + 20
            while b" 200 " not in _answered(client, get("/v1/conversations", bearer)) and time.monotonic() < until:
                time.sleep(0.05)
            for sent in (
                b"".join(post("talk-1", bearer)), b"".join(post("talk-2")), get("/livez", bearer),
                get("/v1/conversations/my-dog", bearer), get("/v1/conversations/my-dog", f"{bearer}x"), wrong,
                b"my-dog\r\n\r\n",
            ):  # fmt: skip
                _answered(client, sent)
        convo.stop()
        lines = [line for line in convo.output.splitlines() if "request_answered" in line]
    key_id, one = key.split("_")[1], "/v1/conversations/<conversation_id>"
    found = [(said["route"], said["method"], said["status"], said.get("key_id")) for said in map(_fields, lines)]
    assert found[-8:] == [
        ("/v1/conversations", "GET", "200", key_id), (END, "POST", "202", key_id), (END, "POST", "401", None),
        ("/livez", "GET", "200", None), (one, "GET", "404", key_id), (one, "GET", "401", None),
        ("unmatched", "other", "405", None), ("unread", "other", "400", None),
    ]  # fmt: skip
    assert {_fields(line)["peer"] for line in lines} == {"127.0.0.1"}
    assert not [line for line in lines if key in line or re.search("my-?dog|Rex|talk-1", line, re.IGNORECASE)]


def _answered(client: socket.socket, sent: bytes) -> bytes:
    client.sendall(sent)
    return read_answer(client)


def key_made(tmp_path: Path, database: str) -> str:
    environment = os.environ | {"CONVO_DATABASE__URL": database}
    command = [sys.executable, "-m", "convo", "key", "new", "robots", "--data-dir", str(tmp_path / "keys")]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()[-1]


def _fields(line: str) -> dict[str, str]:
    return {key: value.strip('"') for key, value in re.findall(r'"(\w+)":\s*("[^"]*"|\d+)', line)}
