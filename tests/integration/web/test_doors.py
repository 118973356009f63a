"""The accept route behind both doors: our connection's own, and Quart's under stock hypercorn."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from convo import service
from convo.observe import metrics
from tests.support.both_doors import both_doors
from tests.support.doors import END, body_of, get, one_of
from tests.support.ports import free_port
from tests.support.running import ended, loaded_settings
from tests.support.targets import ABSOLUTE, OUTCOMES, outcome

JSON = "Content-Type: application/json"
PAGE = "https://admin.example.com"
PREFLIGHT = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type")
LIMIT = 2 << 20
RAW_LIMIT = 16 << 20
ID = b"ID-OF-THE-DOOR-S"
EXPECTED = OUTCOMES | ABSOLUTE


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
    "a target of another scheme": get("ftp://localhost/livez"),
    "a target of another scheme that is no URL": get("ftp://[x/livez"),
    "an asterisk": get("*", method="OPTIONS"),
    "an absolute target": post(JSON, target=f"http://localhost:1{END}"),
    "an absolute target of another name": post(JSON, target=f"http://convo{END}"),
    "a page in an absolute target of another name": get("http://convo/docs"),
    "another name, and ours in the target": get("http://localhost/livez").replace(b"Host: localhost", b"Host: convo"),
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
    "an id that is none": post(JSON, body=ids(conversation_id="..")),
    "at the limit": post(JSON, body=ids()[:-1] + b" " * (LIMIT - len(ids())) + b"}"),
    "announced too large": get(END, JSON, f"Content-Length: {RAW_LIMIT + 1}", method="POST"),
    "too large in chunks": chunked(JSON, body=b" " * (LIMIT + 500_000)),
    "a bomb": post(JSON, "Content-Encoding: gzip", body=zlib.compress(b" " * (LIMIT + 1), wbits=31)),
    "its own budget": post(JSON, "Request-Timeout: 5"),
    "no budget": post(JSON, "Request-Timeout: soon"),
    "a negative budget": post(JSON, "Request-Timeout: -1"),
    "a budget of nothing": post(JSON, "Request-Timeout: 0"),
    "a budget of nothing, read": get("/livez", "Request-Timeout: 0.0"),
    "a budget that is no number": post(JSON, "Request-Timeout: nan"),
    "a budget of thirty digits": post(JSON, "Request-Timeout: " + "9" * 30),
    "GET": get(END),
    "PUT": post(JSON, method="PUT"),
    "BREW": post(JSON, method="BREW"),
    "OPTIONS": get(END, method="OPTIONS"),
    "in another place": post(JSON, target="/v1/conversations/ende"),
    "a slash more": post(JSON, target=f"{END}/"),
    "two slashes": post(JSON, target=f"/{END}"),
    "to be closed": post(JSON, "Connection: close"),
    "with an upgrade": post(JSON, "Upgrade: x", "Connection: upgrade"),
    "an encoded slash before its last segment": post(JSON, target="/v1/conversations%2Fend"),
    "of another site": post(JSON, "Origin: https://evil.example"),
    "of another site, as its browser says": post(JSON, "Sec-Fetch-Site: cross-site"),
    "of our own page": post(JSON, "Origin: http://LOCALHOST", "Sec-Fetch-Site: same-origin"),
    "by another name": post(JSON).replace(b"Host: localhost", b"Host: evil.example"),
    "a page by another name": get("/docs").replace(b"Host: localhost", b"Host: evil.example"),
    "nothing, by another name": get("/nothing").replace(b"Host: localhost", b"Host: evil.example"),
    "a preflight": get(END, "Origin: https://evil.example", *PREFLIGHT, method="OPTIONS"),
    "a preflight of an allowed page": get(END, f"Origin: {PAGE}", *PREFLIGHT, method="OPTIONS"),
    "a preflight to nothing": get("/nothing", f"Origin: {PAGE}", *PREFLIGHT, method="OPTIONS"),
    "of an allowed page": post(JSON, f"Origin: {PAGE}", "Sec-Fetch-Site: cross-site"),
    "no JSON of an allowed page": post(JSON, f"Origin: {PAGE}", body=b"{"),
    "reading of an allowed page": get("/v1/alerts", f"Origin: {PAGE}"),
    "a page of ours": get("/docs"),
    "a page of the handbook": get("/docs/ladder"),
    "a parameter that nobody knows": get("/v1/conversations?usr_id=a"),
    "a parameter twice": get("/v1/conversations?limit=1&limit=2"),
    **{target: get(target) for target in EXPECTED},
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
    return status.split(" ")[1], told, re.sub(rb'"received_at":"[^"]*"|\d:[0-9a-f]{20,}', b"", body)


async def test_both_doors_answer_alike(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, stock_port = free_port(), free_port()

    monkeypatch.setattr(service, "serve_http", both_doors(stock_port))
    told = trio.Event()
    differ: dict[str, object] = {}
    async with trio.open_nursery() as nursery:
        settings = loaded_settings(
            tmp_path, database, {"observe.log_level": "error", "server.cors_origins": PAGE}, port=port
        )
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
                if name in EXPECTED and outcome(got) != EXPECTED[name]:
                    differ[name] = outcome(got)
            if found[0] != found[1]:
                differ[name] = found
        await _all_routes(f"http://127.0.0.1:{stock_port}")
        nursery.cancel_scope.cancel()
    print(*(f"{name}: {one}" for name, one in differ.items()), sep="\n")
    assert list(differ) == []


async def _all_routes(url: str) -> None:
    """Walk through every kind of route under stock hypercorn."""
    async with httpx.AsyncClient(base_url=url) as client:
        receipt = (await client.post(END, json=ended("stock/1", user_id="user/1"))).json()
        assert receipt["links"]["self"] == "/v1/conversations/stock%2F1"
        told = await client.get(receipt["links"]["self"], params={"wait": "5"})
        assert told.json()["score"]["final"] is True
        for address in (
            receipt["links"]["log"], "/v1/conversations", "/v1/users/user%2F1/relationship",
            "/v1/users/user%2F1/memories", "/livez", "/readyz", "/metrics", "/openapi.json", "/docs",
        ):  # fmt: skip
            assert (await client.get(address)).status_code == 200, address
        assert (await client.post(f"{receipt['links']['self']}/retry")).status_code == 409


def test_the_id_has_the_length_of_its_stand_ins() -> None:
    assert body_of(b"\r\n\r\n{}") == {}
    assert len(f"door-{65535}-{9999:04}") <= len(ID)
