#!/usr/bin/env python3
"""Replay the incident that convo answers: everything it depends on fails at once, under 200 clients; then audit.

Real processes and real sockets on loopback, bounded: a model that hangs, a memory service that takes 20 s, PostgreSQL
stopped (SIGSTOP) for 15 s, its pool exhausted by locks, 200 clients behind a gateway that gives up after 10 s. Then
everything is mended, the backlog is waited for, and the database is asked what became of every receipt.

    .venv/bin/python scripts/bench/incident.py [--clients 200] [--rate 50]

Exit code 0: no answer later than web.request + 0.5 s, nothing lost, nothing scored twice, no attempt spent, and every
alert that was due told once and over at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import trio
import trio_asyncio
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
GATEWAY_SECONDS = 10.0
REQUEST_SECONDS = 8.0
LATE_SECONDS = REQUEST_SECONDS + 0.5
# How long the backlog may take once everything is back: a breaker's period, and the work itself.
DRAIN_SECONDS = 240.0
_numbers = itertools.count(1)
console = Console()


def main() -> int:
    """Replay it, print what was seen; return 0 when all of it was as promised."""
    asked = _arguments()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="convo-incident-")))
        database, postmaster = stack.enter_context(_postgres(folder / "database"))
        model = stack.enter_context(_fake("model", "stuck"))
        memory = stack.enter_context(_fake("memory", "slow", "20"))
        settings = {
            "DATABASE__URL": database,
            "LLM__BASE_URL": model,
            "LLM__MODEL": "incident",
            "MEMORY__URL": memory,
            "WEB__REQUEST_SECONDS": str(REQUEST_SECONDS),
        }
        url = stack.enter_context(_convo(folder / "convo", settings))
        seen = Seen()
        trio_asyncio.run(_replay, url, database, postmaster, (model, memory), asked, seen)
        found = trio_asyncio.run(_audit, database, seen)
        console.print(_answers(seen))
        found += _alerts(url)
    console.print(_verdict(found))
    return 0 if all(good for _, _, good in found) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200, help="clients side by side")
    parser.add_argument("--rate", type=float, default=50.0, help="new conversations a second, all clients together")
    return parser.parse_args()


class Seen:
    """What the clients saw: of every answer the phase, the status and the seconds; of every 202 the id."""

    def __init__(self) -> None:
        self.phase = "the start"
        self.answers: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self.accepted: set[str] = set()
        self.without_hint = 0

    @property
    def slowest(self) -> float:
        """The longest that anybody waited for an answer, in seconds."""
        return max(itertools.chain.from_iterable(self.answers.values()))


# --- the clients


async def _client(url: str, think: float, seen: Seen, stop: trio.Event) -> None:
    """Post one conversation after the other, as a client behind the gateway does, until told to stop."""
    async with httpx.AsyncClient(base_url=url, timeout=GATEWAY_SECONDS) as client:
        await trio.sleep(random.random() * think)
        while not stop.is_set():
            body = _body(f"incident-{next(_numbers)}")
            pause = await _post(client, body, seen)
            while pause is not None and not stop.is_set():
                await trio.sleep(pause)
                pause = await _post(client, body, seen)
            await _read(client, body, seen)
            await trio.sleep(think * (0.5 + random.random()))


def _body(name: str) -> dict[str, Any]:
    said = (("BOT", "Hello! How was your day?"), ("USER", f"I like tea. Is {name} my name?"), ("BOT", "It is."))
    log = [{"character": who, "content": what} for who, what in said]
    return {"conversation_id": name, "user_id": f"user-{hash(name) % 50}", "bot_id": "pika", "conversation_log": log}


async def _post(client: httpx.AsyncClient, body: dict[str, Any], seen: Seen) -> float | None:
    """Post once; return how long to wait before the same again, None when it is accepted."""
    status, answer = await _timed(seen, client.post("/v1/conversations/end", json=body))
    if status == "202":
        seen.accepted.add(body["conversation_id"])
        return None
    hint = answer.headers.get("retry-after") if answer is not None else None
    if answer is not None and hint is None:
        seen.without_hint += 1
    return float(hint or 1.0)


async def _read(client: httpx.AsyncClient, body: dict[str, Any], seen: Seen) -> None:
    await _timed(seen, client.get(f"/v1/users/{body['user_id']}/relationship"))


async def _timed(seen: Seen, call: Any) -> tuple[str, httpx.Response | None]:
    started, phase, answer = time.perf_counter(), seen.phase, None
    try:
        answer = await call
        status = str(answer.status_code)
        if answer.status_code >= 400:
            status += f" {answer.json()['code']}"
    except httpx.TimeoutException:
        status = "504 at the gateway"
    except httpx.TransportError as error:
        status = type(error).__name__
    seen.answers[phase, status].append(time.perf_counter() - started)
    return status, answer


# --- what goes wrong


async def _replay(  # noqa: PLR0913, PLR0917  (everything that takes part)
    url: str, database: str, postmaster: int, fakes: Sequence[str], asked: argparse.Namespace, seen: Seen
) -> None:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(asked.clients):
            nursery.start_soon(_client, url, asked.clients / asked.rate, seen, stop)
        await _phase(seen, "the model hangs, the memory service takes 20 s", 25.0)
        await _stopped(seen, postmaster, 15.0)
        await _phase(seen, "PostgreSQL is back", 10.0)
        await _exhausted(seen, database, 8.0)
        await _phase(seen, "all is mended", 0.0)
        for fake in fakes:
            await trio.to_thread.run_sync(_script, fake)
        await trio.sleep(10.0)
        stop.set()
    await _drained(database)


async def _phase(seen: Seen, name: str, seconds: float) -> None:
    seen.phase = name
    console.print(f"[dim]{name} …")
    await trio.sleep(seconds)


async def _stopped(seen: Seen, postmaster: int, seconds: float) -> None:
    pids = _family(postmaster)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        await _phase(seen, f"PostgreSQL is stopped for {seconds:.0f} s", seconds)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


async def _exhausted(seen: Seen, database: str, seconds: float) -> None:
    """Lock what readers and settles need, so that each of them holds its connection as long as it may."""

    async def hold() -> None:
        connection = await asyncpg.connect(database)
        await connection.execute("BEGIN; LOCK TABLE relationship IN ACCESS EXCLUSIVE MODE")
        seen.phase = "the pool is exhausted"
        await connection.fetchval("SELECT pg_sleep($1)", seconds)
        await connection.close()

    console.print("[dim]the pool is exhausted …")
    await trio_asyncio.aio_as_trio(hold)()


def _script(fake: str) -> None:
    httpx.post(f"{fake}/_fake", json={"always": ["healthy"]}, timeout=10).raise_for_status()


async def _drained(database: str) -> None:
    started = time.monotonic()

    async def left() -> int:
        connection = await asyncpg.connect(database)
        count: int = await connection.fetchval("SELECT count(*) FROM job WHERE state IN ('ready', 'leased')")
        await connection.close()
        return count

    while (count := await trio_asyncio.aio_as_trio(left)()) and time.monotonic() < started + DRAIN_SECONDS:
        console.print(f"[dim]{count} conversations to be analysed …")
        await trio.sleep(5.0)
    console.print(f"[dim]drained {time.monotonic() - started:.0f} s after the clients stopped")


# --- the audit

Found = list[tuple[str, object, bool]]


async def _audit(database: str, seen: Seen) -> Found:
    async def ask() -> dict[str, Any]:
        connection = await asyncpg.connect(database)
        row = await connection.fetchrow(_BOOKS)
        stored = {row["conversation_id"] for row in await connection.fetch("SELECT conversation_id FROM conversation")}
        await connection.close()
        return {**dict(row), "lost": len(seen.accepted - stored)}

    books = await trio_asyncio.aio_as_trio(ask)()
    late = sum(seconds > LATE_SECONDS for all_ in seen.answers.values() for seconds in all_)
    return [
        ("conversations accepted", len(seen.accepted), True),
        (f"answers over {LATE_SECONDS:g} s (slowest {seen.slowest:.2f} s)", late, late == 0),
        ("refusals without Retry-After", seen.without_hint, seen.without_hint == 0),
        ("accepted, and lost", books["lost"], books["lost"] == 0),
        ("not done at the end", books["open"] + books["dead"], books["open"] + books["dead"] == 0),
        ("scored twice, or not at all", books["off"], books["off"] == 0),
        ("attempts spent on outages", books["spent"], books["spent"] == 0),
    ]


# What must have been told, each of its own component, and be over now; what else was told is shown beside it.
_EXPECTED = ("LLM_UNAVAILABLE", "MEMORY_UNAVAILABLE", "POSTGRES_UNAVAILABLE", "POSTGRES_POOL_EXHAUSTED")
RESOLVED_SECONDS = 150.0


def _alerts(url: str) -> Found:
    """Wait until every alert is resolved, show them in the order they were raised, and compare with what was due."""
    until = time.monotonic() + RESOLVED_SECONDS
    while (view := httpx.get(f"{url}/v1/alerts", timeout=10).json())["active"] and time.monotonic() < until:
        time.sleep(2)
    table = Table("alert", "of", "level", "raised", "resolved", "times")
    told = sorted(view["active"] + view["recent"], key=lambda one: str(one["raised_at"]))
    for one in told:
        ended = (one["ended_at"] or "lasts")[11:19]
        table.add_row(one["type"], one["component"], one["level"], one["raised_at"][11:19], ended, str(one["count"]))
    console.print(table)
    raised = {one["type"] for one in told}
    missing = [name for name in _EXPECTED if name not in raised]
    twice = len(told) - len({(one["type"], one["component"]) for one in told})
    return [
        ("alerts raised more than once", twice, twice == 0),
        ("alerts still raised at the end", len(view["active"]), not view["active"]),
        (f"alerts that were due and did not come {' '.join(missing)}".strip(), len(missing), not missing),
    ]


_BOOKS = """
SELECT count(*) FILTER (WHERE state IN ('ready', 'leased')) AS open,
       count(*) FILTER (WHERE state = 'dead') AS dead,
       sum(attempts) - count(*) FILTER (WHERE state = 'done') AS spent,
       abs(sum(score) - (SELECT sum(score) FROM relationship))
           + abs(count(*) FILTER (WHERE state = 'done') - (SELECT sum(conversations) FROM relationship)) AS off
FROM every_job
"""


def _answers(seen: Seen) -> Table:
    table = Table("while", "answer", "count", "p50 s", "p99 s", "slowest s")
    for (phase, status), seconds in seen.answers.items():
        ordered = sorted(seconds)
        figures = (statistics.median(ordered), ordered[len(ordered) * 99 // 100], ordered[-1])
        table.add_row(phase, status, f"{len(ordered):,}", *(f"{figure:.3f}" for figure in figures))
    return table


def _verdict(found: Found) -> Table:
    table = Table("what", "found", "as promised")
    for what, value, good in found:
        table.add_row(what, f"{value:,}", "yes" if good else "[red]no")
    return table


# --- the processes


@contextmanager
def _process(command: list[str], ready: str, environment: dict[str, str]) -> Iterator[str]:
    """Run a process in a group of its own; yield what stands behind ``ready`` in the line that says it is up."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        process_group=0,
    ) as process:
        for line in process.stdout or ():
            if match := re.search(ready, line):
                yield match[1]
                break
        else:
            raise SystemExit(f"{command} did not start")
        process.terminate()
        process.wait(60)


@contextmanager
def _postgres(folder: Path) -> Iterator[tuple[str, int]]:
    folder.mkdir()
    command = [sys.executable, "-m", "tests.support.embedded_server", str(folder), "remove"]
    with _process(command, r"(postgresql://\S+)", {}) as url:
        (pid_file,) = folder.rglob("postmaster.pid")
        yield url, int(pid_file.read_text().splitlines()[0])


def _fake(kind: str, *always: str) -> contextlib.AbstractContextManager[str]:
    return _process([sys.executable, "-m", "tests.support.fakes", kind, "--always", *always], r"(http://\S+)", {})


def _convo(folder: Path, settings: dict[str, str]) -> contextlib.AbstractContextManager[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {f"CONVO_{name}": value for name, value in settings.items()}
    environment["CONVO_OBSERVE__LOG_LEVEL"] = "error"
    command = [sys.executable, "-m", "convo", "serve", "--data-dir", str(folder), "--port", str(port)]
    return _process(command, r"^convo serves on (\S+)", environment)


if __name__ == "__main__":
    sys.exit(main())
