"""A language model that takes its time: it answers every call after so many seconds: ``slow_model.py PORT SECONDS``.

It costs little itself: no library reads its requests. ``GET /stats`` says how many calls were in flight at most since
the last time it was asked, how many there were in all, how many had an idempotency key that had been called with before
(and the first of these keys), of how many calls nobody awaited the answer, and how much processor it used.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import Counter
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_KEY = re.compile(rb"\r\nidempotency-key: ([^\r]+)", re.IGNORECASE)
_CONTENT = '{"questions": ["Why do dogs bark?"], "emotion": "happy"}'
_COMPLETION = json.dumps(
    {
        "id": "c", "object": "chat.completion", "created": 1, "model": "slow",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": _CONTENT}}],
    }
).encode()  # fmt: skip


class Stats:
    """What was called."""

    def __init__(self) -> None:
        self.in_flight = self.in_flight_max = self.calls = self.left = 0
        self.keys: Counter[bytes] = Counter()

    def text(self) -> bytes:
        """Return the figures as JSON, and begin the most in flight anew."""
        repeated = {key.decode(): count for key, count in self.keys.items() if count > 1}
        found = {
            "in_flight_max": self.in_flight_max, "calls": self.calls, "left": self.left,
            "repeated": sum(repeated.values()) - len(repeated), "repeated_keys": sorted(repeated)[:5],
            "cpu_seconds": time.process_time(),
        }  # fmt: skip
        self.in_flight_max = self.in_flight
        return json.dumps(found).encode()


class Call(asyncio.Protocol):
    """One connection: one call at a time."""

    def __init__(self, stats: Stats, seconds: float) -> None:
        self._stats = stats
        self._seconds = seconds
        self._received = bytearray()

    def connection_made(self, transport: Any) -> None:
        """Keep where answers go."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer when a request is whole."""
        self._received += data
        head, end, rest = bytes(self._received).partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or len(rest) < (int(length[1]) if length else 0):
            return
        self._received.clear()
        if not head.startswith(b"POST"):
            self._answer(self._stats.text() if b"/stats" in head else b"{}")
            return
        stats, key = self._stats, _KEY.search(head)
        stats.calls += 1
        stats.in_flight += 1
        stats.in_flight_max = max(stats.in_flight_max, stats.in_flight)
        if key:
            stats.keys[key[1]] += 1
        asyncio.get_running_loop().call_later(self._seconds, self._done)

    def _done(self) -> None:
        self._stats.in_flight -= 1
        self._stats.left += self._transport.is_closing()
        self._answer(_COMPLETION)

    def _answer(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


async def serve(port: int, seconds: float) -> None:
    """Serve until killed."""
    stats = Stats()
    server = await asyncio.get_running_loop().create_server(
        lambda: Call(stats, seconds), "127.0.0.1", port, backlog=2048
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
