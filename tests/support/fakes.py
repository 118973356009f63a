"""Real HTTP servers in the place of the remote dependencies, with every fault they are known for, on demand.

In a trio test: ``async with open_model() as model: model.then(stuck, rate_limited("2"))``. As a process of its own:
``python -m tests.support.fakes model --port 0 --always stuck`` prints its URL; ``GET /_fake`` shows what it saw, and
``POST /_fake`` with ``{"then": [["rate_limited", "2"], ["reset"]], "always": ["healthy"]}`` scripts it.

A server counts its calls and its open connections, keeps the idempotency keys it saw, and notices at once when a
client goes away, also in the middle of a fault. ``called_at`` (wall clock) stands beside ``keys``; ``paid`` holds the
keys of the calls that were answered well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h11
import trio
from msgspec import Struct

from convo.conversation.model import Conversation, Speaker, Turn


class Call(Struct, frozen=True, kw_only=True):
    """One request as a server saw it; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """One request and the connection on which it can be answered, well or badly."""

    def __init__(self, call: Call, connection: h11.Connection, stream: trio.SocketStream, usual: Answering) -> None:
        self.call = call
        self.usual = usual
        self.answered_well = False
        self._connection = connection
        self._stream = stream

    async def head(self, status: int, headers: dict[str, str]) -> None:
        await self._send(h11.Response(status_code=status, headers=list(headers.items())))

    async def data(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        length = {"content-type": "application/json", "content-length": str(len(body))}
        await self.head(status, {**length, **(headers or {})})
        await self.data(body)
        await self.end()

    async def answer_json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        await self.answer(status, json.dumps(value).encode(), headers)

    async def raw(self, data: bytes) -> None:
        await self._stream.send_all(data)

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._stream.socket.close()

    async def _send(self, event: h11.Event) -> None:
        await self._stream.send_all(self._connection.send(event) or b"")


_AT = datetime(2026, 11, 22, 7, 0, tzinfo=UTC)

# Of what happens by chance here, the same happens each time.
_chance = random.Random(0)
# The client went, or a fault closed the socket.
_GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError)

Fault = Callable[[Exchange], Awaitable[None]]
Answering = Callable[[Call], object]


# --- faults, named after what goes wrong


async def healthy(exchange: Exchange) -> None:
    """Answer sensibly."""
    await exchange.answer_json(200, exchange.usual(exchange.call))
    exchange.answered_well = True


async def stuck(exchange: Exchange) -> None:
    """Read the request and never answer."""
    await trio.sleep_forever()


async def stuck_after_headers(exchange: Exchange) -> None:
    """Send a good head and never a body."""
    await exchange.head(200, {"content-type": "application/json", "content-length": "1000"})
    await trio.sleep_forever()


async def garbage(exchange: Exchange) -> None:
    """Answer 200 with what is no JSON."""
    await exchange.answer(200, b"<html>it works</html>")


async def not_utf8(exchange: Exchange) -> None:
    """Answer 200 with JSON in an encoding that JSON is not in."""
    await exchange.answer(
        200, b'{"choices":[{"message":{"content":"\xff"}}],"facts":[{"id":"\xff"}],"results":[{"id":"\xff"}]}'
    )


async def deeply_nested(exchange: Exchange) -> None:
    """Answer 200 with JSON that is too deep to read."""
    await exchange.answer(200, b'{"other":' + b"[" * 100_000)


async def wrong_schema(exchange: Exchange) -> None:
    """Answer 200 with JSON of another kind."""
    await exchange.answer_json(200, {"choices": "none", "facts": {"a": 1}, "results": 7})


async def huge(exchange: Exchange) -> None:
    """Answer 200 with 64 MiB of a JSON string that says to be longer, for as long as it is read."""
    await exchange.head(200, {"content-type": "application/json", "content-length": str(1 << 30)})
    await exchange.data(b'{"a":"')
    for _ in range(1 << 10):
        await exchange.data(b"a" * (1 << 16))


async def compressed(exchange: Exchange) -> None:
    """Say that the answer is compressed."""
    await exchange.answer(200, b"\x1f\x8b\x08", {"content-encoding": "gzip"})


async def reset(exchange: Exchange) -> None:
    """Tear the connection down instead of answering."""
    await trio.lowlevel.checkpoint()
    exchange.reset()


async def reset_in_the_body(exchange: Exchange) -> None:
    """Tear the connection down in the middle of a good answer."""
    await exchange.head(200, {"content-length": "1000"})
    await exchange.data(b'{"choices": [')
    exchange.reset()


async def no_http(exchange: Exchange) -> None:
    """Answer in no protocol that is known."""
    await exchange.raw(b"hello, who is there?\r\n\r\n")
    exchange.reset()


async def rejects_json_schema(exchange: Exchange) -> None:
    """Refuse json_schema as servers do that only know json_object; answer all else sensibly."""
    call = exchange.call
    if call.method == "POST" and call.json().get("response_format", {}).get("type") == "json_schema":
        await failing("400", "invalid_request_error")(exchange)
    else:
        await healthy(exchange)


async def answer_lost(exchange: Exchange) -> None:
    """Do what was asked, and break the connection before the answer."""
    exchange.usual(exchange.call)
    await reset(exchange)


def slow(seconds: str) -> Fault:
    """Answer sensibly, but so late."""

    async def fault(exchange: Exchange) -> None:
        await trio.sleep(float(seconds))
        await healthy(exchange)

    return fault


def scattered(median_seconds: str) -> Fault:
    """Answer sensibly, after times that scatter as those of real servers do: a few take ten times the median."""

    async def fault(exchange: Exchange) -> None:
        await trio.sleep(float(median_seconds) * _chance.lognormvariate(0.0, 0.8))
        await healthy(exchange)

    return fault


def sometimes(share: str, *words: str) -> Fault:
    """Meet this share of the calls with another fault, and answer the others sensibly."""
    other = named(words)

    async def fault(exchange: Exchange) -> None:
        await (other if _chance.random() < float(share) else healthy)(exchange)

    return fault


def slow_drip(seconds: str) -> Fault:
    """Answer sensibly, a byte at a time, so long between two."""

    async def fault(exchange: Exchange) -> None:
        body = json.dumps(exchange.usual(exchange.call)).encode()
        await exchange.head(200, {"content-length": str(len(body))})
        for position in range(len(body)):
            await exchange.data(body[position : position + 1])
            await trio.sleep(float(seconds))
        await exchange.end()

    return fault


def rate_limited(retry_after: str = "1") -> Fault:
    """Answer 429 and ask to be left alone for so many seconds (or until a date)."""

    async def fault(exchange: Exchange) -> None:
        error = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
        await exchange.answer_json(429, error, {"retry-after": retry_after})

    return fault


def failing(status: str = "503", code: str = "unavailable") -> Fault:
    """Answer with this status, and an error in OpenAI's form that quotes what was sent."""

    async def fault(exchange: Exchange) -> None:
        message = exchange.call.body.decode()
        await exchange.answer_json(int(status), {"error": {"message": message, "code": code}})

    return fault


def completing(content: str | None, **choice: object) -> Fault:
    """Answer as a model whose whole word is ``content``; ``choice`` goes beside the message."""

    async def fault(exchange: Exchange) -> None:
        await exchange.answer_json(200, completion(content, **choice))

    return fault


def charging(sent: str, answered: str, cached: str = "0") -> Fault:
    """Answer sensibly, and name these tokens."""
    tokens = {"prompt_tokens": int(sent), "completion_tokens": int(answered)}
    usage = {**tokens, "prompt_tokens_details": {"cached_tokens": int(cached)}}

    async def fault(exchange: Exchange) -> None:
        usual = exchange.usual(exchange.call)
        assert isinstance(usual, dict)
        await exchange.answer_json(200, {**usual, "usage": usage})
        exchange.answered_well = True

    return fault


def answering(text: str) -> Fault:
    """Answer 200 with exactly this."""

    async def fault(exchange: Exchange) -> None:
        await exchange.answer(200, text.encode())

    return fault


_PLAIN: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        healthy,
        stuck,
        stuck_after_headers,
        garbage,
        not_utf8,
        deeply_nested,
        wrong_schema,
        huge,
        compressed,
        reset,
        answer_lost,
        reset_in_the_body,
        no_http,
        rejects_json_schema,
    )
}
_WITH_ARGUMENTS: dict[str, Callable[..., Fault]] = {
    make.__name__: make
    for make in (slow, scattered, sometimes, slow_drip, rate_limited, failing, completing, charging, answering)
}


def named(words: Sequence[str]) -> Fault:
    """Find a fault by its name and arguments, as in ``["rate_limited", "2"]``."""
    name, *arguments = words
    return _WITH_ARGUMENTS[name](*arguments) if name in _WITH_ARGUMENTS else _PLAIN[name]


# --- servers


class FakeServer:
    """A listening server: what it is to do next, and what it saw."""

    def __init__(self, usual: Answering, url: str) -> None:
        self.url = url
        self.calls: list[Call] = []
        self.called_at: list[float] = []
        self.paid: list[str] = []
        self.open_connections = 0
        self.connections_opened = 0
        self.always: Fault = healthy
        self._next: deque[Fault] = deque()
        self._usual = usual
        self._changed = trio.Event()

    @property
    def keys(self) -> list[str]:
        """The idempotency keys of all calls for a conversation, in order."""
        return [_key(call) for call in self.calls if not _is_trial(call)]

    @property
    def work(self) -> list[Call]:
        """All calls but the pings, and the one at a start, which come when they come."""
        calls = [call for call in self.calls if call.method != "GET" or call.path not in ("/", "/models")]
        return [call for call in calls if not _is_trial(call)]

    def then(self, *faults: Fault) -> None:
        """Meet the next calls with these, one each; all later ones again with ``always``."""
        self._next.extend(faults)

    async def until(self, condition: Callable[[FakeServer], bool]) -> None:
        """Wait until something true of the server becomes so."""
        while not condition(self):
            await self._changed.wait()

    async def serve_connection(self, stream: trio.SocketStream) -> None:
        self.open_connections += 1
        self.connections_opened += 1
        self._change()
        try:
            with suppress(*_GONE):
                await self._serve(stream)
        finally:
            self.open_connections -= 1
            self._change()

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        async with stream:
            while (call := await _read_call(connection, stream)) is not None:
                exchange = Exchange(call, connection, stream, self._usual)
                await _unless_client_leaves(stream, connection, self._fault(call), exchange)
                if exchange.answered_well and not _is_trial(call):
                    self.paid.append(_key(call))
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return
                connection.start_next_cycle()

    def _fault(self, call: Call) -> Fault:
        if call.path == "/_fake":
            return self._be_scripted
        self.calls.append(call)
        if not _is_trial(call):
            self.called_at.append(time.time())
        self._change()
        return self._next.popleft() if self._next else self.always

    async def _be_scripted(self, exchange: Exchange) -> None:
        if exchange.call.method == "POST":
            script = exchange.call.json()
            self.then(*map(named, script.get("then", [])))
            self.always = named(script["always"]) if "always" in script else self.always
        seen = {
            "calls": len(self.work),
            "keys": self.keys,
            "called_at": self.called_at,
            "paid": self.paid,
            "open_connections": self.open_connections,
        }
        await exchange.answer_json(200, seen)

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _is_trial(call: Call) -> bool:
    """Return whether a call is the small one of a start or of ``convo check``."""
    return _key(call).startswith("convo:check:")


def _key(call: Call) -> str:
    return call.headers.get("idempotency-key", "")


async def _read_call(connection: h11.Connection, stream: trio.SocketStream) -> Call | None:
    request, body = None, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            headers: dict[str, str] = {}
            for name, value in request.headers:
                before = headers.get(name.decode())
                # One that comes twice is seen as such.
                headers[name.decode()] = value.decode() if before is None else f"{before}, {value.decode()}"
            return Call(method=request.method.decode(), path=request.target.decode(), headers=headers, body=bytes(body))
        else:
            return None


async def _unless_client_leaves(
    stream: trio.SocketStream, connection: h11.Connection, fault: Fault, exchange: Exchange
) -> None:
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            with suppress(*_GONE):
                # A client that is quick sends its next request while this one's answer is still being ended.
                while received := await stream.receive_some():
                    connection.receive_data(received)
                connection.receive_data(b"")
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        with suppress(*_GONE):
            await fault(exchange)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_server(usual: Answering, *, port: int = 0) -> AsyncIterator[FakeServer]:
    """Serve on 127.0.0.1 for as long as the block runs."""
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    server = FakeServer(usual, f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, server.serve_connection, listeners)
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


# --- a language model


def completion(content: str | None, **choice: object) -> dict[str, object]:
    return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop", **choice}]}


def think(call: Call) -> object:
    """Find the user's lines that end in a question mark, and be happy: whatever is asked of it, also by its schema."""
    if call.method == "GET":  # the ping
        return {"data": []}
    asked = call.json()
    text = "\n".join(said["content"] for said in asked["messages"])
    record = re.search(r"<conversation-([0-9a-f]{16})>\n(.*)\n</conversation-\1>", text, re.DOTALL)
    lines = [json.loads(line) for line in record[2].splitlines()] if record else []
    said = [line["user"] for line in lines if isinstance(line.get("user"), str)]
    answer: dict[str, Any] = {}
    if '"questions": ' in text:
        answer["questions"] = [one for one in said if one.rstrip().endswith("?")]
    if '"emotion": ' in text:
        answer["emotion"] = "happy"
    wanted = asked.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {})
    return completion(json.dumps({**{name: filled(schema) for name, schema in wanted.items()}, **answer}))


def filled(schema: dict[str, Any]) -> Any:
    """Make a value that fits a schema, the same each time: its first value, its least number, one item."""
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if "enum" in schema:
        return schema["enum"][0]
    if kind == "object":
        return {name: filled(inner) for name, inner in schema["properties"].items()}
    if kind == "array":
        return [filled(schema["items"])]
    return {"string": "said", "integer": schema.get("maximum", 3), "number": 1.5, "boolean": True}.get(str(kind))


@asynccontextmanager
async def open_model(*, port: int = 0) -> AsyncIterator[FakeServer]:
    """Serve a language model; its base URL is ``url``."""
    async with open_server(think, port=port) as server:
        yield server


# --- a memory service, in both dialects


class Remembering:
    """Remembers who likes what, so that the second time is no news; mem0's list shows what it has of a user."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = {}

    def __call__(self, call: Call) -> object:
        if call.method == "GET":
            return self._list(call.path)
        if call.method == "DELETE":
            return self._delete(call.path)
        asked = call.json()
        said = asked.get("conversation") or asked.get("messages") or []
        texts = [turn["content"] for turn in said if turn["role"] == "user"]
        likes = [like.strip() for text in texts for like in re.findall(r"I like ([^.!?]+)", text)]
        told = [(*self._remember(asked, like), f"Likes {like}") for like in likes]
        if call.path.endswith("/extract_facts"):
            return {"facts": [{"id": key, "fact_value": text, "operation": news} for key, news, text in told]}
        return {"results": [{"id": key, "memory": text, "event": news} for key, news, text in told]}

    def _list(self, path: str) -> object:
        address = urlsplit(path)
        if not address.path.endswith("/memories"):  # the ping
            return {}
        (user_id,) = parse_qs(address.query)["user_id"]
        return {"results": [memory for memory in self._known.values() if memory["user_id"] == user_id]}

    def _delete(self, path: str) -> object:
        address = urlsplit(path)
        users = parse_qs(address.query).get("user_id", [])
        going = [key for key, one in self._known.items() if one["user_id"] in users or address.path.endswith(f"/{key}")]
        for key in going:
            del self._known[key]
        return {"message": "Memory deleted successfully!"}

    def known(self) -> list[str]:
        """What it remembers of all users."""
        return sorted(memory["memory"] for memory in self._known.values())

    def _remember(self, asked: dict[str, Any], like: str) -> tuple[str, str]:
        user_id = asked["user_id"]
        key = hashlib.sha256(f"{user_id}:{like}".encode()).hexdigest()[:12]
        if key in self._known:
            return key, "NONE"
        metadata = asked.get("metadata")
        self._known[key] = {"id": key, "user_id": user_id, "memory": f"Likes {like}", "metadata": metadata}
        return key, "ADD"


@asynccontextmanager
async def open_memory(*, port: int = 0) -> AsyncIterator[FakeServer]:
    """Serve a memory service that takes either dialect; its URL is ``url``."""
    async with open_server(Remembering(), port=port) as server:
        yield server


# --- what is said to them


def conversation_of(
    *texts: str, conversation_id: str = "talk-1", user_id: str = "user-1", digest: str = "1:abc"
) -> Conversation:
    """Make a conversation of texts, the user's first, then in turn; "bot: " or "user: " in front says otherwise."""
    turns = []
    for position, text in enumerate(texts):
        speaker: Speaker = (
            "bot" if text.startswith("bot: ") or (position % 2 and not text.startswith("user: ")) else "user"
        )
        said = text.removeprefix("bot: ").removeprefix("user: ")
        turns.append(Turn(speaker=speaker, text=said, at=_AT + timedelta(seconds=position)))
    return Conversation(
        conversation_id=conversation_id, user_id=user_id, bot_id="bot-1", digest=digest, turns=tuple(turns)
    )


# --- a process of its own


async def run(kind: str, port: int, always: Sequence[str]) -> None:
    open_it = {"model": open_model, "memory": open_memory}[kind]
    async with open_it(port=port) as server:
        server.always = named(always)
        print(server.url, flush=True)
        await trio.sleep_forever()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.fakes", description="A fake remote dependency.")
    parser.add_argument("kind", choices=["model", "memory"])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--always", nargs="+", default=["healthy"], help="a fault and its arguments")
    chosen = parser.parse_args(arguments)
    try:
        trio.run(run, chosen.kind, chosen.port, chosen.always)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main(sys.argv[1:])
