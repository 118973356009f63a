from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.running import ROOT

TORTURE = [sys.executable, str(ROOT / "scripts" / "torture.py")]
_MOST_SECONDS = 400.0


def test_whatever_dies_nothing_is_lost_twice_stuck_or_late() -> None:
    with subprocess.Popen(
        [*TORTURE, "--seed", "1", "--short"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    ) as process:
        try:
            said, _ = process.communicate(timeout=_MOST_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            pytest.fail(f"the torture did not end within {_MOST_SECONDS:g} s")
    assert process.returncode == 0, said
    print(said)


def planned(seed: int, *more: str) -> str:
    ran = subprocess.run([*TORTURE, "--seed", str(seed), "--plan", *more], capture_output=True, text=True, check=True)
    return ran.stdout


def test_the_same_seed_is_the_same_schedule_and_another_one_is_not() -> None:
    assert planned(3) == planned(3)
    assert planned(3) != planned(4)


def test_a_long_run_kills_20_processes_and_ten_databases() -> None:
    schedule = planned(1).splitlines()
    assert sum("kill -9" in line for line in schedule) == 20
    assert sum("PostgreSQL dies" in line for line in schedule) == 10
