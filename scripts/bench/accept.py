#!/usr/bin/env python3
"""Measure durable accepts of real text: convo, the ceiling above it, an empty handler, and what others would build.

Every server has a database of its own on one PostgreSQL, with fsync; every request is a new conversation. The rounds
alternate, so that a busy moment of the machine hits all of them; medians are shown, and ratios are medians of the
ratios of one round. ``CPU`` is what the server process itself used for a request, its database and its broker left
out; ``RSS`` is its memory after the round.

    .venv/bin/python scripts/bench/accept.py                        # all of it: about 25 minutes
    .venv/bin/python scripts/bench/accept.py --targets convo,ceiling --sizes 4 --connections 32 --seconds 2
    git worktree add /tmp/before v0.1.0                             # and --earlier /tmp/before: both in one run
                                                                    # and --anew: see there

Targets: convo (it only accepts), busy (it accepts and analyses), ceiling (ceiling.py), empty (empty_app.py: stores
nothing), seed_before, seed_after_jsonb, seed_after_message, procrastinate, celery (peers/).
Returns 0 when every wanted figure that was measured is reached.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from msgspec import Struct, structs
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import databases, load, machine, picture, servers
from scripts.bench.servers import Server

ROUTE = "/v1/conversations/end"
# What the issue asks for, at 32 connections: convo's rate as a multiple of the other's, by size in KB.
WANTED = {
    "ceiling": {4: 0.7, 45: 0.7},
    "seed_after_jsonb": {4: 6.0, 45: 4.0},
    "seed_after_message": {4: 6.0, 45: 4.0},
}
WANTED_P99_MS = 50.0
_WANTED_CONNECTIONS = 32
# A round's first answers of all connections come at once: rounds of much data are longer than asked for.
_ROUND_KB_PER_SECOND = 10_000
_REST_SECONDS, _IDLE_CPU_SECONDS = 20.0, 0.02
_STEADY_SIZE_KB, _STEADY_CONNECTIONS = 4, 64


class Place(Struct, frozen=True, kw_only=True):
    """Where the servers are started: a folder, a PostgreSQL, and how many connections a peer's pool may have."""

    folder: Path
    postgres: str
    pool: int


Start = Callable[[Place], contextlib.AbstractContextManager[Server]]
Target = Callable[[], contextlib.AbstractContextManager[Server]]
"""Gives a server for one round: the same one each time, or one that was started for it."""
Rounds = dict[str, list[load.Outcome]]
Cell = tuple[int, int]
"""A size in KB and a number of connections."""


def _convo(name: str, workers: int, tree: Path = servers.ROOT) -> Start:
    @contextlib.contextmanager
    def start(place: Place) -> Iterator[Server]:
        folder = place.folder / name
        folder.mkdir()
        settings = {"jobs.workers": str(workers)}
        with databases.database(place.postgres, name) as url, servers.convo(folder, url, settings, tree=tree) as server:
            yield server

    return start


def _empty(place: Place) -> contextlib.AbstractContextManager[Server]:
    return servers.own("empty_app.py", place.folder)


@contextlib.contextmanager
def _ceiling(place: Place) -> Iterator[Server]:
    with databases.database(place.postgres, "ceiling") as url, servers.own("ceiling.py", place.folder, url) as server:
        yield server


def _peer(name: str, *arguments: str) -> Start:
    @contextlib.contextmanager
    def start(place: Place) -> Iterator[Server]:
        variables = {"BENCH_CONNECTIONS_MAX": str(place.pool)}
        with (
            databases.database(place.postgres, "_".join([name, *arguments])) as url,
            servers.peer(name, place.folder, url, *arguments, variables=variables) as server,
        ):
            yield server

    return start


TARGETS: Mapping[str, Start] = {
    "convo": _convo("convo", 0),
    "ceiling": _ceiling,
    "busy": _convo("busy", 8),
    "empty": _empty,
    "seed_before": _peer("seed_before"),
    "seed_after_jsonb": _peer("seed_after", "jsonb"),
    "seed_after_message": _peer("seed_after", "message"),
    "procrastinate": _peer("procrastinate_peer"),
    "celery": _peer("celery_peer"),
}
_POOLED = ("seed_after_jsonb", "seed_after_message", "procrastinate", "celery")


def main() -> int:
    """Measure and print; return 0 when every wanted figure that was measured is reached."""
    asked = _arguments()
    console = Console(width=max(Console().width, 150))
    with tempfile.TemporaryDirectory(prefix="convo-bench-", dir=asked.dir) as folder, contextlib.ExitStack() as stack:
        place = _place(Path(folder), asked)
        about = machine.about(databases.described(asked.database_url)) | {
            "text": str(load.source_of_text()),
            "pools": f"at most {place.pool} connections each, for the server takes no more",
        }
        for name, text in about.items():
            console.print(f"{name}: {text}", highlight=False, markup=False)
        starts = {name: TARGETS[name] for name in asked.targets}
        starts |= {tree.name: _convo(tree.name, 0, tree) for tree in asked.earlier}
        targets = {name: _target(stack, start, place, anew=asked.anew) for name, start in starts.items()}
        cells = list(itertools.product(asked.sizes, asked.connections))
        found = {cell: _measure(targets, cell, asked) for cell in cells}
        steady = _steady(targets, asked) if asked.rate else {}
    _show(console, found, steady, asked.rate)
    _keep(asked, about, found, steady)
    missed = _missed(found, steady)
    for line in missed:
        console.print(f"not reached: {line}", style="red", highlight=False)
    return 1 if missed else 0


def _target(stack: contextlib.ExitStack, start: Start, place: Place, *, anew: bool) -> Target:
    if anew:
        return partial(_started, start, place)
    server = stack.enter_context(start(place))
    return lambda: contextlib.nullcontext(server)


@contextlib.contextmanager
def _started(start: Start, place: Place) -> Iterator[Server]:
    with (
        tempfile.TemporaryDirectory(dir=place.folder) as folder,
        start(structs.replace(place, folder=Path(folder))) as server,
    ):
        yield server


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers, names = _listed(int), _listed(str)
    parser.add_argument("--targets", type=names, default=list(TARGETS), help="which servers, with commas between")
    parser.add_argument(
        "--earlier",
        type=_listed(lambda text: Path(text).resolve()),
        default=[],
        help="worktrees of earlier convos, with commas between; each is a target of its folder's name",
    )
    parser.add_argument("--sizes", type=numbers, default=[4, 45, 500], help="sizes of bodies, in KB")
    parser.add_argument("--connections", type=numbers, default=[1, 32, 256])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each server, size and number of connections")
    parser.add_argument(
        "--anew",
        action="store_true",
        help="start each server anew for each round: where memory lies makes one process a tenth faster for its life",
    )
    parser.add_argument("--rate", type=float, default=500.0, help="requests/s of the steady rounds; 0: none")
    parser.add_argument("--client", choices=["wrk", "own"], default="wrk", help="wrk where it is installed, or our own")
    parser.add_argument("--database-url", default=databases.GIVEN, help="a PostgreSQL whose role may make databases")
    parser.add_argument("--json", type=Path, help="keep every round in this file")
    parser.add_argument("--picture", type=Path, help="draw the rates into this SVG file")
    parser.add_argument("--dir", help="where the data folders are made (default: the temporary folder)")
    asked = parser.parse_args()
    if unknown := set(asked.targets) - set(TARGETS):
        parser.error(f"no such targets: {', '.join(sorted(unknown))}")
    return asked


def _listed(kind: Callable[[str], object]) -> Callable[[str], list[object]]:
    return lambda text: [kind(part) for part in text.split(",")]


def _place(folder: Path, asked: argparse.Namespace) -> Place:
    sharing = sum(name in _POOLED for name in asked.targets) or 1
    pool = min(150, databases.connections_free(asked.database_url) // sharing)
    return Place(folder=folder, postgres=asked.database_url, pool=max(1, pool))


# --- measuring


def _measure(targets: Mapping[str, Target], cell: Cell, asked: argparse.Namespace) -> Rounds:
    size, connections = cell
    tails = load.real_tails(size * 1000)
    rounds: Rounds = {name: [] for name in targets}
    databases.execute(asked.database_url, "CHECKPOINT")
    order = list(targets)
    for number in range(asked.rounds + 1):
        for name in order:
            print(f"{size} KB, {connections} connections, round {number}: {name}", file=sys.stderr)
            with targets[name]() as server:
                plan = load.Plan(
                    url=server.url + ROUTE,
                    tails=tails,
                    connections=connections,
                    seconds=max(asked.seconds, size * connections / _ROUND_KB_PER_SECOND),
                    name=f"{size}-{connections}-{number}-{time.monotonic_ns()}",
                )
                if asked.anew:
                    _round(server, structs.replace(plan, name=f"{plan.name}-first"), own=asked.client == "own")
                outcome = _round(server, plan, own=asked.client == "own")
            # The first round warms all of them up.
            if number:
                rounds[name].append(outcome)
        # Nobody always comes after the same neighbour's dirty pages.
        order = order[1:] + order[:1]
    return rounds


def _round(server: Server, plan: load.Plan, *, own: bool = False) -> load.Outcome:
    used = machine.cpu_seconds(server.pid)
    outcome = load.run(plan, own=own)
    outcome["cpu"] = (machine.cpu_seconds(server.pid) - used) / max(outcome["answered"], 1) * 1e6
    outcome["rss"] = machine.rss_bytes(server.pid) / 1e6
    _let_rest(server)
    return outcome


def _let_rest(server: Server) -> None:
    """Wait until a server has done what a round left it with, or the next one's round would pay for it."""
    until = time.monotonic() + _REST_SECONDS
    before = machine.cpu_seconds(server.pid)
    while time.monotonic() < until:
        time.sleep(0.25)
        now = machine.cpu_seconds(server.pid)
        if now - before < _IDLE_CPU_SECONDS:
            return
        before = now


def _steady(targets: Mapping[str, Target], asked: argparse.Namespace) -> Rounds:
    """Offer the same rate to each server, whether it can take it or not."""
    tails = load.real_tails(_STEADY_SIZE_KB * 1000)
    rounds: Rounds = {name: [] for name in targets}
    for number in range(asked.rounds):
        for name, target in targets.items():
            print(f"{asked.rate:.0f} requests/s, round {number + 1}: {name}", file=sys.stderr)
            with target() as server:
                plan = load.Plan(
                    url=server.url + ROUTE,
                    tails=tails,
                    connections=_STEADY_CONNECTIONS,
                    seconds=asked.seconds,
                    name=f"steady-{number}-{os.getpid()}",
                    rate=asked.rate,
                )
                rounds[name].append(_round(server, plan))
    return rounds


# --- telling


def median(outcomes: Sequence[load.Outcome], figure: str) -> float:
    """Return the median of one figure over the rounds."""
    return float(statistics.median(outcome[figure] for outcome in outcomes))


def ratio(rounds: Rounds, name: str, other: str) -> float | None:
    """Return how many times the rate of ``other`` the rate of ``name`` is, as a median; None where one is idle."""
    if name not in rounds or other not in rounds:
        return None
    pairs = list(zip(rounds[name], rounds[other], strict=True))
    if not all(theirs["rate"] for _, theirs in pairs):
        return None
    return float(statistics.median(mine["rate"] / theirs["rate"] for mine, theirs in pairs))


def _show(console: Console, found: Mapping[Cell, Rounds], steady: Rounds, rate: float) -> None:
    table = Table(
        "KB", "conn.", "server", "convo is", "wanted", "of ceiling", "requests/s", "p50 ms", "p99 ms", "p99.9 ms",
        "CPU µs", "RSS MB", "failed", title="durable accepts",
    )  # fmt: skip
    for cell, rounds in found.items():
        for name in rounds:
            table.add_row(*_cells(cell, rounds, name))
        table.add_section()
    console.print(table)
    if steady:
        console.print(_steady_table(steady, rate))


def _cells(cell: Cell, rounds: Rounds, name: str) -> list[str]:
    size, connections = cell
    outcomes = rounds[name]
    times, part = ratio(rounds, "convo", name), ratio(rounds, name, "ceiling")
    wanted = WANTED.get(name, {}).get(size) if connections == _WANTED_CONNECTIONS else None
    return [
        str(size),
        str(connections),
        name,
        "" if times is None or name == "convo" else f"{times:.2f} ×",
        "" if wanted is None else f"{wanted:.2f} ×",
        "" if part is None else f"{part:.2f}",
        *_figures(outcomes),
    ]


def _figures(outcomes: Sequence[load.Outcome]) -> list[str]:
    figures = [f"{median(outcomes, figure):,.1f}" for figure in ("rate", "p50", "p99", "p999")]
    failed = sum(outcome["failed"] for outcome in outcomes)
    return [*figures, f"{median(outcomes, 'cpu'):,.0f}", f"{median(outcomes, 'rss'):,.0f}", f"{failed:.0f}"]


def _steady_table(steady: Rounds, rate: float) -> Table:
    title = f"{rate:.0f} requests/s offered, {_STEADY_SIZE_KB} KB; latency from the moment a request was due"
    table = Table(
        "server", "answered/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU µs", "RSS MB", "failed", title=title
    )  # fmt: skip
    for name, outcomes in steady.items():
        table.add_row(name, *_figures(outcomes))
    return table


def _missed(found: Mapping[Cell, Rounds], steady: Rounds) -> list[str]:
    missed = []
    for (size, connections), rounds in found.items():
        for other, wanted in WANTED.items():
            times = ratio(rounds, "convo", other)
            least = wanted.get(size)
            if connections == _WANTED_CONNECTIONS and least and times is not None and times < least:
                missed.append(f"{size} KB: {times:.2f} × {other}, wanted {least:.2f}")
    if "convo" in steady and (late := median(steady["convo"], "p99")) >= WANTED_P99_MS:
        missed.append(f"p99 at the steady rate: {late:.0f} ms, wanted under {WANTED_P99_MS:.0f}")
    return missed


def _keep(asked: argparse.Namespace, about: Mapping[str, str], found: Mapping[Cell, Rounds], steady: Rounds) -> None:
    if asked.json:
        cells = [{"size_kb": size, "connections": many, "rounds": each} for (size, many), each in found.items()]
        kept = {"about": about, "seconds": asked.seconds, "cells": cells, "rate": asked.rate, "steady": steady}
        asked.json.write_text(json.dumps(kept, indent=1) + "\n")
    if asked.picture:
        groups = {
            f"{size} KB, {many} connections": {name: median(each, "rate") for name, each in rounds.items()}
            for (size, many), rounds in found.items()
        }
        asked.picture.write_text(picture.bars("durable accepts a second", groups, about["machine"]))


if __name__ == "__main__":
    sys.exit(main())
