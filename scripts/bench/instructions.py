#!/usr/bin/env python3
"""Count the processor instructions that an accept costs convo, beside earlier versions of it.

On a shared machine a rate says little: pairs of the same program differ by a tenth and more. Instructions repeat within
1 or 2 %. They are those of the process itself, in user mode: the kernel and PostgreSQL are not in them, so
``accept.py`` stays the one that says how fast convo is.

    git worktree add /tmp/before v0.1.0
    .venv/bin/python scripts/bench/instructions.py --earlier /tmp/before
    .venv/bin/python scripts/bench/instructions.py --setting events.types='["conversation.accepted"]'

Needs valgrind (its tool callgrind, under which convo is about fifty times slower). Two things are taken off. What the
process does while nothing is asked of it is measured first. And what it does in libcrypto (SHA-256 here) stands in a
column of its own: valgrind's processor has no instructions for it, so that 4 KB take 120,000 instructions there, and
3 microseconds on a processor that has them.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, structs
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import databases, load, machine, servers
from scripts.bench.servers import ROOT, Server

ROUTE = "/v1/conversations/end"
_VALGRIND = ("valgrind", "--tool=callgrind", "--instr-atstart=no")
_OBJECT = re.compile(r"ob=\((\d+)\)(?: (.*))?")
_COST = re.compile(r"[-+*\d]\S* (\d+)")
_HASHING = "libcrypto"
# A dump is written by the process at its next system call; a busy machine may let it wait.
_DUMP_SECONDS = 60.0


class Count(Struct, frozen=True, kw_only=True):
    """One round: instructions a second while idle; accepts, and instructions for each: all, for hashing, and the rest.

    What is done while idle is in ``whole`` alone.
    """

    idle: float
    answered: float
    whole: float
    hashing: float
    own: float


def main() -> int:
    """Count and print; return 0 when every request was accepted."""
    asked = _arguments()
    console = Console(width=max(Console().width, 120))
    trees = [ROOT, *asked.earlier]
    found: dict[str, list[Count]] = {str(tree): [] for tree in trees}
    with tempfile.TemporaryDirectory(prefix="convo-bench-") as folder:
        for name, text in machine.about(databases.described(asked.database_url)).items():
            console.print(f"{name}: {text}", highlight=False, markup=False)
        for number in range(asked.rounds):
            for tree in trees:
                print(f"round {number + 1}: {tree}", file=sys.stderr)
                found[str(tree)].append(_round(Path(folder), tree, asked))
    _show(console, found, asked)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--earlier", type=lambda text: [Path(part).resolve() for part in text.split(",")], default=[])
    parser.add_argument("--setting", action="append", default=[], help="NAME=VALUE, for all trees that know it")
    parser.add_argument("--size", type=int, default=4, help="size of a body, in KB")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=40.0, help="how long is posted, for a round")
    parser.add_argument("--idle-seconds", type=float, default=20.0, help="how long the idle process is watched")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep callgrind's files in this folder, for callgrind_annotate")
    parser.add_argument("--database-url", default=databases.GIVEN, help="a PostgreSQL whose role may make databases")
    return parser.parse_args()


def _round(folder: Path, tree: Path, asked: argparse.Namespace) -> Count:
    with (
        tempfile.TemporaryDirectory(dir=folder) as own,
        databases.database(asked.database_url, "instructions") as url,
        _grinding(Path(own), tree, url, asked.setting) as server,
    ):
        plan = load.Plan(
            url=server.url + ROUTE,
            tails=load.real_tails(asked.size * 1000),
            connections=asked.connections,
            seconds=asked.seconds,
            name=f"instructions-{time.monotonic_ns()}",
        )
        # What is imported, compiled and cached at the first requests belongs to none of them.
        _posted(plan, "warm", asked.seconds / 4)
        _control(server, "--instr=on")
        idle = sum(_counted(server, lambda: time.sleep(asked.idle_seconds))) / asked.idle_seconds
        began, answered = time.monotonic(), 0.0

        def post() -> None:
            nonlocal answered
            answered = _posted(plan, "measured", asked.seconds)

        hashing, others = _counted(server, post)
        passed = time.monotonic() - began
        if asked.keep:
            asked.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(_dumps(server)[-1], asked.keep / f"{tree.name}.callgrind")
    return Count(
        idle=idle,
        answered=answered,
        whole=(hashing + others) / answered,
        hashing=hashing / answered,
        own=(others - idle * passed) / answered,
    )


def _grinding(folder: Path, tree: Path, url: str, settings: Sequence[str]) -> contextlib.AbstractContextManager[Server]:
    """Run ``convo serve`` of a tree under callgrind, which counts nothing until it is told to."""
    port = servers.free_port()
    given = {"database.url": url, "observe.log_level": "warning", "jobs.workers": "0"}
    given |= dict(setting.split("=", 1) for setting in settings)
    variables = {f"CONVO_{name.replace('.', '__').upper()}": value for name, value in given.items()}
    valgrind = [*_VALGRIND, f"--callgrind-out-file={folder}/out.%p"]
    command = [*valgrind, sys.executable, "-m", "convo", "serve", "--data-dir", f"{folder}/convo", "--port", str(port)]
    return servers.serving(
        command,
        f"http://127.0.0.1:{port}",
        folder / "out.log",
        environment={**variables, "PYTHONPATH": str(tree)},
        ready="/readyz",
        folder=tree,
    )


def _control(server: Server, *arguments: str) -> None:
    command = ["callgrind_control", *arguments, str(server.pid)]
    subprocess.run(command, check=True, capture_output=True)


def _counted(server: Server, action: Callable[[], None]) -> tuple[int, int]:
    """Return how many instructions the server executed while an action ran: those for hashing, and all others."""
    _control(server, "--zero")
    action()
    known = len(_dumps(server))
    _control(server, "--dump")
    until = time.monotonic() + _DUMP_SECONDS
    while time.monotonic() < until:
        dumps = _dumps(server)
        if len(dumps) > known and "\ntotals: " in (text := dumps[-1].read_text("utf-8", "replace")):
            return _summed(text)
        time.sleep(0.5)
    raise SystemExit(f"callgrind wrote no figures within {_DUMP_SECONDS:.0f} s")


def _summed(text: str) -> tuple[int, int]:
    """Sum callgrind's figures up: of the library that hashes, and of all others."""
    names: dict[str, str] = {}
    sums = {True: 0, False: 0}
    hashing = called = False
    for line in text.splitlines():
        if found := _OBJECT.fullmatch(line):
            names.setdefault(found[1], found[2] or "")
            hashing = _HASHING in names[found[1]]
        elif line.startswith("cob="):
            number, _, name = line.removeprefix("cob=(").partition(")")
            names.setdefault(number, name.strip())
        elif cost := _COST.fullmatch(line):
            # The line after a call is what was called, which has its own lines elsewhere.
            sums[hashing] += 0 if called else int(cost[1])
        called = line.startswith("calls=")
    return sums[True], sums[False]


def _dumps(server: Server) -> list[Path]:
    found = server.said.parent.glob(f"out.{server.pid}.*")
    return sorted(found, key=lambda file: int(file.suffix.removeprefix(".")))


def _posted(plan: load.Plan, name: str, seconds: float) -> float:
    outcome = load.run(structs.replace(plan, name=f"{plan.name}-{name}", seconds=seconds))
    if outcome["failed"] or not outcome["answered"]:
        raise SystemExit(f"{outcome['failed']:.0f} requests failed, {outcome['answered']:.0f} were answered")
    return outcome["answered"]


def _show(console: Console, found: Mapping[str, list[Count]], asked: argparse.Namespace) -> None:
    title = f"instructions an accept, {asked.size} KB, {asked.connections} connections, without workers, medians"
    table = Table("tree", "all", "hashing", "own", "of the last", "rounds", "accepts", "idle a second", title=title)
    medians = {tree: statistics.median(count.own for count in counts) for tree, counts in found.items()}
    base = list(medians.values())[-1]
    for tree, counts in found.items():
        table.add_row(
            tree,
            f"{statistics.median(count.whole for count in counts):,.0f}",
            f"{statistics.median(count.hashing for count in counts):,.0f}",
            f"{medians[tree]:,.0f}",
            f"{medians[tree] / base:.3f} ×",
            ", ".join(f"{count.own:,.0f}" for count in counts),
            f"{sum(count.answered for count in counts):,.0f}",
            f"{statistics.median(count.idle for count in counts):,.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
