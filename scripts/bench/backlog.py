#!/usr/bin/env python3
"""Drain a backlog of jobs; show how large the table of jobs is then, and what accepts notice of its rebuilding.

    .venv/bin/python scripts/bench/backlog.py                  # 200,000 jobs of 10,000 users
    .venv/bin/python scripts/bench/backlog.py --jobs 20000

It runs on an embedded PostgreSQL of its own, with autovacuum as it is by default. The jobs are made by SQL, leased and
settled by the product, and nothing is analysed. Then it waits for autovacuum, which looks once a minute. At the end
conversations of 4 KB are accepted one after the other, alone and while the indexes are rebuilt five times a second: the
product rebuilds them once after a backlog.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.job_room_keeper import give_job_room_back
from convo.observe.log import open_log
from convo.runtime.bridge import open_bridge
from convo.settings import DatabaseSettings, ObserveSettings
from convo.store.jobs import job_room
from convo.store.migrate import migrate
from convo.store.postgres import open_postgres
from scripts.bench import databases, machine
from tests.conftest import embedded_server
from tests.support.making import THREE, Process, accept, open_process
from tests.support.receipts_by_sql import RECEIPTS

_BATCH = 256
_VACUUM_SECONDS = 300.0
_ACCEPTS_SECONDS = 8.0
_REBUILD_EVERY_SECONDS = 0.2
_WORDS = tuple(f"{n} {hash(str(n))} {hash(str(-n))}" for n in range(60))
_FILL = (
    """
    INSERT INTO conversation (conversation_id, user_id, bot_id, started_at, ended_at, received_at, turns, exchanges)
    SELECT md5('talk-' || n), 'user-' || n % 10000, 'bot-' || n % 7, now(), now(), now(), 12, 6
    FROM generate_series(1, :jobs) AS n
    """,
    RECEIPTS,
    "INSERT INTO conversation_log (seq, body) SELECT seq, ''::bytea FROM conversation",
    """
    INSERT INTO job (seq, fair_key, state, available_at)
    SELECT seq, user_id, 'ready', received_at FROM conversation ORDER BY seq
    """,
)
_SIZE = "SELECT ARRAY[pg_relation_size('job'), pg_indexes_size('job')]"
Sizes = tuple[int, int]
"""Bytes of the rows and of the indexes."""


def main() -> int:
    """Measure and print; return 0 when the table ends below 10 MB and no accept took a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200_000, help="jobs of the backlog")
    asked = parser.parse_args()
    console = Console(width=110)
    with (
        open_log(ObserveSettings(log_level="warning")),
        tempfile.TemporaryDirectory(prefix="convo-backlog-") as folder,
        embedded_server(Path(folder)) as server,
        databases.database(server, "backlog") as url,
    ):
        for name, text in machine.about(databases.described(server)).items():
            console.print(f"{name}: {text}", highlight=False, markup=False)
        trio.run(_migrated, url)
        for statement in _FILL:
            databases.execute(url, statement.replace(":jobs", str(asked.jobs)))
        sizes: dict[str, Sizes] = {"full": _size(url)}
        seconds = trio.run(_drain, url, asked.jobs)
        sizes["drained"] = _size(url)
        waited = _until_vacuumed(url)
        sizes["after autovacuum"] = _size(url)
        alone, beside, rebuilt = trio.run(_accepts, url)
        sizes["rebuilt"] = _size(url)
    console.print(_table(sizes))
    console.print(f"drained in {seconds:.0f} s, cut by autovacuum after another {waited:.0f} s")
    for name, taken in (("alone", alone), (f"beside {len(rebuilt)} rebuilds", beside)):
        console.print(
            f"{len(taken):,} accepts {name}: p50 {_part(taken, 0.5):.1f}, p99 {_part(taken, 0.99):.1f}, slowest"
            f" {max(taken):.1f} ms"
        )
    console.print(f"a rebuild: {_part(rebuilt, 0.5) * 1000:.0f} ms (median), {max(rebuilt) * 1000:.0f} ms at most")
    return int(sum(sizes["rebuilt"]) >= 10_000_000 or max(beside) >= 1000)


async def _migrated(url: str) -> None:
    async with open_bridge() as bridge, open_postgres(bridge, url, DatabaseSettings()) as postgres:
        dedicated = postgres.dedicated()
        await migrate(dedicated)
        await dedicated.close()


async def _drain(url: str, jobs: int) -> float:
    started, left = time.monotonic(), jobs
    async with open_process(url) as process:
        while leases := await process.jobs.lease(_BATCH):
            async with trio.open_nursery() as nursery:
                for lease in leases:
                    found = {name: ("bench/1", finding) for name, finding in THREE.items()}
                    nursery.start_soon(partial(process.settler.settle, lease, found=found))
            left -= len(leases)
    if left:
        raise SystemExit(f"{left} jobs are left")
    return time.monotonic() - started


def _until_vacuumed(url: str) -> float:
    started = time.monotonic()
    while _size(url)[0] > job_room.ROW_BYTES_MAX and time.monotonic() < started + _VACUUM_SECONDS:
        time.sleep(1)
    return time.monotonic() - started


async def _accepts(url: str) -> tuple[list[float], list[float], list[float]]:
    async with open_process(url) as process:
        rebuilt = await give_job_room_back(process.postgres) is not None
        alone = await _accept(process, "alone")
        seconds: list[float] = []

        async def rebuild() -> None:
            # From now on any size is too large.
            job_room.INDEX_BYTES_MAX, job_room.ROW_BYTES_MAX = 0, 1 << 40
            while True:
                began = time.monotonic()
                if await give_job_room_back(process.postgres) is not None:
                    seconds.append(time.monotonic() - began)
                await trio.sleep(_REBUILD_EVERY_SECONDS)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(rebuild)
            beside = await _accept(process, "beside")
            nursery.cancel_scope.cancel()
    if not rebuilt:
        print("the indexes were not worth rebuilding")
    return alone, beside, seconds


async def _accept(process: Process, name: str) -> list[float]:
    taken: list[float] = []
    until = time.monotonic() + _ACCEPTS_SECONDS
    while (began := time.monotonic()) < until:
        await process.committer.accept(accept(f"{name}-{len(taken)}", said=_WORDS))
        taken.append((time.monotonic() - began) * 1000)
    return taken


def _size(url: str) -> Sizes:
    rows, indexes = databases.value(url, _SIZE)
    return rows, indexes


def _part(taken: Sequence[float], share: float) -> float:
    return sorted(taken)[int(len(taken) * share)]


def _table(sizes: dict[str, Sizes]) -> Table:
    table = Table("the table of jobs", "rows", "indexes")
    for name, (rows, indexes) in sizes.items():
        table.add_row(name, f"{rows / 1e6:.1f} MB", f"{indexes / 1e6:.1f} MB")
    return table


if __name__ == "__main__":
    sys.exit(main())
