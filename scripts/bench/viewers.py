#!/usr/bin/env python3
"""Post to convo while nobody looks at its page, and while many do, in turns; show what the viewers cost the accepts.

    .venv/bin/python scripts/bench/viewers.py                      # 20 viewers, 8 turns of 10 s
    .venv/bin/python scripts/bench/viewers.py --viewers 100 --turns 4 --seconds 5

A viewer is a browser with the page open: it stays on the live stream. Some of them look at the list of conversations
(``--lists``), and read it again when the stream says that it is old. The viewers are a process of low priority: they
are elsewhere when convo is in use. Odd and even turns are compared pair by pair, so that what the machine does besides
meets both. Events are on in both.

Exit code 0: the median of the pairs loses less than 3 % of the rate, and every viewer got its samples.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import trio
from msgspec import Struct, to_builtins
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import databases, load, machine, servers
from scripts.bench.servers import ROOT, Server

_SETTINGS = {"jobs.workers": "0", "events.types": '["conversation.accepted", "conversation.dead"]'}
# A sample comes every 2 s: a stream without one for so long is broken, also on a machine that is busy.
_SILENT_SECONDS = 15.0
# As the page does, not all in the same moment.
_SPREAD_SECONDS = 0.5
_SETTLE_SECONDS = 1.0
_NICE = 15
_LOSS_MAX = 0.03


class Turn(Struct, frozen=True, kw_only=True):
    """One turn of posting; ``cpu_us`` is what convo itself used of a processor for each accept, in microseconds."""

    viewers: int
    rate: float
    p50: float
    p99: float
    failed: int
    cpu_us: float


def main() -> int:
    """Measure and print; return 0 when the viewers cost little enough."""
    asked = _arguments()
    if asked.only_view:
        os.nice(_NICE)
        trio.run(_view_all, asked.only_view, asked.viewers, asked.lists)
        return 0
    console = Console(width=max(Console().width, 110))
    for name, text in machine.about(databases.described(asked.database_url)).items():
        console.print(f"{name}: {text}", highlight=False, markup=False)
    with (
        tempfile.TemporaryDirectory(prefix="convo-viewers-") as folder,
        databases.database(asked.database_url, "viewers") as database,
        servers.convo(Path(folder), database, _SETTINGS) as server,
    ):
        tails = load.real_tails(asked.size_kb * 1024)
        _posted(server, tails, asked, "warm", 0)
        turns = [_turn(server, tails, asked, number) for number in range(asked.turns)]
    console.print(_table(turns))
    if asked.json:
        asked.json.write_text(json.dumps(to_builtins(turns), indent=1) + "\n")
    losses = [1 - seen.rate / alone.rate for alone, seen in zip(turns[::2], turns[1::2], strict=True)]
    loss = statistics.median(losses)
    more = statistics.median(
        seen.cpu_us / alone.cpu_us - 1 for alone, seen in zip(turns[::2], turns[1::2], strict=True)
    )
    console.print(f"{asked.viewers} viewers cost {loss:.1%} of the accepts (pairs: {_percents(losses)})")
    console.print(f"an accept takes {more:.1%} more of the processor with them")
    return 1 if loss >= _LOSS_MAX or any(turn.failed for turn in turns) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viewers", type=int, default=20, help="browsers that have the page open in every other turn")
    parser.add_argument("--turns", type=int, default=8, help="turns in all, without and with viewers; an even number")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each turn is")
    parser.add_argument("--connections", type=int, default=32, help="connections that post")
    parser.add_argument("--size-kb", type=int, default=4, help="of each body")
    parser.add_argument("--lists", type=int, default=5, help="of the viewers, how many look at the list")
    parser.add_argument("--only-view", type=int, metavar="PORT", help="be the viewers of a server, until terminated")
    parser.add_argument("--database-url", default=databases.GIVEN, help="a PostgreSQL whose role may make databases")
    parser.add_argument("--json", type=Path, help="keep the turns in this file")
    asked = parser.parse_args()
    if asked.turns % 2:
        parser.error("--turns: give an even number")
    return asked


def _turn(server: Server, tails: list[str], asked: argparse.Namespace, number: int) -> Turn:
    viewers = asked.viewers if number % 2 else 0
    with _viewing(server, viewers, asked.lists) if viewers else contextlib.nullcontext():
        return _posted(server, tails, asked, f"turn-{number}", viewers)


def _posted(server: Server, tails: list[str], asked: argparse.Namespace, name: str, viewers: int) -> Turn:
    plan = load.Plan(
        url=f"{server.url}/v1/conversations/end",
        tails=tails,
        connections=asked.connections,
        seconds=asked.seconds,
        name=name,
    )
    used = machine.cpu_seconds(server.pid)
    found = load.run(plan)
    return Turn(
        viewers=viewers,
        rate=found["rate"],
        p50=found["p50"],
        p99=found["p99"],
        failed=int(found["failed"]),
        cpu_us=(machine.cpu_seconds(server.pid) - used) / max(found["answered"], 1) * 1e6,
    )


# --- the viewers


@contextlib.contextmanager
def _viewing(server: Server, viewers: int, lists: int) -> Iterator[None]:
    """Run the viewers as a process of their own, as long as the block runs; all of them must get their samples."""
    command = [sys.executable, str(Path(__file__)), "--only-view", str(server.port), "--viewers", str(viewers)]
    command += ["--lists", str(lists)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            # All are connected, and the first samples are taken.
            time.sleep(_SETTLE_SECONDS)
            yield
            if process.poll() is not None:
                raise SystemExit("the viewers ended by themselves")
        finally:
            process.terminate()


async def _view_all(port: int, viewers: int, lists: int) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(viewers):
            nursery.start_soon(_view, port, number < lists)


async def _view(port: int, with_list: bool) -> None:  # noqa: FBT001  (a task's argument)
    told, old = trio.open_memory_channel[int](10)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:
        if with_list:
            nursery.start_soon(_read_list, port, old)
        await stream.send_all(_get("/v1/live"))
        received, numbers = b"", list[int]()
        while True:
            with trio.fail_after(_SILENT_SECONDS):
                received += await _more(stream)
            *frames, received = received.split(b"\n\n")
            for frame in frames:
                kind, _, data = frame.partition(b"\ndata: ")
                if kind.endswith(b"figures"):
                    numbers += [sample["seq"] for sample in json.loads(data)["samples"]]
                elif kind.endswith(b"changes") and with_list:
                    with contextlib.suppress(trio.WouldBlock):
                        told.send_nowait(json.loads(data)["sequence"])
            if numbers != list(range(numbers[0], numbers[0] + len(numbers)) if numbers else []):
                raise SystemExit(f"a viewer missed a sample: {numbers[-5:]}")


async def _read_list(port: int, old: trio.MemoryReceiveChannel[int]) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        async for number in old:
            await trio.sleep(random.uniform(0, _SPREAD_SECONDS))
            await stream.send_all(_get(f"/v1/conversations?limit=50&as_of={number}"))
            if not json.loads(await _body(stream))["conversations"]:
                raise SystemExit("a viewer got an empty list")


async def _body(stream: trio.SocketStream) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += await _more(stream)
    head, _, body = received.partition(b"\r\n\r\n")
    if b" 200 " not in head[:16]:
        raise SystemExit(f"a viewer was answered {head[:100]!r}")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += await _more(stream)
    return body


async def _more(stream: trio.SocketStream) -> bytes:
    piece = await stream.receive_some()
    if not piece:
        raise SystemExit("convo ended the connection of a viewer")
    return bytes(piece)


def _get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


# --- what is shown


def _table(turns: list[Turn]) -> Table:
    table = Table("viewers", "accepts a second", "p50", "p99", "failed", "processor an accept")
    for turn in turns:
        table.add_row(
            str(turn.viewers), f"{turn.rate:,.0f}", f"{turn.p50:.1f} ms", f"{turn.p99:.1f} ms", str(turn.failed),
            f"{turn.cpu_us:.0f} µs",
        )  # fmt: skip
    return table


def _percents(shares: list[float]) -> str:
    return ", ".join(f"{share:.1%}" for share in shares)


if __name__ == "__main__":
    sys.exit(main())
