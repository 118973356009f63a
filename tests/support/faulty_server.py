"""A server that takes conversations as convo does, but for the faults that it is told."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import h11
import trio

from tests.support.client_answers import conversation, problem, receipt

Answer = tuple[int, dict[str, str], dict[str, Any] | bytes]


_ANSWERS: dict[str, Answer] = {
    "busy": (429, {"retry-after": "1"}, problem(429, "busy")),
    "away": (503, {"retry-after": "0"}, problem(503, "database_unavailable")),
    "locked": (401, {}, problem(401, "unauthorized")),
}


class FaultyServer:
    """Takes conversations as convo does, but for the faults it is told, one for each POST, in order."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.stored: dict[str, bytes] = {}
        self.posts: list[str] = []
        self.states: dict[str, str] = {}  # by id; all others are done
        self.keys: set[str] = set()
        self.connections = self.connections_most = 0
        self.stuck = trio.Event()
        self.refused_lines: set[str] = set()  # of batches, by id
        self.left = trio.Event()  # the client of a late answer has closed its connection
        self.url = ""

    async def connection(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.connections_most = max(self.connections_most, self.connections)
        try:
            await self._speak(stream, h11.Connection(h11.SERVER))
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass
        finally:
            self.connections -= 1

    async def _speak(self, stream: trio.SocketStream, wire: h11.Connection) -> None:
        while (request := await self._event(stream, wire)) and isinstance(request, h11.Request):
            body = b""
            while isinstance(data := await self._event(stream, wire), h11.Data):
                body += data.data
            answer = await self._answer(stream, request, body)
            if answer is None:
                return
            status, headers, content = answer
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            fields = [*headers.items(), ("content-length", str(len(data)))]
            await stream.send_all(wire.send(h11.Response(status_code=status, headers=fields)) or b"")
            await stream.send_all((wire.send(h11.Data(data=data)) or b"") + (wire.send(h11.EndOfMessage()) or b""))
            wire.start_next_cycle()

    async def _event(self, stream: trio.SocketStream, wire: h11.Connection) -> object:
        while (event := wire.next_event()) is h11.NEED_DATA:
            wire.receive_data(await stream.receive_some())
        return event

    async def _answer(self, stream: trio.SocketStream, request: h11.Request, body: bytes) -> Answer | None:
        self.keys.update(value.decode() for name, value in request.headers if name == b"authorization")
        target = urlsplit(request.target.decode())
        if target.path == "/livez":
            return 200, {}, {}
        if request.method == b"GET":
            return self._read(unquote(target.path.rpartition("/")[2]))
        if target.path.endswith("/batch"):
            return 200, {}, b"".join(map(self._line, body.split(b"\n")))
        return await self._end(stream, body)

    def _line(self, line: bytes) -> bytes:
        name = json.loads(line)["conversation_id"]
        late = name in self.refused_lines
        return json.dumps(problem(503, "deadline_exceeded") if late else receipt(name, replayed=False)).encode() + b"\n"

    def _read(self, name: str) -> Answer:
        if self.states.get(name) == "gone":
            return 404, {}, problem(404, "not_found")
        return 200, {}, conversation(name, self.states.get(name, "done"))

    async def _end(self, stream: trio.SocketStream, body: bytes) -> Answer | None:
        name = json.loads(body)["conversation_id"]
        self.posts.append(name)
        fault = self.faults.pop(0) if self.faults else ""
        if fault in _ANSWERS:
            return _ANSWERS[fault]
        if fault in ("late", "drip", "stuck"):
            await getattr(self, f"_{fault}")(stream)
            return None
        return self._store(stream, name, body, fault)

    async def _late(self, stream: trio.SocketStream) -> None:
        assert not await stream.receive_some()
        self.left.set()

    async def _drip(self, stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 202 Accepted\r\nX: ")
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.05)

    async def _stuck(self, _: trio.SocketStream) -> None:
        self.stuck.set()
        await trio.sleep_forever()

    def _store(self, stream: trio.SocketStream, name: str, body: bytes, fault: str) -> Answer | None:
        known = name in self.stored
        if known and self.stored[name] != body:
            return 409, {}, problem(409, "conflict")
        self.stored[name] = body
        if fault == "reset":  # after it was stored: the answer is what is lost
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return None
        padding = {"pad": "x" * 2_000_000} if fault == "padded" else {}
        return 202, {"idempotent-replayed": "true"} if known else {}, receipt(name) | padding


@asynccontextmanager
async def serving() -> AsyncIterator[FaultyServer]:
    server = FaultyServer()
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, server.connection, 0, host="127.0.0.1"))
        server.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        yield server
        nursery.cancel_scope.cancel()
