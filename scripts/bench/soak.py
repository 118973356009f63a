#!/usr/bin/env python3
"""Soak convo: many requests, good and bad, with random faults of clients among them; and see whether anything grows.

Descriptors, threads and memory are sampled all along, and where convo tells them its open connections; at the end it
is said of each whether it is flat: the last quarter against the second, the first being the time to warm up. The
requests are drawn from a seeded dice, so that two runs send the same.

    .venv/bin/python scripts/bench/soak.py                      # 300,000 requests: an hour's worth at 80 a second
    .venv/bin/python scripts/bench/soak.py --requests 20000     # about half a minute

Returns 0 when all is flat, the good requests were answered, and SIGTERM ended it with code 0.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import re
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import httpx
import trio
from msgspec import Struct, structs
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.settings import ConnectionSettings
from scripts.bench import attacks, databases, load, machine, malformed, servers
from scripts.bench.attacks import Aim
from scripts.bench.servers import Server

# Short deadlines where this convo has them, so that what faults leave behind is gone within the run.
_CONNECTION = {
    "head_seconds": 2.0,
    "body_seconds": 3.0,
    "write_seconds": 1.5,
    "linger_seconds": 1.0,
    "keep_alive_seconds": 5.0,
}
_SETTINGS = {
    "ladder.gateway_keep_alive_seconds": "4.0",
    # The hand-over map is bounded; a small bound is reached in the first quarter.
    "jobs.handover_bytes": "1048576",
}
_CLIENTS = 24
_HELD_SECONDS = (0.0, 1.5)
_RESTING_SECONDS = 8.0
_STOP_SECONDS = 35.0
_ANSWER_SECONDS = 15.0
_GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, StopIteration)
# What a figure of the last quarter may be over that of the second and still be called flat: a part of it, or a number.
_FLAT: Mapping[str, tuple[float, float]] = {
    "descriptors": (0.05, 10),
    "threads": (0.0, 3),
    "connections": (0.25, 8),
    "memory MB": (0.05, 6),
}
_OPENINGS = list(malformed.OPENINGS.values())
_CONNECTIONS = re.compile(r"^convo_connections\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)


class Sample(Struct, frozen=True, kw_only=True):
    """What the server held after so many requests; ``tasks`` is what it says of its own connections, where it does."""

    requests: int
    seconds: float
    figures: dict[str, float]
    tasks: float | None


class Soak:
    """The clients: each draws one request after another until all have been sent."""

    def __init__(self, aim: Aim, requests: int, seed: int, *, nonsense: bool) -> None:
        self.aim = aim
        self.count = requests
        self.sent = 0
        self.statuses: Counter[str] = Counter()
        self.unanswered = 0
        self._dice = random.Random(seed)
        self._numbers = iter(range(requests))
        kinds: Sequence[tuple[Callable[[], Awaitable[None]], int]] = (
            (self._good, 70),
            (self._replayed, 4),
            (self._conflicting, 2),
            (self._read, 8),
            (partial(self._fault, attacks.reset), 4),
            (partial(self._fault, attacks.half_closed), 2),
            (partial(self._fault, attacks.slow_head), 1),
            (partial(self._fault, attacks.slow_body), 1),
            (partial(self._fault, attacks.unread), 1),
            (partial(self._fault, attacks.unreleased), 2),
            (self._nonsense, 5 if nonsense else 0),
        )
        self._kinds = [kind for kind, _ in kinds]
        self._weights = [weight for _, weight in kinds]

    async def run(self) -> None:
        """Send everything."""
        async with trio.open_nursery() as nursery:
            for _ in range(_CLIENTS):
                nursery.start_soon(self._client)

    async def _client(self) -> None:
        stream: trio.SocketStream | None = None
        for _ in self._numbers:
            kind = self._dice.choices(self._kinds, self._weights)[0]
            if kind == self._good:
                stream = await self._kept(stream)
            else:
                await kind()
            self.sent += 1
        if stream is not None:
            await stream.aclose()

    # --- good ones

    async def _kept(self, stream: trio.SocketStream | None) -> trio.SocketStream | None:
        """Post on a connection that is kept; return it, or None when it is spent."""
        fresh = stream is None
        try:
            with trio.fail_after(_ANSWER_SECONDS):
                stream = stream or await self._connect()
                await stream.send_all(attacks.request(self.aim))
                head = await load.answer(stream)
        except _GONE:
            # An idle connection may end at the moment of the next request: that one is sent again.
            self.unanswered += fresh
            if stream is not None:
                await trio.aclose_forcefully(stream)
            return None
        self._count(head)
        # Now and then a client comes anew.
        if b"\r\nconnection: close" in head.lower() or self._dice.random() < 0.02:
            await stream.aclose()
            return None
        return stream

    async def _good(self) -> None:
        await self._kept(None)

    async def _replayed(self) -> None:
        again = attacks.request(self.aim)
        await self._once(again)
        await self._once(again)

    async def _conflicting(self) -> None:
        first = attacks.request(self.aim)
        await self._once(first)
        await self._once(first.replace(b'"bot_id": "bench"', b'"bot_id": "other"'))

    async def _read(self) -> None:
        path = self._dice.choice(
            ["/v1/conversations?limit=5", "/readyz", self.aim.large, "/nothing", "/v1/users/none/x"]
        )
        await self._once(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())

    async def _once(self, sent: bytes) -> None:
        try:
            with trio.fail_after(_ANSWER_SECONDS):
                async with await self._connect() as stream:
                    await stream.send_all(sent)
                    self._count(await load.answer(stream))
        except _GONE:
            self.unanswered += 1

    def _count(self, head: bytes) -> None:
        self.statuses[head[9:12].decode("ascii", "replace")] += 1

    async def _connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(self.aim.host, self.aim.port)

    # --- bad ones

    async def _fault(self, take: attacks.Take) -> None:
        with contextlib.suppress(*_GONE), trio.move_on_after(_ANSWER_SECONDS):
            stream = await take(self.aim)
            if stream is not None:
                await trio.sleep(self._dice.uniform(*_HELD_SECONDS))
                await trio.aclose_forcefully(stream)

    async def _nonsense(self) -> None:
        with contextlib.suppress(*_GONE), trio.move_on_after(1.0):
            async with await self._connect() as stream:
                await stream.send_all(self._sent_in_nonsense())
                await stream.send_eof()
                await stream.receive_some()

    def _sent_in_nonsense(self) -> bytes:
        if self._dice.random() < 0.5:
            return self._dice.choice(_OPENINGS)
        return malformed.mutation(self._dice.randrange(1_000_000))


def main() -> int:
    """Soak and say what grew; return 0 when nothing did."""
    asked = _arguments()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    console = Console(width=max(Console().width, 120))
    for name, text in machine.about(databases.described(asked.database_url)).items():
        console.print(f"{name}: {text}", highlight=False, markup=False)
    with (
        tempfile.TemporaryDirectory(prefix="convo-soak-") as folder,
        databases.database(asked.database_url, "soak") as url,
        servers.convo(Path(folder), url, _settings(asked.workers)) as server,
    ):
        soak, samples = trio.run(_soak, server, asked)
        died = server.process.poll()
        stopped = servers.stop(server.process, _STOP_SECONDS)
        wrong = list(_wrong(soak, samples, died, stopped, server.process.returncode))
    _show(console, soak, samples, stopped)
    if asked.json:
        kept = [structs.asdict(sample) for sample in samples]
        asked.json.write_text(json.dumps({"samples": kept, "statuses": soak.statuses}, indent=1) + "\n")
    for line in wrong:
        console.print(line, style="red", highlight=False)
    console.print("flat" if not wrong else "not flat, or not well", highlight=False)
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300_000)
    parser.add_argument("--workers", type=int, default=4, help="analyses side by side meanwhile")
    parser.add_argument("--polite", action="store_true", help="no malformed requests: stock hypercorn dies of some")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--samples", type=int, default=60, help="how often to look at the server")
    parser.add_argument("--body", type=int, default=1000, help="size of a conversation's body, in bytes")
    parser.add_argument("--database-url", default=databases.GIVEN, help="a PostgreSQL whose role may make databases")
    parser.add_argument("--json", type=Path, help="keep the samples in this file")
    return parser.parse_args()


def _settings(workers: int) -> dict[str, str]:
    known = {field.name for field in structs.fields(ConnectionSettings)}
    short = {f"connection.{name}": str(seconds) for name, seconds in _CONNECTION.items() if name in known}
    return {**_SETTINGS, **short, "jobs.workers": str(workers)}


async def _soak(server: Server, asked: argparse.Namespace) -> tuple[Soak, list[Sample]]:
    tails = load.real_tails(asked.body)
    aim = Aim(
        host="127.0.0.1",
        port=server.port,
        large=_large(server),
        tail=tails[0],
        lives=lambda: server.process.poll() is None,
    )
    soak = Soak(aim, asked.requests, asked.seed, nonsense=not asked.polite)
    samples: list[Sample] = []
    began = time.monotonic()
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            for step in itertools.count(1):
                while soak.sent * asked.samples < step * asked.requests:
                    if not aim.lives():
                        nursery.cancel_scope.cancel()
                    await trio.sleep(0.05)
                samples.append(await _sample(server, soak.sent, began))
                print(f"{soak.sent} requests: {samples[-1].figures}", file=sys.stderr)

        nursery.start_soon(look)
        await soak.run()
        nursery.cancel_scope.cancel()
    await trio.sleep(_RESTING_SECONDS)
    if aim.lives():
        samples.append(await _sample(server, soak.sent, began))
    return soak, samples


def _large(server: Server) -> str:
    body = '{"conversation_id": "large-conversation", ' + load.real_tails(200_000)[0]
    headers = {"Content-Type": "application/json"}
    httpx.post(f"{server.url}/v1/conversations/end", content=body, headers=headers).raise_for_status()
    return "/v1/conversations/large-conversation/log"


async def _sample(server: Server, requests: int, began: float) -> Sample:
    figures = {
        "descriptors": float(machine.descriptors(server.pid)),
        "threads": float(machine.threads(server.pid)),
        "connections": float(machine.connections(server.pid, server.port)),
        "memory MB": machine.rss_bytes(server.pid) / 1e6,
    }
    return Sample(
        requests=requests,
        seconds=time.monotonic() - began,
        figures=figures,
        tasks=await trio.to_thread.run_sync(_tasks, server),
    )


def _tasks(server: Server) -> float | None:
    try:
        told = _CONNECTIONS.findall(httpx.get(f"{server.url}/metrics", timeout=10.0).text)
    except httpx.HTTPError:
        return None
    return sum(map(float, told)) if told else None


# --- telling


def _quarters(samples: Sequence[Sample], figure: str) -> tuple[float, float]:
    """Return the medians of the second and of the last quarter of what was sampled under load."""
    loaded = [sample.figures[figure] for sample in samples[:-1]] or [0.0]
    quarter = max(1, len(loaded) // 4)
    return float(statistics.median(loaded[quarter : 2 * quarter] or loaded)), float(
        statistics.median(loaded[-quarter:])
    )


def _is_flat(samples: Sequence[Sample], figure: str) -> bool:
    before, after = _quarters(samples, figure)
    part, number = _FLAT[figure]
    return after - before <= max(before * part, number)


def _wrong(soak: Soak, samples: Sequence[Sample], died: int | None, stopped: float | None, code: int) -> Iterator[str]:
    if died is not None:
        yield f"convo died after {soak.sent} requests, with code {died}"
        return
    for figure in _FLAT:
        if not _is_flat(samples, figure):
            before, after = _quarters(samples, figure)
            yield f"{figure} grew from {before:.1f} to {after:.1f}"
    if soak.unanswered:
        yield f"{soak.unanswered} good requests were not answered"
    if failed := sum(count for status, count in soak.statuses.items() if status.startswith("5")):
        yield f"{failed} good requests were answered with 5xx"
    if stopped is None or code:
        yield f"SIGTERM did not end it well: {stopped} s, code {code}"


def _show(console: Console, soak: Soak, samples: Sequence[Sample], stopped: float | None) -> None:
    seconds = samples[-1].seconds - _RESTING_SECONDS if samples else 0.0
    answered = ", ".join(f"{status}: {count}" for status, count in sorted(soak.statuses.items()))
    console.print(f"{soak.sent} requests in {seconds:.0f} s; answers: {answered}; SIGTERM {stopped} s", highlight=False)
    table = Table("", "first", "second quarter", "last quarter", "most", "at rest after", "flat")
    for figure in _FLAT:
        if samples:
            table.add_row(figure, *_cells(samples, figure))
    console.print(table)


def _cells(samples: Sequence[Sample], figure: str) -> list[str]:
    values = [sample.figures[figure] for sample in samples]
    shown = (values[0], *_quarters(samples, figure), max(values), values[-1])
    return [*(f"{value:.1f}" for value in shown), "yes" if _is_flat(samples, figure) else "no"]


if __name__ == "__main__":
    sys.exit(main())
