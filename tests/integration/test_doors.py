"""The accept route behind both doors: our connection's own, and Quart's under stock hypercorn."""

from __future__ import annotations

import json
import re
import socket
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_stock

from convo import service
from convo.observe import metrics
from convo.web import server
from convo.web.app import Api, make_app
from tests.doors import END, body_of, get, one_of
from tests.running import ended, free_port, loaded_settings

JSON = "Content-Type: application/json"
LIMIT = 2 << 20
ID = b"ID-OF-THE-DOOR-S"


def post(*fields: str, body: bytes | None = None, method: str = "POST", target: str = END) -> bytes:
    body = json.dumps(ended(ID.decode())).encode() if body is None else body
    return get(target, *fields, f"Content-Length: {len(body)}", method=method) + body


def chunked(*fields: str, body: bytes) -> bytes:
    head = get(END, *fields, "Transfer-Encoding: chunked", method="POST")
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def ids(**fields: object) -> bytes:
    return json.dumps({"conversation_id": ID.decode(), "user_id": "user-1", "bot_id": "pika", **fields}).encode()


def gzipped(name: bytes) -> bytes:
    packed = zlib.compress(ids(conversation_id=name.decode()), wbits=31)
    return post(JSON, "Content-Encoding: gzip", body=packed)


REQUESTS: dict[str, bytes | Callable[[bytes], bytes]] = {
    "a conversation": post(JSON),
    "the same again": post(JSON),
    "other content": post(JSON, body=ids()),
    "in chunks": chunked(JSON, body=json.dumps(ended(ID.decode())).encode()),
    "with a query": post(JSON, target=f"{END}?a=b"),
    "percent-encoded": post(JSON, target=END.replace("end", "%65nd")),
    "an absolute target": post(JSON, target=f"http://convo{END}"),
    "another JSON": post("Content-Type: application/vnd.convo+json; charset=utf-8"),
    "gzip": gzipped,
    "no gzip": post(JSON, "Content-Encoding: gzip", body=ids()),
    "another encoding": post(JSON, "Content-Encoding: br"),
    "no type": post(),
    "another type": post("Content-Type: text/plain"),
    "two types": post(JSON, "Content-Type: text/plain"),
    "two types, the other first": post("Content-Type: text/plain", JSON),
    "a type in other letters": post("content-TYPE: APPLICATION/JSON"),
    "a type with a comma": post("Content-Type: application/json, text/plain"),
    "no body": post(JSON, body=b""),
    "no body, in chunks": get(END, JSON, "Transfer-Encoding: chunked", method="POST") + b"0\r\n\r\n",
    "no JSON": post(JSON, body=b"{"),
    "no conversation": post(JSON, body=b'{"conversation_id": "some-1"}'),
    "an id that is none": post(JSON, body=ids(conversation_id="a/b")),
    "at the limit": post(JSON, body=ids()[:-1] + b" " * (LIMIT - len(ids())) + b"}"),
    "announced too large": get(END, JSON, f"Content-Length: {LIMIT + 1}", method="POST"),
    "too large in chunks": chunked(JSON, body=b" " * (LIMIT + 500_000)),
    "a bomb": post(JSON, "Content-Encoding: gzip", body=zlib.compress(b" " * (LIMIT + 1), wbits=31)),
    "its own budget": post(JSON, "Request-Timeout: 5"),
    "no budget": post(JSON, "Request-Timeout: soon"),
    "a negative budget": post(JSON, "Request-Timeout: -1"),
    "GET": get(END),
    "PUT": post(JSON, method="PUT"),
    "BREW": post(JSON, method="BREW"),
    "OPTIONS": get(END, method="OPTIONS"),
    "in another place": post(JSON, target="/v1/conversations/ende"),
    "a slash more": post(JSON, target=f"{END}/"),
    "two slashes": post(JSON, target=f"/{END}"),
    "to be closed": post(JSON, "Connection: close"),
    "with an upgrade": post(JSON, "Upgrade: x", "Connection: upgrade"),
}


@contextmanager
def counting() -> Iterator[Callable[[], dict[tuple[str, ...], float]]]:
    """Tell which requests were counted since the block began."""
    before = {labels: cell.value for labels, cell in metrics.requests_total.cells.items()}

    def since() -> dict[tuple[str, ...], float]:
        now = {labels: cell.value for labels, cell in metrics.requests_total.cells.items()}
        return {labels: value - before.get(labels, 0) for labels, value in now.items() if value != before.get(labels)}

    yield since


def comparable(got: bytes, name: bytes) -> tuple[Any, ...]:
    """Leave out of an answer what may differ: names and times."""
    got = got.replace(name, ID)
    head, _, body = got.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = sorted((key.lower(), value) for key, _, value in (line.partition(": ") for line in lines))
    free = {"date": "…", "server": "…", "content-length": "…"}
    free["server-timing"] = re.sub(r"[\d.]+", "…", dict(headers).get("server-timing", ""))
    # Behind a refusal our own door goes on where all of the body is here already; the framework always closes.
    kept = [one for one in headers if one != ("connection", "close") or status.split(" ")[1] < "400"]
    told = [(key, free.get(key, value)) for key, value in kept]
    return status.split(" ")[1], told, re.sub(rb'"received_at":"[^"]*"|1:[0-9a-f]{20,}', b"", body)


async def test_both_doors_answer_alike(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, stock_port = free_port(), free_port()

    async def both(listening: Sequence[socket.socket], api: Api, stopping: Callable[[], Awaitable[None]]) -> None:
        config = Config()
        config.bind = [f"127.0.0.1:{stock_port}"]
        config.accesslog = config.errorlog = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve_stock(make_app(api), config, shutdown_trigger=stopping))
            await server.serve(listening, api, stopping)

    monkeypatch.setattr(service, "serve_http", both)
    told = trio.Event()
    differ: dict[str, object] = {}
    async with trio.open_nursery() as nursery:
        settings = loaded_settings(tmp_path, database, {"observe.log_level": "error"}, port=port)
        nursery.start_soon(service.serve, settings, lambda _: told.set())
        await told.wait()
        for number, (name, request) in enumerate(REQUESTS.items()):
            # What comes again comes under the id that was there before.
            known = 0 if name in ("the same again", "other content") else number
            found = []
            for door in (port, stock_port):
                own = f"door-{door}-{known:04}".encode().ljust(len(ID), b"x")
                with counting() as counted, trio.fail_after(20):
                    stream = await trio.open_tcp_stream("127.0.0.1", door)
                    async with stream:
                        # Of a body that is too large the answer may come, and the end, before all of it is sent.
                        with suppress(trio.BrokenResourceError):
                            await stream.send_all(request(own) if callable(request) else request.replace(ID, own))
                        got, _ = await one_of(stream)
                found.append((comparable(got, own), counted()))
            if found[0] != found[1]:
                differ[name] = found
        await _all_routes(f"http://127.0.0.1:{stock_port}")
        nursery.cancel_scope.cancel()
    print(*(f"{name}: {one}" for name, one in differ.items()), sep="\n")
    assert list(differ) == []


async def _all_routes(url: str) -> None:
    """Walk through every kind of route under stock hypercorn."""
    async with httpx.AsyncClient(base_url=url) as client:
        receipt = (await client.post(END, json=ended("stock-1"))).json()
        told = await client.get(receipt["links"]["self"], params={"wait": "5"})
        assert told.json()["score"]["final"] is True
        for address in (
            receipt["links"]["log"], "/v1/conversations", "/v1/users/user-1/relationship", "/v1/users/user-1/memories",
            "/livez", "/readyz", "/metrics", "/openapi.json", "/docs",
        ):  # fmt: skip
            assert (await client.get(address)).status_code == 200, address
        assert (await client.post(f"{receipt['links']['self']}/retry")).status_code == 409


def test_the_id_has_the_length_of_its_stand_ins() -> None:
    assert body_of(b"\r\n\r\n{}") == {}
    assert len(f"door-{65535}-{9999:04}") <= len(ID)
