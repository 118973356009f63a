"""Post many different bodies to a server, and say how it went; it knows no server.

As fast as it takes them: wrk where it is installed, else a small client of our own, which costs more of the machine.
At a fixed rate: our own client; a latency then counts from the moment at which the request was due, so that a server
that stands still is not spared the requests that it kept from being sent. Both keep their connections, and send a new
id with each request.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import trio
from msgspec import Struct

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("BENCH_TEXT") or ROOT.parent / "shared" / "data" / "topical_chat_requests.jsonl")
SAMPLES = ROOT / "scripts" / "samples.jsonl"

Outcome = dict[str, float]
"""``answered`` requests and their number a second (``rate``), ``p50``, ``p99`` and ``p999`` of their latencies in
milliseconds, ``failed``: answers other than 2xx, or none."""

_BODIES = 64
_ANSWER_SECONDS = 15.0
_LUA = """
local tails = {}
for line in io.lines("%(tails)s") do tails[#tails + 1] = line end
local threads = 0
function setup(thread) threads = threads + 1; thread:set("number", threads) end
local sent = 0
local head = {["Content-Type"] = "application/json"}
function request()
    sent = sent + 1
    local id = '{"conversation_id": "%(run)s-' .. number .. '-' .. sent .. '", '
    return wrk.format("POST", nil, head, id .. tails[sent %% #tails + 1])
end
function done(summary, latency, requests)
    local errors = summary.errors
    local good = summary.requests - errors.status
    local form = '{"answered": %%d, "rate": %%f, "p50": %%f, "p99": %%f, "p999": %%f, "failed": %%d}\\n'
    io.write(string.format(form, good, good / (summary.duration / 1e6),
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


class Plan(Struct, frozen=True, kw_only=True):
    """What to post: ``rate`` requests a second, or 0 for as many as the server takes; ``name`` makes the ids its own.

    ``source`` is the address that the connections come from. Into the file ``answered_at``, where one is named, goes
    when each id was answered, by the machine's monotonic clock.
    """

    url: str
    tails: list[str]
    connections: int
    seconds: float
    name: str
    rate: float = 0.0
    source: str = "127.0.0.1"
    answered_at: str = ""


def real_tails(size_bytes: int) -> list[str]:
    """Make bodies of about ``size_bytes`` of real text, each without its id: the rest of a JSON object's text.

    Turns of several conversations are joined; as long as there is enough of it, no text stands twice in one body
    (repetition would flatter).
    """
    turns = [
        {"character": item["character"], "content": item["content"]}
        for line in source_of_text().read_text("utf-8").splitlines()
        for item in json.loads(line).get("conversation_logs", [])
        if item.get("character") and item.get("content")
    ]
    return [_tail(turns, start * len(turns) // _BODIES, size_bytes) for start in range(_BODIES)]


def source_of_text() -> Path:
    """Return the file that the text comes from: ``BENCH_TEXT``, or the real conversations, else our own samples."""
    return REAL if REAL.exists() else SAMPLES


def _tail(turns: list[dict[str, str]], start: int, size_bytes: int) -> str:
    log: list[dict[str, str]] = []
    size = 0
    # Past the end of the text only the largest bodies read on from its beginning.
    for turn in itertools.islice(itertools.cycle(turns), start, start + 2 * len(turns)):
        if size >= size_bytes:
            break
        log.append(turn)
        size += len(json.dumps(turn)) + 2
    body: dict[str, Any] = {"user_id": f"user-{start}", "bot_id": "bench", "conversation_logs": log}
    return json.dumps(body)[1:]


def run(plan: Plan, *, own: bool = False) -> Outcome:
    """Post as planned; with ``own``, or at a fixed rate, by our own client."""
    wrk = shutil.which("wrk")
    if plan.rate or own or wrk is None:
        return _own(plan)
    return _wrk(wrk, plan)


def _wrk(wrk: str, plan: Plan) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        kept, script = Path(folder, "tails"), Path(folder, "post.lua")
        kept.write_text("\n".join(plan.tails) + "\n", "utf-8")
        script.write_text(_LUA % {"tails": kept, "run": plan.name}, "utf-8")
        how = ["-t1", f"-c{plan.connections}", f"-d{plan.seconds:.0f}s", "--timeout", f"{_ANSWER_SECONDS:.0f}s"]
        done = subprocess.run([wrk, *how, "-s", str(script), plan.url], capture_output=True, text=True, check=True)
    found: Outcome = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _own(plan: Plan) -> Outcome:
    return finished(begun(plan))


def begun(plan: Plan) -> subprocess.Popen[bytes]:
    """Start our own client in a process of its own; SIGTERM ends it before its time, with what it found so far."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if process.stdin is not None:
        process.stdin.write(msgspec.json.encode(plan))
        process.stdin.close()
        process.stdin = None
    return process


def finished(process: subprocess.Popen[bytes]) -> Outcome:
    """Wait for a client that was begun; return how it went."""
    said, _ = process.communicate()
    found: Outcome = json.loads(said)
    return found


class Client:
    """Our own client: posts as planned, and keeps the latencies in seconds."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._parts = urlsplit(plan.url)
        self._numbers: Iterator[int] = itertools.count()
        self.latencies: list[float] = []
        self.failed = 0
        self._answered_at: list[str] = []
        self.stopped = trio.Event()

    async def run(self) -> Outcome:
        """Post until the time is over, or until ``stopped`` is set; return how it went."""
        self._started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(self._plan.connections):
                nursery.start_soon(self._one_after_another)
        if self._plan.answered_at:
            Path(self._plan.answered_at).write_text("".join(self._answered_at))
        return outcome(self.latencies, self.failed, trio.current_time() - self._started)

    async def _one_after_another(self) -> None:
        stream: trio.SocketStream | None = None
        while not self.stopped.is_set():
            number = next(self._numbers)
            due = self._due(number)
            if due >= self._started + self._plan.seconds:
                break
            await trio.sleep_until(due)
            stream = await self._post(stream, number, due)
        if stream is not None:
            await stream.aclose()

    def _due(self, number: int) -> float:
        return self._started + number / self._plan.rate if self._plan.rate else trio.current_time()

    async def _post(self, stream: trio.SocketStream | None, number: int, due: float) -> trio.SocketStream | None:
        """Post once, on a new connection where there is none; return the connection, or None when it is spent."""
        try:
            with trio.fail_after(_ANSWER_SECONDS):
                stream = stream or await self._connect()
                await stream.send_all(self._request(number))
                head = await answer(stream)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, StopIteration):
            self.failed += 1
            if stream is not None:
                await trio.aclose_forcefully(stream)
            # A server that refuses at once would have us do nothing but connect.
            await trio.sleep(0.05)
            return None
        if head.startswith(b"HTTP/1.1 2"):
            self.latencies.append(trio.current_time() - due)
            self._answered_at.append(f"{self._plan.name}-{number} {time.monotonic():.6f}\n")
        else:
            self.failed += 1
        if b"\r\nconnection: close" in head.lower():
            await stream.aclose()
            return None
        return stream

    async def _connect(self) -> trio.SocketStream:
        host, port = self._parts.hostname or "127.0.0.1", self._parts.port or 80
        stream = await trio.open_tcp_stream(host, port, local_address=self._plan.source)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    def _request(self, number: int) -> bytes:
        tails = self._plan.tails
        body = (f'{{"conversation_id": "{self._plan.name}-{number}", ' + tails[number % len(tails)]).encode()
        head = f"POST {self._parts.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def outcome(latencies: list[float], failed: int, seconds: float) -> Outcome:
    """Sum up latencies, in seconds."""
    ordered = sorted(latencies) or [0.0]

    def percentile(part: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000

    return {
        "answered": len(latencies),
        "rate": len(latencies) / seconds,
        "p50": percentile(0.5),
        "p99": percentile(0.99),
        "p999": percentile(0.999),
        "failed": failed,
    }


async def answer(stream: trio.SocketStream) -> bytes:
    """Read one answer with a Content-Length; return its head.

    Raises:
        ConnectionError: the server closed the connection.
    """
    received = b""
    while b"\r\n\r\n" not in received:
        received += await stream.receive_some() or _gone()
    head, _, rest = received.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(rest) < length:
        rest += await stream.receive_some() or _gone()
    return head


def _gone() -> bytes:
    raise ConnectionError("the server closed the connection")


async def main(plan: Plan) -> Outcome:
    """Post as planned, or until SIGTERM."""
    client = Client(plan)

    async def listen(signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            client.stopped.set()

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, signals)
            found = await client.run()
            nursery.cancel_scope.cancel()
    return found


if __name__ == "__main__":
    print(json.dumps(trio.run(main, msgspec.json.decode(sys.stdin.buffer.read(), type=Plan))))
