#!/usr/bin/env python3
"""Read from convo with 96 clients that never wait, while jobs are at work; show what heartbeats and accepts notice.

    .venv/bin/python scripts/bench/readers.py                  # 30 s alone, then 30 s among the readers
    .venv/bin/python scripts/bench/readers.py --seconds 5 --readers 24

The model takes 6 s for each call, so every lease lives through several heartbeats of 1 s. Each fifth of a second the
database is asked how long the leases have left: one that was not renewed for two heartbeats is late. Four good clients
post 40 conversations a second meanwhile.

The readers are a process of low priority. Where all run on the same two cores, their own work would take the processor
from the server for milliseconds at a time, and those clients are elsewhere when it is in use. ``--same-priority`` shows
the difference. In between, the same readers read another convo, on a database of its own: what the accepts notice then
is the machine's part, its processors and its PostgreSQL, and not that of the process that is read.

Exit code 0: no heartbeat late, no renewal failed, no lease lost, the p99 of the accepts within twice that of before, or
within one and a half times that of the row in between.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import trio
from msgspec import Struct, to_builtins
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import databases, hostile_servers, load, machine, servers, storms
from scripts.bench.attacks import Aim
from scripts.bench.servers import ROOT, Server

_MODEL_SECONDS = 6
_HEARTBEAT_SECONDS, _LEASE_SECONDS = 1.0, 6.0
_SETTINGS = {
    "llm.model": "slow",
    "jobs.workers": "8",
    "jobs.heartbeat_seconds": str(_HEARTBEAT_SECONDS),
    "jobs.lease_seconds": str(_LEASE_SECONDS),
    "observe.log_format": "json",
}
_LATE = f"""
SELECT count(*) FROM job
WHERE state = 'leased' AND leased_until < now() + interval '{_LEASE_SECONDS - 2 * _HEARTBEAT_SECONDS:g} s'
"""
_PATHS = ("/v1/conversations?limit=200", "/v1/users/user-0/relationship", "/debug/tasks", "/readyz", "/metrics")
_LARGE_ID = "large-conversation"
_TIMES_MAX, _TIMES_ELSEWHERE_MAX = 2.0, 1.5
_WARM_SECONDS = 2.0
_NICE = 15


class Seen(Struct, kw_only=True):
    """What was seen with a number of readers; latencies in milliseconds."""

    readers: int
    reads: str
    p50: float = 0.0
    p99: float = 0.0
    posted: int = 0
    failed: int = 0
    leases: int = 0
    late: int = 0
    logged: dict[str, int]


def main() -> int:
    """Measure and print; return 0 when nobody noticed the readers."""
    asked = _arguments()
    if asked.only_read:
        os.nice(0 if asked.same_priority else _NICE)
        trio.run(_read, asked.only_read, asked.readers)
    console = Console(width=max(Console().width, 120))
    for name, text in machine.about(databases.described(asked.database_url)).items():
        console.print(f"{name}: {text}", highlight=False, markup=False)
    with (
        tempfile.TemporaryDirectory(prefix="convo-readers-") as folder,
        databases.database(asked.database_url, "readers") as database,
        _model() as model,
        servers.convo(Path(folder), database, {**_SETTINGS, "llm.base_url": model}) as server,
        _another(asked) as another,
    ):
        for one in (server, another):
            _post_large(one)
        trio.run(_seen, asked, server, database, None, _WARM_SECONDS)
        rows = [trio.run(_seen, asked, server, database, read, asked.seconds) for read in (None, another, server)]
    console.print(_table(rows))
    if asked.json:
        asked.json.write_text(json.dumps(to_builtins(rows), indent=1) + "\n")
    wrong = list(_faults(*rows))
    for line in wrong:
        console.print(line, style="red", highlight=False)
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long, alone and among the readers")
    parser.add_argument("--readers", type=int, default=96, help="clients that read")
    parser.add_argument("--same-priority", action="store_true", help="let the readers take as much processor as convo")
    parser.add_argument("--only-read", type=int, metavar="PORT", help="be the readers of a server, until terminated")
    parser.add_argument("--database-url", default=databases.GIVEN, help="a PostgreSQL whose role may make databases")
    parser.add_argument("--json", type=Path, help="keep the rows in this file")
    return parser.parse_args()


@contextlib.contextmanager
def _model() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.support.fakes", "model", "--always", "slow", str(_MODEL_SECONDS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as process:
        try:
            found = re.search(r"http://\S+", process.stdout.readline() if process.stdout else "")
            if found is None:
                raise SystemExit("the fake model did not start")
            yield found[0]
        finally:
            process.terminate()


def _post_large(server: Server) -> None:
    content = f'{{"conversation_id": "{_LARGE_ID}", {load.real_tails(1_500_000)[0]}'
    headers = {"Content-Type": "application/json"}
    httpx.post(f"{server.url}/v1/conversations/end", content=content, headers=headers, timeout=30).raise_for_status()


@contextlib.contextmanager
def _another(asked: argparse.Namespace) -> Iterator[Server]:
    with (
        tempfile.TemporaryDirectory(prefix="convo-another-") as folder,
        databases.database(asked.database_url, "another") as database,
        servers.convo(Path(folder), database, {}) as server,
    ):
        yield server


async def _seen(asked: argparse.Namespace, server: Server, database: str, read: Server | None, seconds: float) -> Seen:
    reads = "nobody" if read is None else "this convo" if read is server else "another convo"
    seen, begins = Seen(readers=asked.readers if read else 0, reads=reads, logged={}), server.said.stat().st_size
    # The plan's name has the length in it: runs of the same length would send the same ids.
    plan = hostile_servers.good_plan(server, "127.0.0.1", seconds + len(reads) / 1000)
    with contextlib.nullcontext() if read is None else _reading(read, asked):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_leases, seen, database)
            found = await trio.to_thread.run_sync(load.run, plan)
            nursery.cancel_scope.cancel()
    seen.p50, seen.p99 = found["p50"], found["p99"]
    seen.posted, seen.failed = int(found["answered"]), int(found["failed"])
    seen.logged = _logged(server.said, begins)
    return seen


@contextlib.contextmanager
def _reading(server: Server, asked: argparse.Namespace) -> Iterator[None]:
    """Run the readers as a process of their own, as long as the block runs."""
    command = [sys.executable, str(Path(__file__)), "--only-read", str(server.port), "--readers", str(asked.readers)]
    with subprocess.Popen([*command, *["--same-priority"] * asked.same_priority], cwd=ROOT) as process:
        try:
            yield
            if process.poll() is not None:
                raise SystemExit("the readers ended by themselves")
        finally:
            process.terminate()


async def _read(port: int, readers: int) -> None:
    aim = Aim(host="127.0.0.1", port=port, large="", tail="", lives=lambda: True)
    large = f"/v1/conversations/{_LARGE_ID}/log"
    storm = storms.Storm(does="reads", clients=readers, pieces=storms.gets(large, *_PATHS))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storms.blow, storm, aim)
        nursery.start_soon(trio.sleep_forever)


async def _watch_leases(seen: Seen, database: str) -> None:
    while True:
        leases, late = await trio.to_thread.run_sync(_leases, database)
        seen.leases, seen.late = max(seen.leases, leases), seen.late + late
        await trio.sleep(0.2)


def _leases(database: str) -> tuple[int, int]:
    leases = databases.value(database, "SELECT count(*) FROM job WHERE state = 'leased'")
    return leases, databases.value(database, _LATE)


def _logged(said: Path, begins: int) -> dict[str, int]:
    """Count what convo has logged of its leases."""
    with said.open("rb") as log:
        log.seek(begins)
        text = log.read().decode("utf-8", "replace")
    return {event: text.count(f'"{event}"') for event in ("renewal_failed", "lease_lost", "lease_rescued")}


def _faults(alone: Seen, elsewhere: Seen, among: Seen) -> Iterator[str]:
    if not among.leases:
        yield "no job was at work: nothing was measured"
    if among.late:
        yield f"{among.late} leases were seen that were renewed late"
    for event, count in among.logged.items():
        if count:
            yield f"{event} was logged {count} times"
    if among.failed:
        yield f"{among.failed} requests of good clients failed"
    if among.p99 > max(_TIMES_MAX * alone.p99, _TIMES_ELSEWHERE_MAX * elsewhere.p99):
        yield (
            f"the p99 of the accepts is {among.p99 / alone.p99:.1f} times that of before, allowed are {_TIMES_MAX:g},"
            f" and {among.p99 / elsewhere.p99:.1f} times that of beside readers of another convo, allowed are"
            f" {_TIMES_ELSEWHERE_MAX:g}"
        )


def _table(rows: list[Seen]) -> Table:
    table = Table("readers", "of", "accepts", "failed", "p50", "p99", "leases at once", "renewed late", "logged")
    for row in rows:
        logged: dict[str, Any] = {event: count for event, count in row.logged.items() if count}
        table.add_row(
            str(row.readers), row.reads, str(row.posted), str(row.failed), f"{row.p50:.1f} ms", f"{row.p99:.1f} ms",
            str(row.leases), str(row.late), ", ".join(f"{event} {count}" for event, count in logged.items()),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())
