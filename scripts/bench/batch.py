#!/usr/bin/env python3
"""Post the same conversations one by one and in batches to one convo, in turns, and show the ratio of the two rates.

    .venv/bin/python scripts/bench/batch.py                    # 4 KB and 45 KB, 5 rounds of 3 s each
    .venv/bin/python scripts/bench/batch.py --sizes 4 --rounds 2 --seconds 1

One by one: 32 connections, as ``accept.py`` posts them. In batches: ``--batches`` clients, each of which sends the next
batch when its last one is answered. Beside the rates stands what one conversation costs of the server's processor: on a
machine that others use, too, that changes less. Exit code 1 where a ratio of rates is below 0.8.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import databases, load, machine, servers

_RATIO_MIN = 0.8
_BODY_BYTES_MAX = 8 << 20


def main() -> int:
    """Measure and print; return 0 where batches are fast enough."""
    asked = _arguments()
    console = Console(width=max(Console().width, 120))
    for name, text in machine.about(databases.described(asked.database_url)).items():
        console.print(f"{name}: {text}", highlight=False, markup=False)
    names = (
        "size",
        "one by one",
        "in batches",
        "ratio, median",
        "of each round",
        "processor, one by one",
        "in batches",
    )
    table = Table(*names)
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="convo-batch-") as folder,
        databases.database(asked.database_url, "batch") as database,
        servers.convo(Path(folder), database, {"jobs.workers": "0"}) as server,
    ):
        for size in asked.sizes:
            rounds = [_round(server, load.real_tails(size * 1000), number, asked) for number in range(asked.rounds)]
            ratios = [one[1] / one[0] for one in rounds]
            singles, batches, *costs = (statistics.median(column) for column in zip(*rounds, strict=True))
            rows.append({"size_kb": size, "singles": singles, "batches": batches, "ratios": ratios, "cpu_us": costs})
            shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            rates = (f"{singles:,.0f}/s", f"{batches:,.0f}/s", f"{statistics.median(ratios):.2f}")
            table.add_row(f"{size} KB", *rates, shown, *(f"{cost:,.0f} µs" for cost in costs))
    console.print(table)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(statistics.median(row["ratios"]) < _RATIO_MIN for row in rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda text: [int(one) for one in text.split(",")], default=[4, 45])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each kind in a round")
    parser.add_argument("--batches", type=int, default=1, help="clients that send batches at once")
    parser.add_argument("--database-url", default=databases.GIVEN, help="a PostgreSQL whose role may make databases")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    return parser.parse_args()


def _round(
    server: servers.Server, tails: list[str], number: int, asked: argparse.Namespace
) -> tuple[float, float, float, float]:
    """Post for a while in both ways; return the conversations stored in a second by each, and the µs that one costs."""
    url, used = server.url, machine.cpu_seconds(server.pid)
    name = f"{len(tails[0])}-{number}-{time.monotonic_ns()}"
    plan = load.Plan(url=f"{url}/v1/conversations/end", tails=tails, connections=32, seconds=asked.seconds, name=name)
    posted = load.run(plan)
    first = machine.cpu_seconds(server.pid)
    stored, began = [0] * asked.batches, time.monotonic()
    clients = [
        threading.Thread(target=_send, args=(url, tails, f"{name}-b{client}", asked.seconds, stored, client))
        for client in range(asked.batches)
    ]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    rate, last = sum(stored) / (time.monotonic() - began), machine.cpu_seconds(server.pid)
    costs = (first - used) / max(1, posted["answered"]), (last - first) / max(1, sum(stored))
    return float(posted["rate"]), rate, 1e6 * costs[0], 1e6 * costs[1]


def _send(  # noqa: PLR0913, PLR0917  (one client of several)
    url: str, tails: list[str], name: str, seconds: float, stored: list[int], client: int
) -> None:
    """Send batch after batch over one socket; a client of a library would cost as much as the server."""
    at = urlsplit(url)
    until, number = time.monotonic() + seconds, 0
    count = min(1000, _BODY_BYTES_MAX // (len(tails[0]) + 64))
    with socket.create_connection((at.hostname or "", at.port or 80)) as wire:
        while time.monotonic() < until:
            lines = [
                f'{{"conversation_id":"{name}-{number}-{line}",{tails[line % len(tails)]}\n' for line in range(count)
            ]
            body = "".join(lines).encode()
            head = (
                f"POST /v1/conversations/batch HTTP/1.1\r\nHost: {at.hostname}\r\n"
                f"Content-Type: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            wire.sendall(head.encode() + body)
            answer = _answer(wire)
            stored[client] += answer.count(b'"digest":')
            number += 1


def _answer(wire: socket.socket) -> bytes:
    got = b""
    while b"\r\n\r\n" not in got:
        got += wire.recv(1 << 16)
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    pieces, size = [body], len(body)
    while size < length:
        pieces.append(wire.recv(1 << 16))
        size += len(pieces[-1])
    return b"".join(pieces)


if __name__ == "__main__":
    sys.exit(main())
