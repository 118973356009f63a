from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.support.running import ROOT

TORTURE = ROOT / "scripts" / "torture.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("torture", TORTURE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["torture"] = module  # msgspec looks the types up there
    spec.loader.exec_module(module)
    return module


torture = load()


@pytest.mark.parametrize(
    ("form", "most_seconds"),
    [
        pytest.param(["--short"], 400.0, id="short"),
        pytest.param([], 1200.0, marks=pytest.mark.long, id="long"),
        pytest.param(
            ["--short", "--events", "--only", "RabbitMQ", "kill -9 of a process", "--conversations", "60"],
            500.0,
            marks=pytest.mark.long,
            id="events",
        ),
    ],
)
def test_whatever_dies_nothing_is_lost_twice_stuck_or_late(form: list[str], most_seconds: float) -> None:
    with subprocess.Popen(
        [sys.executable, str(TORTURE), "--seed", "1", *form],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    ) as process:
        try:
            said, _ = process.communicate(timeout=most_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            pytest.fail(f"the torture did not end within {most_seconds:g} s")
    assert process.returncode == 0, said
    print(said)


def test_the_same_seed_is_the_same_schedule_and_another_one_is_not() -> None:
    assert torture.plan(3, torture.LONG) == torture.plan(3, torture.LONG)
    assert torture.plan(3, torture.LONG) != torture.plan(4, torture.LONG)


def test_with_events_the_broker_restarts_five_times_besides_all_other_faults() -> None:
    faults = [doing.fault for stage in torture.plan(1, torture.with_events(torture.LONG)) for doing in stage]
    assert faults.count("RabbitMQ is killed and restarts") == 5
    assert set(faults) >= torture.LONG.faults.keys()


def test_with_objects_the_object_storage_fails_in_every_way_and_no_database_goes_back() -> None:
    for form in (torture.LONG, torture.SHORT):
        faults = {doing.fault for stage in torture.plan(1, torture.with_objects(form)) for doing in stage}
        assert torture.OBJECT_FAULTS.keys() <= faults
        assert [one for one in faults if one.startswith("database taken back")] == []


def test_a_long_run_kills_20_processes_and_ten_databases() -> None:
    faults = [doing.fault for stage in torture.plan(1, torture.LONG) for doing in stage]
    assert sum("kill -9" in fault for fault in faults if not fault.startswith("erasures")) == 20
    assert sum("PostgreSQL dies" in fault for fault in faults) == 10


def test_a_schedule_is_printed_without_a_run() -> None:
    command = [sys.executable, str(TORTURE), "--seed", "1", "--plan"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(ran.stdout.splitlines()) == sum(len(stage) for stage in torture.plan(1, torture.LONG))
