"""What events cost: accepts with events off and on, in turn, and events a second to a webhook on this machine.

    .venv/bin/python scripts/bench/events.py --seconds 2 --rounds 12

A convo without events and one with ``conversation.accepted``, each on an embedded PostgreSQL of its own, get
conversations of 4 KB over 32 connections, in turn. Only the ratio within a run means something on a shared machine. The
receiver of the last part is a process of its own, which answers at once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.running import running

ON = {"events.types": '["conversation.accepted"]', "webhooks.allow_private": "true"}
QUIET = {"jobs.workers": "0", "intake.in_flight_max": "512"}
_CONNECTIONS = 32
_WORDS = "what a day it was and how the rain fell on the roof of the house by the river where we met her dog Rex "


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--events", type=int, default=3000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="convo-bench-") as folder:
        ratios = _ratios(Path(folder), asked.seconds, asked.rounds)
        print(f"accepts a second, on by off: median {statistics.median(ratios):.2f} of {len(ratios)} rounds")
        print(f"events a second to a webhook: {_deliveries(Path(folder, 'hook'), asked.events):.0f}")


def _body(name: str, user: str) -> bytes:
    items = [{"role": ("user", "assistant")[n % 2], "content": _WORDS * 2} for n in range(18)]
    found = {"conversation_id": name, "user_id": user, "bot_id": "pika", "conversation_log": items}
    return json.dumps(found).encode()


def _ratios(folder: Path, seconds: float, rounds: int) -> list[float]:
    with running(folder / "off", settings=QUIET) as off, running(folder / "on", settings={**QUIET, **ON}) as on:
        for url in (off.url, on.url):
            _post_for(url, 1.0, "warm")
        found = []
        for number in range(rounds):
            # Each is first in every other round: what the machine does beside this changes by the second.
            order = (off.url, on.url) if number % 2 else (on.url, off.url)
            rates = {url: _post_for(url, seconds, f"talk-{number}") / seconds for url in order}
            found.append(rates[on.url] / rates[off.url])
            print(f"off {rates[off.url]:.0f}, on {rates[on.url]:.0f}, ratio {found[-1]:.2f}", flush=True)
        return found


def _post_for(url: str, seconds: float, name: str) -> int:
    """Post from a process of its own: the client would take the server's share of this one."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_posting, (url, seconds, name))


def _posting(url: str, seconds: float, name: str) -> int:
    return trio.run(_post_all, url, seconds, name)


async def _post_all(url: str, seconds: float, name: str) -> int:
    host, _, port = url.removeprefix("http://").partition(":")
    done = 0

    async def post(number: int) -> None:
        nonlocal done
        stream = await trio.open_tcp_stream(host, int(port))
        until, sent = trio.current_time() + seconds, 0
        while trio.current_time() < until:
            body = _body(f"{name}-{number}-{sent}", f"user-{number}-{sent % 97}")
            head = "POST /v1/conversations/end HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await _answer(stream)
            sent += 1
            done += 1

    async with trio.open_nursery() as nursery:
        for number in range(_CONNECTIONS):
            nursery.start_soon(post, number)
    return done


async def _answer(stream: trio.SocketStream) -> None:
    got = b""
    while b"\r\n\r\n" not in got:
        got += await stream.receive_some(65536)
    head, _, rest = got.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 202"):
        raise RuntimeError(head.decode())
    lines = head.lower().split(b"\r\n")
    length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length"))
    while len(rest) < length:
        rest += await stream.receive_some(65536)


# --- deliveries


def _deliveries(folder: Path, count: int) -> float:
    """Register an endpoint with so many events behind it, and time how fast they come."""
    with _receiver() as (url, counter), running(folder, settings={**QUIET, **ON}) as convo:
        made: Any = httpx.post(f"{convo.url}/v1/webhooks", json={"url": url}).json()
        while httpx.get(f"{convo.url}/v1/webhooks/{made['id']}").json()["state"] != "active":
            time.sleep(0.05)
        httpx.patch(f"{convo.url}/v1/webhooks/{made['id']}", json={"active": False}).raise_for_status()
        posted = 0
        while posted < count:
            posted += _post_for(convo.url, 1.0, f"talk-{posted}")
        before = counter.value
        httpx.patch(f"{convo.url}/v1/webhooks/{made['id']}", json={"active": True}).raise_for_status()
        while counter.value <= before + 1:
            time.sleep(0.005)
        started, first = time.monotonic(), counter.value
        while counter.value < before + count:
            time.sleep(0.01)
        return float((counter.value - first) / (time.monotonic() - started))


@contextmanager
def _receiver() -> Iterator[tuple[str, Any]]:
    context = multiprocessing.get_context("spawn")
    counter, port = context.Value("q", 0), context.Value("i", 0)
    process = context.Process(target=_receiving, args=(counter, port), daemon=True)
    process.start()
    while not port.value:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port.value}/", counter
    finally:
        process.terminate()
        process.join()


def _receiving(counter: Any, port: Any) -> None:
    trio.run(_receive_all, counter, port)


async def _receive_all(counter: Any, port: Any) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        got = b""
        while piece := await stream.receive_some(65536):
            got += piece
            while b"\r\n\r\n" in got:
                head, _, rest = got.partition(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length"))
                if len(rest) < length:
                    break
                got = rest[length:]
                counter.value += 1
                await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port.value = listeners[0].socket.getsockname()[1]


if __name__ == "__main__":
    main()
