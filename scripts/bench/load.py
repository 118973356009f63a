"""Post many different bodies as fast as a server takes them, and say how it went; it knows no server.

wrk does it where it is installed; else a small client of our own, which costs more of the machine. Both keep their
connections, and send a new id with each request.
"""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "topical_chat_requests.jsonl"
SAMPLES = ROOT / "scripts" / "samples.jsonl"

Outcome = dict[str, float]
"""requests/s (``rate``), ``p50`` and ``p99`` in milliseconds, ``failed``: answers that were not 2xx or did not come."""

_BODIES = 64
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
    io.write(string.format('{"rate": %%f, "p50": %%f, "p99": %%f, "failed": %%d}\\n',
        summary.requests / (summary.duration / 1e6), latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def real_tails(size_bytes: int) -> list[str]:
    """Make bodies of about ``size_bytes`` of real text, each without its id: the rest of a JSON object's text.

    Turns of several conversations are joined; no text stands twice in one body (repetition would flatter).
    """
    source = REAL if REAL.exists() else SAMPLES
    turns = [
        {"character": item["character"], "content": item["content"]}
        for line in source.read_text("utf-8").splitlines()
        for item in json.loads(line).get("conversation_logs", [])
        if item.get("character") and item.get("content")
    ]
    return [_tail(turns, start * len(turns) // _BODIES, size_bytes) for start in range(_BODIES)]


def _tail(turns: list[dict[str, str]], start: int, size_bytes: int) -> str:
    log: list[dict[str, str]] = []
    size = 0
    for turn in itertools.islice(itertools.cycle(turns), start, start + len(turns)):
        if size >= size_bytes:
            break
        log.append(turn)
        size += len(json.dumps(turn)) + 2
    body: dict[str, Any] = {"user_id": f"user-{start}", "bot_id": "bench", "conversation_logs": log}
    return json.dumps(body)[1:]


def run(url: str, tails: list[str], *, connections: int, seconds: float, name: str) -> Outcome:
    """Post bodies to ``url`` for ``seconds`` over so many ``connections``; ``name`` makes this run's ids its own."""
    if shutil.which("wrk"):
        return _wrk(url, tails, connections, seconds, name)
    return _own(url, tails, connections, seconds, name)


def _wrk(url: str, tails: list[str], connections: int, seconds: float, name: str) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        kept, script = Path(folder, "tails"), Path(folder, "post.lua")
        kept.write_text("\n".join(tails) + "\n", "utf-8")
        script.write_text(_LUA % {"tails": kept, "run": name}, "utf-8")
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "15s", "-s", str(script), url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: Outcome = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _own(url: str, tails: list[str], connections: int, seconds: float, name: str) -> Outcome:
    command = [sys.executable, __file__, url, str(connections), str(seconds), name]
    done = subprocess.run(command, input=json.dumps(tails), capture_output=True, text=True, check=True)
    found: Outcome = json.loads(done.stdout)
    return found


async def _client(url: str, tails: list[str], connections: int, seconds: float, name: str) -> Outcome:
    parts = urlsplit(url)
    latencies: list[float] = []
    failed = 0
    numbers = itertools.count()
    until = time.perf_counter() + seconds

    async def post_on_and_on() -> None:
        nonlocal failed
        stream = await trio.open_tcp_stream(parts.hostname or "127.0.0.1", parts.port or 80)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.perf_counter() < until:
            number = next(numbers)
            body = (f'{{"conversation_id": "{name}-{number}", ' + tails[number % len(tails)]).encode()
            head = f"POST {parts.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            started = time.perf_counter()
            await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            failed += not (await _answer(stream)).startswith(b"HTTP/1.1 2")
            latencies.append(time.perf_counter() - started)

    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(post_on_and_on)
    latencies.sort()
    return {
        "rate": len(latencies) / seconds,
        "p50": latencies[len(latencies) // 2] * 1000,
        "p99": latencies[len(latencies) * 99 // 100] * 1000,
        "failed": failed,
    }


async def _answer(stream: trio.SocketStream) -> bytes:
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


if __name__ == "__main__":
    target, count, duration, run_name = sys.argv[1:]
    sent = json.load(sys.stdin)
    print(json.dumps(trio.run(_client, target, sent, int(count), float(duration), run_name)))
