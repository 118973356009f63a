#!/usr/bin/env python3
"""Keep a thousand calls to a language model in flight, and show what one process does with them.

A model answers every call after 2 s (``slow_model.py``, whose own processor is shown). convo has a worker and a call
for each; a queue is filled first, then conversations come at a steady rate until the time is over.

    .venv/bin/python scripts/bench/calls.py [--workers 1000] [--seconds 60]
    .venv/bin/python scripts/bench/calls.py --client          # what httpx costs a call, and how its pool is cut

Exit code 0: nothing was called twice, no lease was lost, no job was given back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import trio
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo import outbound
from scripts.bench import databases, load, machine, servers

_SIZE_BYTES = 4_000
_FILL_RATE = 400.0
_OPEN = "SELECT count(*) FROM (SELECT FROM job WHERE state IN ('ready', 'leased') LIMIT 1) AS one"
_WATCHED = (
    *("lease_lost", "lease_rescued", "renewal_failed", "job_released", "job_failed", "job_parked", "ending_failed"),
    "breaker_opened",
)


def main() -> int:
    """Measure and print."""
    asked = _arguments()
    console = Console(width=max(Console().width, 120))
    for name, text in machine.about(databases.described(asked.database_url)).items():
        console.print(f"{name}: {text}", highlight=False, markup=False)
    if asked.client:
        console.print(_client_table(asked))
        return 0
    found = _measured(asked)
    table = Table("figure", "value", title=f"{asked.workers} workers, a model that answers after {asked.answers:g} s")
    for name, value in found.items():
        table.add_row(name, f"{value:,.2f}".rstrip("0").rstrip("."))
    console.print(table)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(found[name] for name in (*_WATCHED, "called twice")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000, help="workers, and calls at a time")
    parser.add_argument("--answers", type=float, default=2.0, help="seconds after which the model answers")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long conversations come")
    parser.add_argument("--rate", type=float, default=0.0, help="conversations a second; 0: only those of the queue")
    parser.add_argument("--queue", type=int, default=10_000, help="conversations in the queue when the workers start")
    parser.add_argument("--client", action="store_true", help="measure the HTTP client alone")
    parser.add_argument("--database-url", default=databases.GIVEN, help="a PostgreSQL whose role may make databases")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    return parser.parse_args()


@contextlib.contextmanager
def _model(folder: Path, seconds: float) -> Iterator[str]:
    port = servers.free_port()
    command = [sys.executable, str(servers.HERE / "slow_model.py"), str(port), str(seconds)]
    with servers.serving(command, f"http://127.0.0.1:{port}", folder / "model.log"):
        yield f"http://127.0.0.1:{port}"


def _stats(model: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{model}/stats").json()
    return found


def _measured(asked: argparse.Namespace) -> dict[str, float]:
    with (
        tempfile.TemporaryDirectory(prefix="convo-calls-") as name,
        databases.database(asked.database_url, "calls") as url,
        _model(Path(name), asked.answers) as model,
    ):
        folder = Path(name)
        settings = {
            "llm.model": "slow", "llm.base_url": model, "llm.concurrency": str(asked.workers),
            "observe.log_format": "json", "observe.log_level": "info",
        }  # fmt: skip
        with servers.convo(folder, url, {**settings, "jobs.workers": "0"}) as server:
            _post(server.url, "fill", _FILL_RATE, asked.queue / _FILL_RATE)
        with servers.convo(folder, url, {**settings, "jobs.workers": str(asked.workers)}) as server:
            return _worked(asked, server, url, model)


def _worked(asked: argparse.Namespace, server: servers.Server, url: str, model: str) -> dict[str, float]:
    since, until = time.monotonic(), time.monotonic() + asked.seconds
    done_before, cpu_before = _done(url), machine.cpu_seconds(server.pid)
    stats_before = _stats(model)
    rss, in_flight = [], []
    posting: dict[str, float] = {}
    poster = threading.Thread(target=lambda: posting.update(_post(server.url, "more", asked.rate, asked.seconds)))
    if asked.rate:
        poster.start()
    while time.monotonic() < until and databases.value(url, _OPEN):
        time.sleep(1.0)
        rss.append(machine.rss_bytes(server.pid))
        in_flight.append(_stats(model)["in_flight_max"])
    seconds = time.monotonic() - since
    if asked.rate:
        poster.join()
    stats, done = _stats(model), _done(url) - done_before
    calls = stats["calls"] - stats_before["calls"]
    cpu = machine.cpu_seconds(server.pid) - cpu_before
    said = server.said.read_text("utf-8", "replace")
    if stats["repeated"]:
        print(f"called twice, for example: {stats['repeated_keys']}", file=sys.stderr)
    third = max(1, len(rss) // 3)
    return {
        "seconds": seconds,
        "conversations a second": done / seconds,
        "calls in flight, most": max(in_flight, default=0.0),
        "calls in flight, median": sorted(in_flight)[len(in_flight) // 2] if in_flight else 0.0,
        "memory at most, MB": max(rss, default=0) / 1e6,
        "memory, first third, MB": sum(rss[:third]) / third / 1e6,
        "memory, last third, MB": sum(rss[-third:]) / third / 1e6,
        "convo's CPU a conversation, ms": 1000 * cpu / max(1, done),
        "the model's CPU a call, ms": 1000 * (stats["cpu_seconds"] - stats_before["cpu_seconds"]) / max(1, calls),
        "called twice": stats["repeated"],
        "answers that nobody awaited": stats["left"],
        **{event: float(said.count(f'"{event}"')) for event in _WATCHED},
        **{f"posted: {name}": posting[name] for name in ("p50", "p99", "failed") if posting},
    }


def _done(url: str) -> int:
    return int(databases.value(url, "SELECT coalesce(sum(n), 0) FROM ledger WHERE kind = 'done'"))


def _post(address: str, name: str, rate: float, seconds: float) -> load.Outcome:
    plan = load.Plan(
        url=f"{address}/v1/conversations/end",
        tails=load.real_tails(_SIZE_BYTES),
        connections=16,
        seconds=seconds,
        name=name,
        rate=rate,
    )
    return load.run(plan)


# --- the client alone


def _client_table(asked: argparse.Namespace) -> Table:
    """Measure calls at a time through the client of the product, with its pool cut in several ways."""
    table = Table("connections in a pool", "calls in flight", "calls/s", "CPU a call, ms", title="httpx")
    with tempfile.TemporaryDirectory(prefix="convo-calls-") as name, _model(Path(name), asked.answers) as model:
        for each, at_once in (
            (asked.workers + 1, 8),
            (asked.workers + 1, asked.workers),
            (32, asked.workers),
            (8, asked.workers),
        ):
            figures = trio.run(_call, model, each, at_once, asked.seconds, asked.workers)
            table.add_row(str(each), str(at_once), f"{figures['rate']:.0f}", f"{figures['cpu']:.2f}")
    return table


async def _call(model: str, each: int, at_once: int, seconds: float, connections: int) -> Mapping[str, float]:
    outbound.CONNECTIONS_EACH = each
    until, calls, began = trio.current_time() + seconds, 0, time.process_time()
    headers: dict[str, str] = {}
    body = b'{"model": "slow", "messages": [{"role": "user", "content": "' + b"x" * _SIZE_BYTES + b'"}]}'

    async def caller(client: outbound.OutboundClient) -> None:
        nonlocal calls
        while trio.current_time() < until:
            await client.post(f"{model}/chat/completions", body, headers)
            calls += 1

    async with (
        outbound.OutboundClient("llm", connections=connections + 1, seconds=15.0) as client,
        trio.open_nursery() as nursery,
    ):
        for _ in range(at_once):
            nursery.start_soon(caller, client)
    return {"rate": calls / seconds, "cpu": 1000 * (time.process_time() - began) / max(1, calls)}


if __name__ == "__main__":
    sys.exit(main())
