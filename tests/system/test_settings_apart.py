"""Two processes with different settings on one database: what they share, and what stops the later one from working."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from convo.store.outcomes import unpack_details
from tests.support.faking import fake, script, seen, until_called
from tests.support.running import Running, ended, query, running, until_ended
from tests.support.stored_parts import JOBS, parts_of

END = "/v1/conversations/end"
QUICK = {
    "jobs.lease_seconds": "6",
    "jobs.heartbeat_seconds": "0.5",
    "jobs.poll_seconds": "0.2",
    "jobs.workers": "4",
    "alerts.evaluate_seconds": "0.2",
}


@contextmanager
def two(
    database: str, folder: Path, first: dict[str, str], second: dict[str, str]
) -> Iterator[tuple[Running, Running]]:
    """Run two processes, the second one started when the first one serves."""
    with (
        running(folder / "1", database, QUICK | first) as one,
        running(folder / "2", database, QUICK | second) as other,
    ):
        yield one, other


def post(convo: Running, *conversation_ids: str) -> list[str]:
    """Post conversations of a user each; return their links."""
    links = []
    for name in conversation_ids:
        answer = httpx.post(convo.url + END, json=ended(name, user_id=f"user of {name}"), timeout=15)
        assert answer.status_code == 202, answer.text
        links.append(answer.headers["location"])
    return links


def until_done(convo: Running, links: list[str], seconds: float = 60.0) -> list[dict[str, Any]]:
    with httpx.Client(base_url=convo.url, timeout=15) as client:
        return [until_ended(client, link, seconds) for link in links]


def until(true: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)
    return found


def warnings(convo: Running) -> list[str]:
    found: list[str] = httpx.get(convo.url + "/readyz", timeout=15).json()["warnings"]
    return found


def alerts(convo: Running) -> dict[str, str]:
    active = httpx.get(convo.url + "/v1/alerts", timeout=15).json()["active"]
    return {alert["type"]: alert["trigger"] for alert in active}


def records(convo: Running, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in convo.output.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def folder_id(convo: Running) -> str:
    return (Path(convo._output).parent / "instance").read_text().split()[0]


def leased_by(database: str, convo: Running) -> int:
    """Count the leases that this process ever had."""
    own = f"%{folder_id(convo)}%"
    ended: int = query(database, "SELECT count(*) FROM run WHERE made_by LIKE $1", own)[0][0]
    details = [row["details"] for row in query(database, JOBS) if row["details"]]
    return ended + sum(folder_id(convo) in unpack_details(packed).by for packed in details)


# --- what may differ


@pytest.mark.parametrize("lengths", ["120 3", pytest.param("3 120", marks=pytest.mark.long)])
def test_leases_of_different_lengths_are_no_fault_of_the_clock(database: str, tmp_path: Path, lengths: str) -> None:
    first, second = ({"jobs.lease_seconds": seconds} for seconds in lengths.split())
    with fake("model", "slow", "2") as model:
        calls = {"llm.base_url": model, "llm.model": "one", "llm.attempts": "1"}
        with two(database, tmp_path, calls | first, calls | second) as (one, other):
            links = post(one, *(f"talk-{n}" for n in range(8)))
            assert {told["state"] for told in until_done(other, links)} == {"done"}
        assert seen(model)["calls"] == len(links)
    assert query(database, "SELECT count(*) FROM run WHERE ending IN ('rescue', 'crash')")[0][0] == 0


@pytest.mark.long
def test_a_delay_lasts_whatever_the_longest_backoff_of_another_process(database: str, tmp_path: Path) -> None:
    patient = {"jobs.backoff_seconds": "300", "jobs.backoff_max_seconds": "3600"}
    hasty = {"jobs.backoff_seconds": "0.1", "jobs.backoff_max_seconds": "0.5", "jobs.workers": "0"}
    with fake("model", "failing", "400", "bad_request") as model:
        calls = {"llm.base_url": model, "llm.model": "one", "llm.attempts": "1"}
        with two(database, tmp_path, calls | patient, calls | hasty) as (one, _):
            post(one, "talk-1")
            until(lambda: query(database, "SELECT seq FROM job WHERE delayed"))
            (before,) = query(database, "SELECT available_at, attempts FROM job")
            time.sleep(3)
            assert query(database, "SELECT available_at, attempts FROM job") == [before]


MAY_DIFFER = {
    "jobs.workers": ("1", "6"),
    "jobs.poll_seconds": ("0.1", "2"),
    "jobs.heartbeat_seconds": ("0.3", "1.5"),
    "jobs.handover_bytes": ("1", "1000000"),
    "analysis.job_seconds": ("80", "120"),
    "web.body_bytes_max": ("100000", "2000000"),
    "intake.batch_rows": ("1", "64"),
    "database.pool_max": ("4", "8"),
}


@pytest.mark.long
def test_settings_that_may_differ_let_both_processes_take_jobs(database: str, tmp_path: Path) -> None:
    first, second = ({name: pair[n] for name, pair in MAY_DIFFER.items()} for n in (0, 1))
    # One worker keeps a job for a call of a second: what is left ready is seen at the other one's next look.
    with fake("model", "slow", "1") as model:
        calls = {"llm.base_url": model, "llm.model": "one"}
        with two(database, tmp_path, calls | first, calls | second) as (one, other):
            links = post(one, *(f"talk-{n}" for n in range(12)))
            assert {told["state"] for told in until_done(other, links)} == {"done"}
            assert leased_by(database, one) > 0
            assert leased_by(database, other) > 0
            assert warnings(one) == warnings(other) == []
    assert query(database, "SELECT count(*) FROM run WHERE ending <> 'settle'")[0][0] == 0


# --- what must agree

MUST_AGREE = {
    "fairness.key": ("user", "bot"),
    "score.question": ("3", "7"),
    "jobs.attempts_max": ("5", "2"),
    "jobs.give_up_seconds": ("604800", "60"),
    "llm.model": ("one", "none"),
    "memory.url": ("extract_facts", "none"),
}
# A weight, and what a process may not have. Each cell starts two processes; each setting is compared by itself
# in integration/store/test_process_settings.py.
QUICK_KEYS = ("score.question", "llm.model")


def given(key: str, value: str, *services: str) -> dict[str, str]:
    """Return the settings under which ``key`` compares as ``value``."""
    model, memory = services
    switched_on = {"llm.model": {"llm.base_url": model, "llm.model": value}, "memory.url": {"memory.url": memory}}
    return ({} if value == "none" else switched_on[key]) if key in switched_on else {key: value}


@pytest.mark.parametrize(
    "key", [key if key in QUICK_KEYS else pytest.param(key, marks=pytest.mark.long) for key in MUST_AGREE]
)
def test_the_later_process_takes_no_jobs_until_the_settings_agree(database: str, tmp_path: Path, key: str) -> None:
    mine, theirs = MUST_AGREE[key]
    with fake("model", "healthy") as model, fake("memory", "healthy") as memory:
        first, second = given(key, mine, model, memory), given(key, theirs, model, memory)
        with two(database, tmp_path, first, second) as (one, other):
            (warning,) = until(lambda: warnings(other))
            holder = f"{socket.gethostname()}/{folder_id(one)}"
            said = f"{key} is {theirs} here and {mine} in {holder}: until they agree this process takes no jobs"
            assert warning == f"SETTINGS_DISAGREE: {said}"
            assert until(lambda: alerts(other).get("SETTINGS_DISAGREE")) == said
            assert [record["reason"] for record in records(other, "settings_disagree")] == [said]
            links = post(other, *(f"talk-{n}" for n in range(12)))
            assert {told["state"] for told in until_done(one, links)} == {"done"}
            assert leased_by(database, other) == 0
            assert warnings(one) == []
            one.stop()
            until(lambda: not warnings(other))
            assert {told["state"] for told in until_done(other, post(other, "talk-after"))} == {"done"}
            until(lambda: "SETTINGS_DISAGREE" not in alerts(other))
            assert leased_by(database, other) == 1


@pytest.mark.long
def test_a_killed_process_stands_in_nobodys_way_longer_than_its_lease(database: str, tmp_path: Path) -> None:
    with two(database, tmp_path, {"jobs.attempts_max": "5"}, {"jobs.attempts_max": "2"}) as (one, other):
        until(lambda: warnings(other))
        one.kill()
        killed = time.monotonic()
        until_done(other, post(other, "talk-1"))
        assert time.monotonic() - killed < 6 + 5


@pytest.mark.long
def test_a_process_that_only_accepts_is_bound_only_by_what_accepting_needs(database: str, tmp_path: Path) -> None:
    accepting = {"jobs.workers": "0", "score.question": "7", "jobs.attempts_max": "2"}
    with running(tmp_path / "1", database, QUICK) as one:
        with running(tmp_path / "2", database, QUICK | accepting) as other:
            until_done(one, post(other, "talk-1"))
            assert warnings(other) == []
        with running(tmp_path / "2", database, QUICK | accepting | {"fairness.key": "bot"}) as other:
            (warning,) = until(lambda: warnings(other))
            assert "fairness.key is bot here and user in " in warning
            assert warning.endswith(": this process accepts with its own value")
            until_done(one, post(other, "talk-2"))


# --- what a job waits for


@pytest.mark.long
def test_a_process_without_a_model_leaves_the_jobs_that_wait_for_it(database: str, tmp_path: Path) -> None:
    with fake("model", "failing", "503") as model:
        calls = {"llm.base_url": model, "llm.model": "one", "llm.attempts": "1", "llm.breaker_open_seconds": "1"}
        with running(tmp_path / "1", database, QUICK | calls) as one:
            links = post(one, "talk-1")
            until(lambda: query(database, "SELECT seq FROM job WHERE waits_for = 'llm'"))
        quiet = {"alerts.quiet_seconds": "1", "alerts.look_seconds": "0.5"}
        with running(tmp_path / "2", database, QUICK | quiet) as other:
            until_done(other, post(other, "talk-2"))
            told = httpx.get(f"{other.url}{links[0]}/explain", timeout=15).json()
            assert told["state"] == "ready"
            assert "and no process that takes jobs has it" in told["cause"]["sentence"]
            assert "jobs wait for llm" in until(lambda: alerts(other).get("NOBODY_SERVES"))
        script(model, "healthy")
        with running(tmp_path / "1", database, QUICK | calls) as one:
            (view,) = until_done(one, links)
            until_called(model, 2)
    assert view["state"] == "done"
    (row,) = [row for row in query(database, JOBS) if row["conversation_id"] == "talk-1"]
    assert sorted(part.made_by.partition("/")[0] for part in parts_of(row)) == ["local", "one", "one"]


def test_a_job_that_waits_for_a_name_that_nobody_knows_is_reported(database: str, tmp_path: Path) -> None:
    quiet = {"alerts.quiet_seconds": "1", "alerts.look_seconds": "0.5"}
    with running(tmp_path / "1", database, QUICK | quiet | {"jobs.workers": "0"}) as one:
        links = post(one, "talk-1")
        query(database, "UPDATE job SET waits_for = 'oracle', parked_since = convo_now()")
    with running(tmp_path / "1", database, QUICK | quiet) as one:
        assert "jobs wait for oracle" in until(lambda: alerts(one).get("NOBODY_SERVES"))
        told = httpx.get(f"{one.url}{links[0]}/explain", timeout=15).json()
        assert "it waits for oracle (this version does not know it)" in told["cause"]["sentence"]
