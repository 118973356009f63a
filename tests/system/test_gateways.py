from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from convo.settings import Settings
from tests.support.doors import END, get
from tests.support.gateways import SAMPLES, haproxy, nginx
from tests.support.running import ended, read_answer, running, until_ended
from tests.support.targets import OUTCOMES, outcome
from tests.system.test_connection_process import connections

Gateway = Callable[[Path, str], AbstractContextManager[str]]
GATEWAYS = (nginx, haproxy)


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_behind_a_real_gateway_everything_is_served(gateway: Gateway, database: str, tmp_path: Path) -> None:
    settings = {"server.trusted_proxies": "127.0.0.1", "clients.requests_per_second": "1000", "jobs.workers": "2"}
    with (
        running(tmp_path / "data", database, settings) as convo,
        gateway(tmp_path / "gateway", urlsplit(convo.url).netloc) as url,
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
        # It keeps its connections to convo: 300 posts come over a few.
        assert connections(convo) - before < 10
        ended_by = re.findall(r'convo_connection_ended_total\{reason="(\w+)"\}', httpx.get(f"{convo.url}/metrics").text)
        assert set(ended_by) <= {"closed", "answered", "gone"}


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_behind_a_gateway_paths_mean_what_they_mean_without_one(
    gateway: Gateway, database: str, tmp_path: Path
) -> None:
    with (
        running(tmp_path / "data", database, {"jobs.workers": "0"}) as convo,
        gateway(tmp_path / "gateway", urlsplit(convo.url).netloc) as url,
    ):
        found = {target: outcome(asked(url, target)) for target in OUTCOMES}
        for conversation_id in ("a/b", "/", "a//b", "../a", "%2F", "a b?c#d"):
            link = httpx.post(f"{url}{END}", json=ended(conversation_id)).json()["links"]["log"]
            assert httpx.get(f"{url}{link}").json()["conversation_id"] == conversation_id
    assert found == OUTCOMES


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_behind_a_gateway_the_names_that_clients_use_are_set(gateway: Gateway, database: str, tmp_path: Path) -> None:
    name = "convo.example.com"
    with (
        running(tmp_path / "data", database, {"jobs.workers": "0", "server.hosts": name}) as convo,
        gateway(tmp_path / "gateway", urlsplit(convo.url).netloc) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):

        def status(host: str, **fields: str) -> int:
            return client.get("/v1/conversations", headers={"Host": host, **fields}).status_code

        port = urlsplit(url).port
        assert [status(host) for host in (name, f"{name}:{port}", f"localhost:{port}")] == [200] * 3
        # A page of our own is known by its host with the port: the gateway must not have dropped it.
        assert status(f"{name}:{port}", Origin=f"http://{name}:{port}") == 200
        assert status(f"{name}:{port}", Origin=f"http://{name}:1") == 403
        assert status("evil.example") == 403
        # A check of the gateway's own may name no host.
        assert outcome(asked(url, "/livez", version="HTTP/1.0", host="")) == (200, None)


def asked(url: str, target: str, **line: str) -> bytes:
    """Ask for a target as it stands: a client's library might change it."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), 20) as connection:
        connection.sendall(get(target, "Connection: close", **line))
        return read_answer(connection)


def test_the_sample_of_nginx_stands_on_the_ladder() -> None:
    sample = (SAMPLES / "nginx.conf").read_text()
    settings = Settings()

    def seconds(name: str) -> list[float]:
        return [float(one) for one in re.findall(rf"^\s+{name} (\d+)s;", sample, re.MULTILINE)]

    kept, _ = seconds("keepalive_timeout")
    assert kept == settings.ladder.gateway_keep_alive_seconds < settings.connection.keep_alive_seconds
    assert seconds("proxy_read_timeout") == seconds("proxy_send_timeout") == [settings.ladder.gateway_seconds]


def test_the_sample_of_haproxy_stands_on_the_ladder() -> None:
    sample = (SAMPLES / "haproxy.cfg").read_text()
    settings = Settings()

    def seconds(name: str) -> float:
        (found,) = re.findall(rf"^.*\b{name} (\d+)s$", sample, re.MULTILINE)
        return float(found)

    assert seconds("timeout server") == settings.ladder.gateway_seconds
    assert seconds("pool-purge-delay") < settings.ladder.gateway_keep_alive_seconds
    assert seconds("hard-stop-after") <= settings.ladder.kill_seconds
