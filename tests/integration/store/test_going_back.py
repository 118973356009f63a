"""What becomes of running processes when their database goes back to an earlier state: real processes, real dumps."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import trio

from convo.embedded import programs
from convo.store.history import RESTORE_LOCK
from tests.support.clusters import clusters
from tests.support.running import ROOT, Running, ended, environment, holding, query, running, serving, until_ended

_SETTINGS = {
    "jobs.heartbeat_seconds": "0.3",
    "jobs.lease_seconds": "3",
    "jobs.poll_seconds": "0.2",
    "alerts.evaluate_seconds": "0.2",
    "alerts.look_seconds": "0.3",
}
_TABLES = "receipt, conversation, conversation_log, job, outcome, ledger, run, part"
# A job that is not due stays where it is, and its log in the process that took it.
_PAUSE = (
    """CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN NEW.delayed := true; NEW.available_at := now() + interval '90 s'; RETURN NEW; END$$""",
    "CREATE TRIGGER pause BEFORE INSERT ON job FOR EACH ROW EXECUTE FUNCTION pause()",
)


@contextmanager
def process(
    folder: Path, url: str, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[Running, httpx.Client]]:
    with (
        running(folder, url, {**_SETTINGS, **(settings or {})}) as started,
        httpx.Client(base_url=started.url, timeout=10.0) as client,
    ):
        yield started, client


def pause(url: str) -> None:
    for statement in _PAUSE:
        query(url, statement)


def post(client: httpx.Client, name: str, words: str = "Why do dogs bark?") -> httpx.Response:
    log = [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": words}]
    return client.post("/v1/conversations/end", json=ended(name, log, user_id=f"user-{name}"))


def until(true: Callable[[], Any], seconds: float = 15.0) -> Any:
    ends = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > ends:
            pytest.fail("it does not come true")
        time.sleep(0.05)
    return found


def take_back(url: str) -> None:
    """Do what a database does that goes back to where nothing was accepted yet: its numbers come again."""

    def emptied() -> bool:
        try:
            query(url, f"TRUNCATE {_TABLES} RESTART IDENTITY")
        except asyncpg.DeadlockDetectedError:
            # A living process has one of these tables and waits for another.
            return False
        return True

    until(emptied)


def accepted(client: httpx.Client, name: str, words: str = "Why do dogs bark?") -> None:
    """Post until it is acknowledged: a process that signs in anew refuses requests for a moment."""
    until(lambda: post(client, name, words).status_code == 202)


def analysed(client: httpx.Client, name: str) -> str:
    """Return what was found in a conversation, once it is done."""

    def done() -> str:
        answer = client.get(f"/v1/conversations/{name}")
        return answer.text if answer.status_code == 200 and answer.json()["state"] == "done" else ""

    found: str = until(done)
    return found + client.get(f"/v1/users/user-{name}/memories").text


def alerted(client: httpx.Client, kind: str) -> dict[str, Any]:
    def find() -> dict[str, Any] | None:
        active = client.get("/v1/alerts").json()["active"]
        return next((alert for alert in active if alert["type"] == kind), None)

    found: dict[str, Any] = until(find)
    return found


def convo(command: str, file: Path, url: str) -> subprocess.CompletedProcess[str]:
    yes = {"backup": "--force", "restore": "--yes"}[command]
    asked = [sys.executable, "-m", "convo", command, str(file), yes]
    return subprocess.run(asked, env=environment(url), cwd=ROOT, capture_output=True, text=True, check=False)


def counter(url: str) -> int:
    found: int = query(url, "SELECT counter FROM history")[0][0]
    return found


def until_it_counts(url: str, times: int = 2) -> None:
    """Wait until the process that leads has counted on, so that a copy from before is behind what was seen."""
    wanted = counter(url) + times
    until(lambda: counter(url) >= wanted)


# --- nobody's words for another


def test_a_number_that_is_given_again_gets_nobody_elses_words(database: str, tmp_path: Path) -> None:
    with (
        process(tmp_path / "one", database, {"jobs.workers": "1"}) as (_, one),
        process(tmp_path / "two", database, {"jobs.workers": "0"}) as (_, two),
    ):
        pause(database)
        assert post(one, "anna", "My name is Anna. Where is Elm Street 5?").status_code == 202
        take_back(database)
        query(database, "DROP TRIGGER pause ON job")
        assert post(two, "bert", "My name is Bert. Where is Oak Road 9?").status_code == 202
        assert query(database, "SELECT seq FROM conversation")[0][0] == 1
        found = analysed(one, "bert")
        alert = alerted(one, "DATABASE_WENT_BACK")
    assert "Oak Road" in found
    assert "Elm Street" not in found
    assert "Anna" not in found
    assert alert["evidence"]["ids"] == ["anna"]


def test_a_process_that_is_given_its_own_number_again_notices_it_at_once(database: str, tmp_path: Path) -> None:
    with process(tmp_path, database, {"jobs.workers": "0", "jobs.heartbeat_seconds": "1"}) as (_, client):
        assert post(client, "anna").status_code == 202
        take_back(database)
        assert post(client, "bert").status_code == 202
        alert = alerted(client, "DATABASE_WENT_BACK")
    assert alert["evidence"]["ids"] == ["anna"]
    assert alert["evidence"]["figures"] == {"receipts": 2, "missing": 1}


def test_a_log_that_is_not_the_acknowledged_one_is_analysed_by_nobody_and_shown_to_nobody(
    database: str, tmp_path: Path
) -> None:
    with process(tmp_path / "two", database, {"jobs.workers": "0"}) as (_, two):
        assert post(two, "anna", "My name is Anna.").status_code == 202
        assert post(two, "bert", "My name is Bert.").status_code == 202
        query(
            database,
            "UPDATE conversation_log SET body = (SELECT body FROM conversation_log WHERE seq = 1) WHERE seq = 2",
        )
        settings = {"jobs.workers": "1", "jobs.attempts_max": "2", "jobs.backoff_seconds": "0.1"}
        with process(tmp_path / "one", database, settings) as (_, one):
            view = until_ended(one, "/v1/conversations/bert")
            assert view["state"] == "dead"
            assert "not the one that was acknowledged" in view["last_error"]
            assert "Anna" not in str(view)
            assert alerted(one, "LOG_MISMATCH")["evidence"]["ids"] == ["bert"]
            assert "Anna" in analysed(one, "anna")
            assert one.get("/v1/conversations/bert/log").status_code == 500
            assert one.get("/v1/conversations/bert/log", params={"as": "sent"}).status_code == 500


@pytest.mark.long
def test_a_server_killed_and_put_back_to_its_copy_mixes_nobodys_words(tmp_path: Path) -> None:
    with clusters("synchronous_standby_names = ''") as pair:
        url = pair.primary.url
        with (
            process(tmp_path / "one", url, {"jobs.workers": "1"}) as (_, one),
            process(tmp_path / "two", url, {"jobs.workers": "0"}) as (second, two),
        ):
            pause(url)
            accepted(two, "before")
            until_it_counts(url)
            # The standby gets nothing any more: it is the copy.
            pair.standby.kill()
            until_it_counts(url)
            assert post(one, "anna", "My name is Anna. Where is Elm Street 5?").status_code == 202
            number = query(url, "SELECT seq FROM conversation WHERE conversation_id = 'anna'")[0][0]
            pair.primary.kill()
            second.kill()
            (pair.standby.folder / "standby.signal").unlink()
            pair.standby.port = pair.primary.port
            pair.standby.start()
            query(url, "DROP TRIGGER pause ON job")
            query(url, f"ALTER TABLE conversation ALTER seq RESTART WITH {number}")
            accepted(one, "bert", "My name is Bert. Where is Oak Road 9?")
            assert query(url, "SELECT seq FROM conversation WHERE conversation_id = 'bert'")[0][0] == number
            found = analysed(one, "bert")
            assert "Oak Road" in found
            assert "Elm Street" not in found
            assert "Anna" not in found
            assert alerted(one, "DATABASE_WENT_BACK")["evidence"]["ids"] == ["anna"]


# --- a database that went back is noticed


def test_a_copy_put_back_under_living_processes_is_noticed_by_its_counter(database: str, tmp_path: Path) -> None:
    with process(tmp_path / "one", database) as (started, client):
        until_it_counts(database)
        copy = tmp_path / "copy"
        found = trio.run(programs.find).folder
        subprocess.run([found / "pg_dump", "-Fc", f"--dbname={database}", f"--file={copy}"], check=True)
        until_it_counts(database)
        for n in range(12):
            assert post(client, f"lost-{n}").status_code == 202
        unpack: list[str | Path] = [found / "pg_restore", "--clean", "--if-exists", "--file=-", copy]
        statements = subprocess.run(unpack, check=True, capture_output=True).stdout
        # pg_restore cannot drop the keys of partitions, which go with their table.
        statements = b"DROP TABLE conversation_log, run;\n" + statements
        put_back: list[str | Path] = [
            found / "psql",
            "--quiet",
            "--single-transaction",
            "--set=ON_ERROR_STOP=1",
            f"--dbname={database}",
        ]
        # Its locks and those of a living process can be a deadlock, which either may lose.
        until(
            lambda: subprocess.run(put_back, check=False, input=statements, stdout=subprocess.DEVNULL).returncode == 0
        )
        alert = alerted(client, "DATABASE_WENT_BACK")
        assert alert["level"] == "CRITICAL"
        assert "counter" in alert["trigger"]
        assert alert["evidence"]["figures"] == {"receipts": 12, "missing": 12}
        assert [f"lost-{n}" in started.output for n in range(12)] == [True] * 12
        accepted(client, "after")
        assert analysed(client, "after")
        found_names = query(database, "SELECT name FROM process WHERE seen_at > now() - interval '5 s'")
        assert len(found_names) == 1


@pytest.mark.long
def test_a_copy_that_has_counted_on_is_known_by_its_marks(database: str, tmp_path: Path) -> None:
    with process(tmp_path / "one", database, {"jobs.workers": "0"}) as (_, client):
        until_it_counts(database)
        query(database, "UPDATE history_beat SET mark = mark + 1 WHERE counter > 1")
        assert "in another way" in alerted(client, "DATABASE_WENT_BACK")["trigger"]
        accepted(client, "after")


@pytest.mark.long
def test_a_process_that_starts_again_knows_that_the_database_went_back(database: str, tmp_path: Path) -> None:
    with process(tmp_path / "one", database) as (started, _):
        until_it_counts(database, 4)
        started.kill()
    query(database, "UPDATE history SET counter = counter - 3")
    query(database, "DELETE FROM history_beat WHERE counter > (SELECT counter FROM history)")
    with process(tmp_path / "one", database) as (_, client):
        assert "counter" in alerted(client, "DATABASE_WENT_BACK")["trigger"]
        accepted(client, "after")
    with process(tmp_path / "one", database) as (started, _):
        assert "database_went_back" not in started.output


@pytest.mark.long
def test_another_cluster_is_not_the_database_that_was_seen(database: str, tmp_path: Path) -> None:
    with clusters() as pair:
        with process(tmp_path / "one", pair.primary.url):
            pass
        with process(tmp_path / "one", database) as (_, client):
            assert "another cluster" in alerted(client, "DATABASE_WENT_BACK")["trigger"]
            accepted(client, "after")


@pytest.mark.long
def test_a_standby_that_lagged_when_it_was_promoted_is_told_by_the_receipts_it_lacks(tmp_path: Path) -> None:
    with clusters("synchronous_standby_names = ''") as pair:
        # No count in between: only the receipts differ.
        settings = {"jobs.heartbeat_seconds": "9", "jobs.lease_seconds": "30", "jobs.workers": "0"}
        with process(tmp_path, pair.url, settings) as (_, client):
            accepted(client, "both")
            pair.standby.until("SELECT count(*) = 1 FROM conversation")
            pair.standby.kill()
            assert post(client, "alone").status_code == 202
            pair.primary.kill()
            pair.standby.start()
            pair.standby.promote()
            alert = alerted(client, "DATABASE_WENT_BACK")
            assert alert["evidence"]["ids"] == ["alone"]
            accepted(client, "after")


def test_nothing_went_back_in_restarts_crashes_and_failovers_that_lose_nothing(tmp_path: Path) -> None:
    with clusters() as pair, process(tmp_path, pair.url) as (started, client):
        accepted(client, "one")
        until_it_counts(pair.primary.url)
        pair.primary.kill()
        pair.primary.start()
        pair.until_streaming()
        accepted(client, "two")
        until_it_counts(pair.primary.url)
        pair.fail_over()
        accepted(client, "three")
        until_it_counts(pair.standby.url)
        assert "database_went_back" not in started.output
        # The promoted one may have lagged, and nobody would know: no number comes again.
        assert query(pair.standby.url, "SELECT begins_behind FROM event_counter")[0][0] > 1_000_000_000_000_000


def test_events_have_higher_numbers_than_those_that_the_database_lost(database: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    settings = {"events.types": '["conversation.accepted"]', "jobs.workers": "0"}

    def last() -> int:
        found: int = query(database, "SELECT coalesce(max(sequence), 0) FROM event")[0][0]
        return found

    def stream(client: httpx.Client, after: int) -> list[str]:
        """Read what a client gets that comes back, until there is no more."""
        with client.stream("GET", "/v1/events", headers={"Last-Event-ID": str(after)}, timeout=30) as answer:
            subjects = []
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    subjects.append(json.loads(line.removeprefix("data: "))["subject"])
                if line.startswith(": heartbeat"):
                    return subjects
        pytest.fail("the stream ended")

    with process(tmp_path / "one", database, settings) as (_, client):
        accepted(client, "before")
        until(lambda: last() == 1)
        assert convo("backup", copy, database).returncode == 0
        accepted(client, "lost-1")
        accepted(client, "lost-2")
        until(lambda: last() == 3)
    assert convo("restore", copy, database).returncode == 0
    assert last() == 1
    assert query(database, "SELECT begins_behind FROM event_counter")[0][0] > 1_000_000_000_000_000
    # It signs in to a database that went back by other means, too: that no number comes again does not rest on restore.
    query(database, "UPDATE event_counter SET begins_behind = 0")
    with process(tmp_path / "one", database, {**settings, "events.heartbeat_seconds": "1"}) as (_, client):
        accepted(client, "after-1")
        accepted(client, "after-2")
        until(lambda: query(database, "SELECT count(sequence) FROM event")[0][0] == 3)
        assert last() > 1_000_000_000_000_000
        assert stream(client, 3) == ["after-1", "after-2"]
        assert stream(client, 1) == ["after-1", "after-2"]


# --- a restore is exclusive


def test_a_restore_is_refused_under_a_process_that_sleeps_and_that_nobody_saw_lately(
    database: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    with process(tmp_path / "one", database, {"jobs.workers": "0"}) as (started, client):
        assert post(client, "before").status_code == 202
        assert convo("backup", copy, database).returncode == 0
        assert post(client, "later").status_code == 202
        started.signal(signal.SIGSTOP)
        try:
            query(database, "UPDATE process SET seen_at = seen_at - interval '2 minutes'")
            refused = convo("restore", copy, database)
            assert refused.returncode != 0
            assert query(database, "SELECT name FROM process")[0][0].partition(".")[2] in refused.stderr
            # What is split off from its sessions for good has no share any more.
            query(
                database,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'convo %'"
                " AND datname = current_database()",
            )
            assert convo("restore", copy, database).returncode == 0
        finally:
            started.signal(signal.SIGCONT)
        accepted(client, "after")
        assert len(query(database, "SELECT name FROM process WHERE seen_at > now() - interval '9 s'")) == 1
        alert = alerted(client, "DATABASE_WENT_BACK")
        assert alert["evidence"]["ids"] == ["later"]
        again = convo("restore", copy, database)
        assert again.returncode != 0
        assert "still on this database" in again.stderr
        assert query(database, "SELECT count(*) FROM conversation")[0][0] == 2


@pytest.mark.long
def test_a_process_that_is_killed_stands_in_no_restores_way(database: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with process(tmp_path / "one", database, {"jobs.workers": "0"}) as (started, client):
        assert post(client, "before").status_code == 202
        assert convo("backup", copy, database).returncode == 0
        started.kill()
        done = convo("restore", copy, database)
        assert done.returncode == 0, done.stderr
    with process(tmp_path / "one", database, {"jobs.workers": "0"}) as (_, client):
        assert "a backup was restored" in alerted(client, "DATABASE_WENT_BACK")["trigger"]
        accepted(client, "after")


def test_no_session_is_opened_while_a_backup_is_restored(database: str, tmp_path: Path) -> None:
    trio.run(_refused_while_restoring, database, tmp_path)


async def _refused_while_restoring(database: str, folder: Path) -> None:
    async with (
        holding(database, f"SELECT pg_advisory_lock({RESTORE_LOCK})"),
        serving(folder, database, prepared=False) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        with trio.fail_after(15):
            while "is being restored" not in (await client.get("/readyz")).text:  # noqa: ASYNC110
                await trio.sleep(0.05)
        answer = await client.post("/v1/conversations/end", json=ended("meanwhile"))
        assert answer.status_code == 503
