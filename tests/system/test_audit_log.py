"""The audit log of a real process: what a stop stores, what SIGHUP notes, and what the command shows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support.audit_rows import audit_rows
from tests.support.running import ROOT, ended, environment, running


def convo(*arguments: str, database: str, data_dir: Path) -> str:
    command = [sys.executable, "-m", "convo", *arguments, "--data-dir", str(data_dir)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(database), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_stop_stores_what_was_read_a_moment_before_and_each_start_and_reload_is_a_row(
    database: str, tmp_path: Path
) -> None:
    for _ in range(2):
        with running(tmp_path, database) as server, httpx.Client(base_url=server.url) as client:
            client.post("/v1/conversations/end", json=ended("talk-1"))
            server.signal(signal.SIGHUP)
            until = time.monotonic() + 20
            while not any(row["action"] == "reload" for row in audit_rows(database)) and time.monotonic() < until:
                time.sleep(0.05)
            assert client.get("/v1/conversations/talk-1/log").status_code == 200
            assert server.stop() == 0
        assert "audit_rows_lost" not in server.output
    found = [row["action"] for row in audit_rows(database)]
    assert sorted(found) == ["log_read", "log_read", "reload", "reload", "start", "start"]


def test_a_kill_loses_no_row_that_was_stored_and_stores_none_twice(database: str, tmp_path: Path) -> None:
    with running(tmp_path, database) as server, httpx.Client(base_url=server.url) as client:
        client.post("/v1/conversations/end", json=ended("talk-1"))
        reads = 0
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            assert client.get("/v1/conversations/talk-1/log").status_code == 200
            reads += 1
        stored = len(audit_rows(database, "start"))
        server.kill()
    after = len(audit_rows(database, "start"))
    assert 0 < stored <= after <= reads
    with running(tmp_path, database):
        pass
    assert len(audit_rows(database, "start")) == after
    assert len(audit_rows(database, "log_read")) == 2


@pytest.mark.long
def test_the_command_shows_the_log_by_the_ids_themselves(database: str, tmp_path: Path) -> None:
    with running(tmp_path, database) as server, httpx.Client(base_url=server.url) as client:
        for number in (1, 2):
            client.post("/v1/conversations/end", json=ended(f"talk-{number}", user_id=f"user-{number}"))
            client.get(f"/v1/conversations/talk-{number}/log", params={"as": "sent"})
        until = time.monotonic() + 20
        while len(audit_rows(database, "start")) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        shown = convo("audit-log", "--json", database=database, data_dir=tmp_path)
        entries = json.loads(shown)["rows"]
        assert [one["action"] for one in entries] == ["log_read", "log_read", "start"]
        of_one = json.loads(convo("audit-log", "--json", "--user", "user-1", database=database, data_dir=tmp_path))[
            "rows"
        ]
        assert of_one == entries[1:2]
        before = str(entries[0]["number"])
        older = convo("audit-log", "--before", before, "--limit", "1", database=database, data_dir=tmp_path)
        assert "log_read" in older
        assert f"There are more: --before {entries[1]['number']}" in older
        assert "start" not in older
        since = convo("audit-log", "--since", "1h", "--action", "start", database=database, data_dir=tmp_path)
        assert "server.data_dir" in since
