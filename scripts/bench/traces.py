#!/usr/bin/env python3
"""Measure what traces cost: durable accepts with traces off, at 1 %, at 100 %, and with a collector that is out.

Two tables: as many accepts as each takes, where a share of the processor is seen, and a fixed rate that all of them
take easily (``--fixed-rate``), where a wait for the collector would be seen: with none, one that is not there, one that
does not answer, and one that answers 503, each at 100 %.

Every server has a database of its own on one PostgreSQL, with fsync, and takes the same real text; it analyses nothing.
The rounds alternate, so that a busy moment of the machine hits all of them. Shown are medians, and the medians of the
ratios to ``off`` in the same round. ``CPU`` is what the server process itself used for a request: the collector is a
process of its own. ``stop`` is how long the process took from SIGTERM to its end.

    .venv/bin/python scripts/bench/traces.py                      # 5 rounds of 4 s each: about 12 minutes
    .venv/bin/python scripts/bench/traces.py --targets off,dead_all,mute_all,failing_all --full-rounds 0
    .venv/bin/python scripts/bench/traces.py --targets off,one --rounds 3 --seconds 2
    git worktree add /tmp/before v0.1.0                           # and --earlier /tmp/before: `earlier`, without traces

Targets: off, one (1 %), all (100 %), dead and mute (1 %, a collector that is not there, or does not answer), dead_all,
mute_all and failing_all (100 %; the last one's collector answers 503). Returns 0 when 1 % costs under 2 % of an accept,
at the fixed rate no p99 is over 1.2 times that of ``off``, and each process stopped in time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import databases, load, machine, servers
from scripts.bench.servers import Server

ROUTE = "/v1/conversations/end"
WANTED_SHARE, WANTED_P99, WANTED_STOP_SECONDS = 0.02, 1.2, 10.0
_REST_SECONDS, _IDLE_CPU_SECONDS = 10.0, 0.02


class Target(Struct, frozen=True, kw_only=True):
    """How a server traces: the share, and what its collector is like; no collector: it does not."""

    sample: float = 0.0
    collector: str = ""
    tree: Path = servers.ROOT


TARGETS: Mapping[str, Target] = {
    "off": Target(),
    "one": Target(sample=0.01, collector="well"),
    "all": Target(sample=1.0, collector="well"),
    "dead": Target(sample=0.01, collector="dead"),
    "mute": Target(sample=0.01, collector="mute"),
    "dead_all": Target(sample=1.0, collector="dead"),
    "mute_all": Target(sample=1.0, collector="mute"),
    "failing_all": Target(sample=1.0, collector="failing"),
}
AT_A_FIXED_RATE = ("off", "dead_all", "mute_all", "failing_all")
Rounds = dict[str, list["Measured"]]
"""By target."""


class Measured(Struct, frozen=True, kw_only=True):
    """One round of one server: requests a second, milliseconds, and microseconds of its processor a request."""

    rate: float
    p50: float
    p99: float
    cpu: float
    failed: int


def main() -> int:
    """Measure and print; return 0 when what is wanted is reached."""
    asked = _arguments()
    console = Console(width=max(Console().width, 120))
    with tempfile.TemporaryDirectory(prefix="convo-traces-") as folder, contextlib.ExitStack() as stack:
        about = machine.about(databases.described(asked.database_url)) | {"text": str(load.source_of_text())}
        for name, text in about.items():
            console.print(f"{name}: {text}", highlight=False, markup=False)
        targets = {name: TARGETS[name] for name in asked.targets}
        if asked.earlier:
            targets["earlier"] = Target(tree=asked.earlier.resolve())
        started = {
            name: stack.enter_context(_started(name, target, Path(folder), asked.database_url))
            for name, target in targets.items()
        }
        full = _measure(started, asked, asked.rounds if asked.full_rounds is None else asked.full_rounds, asked.rate)
        chosen = {name: started[name] for name in AT_A_FIXED_RATE if name in started}
        # Measured last: the stop then finds all that a collector that is out has left to wait.
        fixed = _measure(chosen, asked, asked.rounds if asked.fixed_rate else 0, asked.fixed_rate)
        stops = {name: servers.stop(server.process) for name, server in started.items()}
    _show(console, full, stops, f"{asked.rate:g}/s" if asked.rate else "as many as are taken")
    _show(console, fixed, stops, f"{asked.fixed_rate:g}/s")
    if asked.json:
        kept = {"about": about, "rounds": _plain(full), "fixed": _plain(fixed), "stops": stops}
        asked.json.write_text(json.dumps(kept, indent=1), "utf-8")
    missed = _missed(full, fixed, stops)
    for line in missed:
        console.print(f"not reached: {line}", style="red", highlight=False)
    return 1 if missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=lambda text: text.split(","), default=list(TARGETS))
    parser.add_argument("--earlier", type=Path, help="a worktree of an earlier convo, measured as target `earlier`")
    parser.add_argument("--size", type=int, default=4, help="size of a body, in KB")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full-rounds", type=int, help="rounds without a fixed rate, where not as many as the others")
    parser.add_argument(
        "--fixed-rate", type=float, default=200.0, help="requests/s of the second table; 0: leave it out"
    )
    parser.add_argument("--rate", type=float, default=0.0, help="requests/s that are offered; 0: as many as are taken")
    parser.add_argument("--database-url", default=databases.GIVEN, help="a PostgreSQL whose role may make databases")
    parser.add_argument("--json", type=Path, help="keep every round in this file")
    asked = parser.parse_args()
    if unknown := set(asked.targets) - set(TARGETS):
        parser.error(f"no such targets: {', '.join(sorted(unknown))}")
    if "off" not in asked.targets:
        parser.error("--targets needs off: the others are compared with it")
    return asked


@contextlib.contextmanager
def _started(name: str, target: Target, folder: Path, postgres: str) -> Iterator[Server]:
    own = folder / name
    own.mkdir()
    settings = {"jobs.workers": "0"}
    with contextlib.ExitStack() as stack:
        if target.collector:
            endpoint = _endpoint(target.collector, own, stack)
            settings |= {"otel.endpoint": endpoint, "otel.sample": str(target.sample)}
        url = stack.enter_context(databases.database(postgres, f"traces_{name}"))
        yield stack.enter_context(servers.convo(own, url, settings, tree=target.tree))


def _endpoint(kind: str, folder: Path, stack: contextlib.ExitStack) -> str:
    if kind == "dead":
        return f"http://127.0.0.1:{servers.free_port()}"
    arguments = [kind] if kind in ("mute", "failing") else []
    return stack.enter_context(servers.own("collector.py", folder, *arguments)).url


def _measure(started: Mapping[str, Server], asked: argparse.Namespace, count: int, rate: float) -> Rounds:
    if not count:
        return {}
    tails = load.real_tails(asked.size * 1000)
    rounds: Rounds = {name: [] for name in started}
    databases.execute(asked.database_url, "CHECKPOINT")
    order = list(started)
    for number in range(count + 1):
        for name in order:
            print(f"round {number}: {name}", file=sys.stderr)
            plan = load.Plan(
                url=started[name].url + ROUTE,
                tails=tails,
                connections=asked.connections,
                seconds=asked.seconds,
                name=f"{name}-{number}-{time.monotonic_ns()}",
                rate=rate,
            )
            found = _round(started[name], plan)
            # The first round warms all of them up.
            if number:
                rounds[name].append(found)
        # Nobody always comes after the same neighbour's dirty pages.
        order = order[1:] + order[:1]
    return rounds


def _round(server: Server, plan: load.Plan) -> Measured:
    used = machine.cpu_seconds(server.pid)
    found = load.run(plan)
    # What is left to be sent is part of what traces cost.
    _let_rest(server)
    cpu = (machine.cpu_seconds(server.pid) - used) / max(found["answered"], 1) * 1e6
    return Measured(rate=found["rate"], p50=found["p50"], p99=found["p99"], cpu=cpu, failed=int(found["failed"]))


def _let_rest(server: Server) -> None:
    until = time.monotonic() + _REST_SECONDS
    before = machine.cpu_seconds(server.pid)
    while time.monotonic() < until:
        time.sleep(0.5)
        now = machine.cpu_seconds(server.pid)
        if now - before < _IDLE_CPU_SECONDS:
            return
        before = now


# --- what is shown


def _ratio(rounds: Mapping[str, list[Measured]], name: str, figure: str) -> float:
    pairs = zip(rounds[name], rounds["off"], strict=True)
    return float(statistics.median(getattr(one, figure) / getattr(off, figure) for one, off in pairs))


def _show(
    console: Console, rounds: Mapping[str, list[Measured]], stops: Mapping[str, float | None], offered: str
) -> None:
    if not rounds:
        return
    table = Table(offered, "requests/s", "of off", "p50 ms", "p99 ms", "of off", "CPU µs", "of off", "failed", "stop s")
    for name, found in rounds.items():
        stop = stops[name]
        middle = {key: statistics.median(getattr(one, key) for one in found) for key in ("rate", "p50", "p99", "cpu")}
        table.add_row(
            name,
            f"{middle['rate']:,.0f}",
            f"{_ratio(rounds, name, 'rate'):.3f}",
            f"{middle['p50']:.2f}",
            f"{middle['p99']:.2f}",
            f"{_ratio(rounds, name, 'p99'):.2f}",
            f"{middle['cpu']:.0f}",
            f"{_ratio(rounds, name, 'cpu'):.3f}",
            str(sum(one.failed for one in found)),
            "killed" if stop is None else f"{stop:.1f}",
        )
    console.print(table)


def _missed(
    full: Mapping[str, list[Measured]], fixed: Mapping[str, list[Measured]], stops: Mapping[str, float | None]
) -> list[str]:
    missed = []
    if "one" in full and (share := _ratio(full, "one", "cpu") - 1) > WANTED_SHARE:
        missed.append(f"at 1 % an accept takes {share:.1%} more of the processor, wanted {WANTED_SHARE:.0%} at most")
    ratios = {name: _ratio(fixed, name, "p99") for name in fixed}
    missed += [
        f"{name}: at a fixed rate its p99 is {ratio:.2f} of that of off, wanted {WANTED_P99:g} at most"
        for name, ratio in ratios.items()
        if ratio > WANTED_P99
    ]
    for name, seconds in stops.items():
        if seconds is None or seconds > WANTED_STOP_SECONDS:
            missed.append(f"{name} did not stop within {WANTED_STOP_SECONDS:g} s")
    return missed


def _plain(rounds: Mapping[str, list[Measured]]) -> dict[str, list[dict[str, float]]]:
    return {
        name: [{key: getattr(one, key) for key in one.__struct_fields__} for one in found]
        for name, found in rounds.items()
    }


if __name__ == "__main__":
    sys.exit(main())
