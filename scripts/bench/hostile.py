#!/usr/bin/env python3
"""Hold servers up as the clients of the incident did, and worse: convo, Quart-Trio on stock hypercorn, and uvicorn.

Each row has a server of its own, with short deadlines where it has any, and four good clients that post 40
conversations a second meanwhile. Once the hostile clients have their positions, it is counted how long the server
keeps their sockets; then they come again, and SIGTERM is sent while they are there. In the last rows clients never stop
(storms.py): compared is how long good clients wait then, and alone.

    .venv/bin/python scripts/bench/hostile.py                                   # all of it: about 20 minutes
    .venv/bin/python scripts/bench/hostile.py --targets convo --cases rst,idle --count 100

Loopback only; the clients that vanish live in a network namespace of their own (root; else that row is skipped). The
25 malformed openings are listed in malformed.py. Returns 0 when convo, if it was there, lived in every row, took
everything back within the phase's deadline + 1 s, failed no good client and stopped within its grace.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from pathlib import Path

import trio
from msgspec import Struct, to_builtins
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import attacks, databases, load, machine, malformed, servers, storms, vanishing
from scripts.bench.attacks import Aim, Died
from scripts.bench.hostile_servers import (
    CONNECTION,
    GOOD_CLIENTS,
    GRACE_SECONDS,
    OTHERS,
    STOP_PATIENCE_SECONDS,
    TARGETS,
    good_plan,
)
from scripts.bench.servers import Server
from scripts.bench.storms import STORMS

_SLACK_SECONDS = 1.0
# Each of these may hold megabytes of the server and of the kernel.
_HEAVY_COUNT_MAX = 100
_LIVES_MAX = 6
_WARM_SECONDS, _REST_SECONDS = 1.5, 1.0
# How many come again before SIGTERM.
_AT_THE_STOP = 40
_MUTATIONS = 10_000


class Row(Struct, kw_only=True):
    """What came of one attack on one server; times in seconds, None for "not within our patience"."""

    target: str
    case: str
    deaths: list[str]
    allowed: float | None
    reclaimed: float | None = None
    held: int = 0
    memory_mb: float = 0.0
    p99: float = 0.0
    good: int = 0
    failed: int = 0
    stopped: float | None = None
    code: int | None = None


class Case(Struct, frozen=True, kw_only=True):
    """An attack: who takes which position, how it is held, and which of convo's phases may have to end it.

    It may be one phase after the other: whoever was too slow is told so, and read for a while, so that he sees it; a
    large answer is made (all of them together, on one interpreter) before it is written.
    """

    does: str
    takes: tuple[attacks.Take, ...] = ()
    hold: attacks.Hold = attacks.stay
    phases: tuple[str, ...] = ()
    heavy: bool = False


_LIGHT = (attacks.reset, attacks.idle, attacks.half_closed, attacks.unreleased, attacks.slow_head, attacks.slow_body)
_ALL = tuple(CONNECTION)
_TOLD, _ANSWERED = "and told", "answered first"
CASES: Mapping[str, Case] = {
    "rst": Case(does="killed by RST", takes=(attacks.reset,)),
    "vanish": Case(does="vanished without FIN", phases=_ALL, heavy=True),
    "unread": Case(does="reads no large answer", takes=(attacks.unread,), phases=(_ANSWERED,), heavy=True),
    "idle": Case(does="never closes", takes=(attacks.idle,), phases=("keep_alive_seconds",)),
    "half": Case(does="half-closes", takes=(attacks.half_closed,), phases=("linger_seconds",)),
    "pool": Case(does="pool exhausted", takes=(attacks.unreleased,), phases=("keep_alive_seconds",)),
    "head": Case(does="slow head", takes=(attacks.slow_head,), phases=("head_seconds", _TOLD)),
    "body": Case(does="slow body", takes=(attacks.slow_body,), phases=("body_seconds", _TOLD)),
    "drip": Case(
        does="one byte a second",
        takes=(attacks.dripping,),
        hold=attacks.drip,
        phases=("head_seconds", "body_seconds", "linger_seconds"),
    ),
    "all": Case(does="all of these at once", takes=_LIGHT, phases=_ALL),
    "openings": Case(does=f"{len(malformed.OPENINGS)} malformed openings", phases=_ALL),
    "mutations": Case(does="random mutations", phases=_ALL),
}


def main() -> int:
    """Attack and print; return 0 when convo did as it should."""
    asked = _arguments()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    console = Console(width=max(Console().width, 150))
    for name, text in machine.about(databases.described(asked.database_url)).items():
        console.print(f"{name}: {text}", highlight=False, markup=False)
    rows = [
        row for case in asked.cases if case in CASES for target in asked.targets if (row := _row(target, case, asked))
    ]
    stormy = [
        storms.storm_row(target, case, asked) for case in asked.cases if case in STORMS for target in asked.targets
    ]
    console.print(_table(rows, asked))
    console.print(storms.table(stormy))
    for row in rows:
        for death in row.deaths:
            console.print(f"{row.target}, {row.case}: killed by: {death}", highlight=False, markup=False)
    if asked.json:
        asked.json.write_text(json.dumps(to_builtins([*rows, *stormy]), indent=1) + "\n")
    wrong = [f"{row.case}: {fault}" for row in rows if row.target == "convo" for fault in _faults(row)]
    wrong += [f"{row.case}: {fault}" for row in stormy if row.target == "convo" for fault in storms.faults(row)]
    for line in wrong:
        console.print(f"convo, {line}", style="red", highlight=False)
    return 1 if wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = partial(str.split, sep=",")
    parser.add_argument("--targets", type=listed, default=list(TARGETS), help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--cases", type=listed, default=[*CASES, *STORMS], help=f"of {', '.join([*CASES, *STORMS])}")
    parser.add_argument("--count", type=int, default=1000, help="hostile clients of each kind at once")
    parser.add_argument("--mutations", type=int, default=_MUTATIONS)
    parser.add_argument("--patience", type=float, default=12.0, help="seconds to wait for sockets to be given back")
    parser.add_argument("--database-url", default=databases.GIVEN, help="a PostgreSQL whose role may make databases")
    parser.add_argument("--json", type=Path, help="keep the rows in this file")
    return parser.parse_args()


# --- one row


def _row(target: str, name: str, asked: argparse.Namespace) -> Row | None:
    case = CASES[name]
    row = Row(target=target, case=name, deaths=[], allowed=_allowed(target, case))
    print(f"{target}: {case.does}", file=sys.stderr)
    if name != "vanish":
        _attack_lives(row, "127.0.0.1", asked)
        return row
    if why := vanishing.impossible():
        print(f"vanish is skipped: {why}", file=sys.stderr)
        return None
    with vanishing.linked():
        _attack_lives(row, vanishing.HOST, asked)
    return row


def _allowed(target: str, case: Case) -> float | None:
    """Return how long convo may keep the sockets of a case; None where it has no such deadline."""
    if target != "convo":
        return None
    longest = max((CONNECTION[phase] for phase in case.phases if phase in CONNECTION), default=0.0)
    if _TOLD in case.phases:
        longest += CONNECTION["linger_seconds"]
    if _ANSWERED in case.phases:
        longest += float(OTHERS["web.request_seconds"]) + CONNECTION["write_seconds"]
    return longest + _SLACK_SECONDS


def _attack_lives(row: Row, host: str, asked: argparse.Namespace) -> None:
    """Attack server after server, each from where the one before it died."""
    first = 0
    while True:
        try:
            _attack_one(row, host, first, asked)
        except Died as died:
            row.deaths.append(died.name)
            first = died.number + 1
            if len(row.deaths) >= _LIVES_MAX:
                return
        else:
            return


def _attack_one(row: Row, host: str, first: int, asked: argparse.Namespace) -> None:
    target = TARGETS[row.target]
    with (
        tempfile.TemporaryDirectory(prefix="convo-hostile-") as folder,
        target.start(Path(folder), host, asked.database_url) as server,
    ):
        aim = Aim(
            host=host,
            port=server.port,
            large=target.large,
            tail=load.real_tails(4_000)[0],
            lives=lambda: server.process.poll() is None,
        )
        with _good_clients(server, host, row):
            trio.run(_watch, row, aim, server, first, asked)
        trio.run(_stop, row, aim, server)


@contextlib.contextmanager
def _good_clients(server: Server, host: str, row: Row) -> Iterator[None]:
    process = load.begun(good_plan(server, host, 600.0))
    died = False
    try:
        yield
    except Died:
        died = True
        raise
    finally:
        process.terminate()
        found = load.finished(process)
        row.good += int(found["answered"])
        # When a server dies, they fail until it is noticed: that it died is counted by itself.
        row.failed += 0 if died else int(found["failed"])
        row.p99 = max(row.p99, found["p99"])


async def _watch(row: Row, aim: Aim, server: Server, first: int, asked: argparse.Namespace) -> None:
    """Attack, and see how long it takes until everything is as before."""
    await trio.sleep(_WARM_SECONDS)
    before = machine.rss_bytes(server.pid)
    async with _attacking(row.case, aim, first, asked, asked.count):
        await _see_reclaimed(row, aim, server, asked.patience)
    if not aim.lives():
        raise Died(first, CASES[row.case].does)
    await trio.sleep(_REST_SECONDS)
    row.memory_mb = (machine.rss_bytes(server.pid) - before) / 1e6


async def _see_reclaimed(row: Row, aim: Aim, server: Server, patience: float) -> None:
    began = trio.current_time()
    row.reclaimed = None
    while aim.lives() and trio.current_time() < began + patience:
        try:
            row.held = max(0, machine.connections(server.pid, server.port) - GOOD_CLIENTS)
        except FileNotFoundError:
            # It dies at this moment.
            return
        if not row.held:
            row.reclaimed = trio.current_time() - began
            return
        await trio.sleep(0.05)


async def _stop(row: Row, aim: Aim, server: Server) -> None:
    """Attack with a few once more, and ask the server to stop while they are there."""
    async with _attacking(row.case, aim, None, None, _AT_THE_STOP):
        row.stopped = await trio.to_thread.run_sync(servers.stop, server.process, STOP_PATIENCE_SECONDS)
    row.code = server.process.returncode


@contextlib.asynccontextmanager
async def _attacking(
    name: str, aim: Aim, first: int | None, asked: argparse.Namespace | None, count: int
) -> AsyncIterator[None]:
    """Have the hostile clients of a case in position for as long as the block runs; nonsense only with ``asked``."""
    case = CASES[name]
    if case.heavy:
        count = min(count, _HEAVY_COUNT_MAX)
    if name == "vanish":
        with vanishing.crowd(aim, count):
            vanishing.cut()
            yield
            vanishing.mend()
        return
    if asked is not None and first is not None:
        if name == "openings":
            await attacks.openings(aim, first)
        if name == "mutations":
            await attacks.mutations(aim, first, asked.mutations)
    async with trio.open_nursery() as nursery:
        for take in case.takes:
            await nursery.start(attacks.occupy, take, case.hold, aim, count)
        yield
        nursery.cancel_scope.cancel()


# --- telling


def _faults(row: Row) -> Iterator[str]:
    if row.deaths:
        yield f"it died {len(row.deaths)} times"
    if len(row.deaths) >= _LIVES_MAX:
        # None was left to look at.
        return
    if row.reclaimed is None:
        yield f"{row.held} sockets were not given back"
    elif row.allowed is not None and row.reclaimed > row.allowed:
        yield f"sockets were given back after {row.reclaimed:.1f} s, allowed are {row.allowed:.1f}"
    if row.failed:
        yield f"{row.failed} requests of good clients failed"
    if row.stopped is None or row.stopped > GRACE_SECONDS:
        yield f"it did not stop within {GRACE_SECONDS:g} s of SIGTERM"


def _table(rows: list[Row], asked: argparse.Namespace) -> Table:
    table = Table(
        "clients", "server", "lives", "sockets back", "allowed", "held", "memory", "good p99", "good failed", "SIGTERM",
        "code", title=f"{asked.count} hostile clients of each kind at once ({_HEAVY_COUNT_MAX} of the heavy ones)",
    )  # fmt: skip
    for case in asked.cases:
        for row in rows:
            if row.case == case:
                table.add_row(CASES[case].does if row.target == asked.targets[0] else "", *_cells(row, asked))
        table.add_section()
    return table


def _cells(row: Row, asked: argparse.Namespace) -> list[str]:
    late = f"not in {asked.patience:g} s" if row.held else ""
    return [
        row.target,
        f"died {len(row.deaths)} ×" if row.deaths else "yes",
        late if row.reclaimed is None else f"{row.reclaimed:.1f} s",
        "" if row.allowed is None else f"{row.allowed:.1f} s",
        str(row.held),
        f"{row.memory_mb:+.0f} MB",
        f"{row.p99:,.0f} ms",
        f"{row.failed} of {row.good + row.failed}",
        "" if row.code is None else "killed" if row.stopped is None else f"{row.stopped:.1f} s",
        "" if row.code is None else str(row.code),
    ]


if __name__ == "__main__":
    sys.exit(main())
