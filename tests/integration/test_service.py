from __future__ import annotations

import json
import re
import time
from pathlib import Path

import httpx
import pytest

from tests.support.running import ended, running, serving


def test_a_start_logs_no_loop_block_of_its_own_collector_pass(database: str, tmp_path: Path) -> None:
    # The pass takes some 30 ms: under the default limit it would be logged on a slower machine only.
    with running(tmp_path, database, {"observe.loop_block_seconds": "0.01"}) as convo:
        assert httpx.post(f"{convo.url}/v1/conversations/end", json=ended("first-1")).status_code == 202
    records = [json.loads(line) for line in convo.output.splitlines() if '"loop_blocked"' in line]
    assert [record for record in records if record["cause"] == "collector"] == []


def test_the_canary_and_the_gauges_run_once_the_database_is_prepared(database: str, tmp_path: Path) -> None:
    settings = {"canary.enabled": "true", "canary.interval_seconds": "0.2", "observe.sample_seconds": "0.05"}
    wanted = (r"^convo_canaries_total\{.*returned.*\} [1-9]", r'^convo_jobs\{state="ready"\} ')
    with running(tmp_path, database, settings) as convo, httpx.Client(base_url=convo.url) as client:
        client.post("/v1/conversations/end", json=ended("first-1"))
        until, figures = time.monotonic() + 20, ""
        while not all(re.search(line, figures, re.MULTILINE) for line in wanted):
            assert time.monotonic() < until, figures
            time.sleep(0.05)
            figures = client.get("/metrics").text


def test_an_address_without_a_scheme_is_told_at_the_start_and_everywhere_and_buries_nothing(
    database: str, tmp_path: Path
) -> None:
    settings = {"memory.url": "memory.internal:8000", "alerts.evaluate_seconds": "0.1", "observe.log_format": "json"}
    with running(tmp_path, database, settings) as convo, httpx.Client(base_url=convo.url) as client:
        wrong = "memory.url must begin with http:// or https:// and a host"
        assert wrong in convo.output
        assert f"MEMORY_MISCONFIGURED: memory: {wrong}" in client.get("/readyz").json()["warnings"]
        client.post("/v1/conversations/end", json=ended("first-1"))
        until, explained, alerts = time.monotonic() + 20, "", ""
        while "its settings are wrong" not in explained or "MEMORY_MISCONFIGURED" not in alerts:
            assert time.monotonic() < until, explained + alerts
            time.sleep(0.05)
            explained, alerts = client.get("/v1/conversations/first-1/explain").text, client.get("/v1/alerts").text
        shown = client.get("/v1/conversations/first-1").json()
    assert (shown["state"], shown["attempts"], shown["waits_for"]) == ("ready", 0, "memory")


@pytest.mark.parametrize(("workers", "settles_apart"), [(0, 0), (8, 120), (127, 1), (128, 0), (200, 0)])
async def test_up_to_128_workers_and_tasks_that_settle_share_the_jobs(
    database: str, tmp_path: Path, workers: int, settles_apart: int
) -> None:
    async with (
        serving(tmp_path, database, {"jobs.workers": str(workers)}) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        shown = (await client.get("/debug/tasks")).text
    assert shown.count("Settling.run") == settles_apart
