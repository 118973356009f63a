from __future__ import annotations

import subprocess
from pathlib import Path

import httpx

from tests.support.running import ROOT, command, environment, running

AT_ONCE = {"alerts.slow_request_seconds": "0.000001", "alerts.slow_query_seconds": "0.000001"}


def test_both_thresholds_of_the_settings_reach_those_who_tell(tmp_path: Path, database: str) -> None:
    with running(tmp_path, database, AT_ONCE) as started:
        httpx.get(f"{started.url}/v1/conversations").raise_for_status()
        assert started.stop() == 0
        lines = started.output.splitlines()
    assert any("slow_query" in line and "db.list" in line for line in lines)
    assert any("slow_request" in line and "/v1/conversations" in line for line in lines)


def test_with_the_usual_thresholds_nothing_is_slow(tmp_path: Path, database: str) -> None:
    with running(tmp_path, database) as started:
        httpx.get(f"{started.url}/v1/conversations").raise_for_status()
        assert started.stop() == 0
        assert "slow_" not in started.output


def test_a_pool_that_the_database_does_not_take_does_not_serve(tmp_path: Path, database: str) -> None:
    done = subprocess.run(
        command(tmp_path),
        env=environment(database, {"database.pool_max": "900"}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "database.pool_max = 900 and 14 connections besides are more than the" in done.stderr
