#!/usr/bin/env python3
"""Measures what each statement that reads costs in a large database: buffers and milliseconds, beside a small one.

Of the first large database it also prints how many bytes a conversation takes in each table, with the indexes.

The databases are made by SQL on the embedded PostgreSQL, in a folder that is removed afterwards: in each of three
shapes a small and a large one (``tests/support/many_rows.py``). A statement is run three times; the least time counts.

Usage: scripts/bench/plans.py [--rows 1000000] [--small 10000] [--shape calm many one] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import trio
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.conftest import _database, _migrate, embedded_server, roomy_folder  # noqa: E402  it need not be installed
from tests.support.many_rows import SHAPES, Shape, connect, explained, fill  # noqa: E402
from tests.support.planned_statements import asked  # noqa: E402

_RUNS = 3
_SECONDS = 30
# The logs are left out: in these databases they are short.
_BYTES = """
SELECT relname AS name, pg_total_relation_size(oid) / $1 AS bytes, pg_indexes_size(oid) / $1 AS indexes
FROM pg_class
WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace AND relname <> 'conversation_log'
  AND pg_total_relation_size(oid) / $1 > 0
ORDER BY 2 DESC
"""
Cost = tuple[int, float]
"""Buffers, and milliseconds; -1 buffers: it did not end in time."""


def measure(url: str, rows: int, shape: Shape) -> Mapping[str, Cost]:
    """Fill one database, run every statement in it, and return what each costs."""
    trio.run(_migrate, url)
    return asyncio.run(_measure(url, rows, shape))


async def _measure(url: str, rows: int, shape: Shape) -> Mapping[str, Cost]:
    connection = await connect(url)
    try:
        sample = await fill(connection, rows, shape)
        if shape == "calm":
            _print_bytes(await connection.fetch(_BYTES, rows), rows)
        await connection.execute(f"SET statement_timeout = '{_SECONDS}s'")
        return {name: await _cost(connection, query, values) for name, (query, values) in asked(sample).items()}
    finally:
        connection.terminate()


def _print_bytes(tables: Sequence[Mapping[str, Any]], rows: int) -> None:
    table = Table("table", f"bytes of {rows:,} conversations each", "of these its indexes")
    for one in tables:
        table.add_row(one["name"], f"{one['bytes']:,}", f"{one['indexes']:,}")
    Console(width=150).print(table)


async def _cost(connection: Any, query: str, values: tuple[object, ...]) -> Cost:
    try:
        runs = [await explained(connection, query, values) for _ in range(_RUNS)]
    except asyncpg.QueryCanceledError:
        return -1, _SECONDS * 1000.0
    return runs[-1].buffers, min(one.milliseconds for one in runs)


def draw(costs: Mapping[tuple[Shape, str], tuple[Cost, Cost]], rows: int, small: int) -> Table:
    """Draw a row for each statement and shape, the dearest first."""
    table = Table("statement", "shape", f"buffers {small:,}", f"buffers {rows:,}", f"ms {rows:,}")
    for (shape, name), (little, large) in sorted(costs.items(), key=lambda one: -one[1][1][1]):
        table.add_row(name, shape, f"{little[0]:,}", f"{large[0]:,}", f"{large[1]:,.2f}")
    return table


def main() -> None:
    """Measure, print the table, and write it where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="conversations in the large database")
    parser.add_argument("--small", type=int, default=10_000, help="conversations in the small one")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    costs: dict[tuple[Shape, str], tuple[Cost, Cost]] = {}
    with roomy_folder() as folder, embedded_server(folder) as server:
        for shape in options.shape:
            found = []
            for rows in (options.small, options.rows):
                with _database(server) as url:
                    found.append(measure(url, rows, shape))
            costs |= {(shape, name): (found[0][name], found[1][name]) for name in found[0]}
    Console(width=150).print(draw(costs, options.rows, options.small))
    if options.json:
        figures = {f"{shape} {name}": cost for (shape, name), cost in costs.items()}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures)))


if __name__ == "__main__":
    main()
