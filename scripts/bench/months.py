#!/usr/bin/env python3
"""Let retention remove a month of logs and runs, by DROP and row by row, while clients post; show what each costs.

    .venv/bin/python scripts/bench/months.py                   # 200,000 conversations
    .venv/bin/python scripts/bench/months.py --rows 20000 --ways "by DROP"

Each way has a database of its own. The month ended 50 days ago, each log has 1,951 bytes that do not compress, and the
days are over for all of it. Clients post 20 conversations of 4 KB a second, 10 s without retention and then with it.
Row by row is what retention does where one bot keeps its logs and runs for ever.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import httpx
import trio
from msgspec import Struct, to_builtins
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.runtime.bridge import open_bridge
from convo.settings import DatabaseSettings
from convo.store.migrate import migrate
from convo.store.months import MONTH_SEQS
from convo.store.postgres import open_postgres
from scripts.bench import databases, load, machine, servers
from scripts.bench.servers import Server
from tests.support.receipts_by_sql import RECEIPTS

_LOG_BYTES = 1951
_CLIENTS, _PER_SECOND = 4, 20
_ALONE_SECONDS = 10.0
_WAIT_SECONDS = 1800.0
_SETTINGS = {"retention.logs_days": "30", "retention.runs_days": "30", "observe.log_format": "json"}
WAYS: Mapping[str, Mapping[str, str]] = {
    "by DROP": {},
    "row by row": {"retention.bots": '{"never": {"logs_days": 0, "runs_days": 0}}'},
}
_FILL = (
    """
    INSERT INTO conversation (conversation_id, user_id, bot_id, started_at, ended_at, received_at, turns, exchanges)
    SELECT 'talk-' || n, 'user-' || n % 10000, 'bot-' || n % 7, at, at, at, 12, 6
    FROM (SELECT n, now() - interval '80 days' + interval '30 days' * n / :rows AS at
          FROM generate_series(1, :rows) AS n) AS made ORDER BY n
    """,
    RECEIPTS,
    f"""
    WITH noise AS MATERIALIZED (
        SELECT decode(string_agg(md5(n::text), ''), 'hex') AS bytes FROM generate_series(1, 9999) AS n
    )
    INSERT INTO conversation_log (seq, body)
    SELECT seq, substring(bytes FROM (1 + seq * 977 % 150000)::integer FOR {_LOG_BYTES})
    FROM conversation, noise ORDER BY 1
    """,
    """
    INSERT INTO outcome (seq, began_at, ended_at, score, attempts, crashes, emotion, details)
    SELECT seq, received_at, received_at, 9, 1, 0, 'happy', '{}' FROM conversation ORDER BY seq
    """,
    """
    INSERT INTO run (seq, began_at, ended_at, ending, made_by, waits)
    SELECT seq, received_at, received_at, 'settle', 'folder.incarnation', '{"db.take": 0.001}'
    FROM conversation ORDER BY 1
    """,
    """
    INSERT INTO ledger (day, kind, n, at)
    SELECT (received_at AT TIME ZONE 'UTC')::date, kind, count(*), max(received_at)
    FROM conversation, unnest(ARRAY['accepted', 'done']) AS kind GROUP BY 1, 2
    """,
    """
    INSERT INTO relationship (user_id, bot_id, score, conversations, last_emotion, last_seq)
    SELECT user_id, bot_id, 9 * count(*), count(*), 'happy', max(seq) FROM conversation GROUP BY 1, 2
    """,
    f"SELECT setval('conversation_seq_seq', {MONTH_SEQS}, false)",
)
_SIZE = """
SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relname IN ('conversation_log_0', 'run_0')
"""
_WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"


class Removed(Struct, kw_only=True):
    """What it cost to remove a month in one way; bytes, and latencies of accepts in milliseconds."""

    way: str
    rows: int
    size_before: int
    size_after: int = 0
    seconds: float = 0.0
    locked_seconds: float = 0.0
    wal_bytes: int = 0
    accepts: int = 0
    failed: int = 0
    p99_alone: float = 0.0
    p99: float = 0.0
    slowest: float = 0.0


def main() -> int:
    """Measure and print; return 0 when no accept failed and none took a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="conversations of the month")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS))
    parser.add_argument("--database-url", default=databases.GIVEN, help="a PostgreSQL whose role may make databases")
    parser.add_argument("--json", type=Path, help="keep the rows in this file")
    asked = parser.parse_args()
    console = Console(width=max(Console().width, 120))
    for name, text in machine.about(databases.described(asked.database_url)).items():
        console.print(f"{name}: {text}", highlight=False, markup=False)
    rows = [_measured(asked, way) for way in asked.ways]
    console.print(_table(rows))
    if asked.json:
        asked.json.write_text(json.dumps(to_builtins(rows), indent=1) + "\n")
    return int(any(row.failed or row.slowest >= 1000 for row in rows))


def _measured(asked: argparse.Namespace, way: str) -> Removed:
    with (
        tempfile.TemporaryDirectory(prefix="convo-months-") as folder,
        databases.database(asked.database_url, "months") as database,
    ):
        trio.run(_migrated, database)
        for statement in _FILL:
            databases.execute(database, statement.replace(":rows", str(asked.rows)))
        databases.execute(database, "VACUUM (ANALYZE)")
        databases.execute(database, "CHECKPOINT")
        row = Removed(way=way, rows=asked.rows, size_before=databases.value(database, _SIZE))
        with servers.convo(Path(folder), database, {}) as server, Posting(server, "alone") as posting:
            time.sleep(_ALONE_SECONDS)
        row.p99_alone, row.failed = _p99(posting.taken), posting.failed
        before = databases.value(database, _WAL)
        settings = {**_SETTINGS, **WAYS[way], "observe.log_level": "info"}
        with servers.convo(Path(folder), database, settings) as server, Posting(server, "beside") as posting:
            began = time.monotonic()
            _until_removed(server, 2 * asked.rows)
            row.seconds = time.monotonic() - began
            row.wal_bytes = databases.value(database, _WAL) - before
            # A drop takes a moment: as many accepts as before show what they noticed of it.
            time.sleep(max(0.0, _ALONE_SECONDS - row.seconds))
        row.p99, row.slowest = _p99(posting.taken), max(posting.taken)
        row.accepts, row.failed = len(posting.taken), row.failed + posting.failed
        row.locked_seconds = _locked_seconds(server)
        row.size_after = databases.value(database, _SIZE)
        return row


async def _migrated(url: str) -> None:
    async with open_bridge() as bridge, open_postgres(bridge, url, DatabaseSettings()) as postgres:
        dedicated = postgres.dedicated()
        await migrate(dedicated)
        await dedicated.close()


class Posting:
    """Clients that post at a fixed rate as long as the block runs; ``taken`` are the milliseconds of each."""

    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        self._name = name
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._post, args=(n,)) for n in range(_CLIENTS)]
        self.taken: list[float] = []
        self.failed = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _post(self, client: int) -> None:
        tails, due, number = load.real_tails(4_000), time.monotonic(), 0
        with httpx.Client(base_url=self._server.url, timeout=30) as http:
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                # From the moment at which it was due: what waits behind a slow one is slow, too.
                content = f'{{"conversation_id": "{self._name}-{client}-{number}", {tails[number % len(tails)]}'
                answer = http.post(
                    "/v1/conversations/end", content=content, headers={"Content-Type": "application/json"}
                )
                self.failed += answer.status_code != httpx.codes.ACCEPTED
                self.taken.append((time.monotonic() - due) * 1000)
                number += 1
                due += _CLIENTS / _PER_SECOND


def _until_removed(server: Server, count: int) -> None:
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        found = re.findall(r'^convo_retired_total\{what="(?:logs|runs)"\} (\S+)$', _metrics(server), re.MULTILINE)
        if sum(map(float, found)) >= count:
            return
        if time.monotonic() > until:
            raise SystemExit("the month is not removed")
        time.sleep(0.1)


def _metrics(server: Server) -> str:
    return httpx.get(f"{server.url}/metrics", timeout=10).text


def _locked_seconds(server: Server) -> float:
    lines = server.said.read_text("utf-8", "replace").splitlines()
    return max((json.loads(line)["seconds"] for line in lines if '"month_dropped"' in line), default=0.0)


def _p99(taken: list[float]) -> float:
    return sorted(taken)[int(len(taken) * 0.99)] if taken else 0.0


def _table(rows: list[Removed]) -> Table:
    table = Table(
        "way", "conversations", "seconds", "locked", "WAL", "size before", "after", "p99 before", "p99", "slowest"
    )
    for row in rows:
        table.add_row(
            row.way, f"{row.rows:,}", f"{row.seconds:.2f}", f"{row.locked_seconds * 1000:.0f} ms",
            *(f"{size / 1e6:.1f} MB" for size in (row.wal_bytes, row.size_before, row.size_after)),
            *(f"{latency:.1f} ms" for latency in (row.p99_alone, row.p99, row.slowest)),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())
