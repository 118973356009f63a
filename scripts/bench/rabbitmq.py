#!/usr/bin/env python3
"""Measure RabbitMQ's two roads: events a second to the broker, and conversations by queue beside single posts.

    CONVO_TEST_RABBITMQ_URL=amqp://guest:guest@127.0.0.1/ .venv/bin/python scripts/bench/rabbitmq.py --rounds 3

Events: conversations are posted to a convo without RabbitMQ; started again with it, it publishes what has gathered.
By queue: each round posts over 32 connections for a while, and then takes as long a backlog from a quorum queue. Beside
the rates stands what one event or conversation costs of convo's processor. What is made at the broker is removed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.rabbitmq.broker import Broker, Outgoing
from convo.rabbitmq.queues import dead_name
from convo.runtime.bridge import open_bridge
from convo.settings import RabbitmqSettings, Secret
from scripts.bench import databases, load, machine, servers
from tests.support.brokers import URL, client_of, own_name

_EVENTS = 3_000
_QUIET = {"jobs.workers": "0"}
_ACCEPTED = {**_QUIET, "events.types": '["conversation.accepted"]'}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of single posts in a round")
    parser.add_argument("--size", type=int, default=4, help="of a conversation, in KB")
    parser.add_argument("--database-url", default=databases.GIVEN, help="a PostgreSQL whose role may make databases")
    asked = parser.parse_args()
    if not URL:
        sys.exit("CONVO_TEST_RABBITMQ_URL names no RabbitMQ: set it to amqp://USER:PASSWORD@HOST/")
    for name, text in machine.about(databases.described(asked.database_url)).items():
        print(f"{name}: {text}")
    tails = load.real_tails(asked.size * 1000)
    with tempfile.TemporaryDirectory(prefix="convo-rabbitmq-") as folder:
        for part in ("events", "first", "posts", "queue"):
            Path(folder, part).mkdir()
        with databases.database(asked.database_url, "rabbitmq") as database:
            _events(Path(folder, "events"), database, tails, asked.seconds)
        with databases.database(asked.database_url, "rabbitmq") as database:
            _by_queue(Path(folder), database, tails, asked)


def _events(folder: Path, database: str, tails: list[str], seconds: float) -> None:
    exchange, queue = own_name("bench"), own_name("bench")
    trio.run(_bound, queue, exchange)
    try:
        with servers.convo(folder, database, _ACCEPTED) as server:
            posted = 0
            while posted < _EVENTS:
                posted += _post(server, tails, seconds, f"events-{posted}")["answered"]
        settings = {**_ACCEPTED, "rabbitmq.url": URL, "rabbitmq.exchange": exchange}
        with servers.convo(folder, database, settings) as server:
            rate, cost = _timed(server, "convo_events_published_total", posted)
        print(f"events to RabbitMQ: {posted:,} at {rate:,.0f}/s, {cost:,.0f} µs of the processor each", flush=True)
    finally:
        trio.run(_removed, (queue,), (exchange,))


def _by_queue(folder: Path, database: str, tails: list[str], asked: argparse.Namespace) -> None:
    queue, ratios = own_name("bench"), []
    try:
        settings = {**_QUIET, "rabbitmq.url": URL, "rabbitmq.intake_queue": queue}
        with servers.convo(folder / "first", database, settings):
            pass  # it makes the queue
        for number in range(asked.rounds):
            with servers.convo(folder / "posts", database, _QUIET) as server:
                used = machine.cpu_seconds(server.pid)
                posted = _post(server, tails, asked.seconds, f"post-{number}")
                single = 1e6 * (machine.cpu_seconds(server.pid) - used) / posted["answered"]
            count = int(posted["answered"])
            trio.run(_filled, queue, tails, number, count)
            with servers.convo(folder / "queue", database, settings) as server:
                rate, cost = _timed(server, 'convo_queue_messages_total{outcome="accepted"}', count)
            ratios.append(rate / float(posted["rate"]))
            print(
                f"posts {posted['rate']:,.0f}/s ({single:,.0f} µs), by queue {rate:,.0f}/s ({cost:,.0f} µs), ratio"
                f" {ratios[-1]:.2f}",
                flush=True,
            )
        print(f"by queue: median {statistics.median(ratios):.2f} of single posts")
    finally:
        trio.run(_removed, (queue, dead_name(queue)), (dead_name(queue),))


def _post(server: servers.Server, tails: list[str], seconds: float, name: str) -> Mapping[str, Any]:
    url = f"{server.url}/v1/conversations/end"
    found: Mapping[str, Any] = load.run(
        load.Plan(url=url, tails=tails, connections=32, seconds=seconds, name=f"{name}-{time.monotonic_ns()}")
    )
    return found


def _timed(server: servers.Server, metric: str, count: int) -> tuple[float, float]:
    """Wait until a counter is there; return its rate from its first growth on, and the µs of the processor for each."""
    began, used, first = 0.0, 0.0, 0.0
    with httpx.Client(base_url=server.url) as client:
        while (seen := _counter(client, metric)) < count:
            if seen and not first:
                began, used, first = time.monotonic(), machine.cpu_seconds(server.pid), seen
            time.sleep(0.02)
        left = count - first
        return left / (time.monotonic() - began), 1e6 * (machine.cpu_seconds(server.pid) - used) / left


def _counter(client: httpx.Client, metric: str) -> float:
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(f"{metric} "):
            return float(line.rpartition(" ")[2])
    return 0.0


async def _bound(queue: str, exchange: str) -> None:
    async with client_of(URL) as client:
        await client.bound(queue, exchange)


async def _removed(queues: tuple[str, ...], exchanges: tuple[str, ...]) -> None:
    async with client_of(URL) as client:
        await client.removed(queues=queues, exchanges=exchanges)


async def _filled(queue: str, tails: list[str], number: int, count: int) -> None:
    async def nothing(_: Any) -> None:
        """Declare nothing."""

    async with open_bridge() as bridge:
        broker = Broker(bridge, RabbitmqSettings(url=Secret(URL)), "bench", nothing)
        await broker.open()
        messages = [
            Outgoing(
                number=one,
                id=f"{number}-{one}",
                routing_key=queue,
                body=f'{{"conversation_id":"queue-{number}-{one}",{tails[one % len(tails)]}'.encode(),
                content_type="application/json",
            )
            for one in range(count)
        ]
        for start in range(0, count, 500):
            await broker.publish("", [[one] for one in messages[start : start + 500]], set())
        await broker.close()


if __name__ == "__main__":
    main()
