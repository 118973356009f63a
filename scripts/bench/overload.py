#!/usr/bin/env python3
"""Offer three times what one convo takes, for 20 s, and look at who is let in, who is refused, and what comes after.

convo accepts and analyses in one process, with the embedded analyst and its embedded PostgreSQL, on disk, with fsync.
First its capacity is measured (as fast as it goes with as many connections as are let in), then an unloaded run (half
of that), then the flood: an open loop, in which a request is sent when it is due whatever became of the others. Then
the queue drains.

    .venv/bin/python scripts/bench/overload.py [--seconds 20] [--times 3] [--in-flight 16]

Exit code 0: refusals carry Retry-After, the p99 of those let in is within twice the unloaded one, memory is bounded,
and the backlog drains as fast as before.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import select
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import load, servers

console = Console()
BODY_BYTES = 4_000
CONNECTIONS = 400
LAST_SECONDS = 15.0
REFUSED_MS = 10.0
SETTLING_SECONDS, DRAIN_SECONDS = 2.0, 15.0
DRAINED_LEAST = 0.8
# jobs.handover_bytes of logs for workers, as much again around them, and what 32 requests hold.
MEMORY_MB = 2 * 34 + 32
_numbers = itertools.count(1)


def main() -> int:
    """Measure and print; return 0 when all of it was as promised."""
    asked = _arguments()
    settings = {"CONVO_INTAKE__IN_FLIGHT_MAX": str(asked.in_flight), "CONVO_OBSERVE__LOG_LEVEL": "error"}
    with (
        tempfile.TemporaryDirectory(prefix="convo-overload-", dir=asked.dir) as folder,
        _convo(folder, settings) as convo,
    ):
        tails = load.real_tails(BODY_BYTES)
        plan = load.Plan(
            url=f"{convo.url}/v1/conversations/end",
            tails=tails,
            connections=asked.in_flight,
            seconds=4.0,
            name="capacity",
        )
        load.run(msgspec.structs.replace(plan, seconds=2.0))  # warms up
        capacity = load.run(msgspec.structs.replace(plan, name="capacity-measured"))["rate"]
        console.print(f"capacity: {capacity:,.0f} conversations/s accepted while others are analysed")
        calm_rate = _drain_rate(convo)
        _drained(convo)
        unloaded = Flood(plan.url, tails, convo.pid).run(capacity / 2, 8.0)
        _drained(convo)
        flood = Flood(plan.url, tails, convo.pid).run(capacity * asked.times, asked.seconds)
        left = _open_jobs(convo)
        drain_rate = _drain_rate(convo)
    return _report(asked, unloaded, flood, left, (calm_rate, drain_rate))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the flood")
    parser.add_argument("--times", type=float, default=3.0, help="the flood as a multiple of the capacity")
    parser.add_argument("--in-flight", type=int, default=16, help="intake.in_flight_max")
    parser.add_argument("--dir", help="where the data folder is made (a disk; default: the temporary folder)")
    return parser.parse_args()


def _convo(folder: str, settings: dict[str, str]) -> contextlib.AbstractContextManager[servers.Server]:
    port = servers.free_port()
    command = [sys.executable, "-m", "convo", "serve", "--data-dir", f"{folder}/data", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    return servers.serving(command, url, Path(folder, "said"), environment=settings, ready="/readyz")


# --- the flood


class Seen:
    """Seconds from sending to the answer, of those let in and of those refused; the server's MB, each second."""

    def __init__(self) -> None:
        self.let_in: list[float] = []
        self.refused: list[float] = []
        self.without_hint = 0
        self.broken = 0
        self.unsent = 0
        self.busiest = 0
        self.memory: list[float] = []

    def note(self, answer: bytes, seconds: float) -> None:
        """Take in an answer."""
        if answer.startswith(b"HTTP/1.1 202"):
            self.let_in.append(seconds)
        else:
            self.refused.append(seconds)
            self.without_hint += b"\r\nretry-after: " not in answer.lower()


class _Asking(Struct):
    """One connection: since when it waits for an answer, and what has come of it."""

    socket: socket.socket
    sent: float = 0.0
    unwritten: bytes = b""
    received: bytes = b""


class Flood:
    """Sends each request when it is due, whatever became of the others, as far as there are connections.

    Without Trio: it shares the machine with the server, and must not be what is slow.
    """

    def __init__(  # noqa: PLR0913  (what is sent to whom, and over what)
        self,
        url: str,
        tails: list[str],
        pid: int,
        *,
        connections: int = CONNECTIONS,
        settling_seconds: float = SETTLING_SECONDS,
        seen: Seen | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._head = f"POST {parts.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
        self._tails = [tail.encode() for tail in tails]
        self._name = f"offer-{next(_numbers)}-{os.getpid()}"
        self._poll = select.epoll()
        self._busy: dict[int, _Asking] = {}
        self._free: list[_Asking] = []
        self._pid = pid
        self._connections, self._settling_seconds = connections, settling_seconds
        self.seen = Seen() if seen is None else seen

    def run(self, rate: float, seconds: float) -> Seen:
        """Offer so many requests a second for so many seconds, then wait for the last answers."""
        self._free = [self._connected() for _ in range(self._connections)]
        # The connections of a pool are there before they are needed: this is a flood of requests, not of clients.
        time.sleep(self._settling_seconds)
        started, number, requests = time.monotonic(), 0, int(rate * seconds)
        while number < requests or (self._busy and time.monotonic() < started + seconds + LAST_SECONDS):
            if time.monotonic() >= started + len(self.seen.memory):
                self.seen.memory.append(_rss(self._pid))
            while number < requests and started + number / rate <= time.monotonic():
                self._ask(number)
                number += 1
            wait = started + number / rate - time.monotonic() if number < requests else 0.1
            for descriptor, _ in self._poll.poll(max(0.0, wait)):
                self._look(self._busy[descriptor])
        self.seen.broken += len(self._busy)
        for asking in [*self._free, *self._busy.values()]:
            asking.socket.close()
        self._poll.close()
        return self.seen

    def _connected(self) -> _Asking:
        connection = socket.create_connection(self._address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(0)
        return _Asking(connection)

    def _ask(self, number: int) -> None:
        if not self._free:
            self.seen.unsent += 1
            return
        asking = self._free.pop()
        tail = self._tails[number % len(self._tails)]
        body = b'{"conversation_id": "%s-%d", %s' % (self._name.encode(), number, tail)
        asking.unwritten = b"%sContent-Length: %d\r\n\r\n%s" % (self._head, len(body), body)
        asking.received = b""
        self._busy[asking.socket.fileno()] = asking
        self.seen.busiest = max(self.seen.busiest, len(self._busy))
        self._poll.register(asking.socket, select.EPOLLIN)
        asking.sent = time.monotonic()
        self._write(asking)

    def _write(self, asking: _Asking) -> None:
        with contextlib.suppress(OSError):
            # Refused before the body is read, the connection may be closed while it is still sent: the answer is there.
            asking.unwritten = asking.unwritten[asking.socket.send(asking.unwritten) :]
        if asking.unwritten:
            self._poll.modify(asking.socket, select.EPOLLIN | select.EPOLLOUT)

    def _look(self, asking: _Asking) -> None:
        try:
            data = asking.socket.recv(1 << 16)
        except BlockingIOError:
            self._write(asking)
            return
        except OSError:
            data = b""
        asking.received += data
        head, end, rest = asking.received.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if data and (not end or len(rest) < length):
            return
        del self._busy[asking.socket.fileno()]
        self._poll.unregister(asking.socket)
        if end:
            self.seen.note(head, time.monotonic() - asking.sent)
        else:
            self.seen.broken += 1
        if not end or b"\r\nconnection: close" in head.lower():
            asking.socket.close()
            self._free.append(self._connected())
        else:
            self._free.append(asking)


# --- what is left behind


def _open_jobs(convo: servers.Server) -> int:
    """Count the conversations that are not analysed yet, by asking for the newest of each open state."""
    figures = httpx.get(f"{convo.url}/metrics", timeout=10).text.splitlines()
    accepted = figure_of(figures, 'convo_requests_total{method="POST",route="/v1/conversations/end",status="202"}')
    settled = figure_of(figures, 'convo_jobs_ended_total{ending="settle"}')
    return int(accepted - settled)


def figure_of(figures: list[str], name: str) -> float:
    """Read one figure of the text of /metrics, 0 where it is not there."""
    return next((float(line.rpartition(" ")[2]) for line in figures if line.startswith(name)), 0.0)


def _drain_rate(convo: servers.Server) -> float:
    """Return how many conversations a second are analysed while nothing else comes."""
    time.sleep(SETTLING_SECONDS)
    started, left = time.monotonic(), _open_jobs(convo)
    while time.monotonic() < started + DRAIN_SECONDS and _open_jobs(convo) > 0:
        time.sleep(0.25)
    return (left - _open_jobs(convo)) / (time.monotonic() - started)


def _drained(convo: servers.Server) -> None:
    while (left := _open_jobs(convo)) > 0:
        console.print(f"[dim]{left:,} conversations to be analysed …")
        time.sleep(5)


def _rss(pid: int) -> float:
    """Read the resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _p50(seconds: list[float]) -> float:
    return statistics.median(seconds or [0.0]) * 1000


def _p99(seconds: list[float]) -> float:
    ordered = sorted(seconds) or [0.0]
    return ordered[len(ordered) * 99 // 100] * 1000


def _report(
    asked: argparse.Namespace,
    unloaded: Seen,
    flood: Seen,
    left: int,
    drain_rates: tuple[float, float],
) -> int:
    ratio = _p99(flood.let_in) / _p99(unloaded.let_in)
    drained = drain_rates[1] / drain_rates[0]
    rows = [
        ("let in, and refused", f"{len(flood.let_in):,}, {len(flood.refused):,}", bool(flood.refused)),
        ("not sent: all connections were busy", f"{flood.unsent:,}", flood.unsent == 0),
        ("connections in use at once, at most", f"{flood.busiest}", True),
        ("broken connections", f"{flood.broken:,}", flood.broken == 0),
        ("refusals without Retry-After", f"{flood.without_hint:,}", flood.without_hint == 0),
        ("p99 unloaded, ms", f"{_p99(unloaded.let_in):.1f}", True),
        ("p99 of those let in, ms (as a multiple)", f"{_p99(flood.let_in):.1f} ({ratio:.2f})", ratio <= 2),
        (
            "p50 and p99 of the refusals, ms",
            f"{_p50(flood.refused):.1f}, {_p99(flood.refused):.1f}",
            _p99(flood.refused) <= REFUSED_MS,
        ),
        (
            "memory every 5 s, MB",
            ", ".join(f"{one:.0f}" for one in [*flood.memory[::5], flood.memory[-1]]),
            max(flood.memory) < flood.memory[0] + MEMORY_MB,
        ),
        ("backlog, and how fast it drained", f"{left:,}, {drain_rates[1]:,.0f} a second", True),
        ("as a multiple of before the flood", f"{drained:.2f}", drained > DRAINED_LEAST),
    ]
    table = Table("what", f"at {asked.times:g} times the capacity, {asked.seconds:g} s", "as promised")
    for what, value, good in rows:
        table.add_row(what, value, "yes" if good else "[red]no")
    console.print(table)
    return 0 if all(good for _, _, good in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
