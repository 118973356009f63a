"""A receiver of webhooks for tests: a real HTTP server that answers as a test wants and keeps what was posted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from msgspec import Struct

HANG_SECONDS = 30.0


class Got(Struct, frozen=True):
    """One request: its path, its headers in lower case, its body, and when it came by ``time.monotonic()``."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Reply(Struct, frozen=True, kw_only=True):
    """How a request is answered; ``hangs``: not at all, ``drips``: a byte of the head every half second."""

    status: int = 204
    headers: Mapping[str, str] = {}
    body: bytes = b""
    hangs: bool = False
    drips: bool = False


GOOD = Reply()
Answering = Callable[[Got], Reply]


class Receiver:
    """The server; ``answer`` may be changed while it runs."""

    def __init__(self, answer: Answering) -> None:
        self.answer = answer
        self.got: list[Got] = []
        self.let_go = threading.Event()
        self.url = ""

    def events(self, *, path: str = "/") -> list[dict[str, Any]]:
        """What was posted to a path, but for pings."""
        return [one.event for one in list(self.got) if one.path == path and one.event["type"] != "webhook.ping"]

    def first(self, *, path: str = "/") -> list[dict[str, Any]]:
        """The same without repetitions."""
        return list({one["id"]: one for one in reversed(self.events(path=path))}.values())[::-1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: Receiver

    def do_POST(self) -> None:
        size = int(self.headers["content-length"])
        body = self.rfile.read(size)
        if len(body) < size:
            # Who sent it was killed.
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        got = Got(self.path, headers, body, time.monotonic())
        reply = self.receiver.answer(got)
        self.receiver.got.append(got)
        if reply.hangs:
            self.receiver.let_go.wait(HANG_SECONDS)
        elif reply.drips:
            self._drip()
        else:
            self._send(reply)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def _drip(self) -> None:
        self.close_connection = True
        for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000:
            if self.receiver.let_go.wait(0.5):
                return
            self.wfile.write(bytes([byte]))

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """Say nothing: convo closes what does not answer."""


@contextmanager
def receiving(answer: Answering = lambda _: GOOD) -> Iterator[Receiver]:
    """Run a receiver on a free port of 127.0.0.1."""
    receiver = Receiver(answer)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"receiver": receiver}))
    receiver.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.let_go.set()
        server.shutdown()
        server.server_close()
        thread.join()
