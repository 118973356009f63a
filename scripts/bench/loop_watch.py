#!/usr/bin/env python3
"""Measure what the loop watch costs the accept path: two servers that differ in it alone, in alternating rounds.

Real text over 32 connections, PostgreSQL embedded, on disk, with fsync, no analysis. The order changes from round to
round; each pair of rounds gives one ratio of CPU a request (the server process's own) and one of requests a second,
and their medians are printed. A third server, without it as well, shows what the machine makes of no difference at
all. Besides, the price is reckoned from its parts: the passes a request takes (``convo_loop_pass_seconds_count``)
times what both hooks cost, and what the watchdog uses in a second, both timed here.

    .venv/bin/python scripts/bench/loop_watch.py [--seconds 4] [--rounds 10] [--size 4000]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Iterator
from pathlib import Path

import httpx
import trio
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.runtime.loop_watch import LoopWatch
from scripts.bench import accept, load, machine, servers

WITH, WITHOUT, AGAIN = "with", "without", "without, again"
WANTED = 1.02
_WATCHED_SECONDS = 3.0
_LIMIT = "observe.loop_block_seconds"


def main() -> int:
    """Measure and print; return 0 when the watch costs no more than it may."""
    asked = _arguments()
    console = Console()
    for name, value in machine.about("embedded").items():
        console.print(f"{name}: {value}")
    with tempfile.TemporaryDirectory(prefix="convo-bench-", dir=asked.dir) as folder, _servers(Path(folder)) as started:
        rounds, passes = _measure(started, asked)
    console.print(_table(rounds))
    cpu, noise = _ratio(rounds, "cpu"), _ratio(rounds, "cpu", AGAIN)
    hooks, watchdog = (seconds * 1e6 for seconds in trio.run(_parts_seconds))
    # The watchdog's price is a second's, whatever is done in it.
    parts = hooks * passes + watchdog / statistics.median(one["rate"] for one in rounds[WITH])
    share = parts / statistics.median(one["cpu"] for one in rounds[WITHOUT])
    console.print(f"CPU a request, with / without: {cpu:.3f}; without, again / without: {noise:.3f}")
    rate, noise = _ratio(rounds, "rate"), _ratio(rounds, "rate", AGAIN)
    console.print(f"requests a second, with / without: {rate:.3f}; without, again / without: {noise:.3f}")
    console.print(
        f"in parts: {passes:.1f} passes a request x {hooks:.2f} µs, and {watchdog:.0f} µs a second for the watchdog"
    )
    console.print(
        f"together {parts:.1f} µs a request, {100 * share:.2f} % of its CPU; wanted: at most {100 * WANTED - 100:.0f} %"
    )
    return 0 if min(cpu, 1 + share) <= WANTED else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of rounds")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--size", type=int, default=4_000, help="bytes of a body")
    parser.add_argument("--dir", help="where the data folders are made (a disk; default: the temporary folder)")
    return parser.parse_args()


@contextlib.contextmanager
def _servers(folder: Path) -> Iterator[dict[str, servers.Server]]:
    with contextlib.ExitStack() as stack:
        started = {}
        for name, limit in ((WITH, "0.05"), (WITHOUT, "0"), (AGAIN, "0")):
            place = folder / name
            place.mkdir()
            started[name] = stack.enter_context(servers.convo(place, "", {"jobs.workers": "0", _LIMIT: limit}))
        yield started


def _measure(started: dict[str, servers.Server], asked: argparse.Namespace) -> tuple[accept.Rounds, float]:
    tails = load.real_tails(asked.size)
    rounds: accept.Rounds = {name: [] for name in started}
    requests = passes = 0.0
    order = list(started)
    for number in range(asked.rounds + 1):
        if number == 1:
            passes = _passes(started[WITH])
        for name in order[number % 3 :] + order[: number % 3]:
            plan = load.Plan(
                url=started[name].url + accept.ROUTE,
                tails=tails,
                connections=asked.connections,
                seconds=asked.seconds,
                name=f"{number}-{os.getpid()}",
            )
            outcome = accept._round(started[name], plan)
            # The first round warms both up.
            if number:
                rounds[name].append(outcome)
                requests += outcome["answered"] if name == WITH else 0
    return rounds, (_passes(started[WITH]) - passes) / requests


def _passes(server: servers.Server) -> float:
    found = re.search(r"^convo_loop_pass_seconds_count (\S+)$", httpx.get(f"{server.url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def _parts_seconds() -> tuple[float, float]:
    """Time both hooks as Trio calls them, in seconds a pass; and the watchdog, in seconds of CPU a second."""
    with LoopWatch(0.05, lambda _: None) as watch:
        hooks = {"before_io_wait": watch.before_io_wait, "after_io_wait": watch.after_io_wait}

        def one_pass() -> None:
            # Trio looks its hooks up by name and calls them with a star.
            for name in ("after_io_wait", "before_io_wait"):
                if name in hooks:
                    hooks[name](*(0.0,))

        per_pass = min(timeit.repeat(one_pass, number=20_000, repeat=10)) / 20_000
        clock = time.pthread_getcpuclockid(watch._watchdog.ident or 0)
        before = time.clock_gettime(clock)
        await trio.sleep(_WATCHED_SECONDS)
        return per_pass, (time.clock_gettime(clock) - before) / _WATCHED_SECONDS


def _ratio(rounds: accept.Rounds, figure: str, name: str = WITH) -> float:
    pairs = zip(rounds[name], rounds[WITHOUT], strict=True)
    ratio: float = statistics.median(ours[figure] / theirs[figure] for ours, theirs in pairs)
    return ratio


def _table(rounds: accept.Rounds) -> Table:
    table = Table("loop watch", "requests/s", "p50 ms", "p99 ms", "CPU µs", "failed")
    for name, outcomes in rounds.items():
        figures = (f"{accept.median(outcomes, figure):,.1f}" for figure in ("rate", "p50", "p99", "cpu"))
        table.add_row(name, *figures, f"{sum(outcome['failed'] for outcome in outcomes):.0f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
