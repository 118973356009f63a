#!/usr/bin/env python3
"""Keep a thousand calls to a language model in flight, and show what one process does with them.

A model answers every call after 2 s (``slow_model.py``, whose own processor is shown). convo has a worker and a call
for each; a queue is filled first, then conversations come at a steady rate until the time is over.

    .venv/bin/python scripts/bench/calls.py [--workers 1000] [--seconds 60]
    .venv/bin/python scripts/bench/calls.py --client          # what an HTTP client costs a call

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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11
import httpx
import trio
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo import outbound
from scripts.bench import databases, load, machine, servers

_SIZE_BYTES = 4_000
_FILL_RATE = 1_500.0
_BODY = b'{"model": "slow", "messages": [{"role": "user", "content": "' + b"x" * _SIZE_BYTES + b'"}]}'
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

Post = Callable[[str], Awaitable[object]]
MakeClient = Callable[[int], contextlib.AbstractAsyncContextManager[Post]]
"""Opens a client for so many calls at a time; what it yields posts to an address."""


def _client_table(asked: argparse.Namespace) -> Table:
    """Measure calls at a time through httpx, through h11 alone, and through convo's own client."""
    table = Table("client", "calls in flight", "calls/s", "CPU a call, ms", title="HTTP clients")
    with tempfile.TemporaryDirectory(prefix="convo-calls-") as name, _model(Path(name), asked.answers) as model:
        url = f"{model}/chat/completions"
        for about, make in (
            ("httpx.AsyncClient, one pool", partial(_httpx_client, asked.workers + 1)),
            ("httpx.AsyncClient, pools of 8", partial(_httpx_client, 8)),
            ("httpx's transports, one for each connection", _transports_client),
            ("h11 on Trio, without TLS, proxies and errors", _h11_client),
            ("connections of our own, httptools reads the answer (convo)", _convo_client),
        ):
            figures = trio.run(_call, make, url, asked.workers, asked.seconds)
            table.add_row(about, str(asked.workers), f"{figures['rate']:.0f}", f"{figures['cpu']:.2f}")
    return table


async def _call(make: MakeClient, url: str, at_once: int, seconds: float) -> Mapping[str, float]:
    calls, until, began = 0, 0.0, 0.0
    async with make(at_once) as post:

        async def caller() -> None:
            nonlocal calls
            while trio.current_time() < until:
                await post(url)
                calls += 1

        # Connections are opened before.
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(post, url)
        until, began = trio.current_time() + seconds, time.process_time()
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(caller)
    return {"rate": calls / seconds, "cpu": 1000 * (time.process_time() - began) / max(1, calls)}


@contextlib.asynccontextmanager
async def _httpx_client(each: int, connections: int) -> AsyncIterator[Post]:
    trusted = httpx.create_ssl_context()
    limits = httpx.Limits(max_connections=each, max_keepalive_connections=each)
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(limits=limits, timeout=30.0, verify=trusted))
            for _ in range(-(-connections // each))
        ]
        free = [client for client in clients for _ in range(each)]

        async def post(url: str) -> None:
            client = free.pop()
            try:
                await client.post(url, content=_BODY, headers={"content-type": "application/json"})
            finally:
                free.append(client)

        yield post


@contextlib.asynccontextmanager
async def _transports_client(_: int) -> AsyncIterator[Post]:
    trusted = httpx.create_ssl_context()
    free: list[httpx.AsyncHTTPTransport] = []
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    timeout = httpx.Timeout(30.0).as_dict()

    async def post(url: str) -> None:
        transport = free.pop() if free else httpx.AsyncHTTPTransport(verify=trusted, limits=limits)
        headers = {"content-type": "application/json"}
        request = httpx.Request("POST", url, headers=headers, content=_BODY, extensions={"timeout": timeout})
        try:
            await (await transport.handle_async_request(request)).aread()
        finally:
            free.append(transport)

    yield post
    for transport in free:
        await transport.aclose()


@contextlib.asynccontextmanager
async def _convo_client(_: int) -> AsyncIterator[Post]:
    async with outbound.OutboundClient("llm", seconds=15.0) as client:
        yield lambda url: client.post(url, _BODY, {})


@contextlib.asynccontextmanager
async def _h11_client(_: int) -> AsyncIterator[Post]:
    free: list[tuple[trio.SocketStream, h11.Connection]] = []

    async def post(url: str) -> None:
        parts = urlsplit(url)
        if free:
            stream, connection = free.pop()
        else:
            stream = await trio.open_tcp_stream(parts.hostname or "", parts.port or 80)
            connection = h11.Connection(h11.CLIENT)
        headers = [("host", parts.netloc), ("content-type", "application/json"), ("content-length", str(len(_BODY)))]
        events = (h11.Request(method="POST", target=parts.path, headers=headers), h11.Data(_BODY), h11.EndOfMessage())
        with trio.fail_after(30):
            await stream.send_all(b"".join(connection.send(event) or b"" for event in events))
            while type(event := connection.next_event()) is not h11.EndOfMessage:
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(65_536))
        connection.start_next_cycle()
        free.append((stream, connection))

    yield post
    for stream, _connection in free:
        await stream.aclose()


if __name__ == "__main__":
    sys.exit(main())
