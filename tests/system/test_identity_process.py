"""Who a process is when its host name changes, its folder is copied, or it is stopped and cut off: real processes."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.faking import fake, script, until_called
from tests.support.running import Running, ended, query, running, until_ended

END = "/v1/conversations/end"
LEASE_SECONDS = 3.0


def settings(model: str, lease_seconds: float = LEASE_SECONDS) -> dict[str, str]:
    return {
        "llm.base_url": model,
        "llm.model": "stuck",
        "llm.attempt_seconds": "60",
        "llm.attempts": "1",
        "jobs.lease_seconds": f"{lease_seconds:g}",
        "jobs.heartbeat_seconds": "0.5",
        "jobs.poll_seconds": "0.2",
        "jobs.workers": "4",
        "alerts.evaluate_seconds": "0.1",
        # What is stuck is stuck: a stop waits for it in vain.
        "shutdown.workers_seconds": "1",
    }


def post(convo: Running, conversation_id: str, user_id: str = "user-1") -> str:
    answer = httpx.post(convo.url + END, json=ended(conversation_id, user_id=user_id), timeout=15)
    assert answer.status_code == 202, answer.text
    return str(answer.headers["location"])


def until(true: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not true within {seconds:g} s"
        time.sleep(0.1)


def host(number: int) -> tuple[str, str]:
    return ("tests.support.renamed", f"pod-{number}")


def cut_off(database: str) -> None:
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(application_name, 'convo ')"
    query(database, f"{end} AND datname = current_database()")


# --- the host's name is information


def test_under_a_new_host_name_a_process_takes_its_own_back_at_once(database: str, tmp_path: Path) -> None:
    with fake("model", "stuck") as model:
        given = settings(model, 600.0)
        with running(tmp_path, database, given, program=host(1)) as convo:
            link = post(convo, "talk-1")
            until_called(model, 1)
            convo.kill()
        script(model, "healthy")
        with (
            running(tmp_path, database, given, program=host(2)) as convo,
            httpx.Client(base_url=convo.url, timeout=15) as client,
        ):
            assert until_ended(client, link, 20)["state"] == "done"
    assert query(database, "SELECT crashes FROM every_job")[0][0] == 1
    assert query(database, "SELECT count(*) FROM process")[0][0] == 0


@pytest.mark.long
def test_a_job_that_kills_its_process_under_ever_new_host_names_is_buried_as_poison(
    database: str, tmp_path: Path
) -> None:
    with fake("model", "stuck") as model:
        given = settings(model, 600.0)
        kills = 0
        for number in range(8):
            with running(tmp_path, database, given, program=host(number)) as convo:
                if not number:
                    post(convo, "poison-1")
                calls = number + 1
                until(
                    lambda: (
                        query(database, "SELECT state FROM job")[0][0] == "dead"
                        or httpx.get(f"{model}/_fake", timeout=60).json()["calls"] >= calls  # noqa: B023
                    )
                )
                if query(database, "SELECT state FROM job")[0][0] == "dead":
                    break
                convo.kill()
                kills += 1
    assert kills == 5
    assert query(database, "SELECT last_error FROM job")[0][0].startswith("poison: 5 times")


# --- a folder that was copied


def test_a_copy_of_a_living_process_s_folder_is_another_process(database: str, tmp_path: Path) -> None:
    with fake("model", "stuck") as model:
        given = settings(model, 60.0)
        with running(tmp_path / "golden", database, given) as convo:
            post(convo, "talk-1")
            until_called(model, 1)
            before = query(database, "SELECT leased_by, lease_token, crashes FROM job")
            (tmp_path / "copy").mkdir()
            shutil.copy(tmp_path / "golden" / "instance", tmp_path / "copy" / "instance")
            with running(tmp_path / "copy", database, given) as copy:
                assert query(database, "SELECT leased_by, lease_token, crashes FROM job") == before
                assert len(query(database, "SELECT name FROM process")) == 2
                folders = {(tmp_path / name / "instance").read_text().split()[0] for name in ("golden", "copy")}
                assert len(folders) == 2
                assert '"folder_copied"' in copy.output
                alerts = httpx.get(f"{copy.url}/v1/alerts", timeout=15).json
                # A busy machine may raise others beside it.
                until(lambda: "FOLDER_COPIED" in [one["type"] for one in alerts()["active"]])
                assert copy.stop() == 0
            ((name,),) = query(database, "SELECT name FROM process")
            assert name == before[0][0]
            assert query(database, "SELECT leased_by, lease_token, crashes FROM job") == before
            convo.kill()


# --- a process that is only cut off


@pytest.mark.long
def test_a_process_that_was_stopped_and_cut_off_is_rescued_from_and_no_crash_is_left_of_it(
    database: str, tmp_path: Path
) -> None:
    with fake("model", "stuck") as model:
        given = settings(model)
        with running(tmp_path / "1", database, given) as stopped:
            post(stopped, "talk-1")
            until_called(model, 1)
            with running(tmp_path / "2", database, given):
                stopped.signal(signal.SIGSTOP)
                cut_off(database)
                until(lambda: query(database, "SELECT ending FROM run"))
                # Its lease has ended. Whether it is dead is not known.
                assert [tuple(row) for row in query(database, "SELECT ending FROM run")] == [("rescue",)]
                assert query(database, "SELECT crashes FROM job")[0][0] == 0
                # After three leases it counts as dead.
                until(lambda: query(database, "SELECT crashes FROM job")[0][0] == 1)
                stopped.signal(signal.SIGCONT)
                # It is not.
                until(lambda: query(database, "SELECT crashes FROM job")[0][0] == 0)
                assert [tuple(row) for row in query(database, "SELECT ending FROM run")] == [("rescue",)]
                assert len(query(database, "SELECT name FROM process")) == 2
                until_called(model, 2)
                script(model, "healthy")
