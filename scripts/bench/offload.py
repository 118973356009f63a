#!/usr/bin/env python3
"""Measure from which size on it pays to decode, digest and compress a body in a thread instead of in the loop.

The first table: what `web/conversations.py` does with one body of real text, in the loop and through a thread; the
difference is the price of the hop. The second: many bodies at once, all in the loop or all through threads, and the
longest that the loop was held meanwhile: that is what every other client waits.

    .venv/bin/python scripts/bench/offload.py [--rounds 200] [--seconds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.conversation.decode import decode
from convo.settings import IntakeSettings, WebSettings
from convo.web.accept import make_accept
from scripts.bench import load

SIZES = (1_000, 4_000, 16_000, 45_000, 90_000, 180_000, 360_000)
_SETTINGS = WebSettings()
_ITEMS_MAX = IntakeSettings().items_max
_CLIENTS = 8
_TICK_SECONDS = 0.001

Prepare = Callable[[bytes], Awaitable[object]]


async def in_loop(body: bytes) -> object:
    """Prepare a body where all others wait for it."""
    await trio.lowlevel.checkpoint()
    return _read(body)


async def in_thread(body: bytes) -> object:
    """Prepare a body beside the loop."""
    return await trio.to_thread.run_sync(_read, body, abandon_on_cancel=True)


def _read(body: bytes) -> object:
    return make_accept(decode(body, kept_bytes_max=_SETTINGS.body_bytes_max, items_max=_ITEMS_MAX))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="bodies of each size, one at a time")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    asked = parser.parse_args()
    console = Console()
    source = load.REAL if load.REAL.exists() else load.SAMPLES
    console.print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {source.name}")
    console.print(trio.run(_alone, asked.rounds))
    console.print(trio.run(_loaded, asked.seconds))


def _bodies(size: int) -> list[bytes]:
    heads = (f'{{"conversation_id": "bench-{number}", ' for number in range(10_000))
    return [(head + tail).encode() for head, tail in zip(heads, load.real_tails(size), strict=False)]


def _items(body: bytes) -> int:
    return len(json.loads(body)["conversation_logs"])


# --- one at a time


async def _alone(rounds: int) -> Table:
    table = Table("body", "items", "in the loop µs", "p99", "in a thread µs", "p99", "the hop µs", "hop / work")
    for size in SIZES:
        bodies = _bodies(size)
        here, there = [], []
        # In turns, so that a busy moment of the machine hits both.
        for number in range(rounds):
            body = bodies[number % len(bodies)]
            here.append(await _timed(in_loop, body))
            there.append(await _timed(in_thread, body))
        work, hop = statistics.median(here), statistics.median(there) - statistics.median(here)
        figures = (work, _p99(here), statistics.median(there), _p99(there), hop)
        table.add_row(
            f"{size:,}",
            str(_items(bodies[0])),
            *(f"{figure * 1e6:,.0f}" for figure in figures),
            f"{hop / work:.2f}",
        )
    return table


async def _timed(prepare: Prepare, body: bytes) -> float:
    started = time.perf_counter()
    await prepare(body)
    return time.perf_counter() - started


def _p99(found: list[float]) -> float:
    return sorted(found)[len(found) * 99 // 100]


# --- many at once


async def _loaded(seconds: float) -> Table:
    table = Table("body", "where", "bodies/s", "MB/s", "a tick late: p50 ms", "p99 ms", "worst ms")
    for size in SIZES:
        bodies = _bodies(size)
        for name, prepare in (("loop", in_loop), ("thread", in_thread)):
            done, late = await _load(prepare, bodies, seconds)
            worst = (statistics.median(late), _p99(late), max(late))
            rate = done / seconds
            table.add_row(
                f"{size:,}",
                name,
                f"{rate:,.0f}",
                f"{rate * size / 1e6:.1f}",
                *(f"{one * 1e3:.2f}" for one in worst),
            )
    return table


async def _load(prepare: Prepare, bodies: list[bytes], seconds: float) -> tuple[int, list[float]]:
    """Prepare bodies by several clients side by side; return how many, and how late a tick of 1 ms came each time."""
    done = 0
    late: list[float] = []

    async def client(first: int) -> None:
        nonlocal done
        while True:
            await prepare(bodies[(first + done) % len(bodies)])
            done += 1
            # What a request does besides: it waits for its commit, and the loop turns.
            await trio.sleep(_TICK_SECONDS)

    async def tick() -> None:
        while True:
            due = trio.current_time() + _TICK_SECONDS
            await trio.sleep_until(due)
            late.append(trio.current_time() - due)

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            for number in range(_CLIENTS):
                nursery.start_soon(client, number)
    return done, late


if __name__ == "__main__":
    main()
