#!/usr/bin/env python3
"""Measure conversations analysed a second by an instant analyst, beside the no-op jobs of Procrastinate and PgQueuer.

First a queue is filled while nobody works, then the workers are started: jobs a second, from the start of the first to
the end of the last by the database's word. Then conversations come at a slow, steady rate: how long after its 202 a
client's job is started (negative where the worker was quicker than the answer). One process serves and one works; convo
does both in one. What convo does for a job that the others do not: it reads and decodes the log, stores three parts,
and settles score and relationship with fsync. ``convo_apart`` is convo with one process that takes in and another that
works.

    .venv/bin/python scripts/bench/jobs.py [--jobs 3000] [--workers 8]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import databases, load, machine, servers

_FILL_RATE = 300.0
_CONNECTIONS = 16
_DRAIN_SECONDS = 180.0
_SIZE_BYTES = 4_000
_SESSIONS = """
SELECT array_agg(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
# The marks of the last jobs may still be on their way to the file.
_SETTLE_SECONDS = 2.0


class Bench(Struct, frozen=True, kw_only=True):
    """Where one system is measured: its folder, its database, its marks, and how many jobs it does side by side."""

    folder: Path
    url: str
    workers: int

    @property
    def marks(self) -> Path:
        """Return the file of the jobs' starts."""
        return self.folder / "marks"


Run = Callable[[Bench], contextlib.AbstractContextManager[tuple[str, int]]]
"""Runs what is needed; yields the URL to post to, and the process that works where that is convo's."""


class System(Struct, frozen=True, kw_only=True):
    """One queue: how it only takes in, how it only works, how it does both, and how its unfinished jobs are counted."""

    taking: Run
    working: Run
    both: Run
    unfinished: str


def _convo(workers: int | None) -> Run:
    @contextlib.contextmanager
    def run(bench: Bench) -> Iterator[tuple[str, int]]:
        program = (str(servers.HERE / "instant.py"), str(bench.marks))
        settings = {"jobs.workers": str(bench.workers if workers is None else workers)}
        with servers.convo(bench.folder, bench.url, settings, program=program) as server:
            yield server.url, server.pid

    return run


@contextlib.contextmanager
def _convo_apart(bench: Bench) -> Iterator[tuple[str, int]]:
    """One process works, another one takes in: it wakes the first one."""
    apart = msgspec.structs.replace(bench, folder=bench.folder / "apart")
    apart.folder.mkdir()
    with _convo(None)(bench) as (_, pid), _convo(0)(apart) as (url, _):
        yield url, pid


def _peer(name: str, *, takes: bool, works: bool) -> Run:
    @contextlib.contextmanager
    def run(bench: Bench) -> Iterator[tuple[str, int]]:
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(servers.peer(name, bench.folder, bench.url)).url if takes else ""
            if works:
                arguments = (bench.url, "worker", str(bench.marks), str(bench.workers))
                stack.enter_context(servers.peer_working(name, bench.folder / "worker.log", *arguments))
            yield url, 0

    return run


def _peer_system(name: str, unfinished: str) -> System:
    return System(
        taking=_peer(name, takes=True, works=False),
        working=_peer(name, takes=False, works=True),
        both=_peer(name, takes=True, works=True),
        unfinished=unfinished,
    )


SYSTEMS: Mapping[str, System] = {
    "convo": System(
        taking=_convo(0),
        working=_convo(None),
        both=_convo(None),
        unfinished="SELECT count(*) FROM job WHERE state IN ('ready', 'leased')",
    ),
    "convo_apart": System(
        taking=_convo(0),
        working=_convo(None),
        both=_convo_apart,
        unfinished="SELECT count(*) FROM job WHERE state IN ('ready', 'leased')",
    ),
    "procrastinate": _peer_system(
        "procrastinate_peer", "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
    ),
    "pgqueuer": _peer_system("pgqueuer_peer", "SELECT count(*) FROM pgqueuer WHERE status IN ('queued', 'picked')"),
}


def main() -> int:
    """Measure and print."""
    asked = _arguments()
    console = Console(width=max(Console().width, 120))
    about = machine.about(databases.described(asked.database_url))
    for name, text in about.items():
        console.print(f"{name}: {text}", highlight=False, markup=False)
    found = {name: _measure(name, asked) for name in asked.systems}
    console.print(_table(found, asked))
    if asked.json:
        asked.json.write_text(json.dumps({"about": about, "found": found}, indent=1) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", type=lambda text: text.split(","), default=list(SYSTEMS))
    parser.add_argument("--jobs", type=int, default=3000, help="jobs in the queue when the workers are started")
    parser.add_argument(
        "--workers", type=int, default=8, help="convo's workers, Procrastinate's concurrency, PgQueuer's batch"
    )
    parser.add_argument("--rate", type=float, default=50.0, help="conversations a second while starts are timed")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long starts are timed")
    parser.add_argument("--database-url", default=databases.GIVEN, help="a PostgreSQL whose role may make databases")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    return parser.parse_args()


# --- measuring


def _measure(name: str, asked: argparse.Namespace) -> dict[str, float]:
    system = SYSTEMS[name]
    with (
        tempfile.TemporaryDirectory(prefix="convo-jobs-") as folder,
        databases.database(asked.database_url, f"jobs_{name}") as url,
    ):
        bench = Bench(folder=Path(folder), url=url, workers=asked.workers)
        print(f"{name}: filling", file=sys.stderr)
        with system.taking(bench) as (address, _):
            _post(address, "fill", rate=_FILL_RATE, seconds=asked.jobs / _FILL_RATE)
        print(f"{name}: working", file=sys.stderr)
        waiting = int(databases.value(url, system.unfinished))
        with system.working(bench) as (_, pid):
            left, before = max(1, databases.value(url, system.unfinished)), _used(bench, pid)
            rate = waiting / _drained(bench, system)
            used = {name: (value - before[name]) / left for name, value in _used(bench, pid).items()}
        print(f"{name}: timing", file=sys.stderr)
        return {"jobs": waiting, "rate": rate, **used, **_timed(bench, system, asked)}


def _post(address: str, name: str, *, rate: float, seconds: float, answered_at: str = "") -> load.Outcome:
    plan = load.Plan(
        url=f"{address}/v1/conversations/end",
        tails=load.real_tails(_SIZE_BYTES),
        connections=_CONNECTIONS,
        seconds=seconds,
        name=name,
        rate=rate,
        answered_at=answered_at,
    )
    return load.run(plan)


def _drained(bench: Bench, system: System) -> float:
    """Wait until nothing is unfinished; return the seconds since the first job's start."""
    until = time.monotonic() + _DRAIN_SECONDS
    while databases.value(bench.url, system.unfinished):
        if time.monotonic() > until:
            raise SystemExit(f"the jobs were not done in {_DRAIN_SECONDS:.0f} s; see {bench.folder}")
        time.sleep(0.1)
    ended = time.monotonic()
    return ended - min(_times(bench.marks).values())


def _timed(bench: Bench, system: System, asked: argparse.Namespace) -> dict[str, float]:
    """Post at a slow rate while somebody works; return how long after its answer a job started, in milliseconds."""
    answered_at = bench.folder / "answered"
    with system.both(bench) as (address, _):
        # Their first look at the queue is not what is measured.
        time.sleep(_SETTLE_SECONDS)
        found = _post(address, "timed", rate=asked.rate, seconds=asked.seconds, answered_at=str(answered_at))
        time.sleep(_SETTLE_SECONDS)
    started, answered = _times(bench.marks), _times(answered_at)
    late = [started[name] - at for name, at in answered.items() if name in started]
    delays = load.outcome(late, len(answered) - len(late), asked.seconds)
    return {
        "start p50": delays["p50"],
        "start p99": delays["p99"],
        "not started": delays["failed"],
        "answer p50": found["p50"],
        "failed": found["failed"],
    }


def _used(bench: Bench, pid: int) -> dict[str, float]:
    """Return what was used so far: the processor of convo and of its sessions in ms, commits, bytes of WAL.

    WAL is that of the whole server, so nobody else may use it. Of a peer's process the processor is not read.
    """
    sessions = databases.value(bench.url, _SESSIONS)
    return {
        "CPU ms": 1000 * machine.cpu_seconds(pid) if pid else 0.0,
        "CPU ms of PostgreSQL": 1000 * sum(machine.cpu_seconds(int(one)) for one in sessions or ()),
        "commits": float(databases.value(bench.url, _COMMITS)),
        "WAL bytes": float(databases.value(bench.url, "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")),
    }


def _times(path: Path) -> dict[str, float]:
    return {name: float(at) for name, at in (line.split() for line in path.read_text().splitlines())}


# --- telling


def _table(found: Mapping[str, Mapping[str, float]], asked: argparse.Namespace) -> Table:
    title = f"{asked.workers} side by side; starts at {asked.rate:.0f} conversations/s"
    table = Table(
        "queue", "convo is", "jobs/s", "of jobs", "202 to start, p50 ms", "p99 ms", "not started", "202 p50 ms",
        "failed", "CPU ms a job", "PostgreSQL's", "commits", "WAL bytes", title=title,
    )  # fmt: skip
    for name, figures in found.items():
        times = found["convo"]["rate"] / figures["rate"] if "convo" in found else 0.0
        table.add_row(
            name,
            f"{times:.2f} ×" if times and name != "convo" else "",
            f"{figures['rate']:,.0f}",
            f"{figures['jobs']:.0f}",
            f"{figures['start p50']:.1f}",
            f"{figures['start p99']:.1f}",
            f"{figures['not started']:.0f}",
            f"{figures['answer p50']:.1f}",
            f"{figures['failed']:.0f}",
            f"{figures['CPU ms']:.2f}",
            f"{figures['CPU ms of PostgreSQL']:.2f}",
            f"{figures['commits']:.2f}",
            f"{figures['WAL bytes']:,.0f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
