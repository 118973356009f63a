"""Other languages' HTTP clients: each posts, posts again and reads over one connection."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import httpx
import pytest
import requests

from tests.conftest import _database
from tests.support.doors import END
from tests.support.gateways import nginx
from tests.support.running import Running, ended, running

Ask = tuple[str, str, str]
"""A method, a path, and a body or nothing."""
JSON = {"Content-Type": "application/json"}
POSTS = 8
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def convo(postgres_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = {"server.trusted_proxies": "127.0.0.1", "jobs.workers": "0"}
    with (
        _database(postgres_url, template) as url,
        running(tmp_path_factory.mktemp("clients"), url, settings) as started,
    ):
        yield started


def connections(convo: Running) -> int:
    """Count all connections there have been; each count opens one more."""
    told = httpx.get(f"{convo.url}/metrics").text
    found = re.findall(r"^convo_connection(?:s|_ended_total)\{.*\} (\S+)$", told, re.MULTILINE)
    return int(sum(map(float, found)))


def asks() -> list[Ask]:
    """Make posts of new conversations, one of them again, and a reading of it."""
    names = [f"client-{next(_numbers)}" for _ in range(POSTS)]
    posts = [("POST", END, json.dumps(ended(name))) for name in names]
    return [*posts, posts[0], ("GET", f"/v1/conversations/{names[0]}", "")]


# --- each of them


def by_httpx(url: str, asked: list[Ask], folder: Path) -> list[int]:
    with httpx.Client(base_url=url) as client:
        return [client.request(how, path, content=body, headers=JSON).status_code for how, path, body in asked]


def by_requests(url: str, asked: list[Ask], folder: Path) -> list[int]:
    with requests.Session() as session:
        return [
            session.request(how, url + path, data=body, headers=JSON, timeout=20).status_code
            for how, path, body in asked
        ]


def by_aiohttp(url: str, asked: list[Ask], folder: Path) -> list[int]:
    async def all_of_them() -> list[int]:
        async with aiohttp.ClientSession() as session:
            return [await _status(session, url, one) for one in asked]

    return asyncio.run(all_of_them())


async def _status(session: aiohttp.ClientSession, url: str, asked: Ask) -> int:
    how, path, body = asked
    async with session.request(how, url + path, data=body or None, headers=JSON) as answer:
        await answer.read()
        return answer.status


def by_curl(url: str, asked: list[Ask], folder: Path) -> list[int]:
    each = ["-s", "-o", "/dev/null", "-w", "%{http_code}\n", "-H", "Content-Type: application/json"]
    command = ["curl"]
    for number, (_, path, body) in enumerate(asked):
        command += [*(["--next"] if number else []), *each, *(["--data-binary", body] if body else []), url + path]
    return _told_by(command)


NODE = """
const [url, asked] = [process.argv[2], JSON.parse(require("fs").readFileSync(process.argv[3], "utf8"))];
(async () => {
  for (const [method, path, body] of asked) {
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(url + path, { method, headers, body: body || undefined });
    await answer.text();
    console.log(answer.status);
  }
})();
"""


def by_node(url: str, asked: list[Ask], folder: Path) -> list[int]:
    (folder / "asks.json").write_text(json.dumps(asked))
    (folder / "client.cjs").write_text(NODE)
    return _told_by(["node", str(folder / "client.cjs"), url, str(folder / "asks.json")])


# It prefers HTTP/2 and asks for it in an upgrade, which convo ignores.
JAVA = """
import java.net.URI;
import java.net.http.*;
import java.nio.file.*;

class Client {
    public static void main(String[] given) throws Exception {
        var client = HttpClient.newHttpClient();
        for (var line : Files.readAllLines(Path.of(given[1]))) {
            var ask = line.split("\\t", -1);
            var body = ask[2].isEmpty()
                ? HttpRequest.BodyPublishers.noBody() : HttpRequest.BodyPublishers.ofString(ask[2]);
            var request = HttpRequest.newBuilder(URI.create(given[0] + ask[1]))
                .header("Content-Type", "application/json").method(ask[0], body).build();
            System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).statusCode());
        }
    }
}
"""


def by_java(url: str, asked: list[Ask], folder: Path) -> list[int]:
    (folder / "asks.txt").write_text("".join("\t".join(one) + "\n" for one in asked))
    (folder / "Client.java").write_text(JAVA)
    return _told_by(["java", str(folder / "Client.java"), url, str(folder / "asks.txt")])


def _told_by(command: list[str]) -> list[int]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


CLIENTS = [by_httpx, by_requests, by_aiohttp, by_curl, by_node, by_java]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_is_served_over_the_connection_that_it_keeps(
    client: Callable[[str, list[Ask], Path], list[int]], convo: Running, tmp_path: Path
) -> None:
    before = connections(convo)
    assert client(convo.url, asks(), tmp_path) == [202] * (POSTS + 1) + [200]
    # Node's fetch asks again before its first connection is back in the pool, and then opens a second one.
    assert connections(convo) - before - 1 in ([1, 2] if client is by_node else [1])


def test_a_pool_takes_no_more_connections_than_it_holds(convo: Running) -> None:
    async def many() -> list[int]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=4)) as session:
            posts = [one for _ in range(10) for one in asks() if one[0] == "POST"]
            return await asyncio.gather(*(_status(session, convo.url, one) for one in posts))

    before = connections(convo)
    assert set(asyncio.run(many())) == {202}
    assert 1 < connections(convo) - before - 1 <= 4


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_is_served_through_nginx_over_few_connections(
    client: Callable[[str, list[Ask], Path], list[int]], convo: Running, tmp_path: Path
) -> None:
    with nginx(tmp_path / "nginx", urlsplit(convo.url).netloc) as url:
        before = connections(convo)
        assert client(url, asks(), tmp_path) == [202] * (POSTS + 1) + [200]
        # As above: Node's second one may have nginx open its second one.
        assert connections(convo) - before - 1 <= 2
