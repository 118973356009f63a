"""Retention with real processes: under load, killed in its midst, beside another process, beside the last release."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from convo.store import processes
from tests.support.last_release import unpack_last_release
from tests.support.many_rows import connect, fill
from tests.support.running import ROOT, ended, environment, query, running

END = "/v1/conversations/end"
ROWS = 4_000
DAYS = {
    "retention.conversations_days": "5",
    "retention.dead_days": "5",
    "retention.logs_days": "2",
    "retention.memories_days": "5",
    "retention.look_seconds": "0.2",
    "alerts.look_seconds": "0.3",
    "jobs.lease_seconds": "6",
    "jobs.heartbeat_seconds": "1",
}
# What has not ended stays as it is: nobody takes it. A few of these are from the first day.
OPEN = """
UPDATE job SET state = 'ready', delayed = true, delayed_at = now(), available_at = now() + interval '1 day',
               crashes = 0, waits_for = '', parked_since = NULL, lease_token = NULL, leased_at = NULL,
               leased_until = NULL, leased_by = NULL, lease_seconds = NULL
WHERE state IN ('ready', 'leased')
"""
OLD_OPEN = """
UPDATE conversation SET received_at = received_at - interval '29 days'
WHERE seq IN (SELECT seq FROM job WHERE state = 'ready' ORDER BY seq LIMIT 10)
"""
RECEIPTS = "UPDATE receipt SET received_at = c.received_at FROM conversation AS c WHERE c.seq = receipt.seq"
BOOKS = """
INSERT INTO ledger (day, kind, n, at)
SELECT (received_at AT TIME ZONE 'UTC')::date, kind, count(*), now() - interval '1 hour'
FROM conversation JOIN every_job USING (seq), LATERAL (VALUES ('accepted'), (state)) AS booked (kind)
WHERE kind IN ('accepted', 'done', 'dead') GROUP BY 1, 2
"""
OVER = """
SELECT count(*) FROM conversation JOIN every_job USING (seq)
WHERE state IN ('done', 'dead') AND received_at < now() - interval '5 days'
"""
LOGS_OVER = """
SELECT count(*) FROM conversation JOIN every_job USING (seq) JOIN conversation_log USING (seq)
WHERE state = 'done' AND received_at < now() - interval '2 days'
"""
MEMORIES_OVER = """
SELECT count(*) FROM memory JOIN receipt ON receipt.seq = memory.last_seq
WHERE receipt.received_at < now() - interval '5 days' AND first_seen_at < now() - interval '5 days'
"""
UNLEAD = f"""
SELECT pg_terminate_backend(pid) FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND classid = {processes.LEAD_LOCK >> 32} AND objid = {processes.LEAD_LOCK & 0xFFFF_FFFF}
"""
LIVE_OPEN = "SELECT count(*) FROM job WHERE state <> 'done' AND fair_key LIKE 'live-%'"
SCORES = "SELECT user_id, bot_id, score, conversations FROM relationship WHERE user_id NOT LIKE 'live-%' ORDER BY 1, 2"


def filled(database: str) -> None:
    """Make a month of conversations, by SQL."""

    async def make() -> None:
        connection = await connect(database)
        await fill(connection, ROWS, "calm")
        for statement in (OPEN, OLD_OPEN, RECEIPTS, "DELETE FROM ledger", BOOKS, "DELETE FROM process"):
            await connection.execute(statement)
        await connection.execute("DELETE FROM process_settings")
        await connection.execute(
            "UPDATE memory SET first_seen_at = c.received_at FROM conversation AS c WHERE c.seq = memory.seq"
        )
        await connection.close()

    asyncio.run(make())


def count(database: str, statement: str) -> int:
    found: int = query(database, statement)[0][0]
    return found


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def audited(database: str, data_dir: Path) -> str:
    line = [sys.executable, "-m", "convo", "audit", "--data-dir", str(data_dir)]
    done = subprocess.run(line, cwd=ROOT, env=environment(database), capture_output=True, text=True, check=False)
    return done.stdout.strip() + done.stderr


class Live:
    """A client that posts to whichever process runs, each conversation until it has a receipt."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.receipts: list[str] = []
        self.seconds: list[float] = []

    @contextmanager
    def posting(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._post, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _post(self, stop: threading.Event) -> None:
        with httpx.Client(timeout=15) as client:
            while not stop.is_set():
                name = f"live-{len(self.receipts):05}"
                body = ended(name, user_id=f"live-{len(self.receipts) % 5}")
                if self._until_receipt(client, body, stop):
                    self.receipts.append(name)
                time.sleep(0.05)

    def _until_receipt(self, client: httpx.Client, body: dict[str, Any], stop: threading.Event) -> bool:
        while not stop.is_set():
            for url in list(self.urls):
                started = time.monotonic()
                try:
                    answer = client.post(url + END, json=body)
                except httpx.TransportError:
                    continue
                if answer.status_code == 202:
                    self.seconds.append(time.monotonic() - started)
                    return True
                assert answer.status_code == 503, answer.text
            time.sleep(0.01)
        return False


def test_a_month_goes_under_load_and_a_kill_in_its_midst_loses_nothing_and_counts_nothing_twice(
    database: str, tmp_path: Path
) -> None:
    filled(database)
    over, scores, live = count(database, OVER), query(database, SCORES), Live()
    with running(tmp_path / "first", database, DAYS) as first:
        live.urls.append(first.url)
        with live.posting():
            until(lambda: 0 < count(database, OVER) < over)
            first.kill()
            left = count(database, OVER)
            with (
                running(tmp_path / "second", database, DAYS) as second,
                running(tmp_path / "third", database, DAYS) as third,
            ):
                live.urls = [second.url, third.url]
                until(lambda: len(live.receipts) > 20)
                until(lambda: not any(count(database, one) for one in (OVER, LOGS_OVER, MEMORIES_OVER)))
                posted = len(live.receipts)
                until(lambda: len(live.receipts) > posted + 10)
                until(lambda: count(database, LIVE_OPEN) < 3)
                text = first.output + second.output + third.output
    assert 0 < left < over
    assert "LEDGER_GAP" not in text
    assert "ledger_gap" not in text
    assert audited(database, tmp_path / "audit") == "the tables agree with the ledger"
    assert query(database, SCORES) == scores
    assert count(database, "SELECT sum(n)::integer FROM ledger WHERE kind = 'retired'") >= over
    retired = count(database, "SELECT count(*) FROM receipt WHERE state = 'x'")
    assert retired == count(database, "SELECT sum(n)::integer FROM ledger WHERE kind = 'retired'")
    assert count(database, "SELECT count(*) FROM receipt") == ROWS + len(live.receipts)
    assert count(database, "SELECT count(*) FROM job WHERE state = 'ready' AND delayed") == 20
    assert max(live.seconds) < 5


@pytest.mark.long
def test_nothing_goes_while_the_last_release_is_at_work(empty_database: str, tmp_path: Path) -> None:
    old_tree = unpack_last_release(tmp_path / "tree")
    aged = "UPDATE {} SET received_at = received_at - interval '10 days'"
    with running(tmp_path / "old", empty_database, tree=old_tree) as old:
        with running(tmp_path / "new", empty_database, DAYS) as new:
            for number in range(3):
                httpx.post(new.url + END, json=ended(f"talk-{number}"), timeout=15).raise_for_status()
            until(lambda: count(empty_database, "SELECT count(*) FROM every_job WHERE state = 'done'") == 3)
            for statement in (aged.format("conversation"), aged.format("receipt"), "UPDATE ledger SET day = day - 10"):
                query(empty_database, statement)
            # The old one leads. It looks every 5 s, so without its session the new one leads.
            query(empty_database, UNLEAD)
            until(lambda: "retention_waits" in new.output)
            time.sleep(1)
            assert count(empty_database, "SELECT count(*) FROM conversation") == 3
            assert old.stop() == 0
            until(lambda: count(empty_database, "SELECT count(*) FROM conversation") == 0)
        assert "ledger_gap" not in old.output
    assert audited(empty_database, tmp_path / "audit") == "the tables agree with the ledger"
