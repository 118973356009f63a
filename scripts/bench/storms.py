"""Clients that never stop: what four good clients see meanwhile, and how much memory the server takes.

Each row has a server of its own. First the good clients are alone, then the storm blows, and SIGTERM comes into it. The
rows are part of ``hostile.py``, which prints them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import trio
import zstandard
from msgspec import Struct
from rich.table import Table

from scripts.bench import attacks, load, machine, servers
from scripts.bench.attacks import Aim
from scripts.bench.hostile_servers import GRACE_SECONDS, STOP_PATIENCE_SECONDS, TARGETS, good_plan
from scripts.bench.servers import Server

_ALONE_SECONDS, _STORM_SECONDS = 4.0, 8.0
_WARM_SECONDS = 1.0
# What the issue asks for.
_TIMES_IDLE_MAX = 3.0
_MEMORY_MB_MAX = 100.0
# So many items are 300 bytes of zstd.
_PACKED_ITEMS = 57_000
_MARKS = 150_000
_numbers = itertools.count()


class Storm(Struct, frozen=True, kw_only=True):
    """One kind of abuse: so many clients, each of which sends ``pieces`` for ever, and reads what is answered."""

    does: str
    clients: int
    pieces: Callable[[Aim], Iterator[bytes]]


class StormRow(Struct, kw_only=True):
    """What came of one storm on one server; latencies in milliseconds, times in seconds."""

    target: str
    case: str
    idle_p50: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    good: int = 0
    failed: int = 0
    memory_mb: float = 0.0
    stopped: float | None = None


# --- what is sent


def _post(body: bytes, *fields: str) -> bytes:
    head = ["POST /v1/conversations/end HTTP/1.1", "Host: localhost", "Content-Type: application/json", *fields]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def _body(log: object) -> bytes:
    ids = {"conversation_id": f"storm-{os.getpid()}-{next(_numbers)}", "user_id": "storm", "bot_id": "storm"}
    return json.dumps({**ids, "conversation_log": log}, ensure_ascii=False).encode()


def _empty_posts(_: Aim) -> Iterator[bytes]:
    return itertools.repeat(_post(b"") * 500)


def _blank_lines(_: Aim) -> Iterator[bytes]:
    return itertools.repeat(b"\r\n" * 32_768)


def _packed(_: Aim) -> Iterator[bytes]:
    log = [{"role": "user", "content": "a"}] * _PACKED_ITEMS
    while True:
        yield _post(zstandard.ZstdCompressor(level=3).compress(_body(log)), "Content-Encoding: zstd")


def _marks(_: Aim) -> Iterator[bytes]:
    while True:
        yield _post(_body([{"role": "user", "content": "a" + "\u0301\u0323" * _MARKS}]))


def gets(*paths: str) -> Callable[[Aim], Iterator[bytes]]:
    """Return what a client sends that reads these paths for ever, or else the large answer."""

    def pieces(aim: Aim) -> Iterator[bytes]:
        for path in itertools.cycle(paths or (aim.large,)):
            yield f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    return pieces


STORMS: Mapping[str, Storm] = {
    "pipelined": Storm(does="pipelines empty posts", clients=4, pieces=_empty_posts),
    "blank": Storm(does="sends blank lines", clients=4, pieces=_blank_lines),
    "packed": Storm(does=f"posts {_PACKED_ITEMS:,} items in a few hundred bytes of zstd", clients=200, pieces=_packed),
    "marks": Storm(does="posts combining marks", clients=4, pieces=_marks),
    "logs": Storm(does="reads a large log", clients=96, pieces=gets()),
    "lists": Storm(does="reads lists", clients=96, pieces=gets("/v1/conversations?limit=500")),
    "ready": Storm(does="asks for /readyz", clients=32, pieces=gets("/readyz")),
    "tasks": Storm(does="asks for tasks and metrics", clients=32, pieces=gets("/debug/tasks", "/metrics")),
}


# --- one row


def storm_row(target: str, name: str, asked: argparse.Namespace) -> StormRow:
    """Let one storm blow on one server, and return what the good clients saw."""
    storm, row = STORMS[name], StormRow(target=target, case=name)
    print(f"{target}: {storm.does}", file=sys.stderr)
    with (
        tempfile.TemporaryDirectory(prefix="convo-storm-") as folder,
        TARGETS[target].start(Path(folder), "127.0.0.1", asked.database_url) as server,
    ):
        aim = Aim(
            host="127.0.0.1",
            port=server.port,
            large=TARGETS[target].large,
            tail=load.real_tails(4_000)[0],
            lives=lambda: server.process.poll() is None,
        )
        load.run(good_plan(server, "127.0.0.1", _WARM_SECONDS), own=True)
        row.idle_p50 = load.run(good_plan(server, "127.0.0.1", _ALONE_SECONDS), own=True)["p50"]
        trio.run(_weather, row, storm, aim, server)
    return row


async def _weather(row: StormRow, storm: Storm, aim: Aim, server: Server) -> None:
    before = machine.rss_bytes(server.pid)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(blow, storm, aim)
        nursery.start_soon(_watch_memory, row, server, before)
        await trio.sleep(_WARM_SECONDS)
        found = await trio.to_thread.run_sync(_good_clients, server)
        row.p50, row.p99 = found["p50"], found["p99"]
        row.good, row.failed = int(found["answered"]), int(found["failed"])
        row.stopped = await trio.to_thread.run_sync(servers.stop, server.process, STOP_PATIENCE_SECONDS)
        nursery.cancel_scope.cancel()


def _good_clients(server: Server) -> load.Outcome:
    # Not for so many seconds: those that come late because they waited would go on for minutes.
    process = load.begun(good_plan(server, "127.0.0.1", 600.0))
    time.sleep(_STORM_SECONDS)
    process.terminate()
    return load.finished(process)


async def _watch_memory(row: StormRow, server: Server, before: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            row.memory_mb = max(row.memory_mb, (machine.rss_bytes(server.pid) - before) / 1e6)
            await trio.sleep(0.05)


async def blow(storm: Storm, aim: Aim) -> None:
    """Be all clients of a storm, until cancelled."""
    async with trio.open_nursery() as nursery:
        for _ in range(storm.clients):
            nursery.start_soon(_client, storm, aim)


async def _client(storm: Storm, aim: Aim) -> None:
    """Send for ever, on a new connection when one was closed."""
    pieces = storm.pieces(aim)
    while True:
        with contextlib.suppress(*attacks.GONE):
            async with await attacks.connected(aim) as stream, trio.open_nursery() as nursery:
                nursery.start_soon(_read_all, stream, nursery.cancel_scope)
                await _send_all(stream, pieces)
        await trio.sleep(0.05)


async def _send_all(stream: trio.SocketStream, pieces: Iterator[bytes]) -> None:
    with contextlib.suppress(*attacks.GONE):
        for piece in pieces:
            await stream.send_all(piece)
            # A server that reads nothing more holds this client up, as it should.
            await trio.lowlevel.checkpoint()


async def _read_all(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    with contextlib.suppress(*attacks.GONE):
        while await stream.receive_some():
            pass
    scope.cancel()


# --- telling


def faults(row: StormRow) -> Iterator[str]:
    """Name what a row shows that convo must not do."""
    if row.failed:
        yield f"{row.failed} requests of good clients failed"
    times = row.p50 / max(row.idle_p50, 0.001)
    if times > _TIMES_IDLE_MAX:
        yield f"good clients waited {times:.1f} times as long as alone, allowed are {_TIMES_IDLE_MAX:g}"
    if row.memory_mb > _MEMORY_MB_MAX:
        yield f"it took {row.memory_mb:.0f} MB more memory, allowed are {_MEMORY_MB_MAX:g}"
    if row.stopped is None or row.stopped > GRACE_SECONDS:
        yield f"it did not stop within {GRACE_SECONDS:g} s of SIGTERM"


def table(rows: list[StormRow]) -> Table:
    """Draw the rows."""
    drawn = Table(
        "clients", "server", "good p50 alone", "in the storm", "times", "p99", "failed", "memory", "SIGTERM",
        title=f"good clients while others never stop, {_STORM_SECONDS:g} s",
    )  # fmt: skip
    for row in rows:
        drawn.add_row(
            f"{STORMS[row.case].clients} × {STORMS[row.case].does}",
            row.target,
            f"{row.idle_p50:.1f} ms",
            f"{row.p50:.1f} ms",
            f"{row.p50 / row.idle_p50:.1f}" if row.idle_p50 else "",
            f"{row.p99:,.0f} ms",
            f"{row.failed} of {row.good + row.failed}",
            f"{row.memory_mb:+.0f} MB",
            "killed" if row.stopped is None else f"{row.stopped:.1f} s",
        )
    return drawn
