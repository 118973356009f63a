#!/usr/bin/env python3
"""Offer three times what one convo takes, for 20 s, and look at who is let in, who is refused, and what comes after.

convo accepts and analyses in one process, with the embedded analyst and its embedded PostgreSQL, on disk, with fsync.
First its capacity is measured (as fast as 32 connections go), then an unloaded run (half of that), then the flood: an
open loop, in which a request is sent when it is due whatever became of the others. Then the queue drains.

    .venv/bin/python scripts/bench/overload.py [--seconds 20] [--times 3] [--in-flight 32]

Exit code 0: refusals carry Retry-After, the p99 of those let in is within twice the unloaded one, memory is bounded,
and the backlog drains as fast as before.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec
import trio
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import load, servers

console = Console()
BODY_BYTES = 4_000
CONNECTIONS = 400
REFUSED_MS = 10.0
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
            url=f"{convo.url}/v1/conversations/end", tails=tails, connections=32, seconds=5.0, name="capacity"
        )
        load.run(plan)  # warms up
        capacity = load.run(msgspec.structs.replace(plan, name="capacity-2"))["rate"]
        console.print(f"capacity: {capacity:,.0f} conversations/s accepted while others are analysed")
        _drained(convo)
        unloaded = trio.run(_offer, plan.url, tails, capacity / 2, 8.0)
        _drained(convo)
        before = _rss(convo.pid)
        flood = trio.run(_offer, plan.url, tails, capacity * asked.times, asked.seconds)
        after = _rss(convo.pid)
        left = _open_jobs(convo)
        drained_in = _drained(convo)
    return _report(asked, unloaded, flood, (before, after), left, drained_in)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the flood")
    parser.add_argument("--times", type=float, default=3.0, help="the flood as a multiple of the capacity")
    parser.add_argument("--in-flight", type=int, default=32, help="intake.in_flight_max")
    parser.add_argument("--dir", help="where the data folder is made (a disk; default: the temporary folder)")
    return parser.parse_args()


def _convo(folder: str, settings: dict[str, str]) -> contextlib.AbstractContextManager[servers.Server]:
    port = servers.free_port()
    command = [sys.executable, "-m", "convo", "serve", "--data-dir", f"{folder}/data", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    return servers.serving(command, url, Path(folder, "said"), environment=settings, ready="/readyz")


# --- the flood


class Seen:
    """Seconds from sending to the answer, of those let in and of those refused; and who got no Retry-After."""

    def __init__(self) -> None:
        self.let_in: list[float] = []
        self.refused: list[float] = []
        self.without_hint = 0
        self.broken = 0
        self.late = 0


async def _offer(url: str, tails: list[str], rate: float, seconds: float) -> Seen:
    """Send so many requests a second for so many seconds, each when it is due, as far as there are connections."""
    seen = Seen()
    free: list[trio.SocketStream] = []
    started, name = trio.current_time(), f"offer-{next(_numbers)}-{os.getpid()}"
    limiter = trio.CapacityLimiter(CONNECTIONS)
    async with trio.open_nursery() as nursery:
        for number in range(int(rate * seconds)):
            due = started + number / rate
            await trio.sleep_until(due)
            if limiter.available_tokens <= 0:
                seen.late += 1
                continue
            limiter.acquire_on_behalf_of_nowait(number)
            nursery.start_soon(_one, url, f'{{"conversation_id": "{name}-{number}", {tails[number % len(tails)]}', free,
                               seen, limiter, number)  # fmt: skip
    for stream in free:
        await trio.aclose_forcefully(stream)
    return seen


async def _one(  # noqa: PLR0913, PLR0917  (what one request needs)
    url: str, body: str, free: list[trio.SocketStream], seen: Seen, limiter: trio.CapacityLimiter, number: int
) -> None:
    parts = urlsplit(url)
    data = body.encode()
    head = f"POST {parts.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    try:
        stream = free.pop() if free else await trio.open_tcp_stream(parts.hostname or "", parts.port or 80)
        sent = trio.current_time()
        with contextlib.suppress(trio.BrokenResourceError):
            # Refused before the body is read, the connection may be closed while it is still sent.
            await stream.send_all(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = (await load.answer(stream)).lower()
    except (OSError, trio.BrokenResourceError, StopIteration):
        seen.broken += 1
        return
    finally:
        limiter.release_on_behalf_of(number)
    took = trio.current_time() - sent
    if answer.startswith(b"http/1.1 202"):
        seen.let_in.append(took)
    else:
        seen.refused.append(took)
        seen.without_hint += b"\r\nretry-after: " not in answer
    if b"\r\nconnection: close" in answer:
        await trio.aclose_forcefully(stream)
    else:
        free.append(stream)


# --- what is left behind


def _open_jobs(convo: servers.Server) -> int:
    """Count the conversations that are not analysed yet, by asking for the newest of each open state."""
    figures = httpx.get(f"{convo.url}/metrics", timeout=10).text.splitlines()
    accepted = _figure(figures, 'convo_requests_total{method="POST",route="/v1/conversations/end",status="202"}')
    settled = _figure(figures, 'convo_jobs_ended_total{ending="settle"}')
    return int(accepted - settled)


def _figure(figures: list[str], name: str) -> float:
    return next((float(line.rpartition(" ")[2]) for line in figures if line.startswith(name)), 0.0)


def _drained(convo: servers.Server) -> float:
    """Wait until every conversation is analysed; return the seconds it took."""
    started = time.monotonic()
    while _open_jobs(convo) > 0:
        if time.monotonic() > started + 300:
            raise SystemExit("the queue does not drain")
        time.sleep(0.25)
    return time.monotonic() - started


def _rss(pid: int) -> float:
    """Read the resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _p99(seconds: list[float]) -> float:
    ordered = sorted(seconds) or [0.0]
    return ordered[len(ordered) * 99 // 100] * 1000


def _report(  # noqa: PLR0913, PLR0917  (what was measured)
    asked: argparse.Namespace, unloaded: Seen, flood: Seen, rss: tuple[float, float], left: int, drained_in: float
) -> int:
    drain_rate = left / drained_in if drained_in else 0.0
    ratio = _p99(flood.let_in) / _p99(unloaded.let_in)
    rows = [
        ("let in, and refused", f"{len(flood.let_in):,}, {len(flood.refused):,}", bool(flood.refused)),
        ("not sent: all connections were busy", f"{flood.late:,}", True),
        ("broken connections", f"{flood.broken:,}", flood.broken == 0),
        ("refusals without Retry-After", f"{flood.without_hint:,}", flood.without_hint == 0),
        ("p99 unloaded, ms", f"{_p99(unloaded.let_in):.1f}", True),
        ("p99 of those let in, ms (as a multiple)", f"{_p99(flood.let_in):.1f} ({ratio:.2f})", ratio <= 2),
        ("p99 of the refusals, ms", f"{_p99(flood.refused):.1f}", _p99(flood.refused) <= REFUSED_MS),
        ("memory before and after, MB", f"{rss[0]:.0f}, {rss[1]:.0f}", rss[1] < rss[0] + 64),
        ("backlog, and how fast it drained", f"{left:,}, {drain_rate:,.0f} a second", True),
    ]
    table = Table("what", f"at {asked.times:g} times the capacity, {asked.seconds:g} s", "as promised")
    for what, value, good in rows:
        table.add_row(what, value, "yes" if good else "[red]no")
    console.print(table)
    return 0 if all(good for _, _, good in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
