from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import roomy_folder
from tests.support.running import ROOT, Running, command, ended, environment, query, read_answer, running, until_ended

END = "/v1/conversations/end"
REAL = ROOT.parent / "shared/data/topical_chat_requests.jsonl"
SIDE_BY_SIDE = 16


@contextmanager
def client_of(convo: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=convo.url, timeout=30) as client:
        yield client


def post_all(client: httpx.Client, bodies: Sequence[dict[str, Any]]) -> list[httpx.Response]:
    """Post every body, 16 at a time; return the answers in order."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return list(pool.map(lambda body: client.post(END, json=body), bodies))


def relationships(client: httpx.Client, bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    users = sorted({body["user_id"] for body in bodies})
    return {user: client.get(f"/v1/users/{user}/relationship").json() for user in users}


# --- the main job


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data/topical_chat_requests.jsonl")
def test_120_real_conversations_are_accepted_analysed_and_never_counted_twice(database: str, tmp_path: Path) -> None:
    bodies = [json.loads(line) for line in REAL.read_text("utf-8").splitlines()]
    assert len(bodies) == 120
    with running(tmp_path, database) as convo, client_of(convo) as client:
        first = post_all(client, bodies)
        assert [answer.status_code for answer in first] == [202] * 120
        until = time.monotonic() + 60
        told = [until_ended(client, answer.headers["location"], until - time.monotonic()) for answer in first]
        assert [one["state"] for one in told] == ["done"] * 120
        # Counted from the bodies, without convo's code: an empty item is no turn.
        turns = [sum(bool(item["content"].strip()) for item in body["conversation_logs"]) for body in bodies]
        assert [one["turns"] for one in told] == [answer.json()["turns"] for answer in first] == turns
        before = relationships(client, bodies)
        sums: Counter[str] = Counter()
        for one in told:
            sums[one["user_id"]] += one["score"]["value"]
        assert {user: one["score"] for user, one in before.items()} == dict(sums)

        again = post_all(client, bodies)
        assert [answer.status_code for answer in again] == [202] * 120
        assert [answer.headers.get("idempotent-replayed") for answer in again] == ["true"] * 120
        assert [answer.content for answer in again] == [answer.content for answer in first]
        assert [client.get(answer.headers["location"]).json() for answer in first] == told
        assert relationships(client, bodies) == before
        assert query(database, "SELECT state, attempts, count(*) FROM every_job GROUP BY 1, 2") == [("done", 1, 120)]
        assert convo.stop() == 0


# --- a sudden end


def many(count: int, name: str = "crash") -> list[dict[str, Any]]:
    return [ended(f"{name}-{n}", user_id=f"{name}-user-{n % 7}", bot_id=f"bot-{n % 3}") for n in range(count)]


def test_kill_9_in_the_middle_of_posting_loses_nothing_and_scores_once() -> None:
    bodies = many(2000)
    accepted: list[dict[str, Any]] = []
    with roomy_folder() as data_dir:
        with running(data_dir) as convo, client_of(convo) as client:
            enough = threading.Event()
            with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
                for body in bodies:
                    pool.submit(post_until_dead, client, body, accepted, enough)
                assert enough.wait(60)
                convo.kill()
        assert 200 <= len(accepted) < len(bodies)
        # The embedded PostgreSQL went down with it; the next start finds both.
        with running(data_dir) as convo, client_of(convo) as client:
            told = [until_ended(client, f"/v1/conversations/{body['conversation_id']}") for body in accepted]
            assert {one["state"] for one in told} == {"done"}
            assert {one["attempts"] for one in told} == {1}
            # A conversation whose answer was lost may be stored too: it is scored like any other.
            everything = listed(client)
            assert {one["conversation_id"] for one in told} <= {one["conversation_id"] for one in everything}
            sums: Counter[str] = Counter()
            for one in everything:
                assert until_ended(client, one["links"]["self"])["state"] == "done"
            for one in listed(client):
                sums[one["user_id"]] += one["score"]
            found = relationships(client, accepted)
            assert {user: one["score"] for user, one in found.items()} == dict(sums)
            again = post_all(client, accepted)
            assert [answer.headers.get("idempotent-replayed") for answer in again] == ["true"] * len(accepted)
            assert convo.stop() == 0


def post_until_dead(
    client: httpx.Client, body: dict[str, Any], accepted: list[dict[str, Any]], enough: threading.Event
) -> None:
    try:
        answer = client.post(END, json=body)
    except httpx.TransportError:
        return
    assert answer.status_code == 202, answer.text
    accepted.append(body)
    if len(accepted) >= 200:
        enough.set()


def listed(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/v1/conversations", params={"limit": "200", **cursor}).json()
        found += page["conversations"]
        if page["next_cursor"] is None:
            return found
        cursor = {"cursor": page["next_cursor"]}


# --- an orderly end


@contextmanager
def fake_model(*always: str) -> Iterator[str]:
    """Run a language model in a process of its own; yield its URL."""
    line = [sys.executable, "-m", "tests.support.fakes", "model", "--always", *always]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def calls(url: str) -> int:
    seen: int = httpx.get(f"{url}/_fake").json()["calls"]
    return seen


def await_calls(url: str, count: int) -> None:
    until = time.monotonic() + 60
    while calls(url) < count:
        assert time.monotonic() < until, f"only {calls(url)} calls"
        time.sleep(0.02)


def await_units(client: httpx.Client, name: str) -> None:
    """Wait until the process has done a unit of work of this name."""
    while not re.search(rf'_count{{[^}}]*"{name}"[^}}]*}} [1-9]', client.get("/metrics").text):
        time.sleep(0.02)


def await_said(convo: Running, what: str) -> None:
    until = time.monotonic() + 30
    while what not in convo.output:
        assert time.monotonic() < until, convo.output
        time.sleep(0.01)


def test_sigterm_lets_requests_be_answered_and_started_analyses_finish(database: str, tmp_path: Path) -> None:
    bodies = many(6, "slow")
    with fake_model("slow", "2") as url:
        settings = {"llm.base_url": url, "llm.model": "slow", "jobs.workers": "4"}
        with running(tmp_path, database, settings) as convo, client_of(convo) as client:
            links = [answer.headers["location"] for answer in post_all(client, bodies)]
            await_calls(url, 4)
            with ThreadPoolExecutor(1) as pool, half_a_request(convo, ended("half-1")) as finish:
                waiting = pool.submit(client.get, links[-1], params={"wait": "4"})
                await_units(client, "db.read")
                started = time.monotonic()
                convo.signal(signal.SIGTERM)
                await_said(convo, "service_stopping")
                assert finish().startswith(b"HTTP/1.1 202 ")
                assert waiting.result().status_code == 200
            assert convo.ended() == 0
            assert time.monotonic() - started < 30
        states = Counter((row[0], row[1]) for row in query(database, "SELECT state, attempts FROM every_job"))
        # Four were being analysed. A job that was not begun, or was begun during the stop, spent no attempt.
        assert states[("done", 1)] >= 4
        assert states.keys() <= {("done", 1), ("ready", 0)}
        assert states.total() == 7


def is_refused(host: str, port: int) -> bool:
    """Return whether a new client is refused; if not, wait a moment, in which the server may close."""
    try:
        with socket.create_connection((host, port), 10):
            time.sleep(0.01)
    except ConnectionRefusedError:
        return True
    return False


def test_after_sigterm_new_clients_are_refused_at_once_and_not_kept_waiting(database: str, tmp_path: Path) -> None:
    with fake_model("stuck") as url:
        settings = {"llm.base_url": url, "llm.model": "stuck", "shutdown.workers_seconds": "5"}
        with running(tmp_path, database, settings) as convo, client_of(convo) as client:
            post_all(client, many(2, "stuck"))
            await_calls(url, 2)
            address = urlsplit(convo.url)
            convo.signal(signal.SIGTERM)
            await_said(convo, "service_stopping")
            assert any(is_refused(address.hostname or "", address.port or 0) for _ in range(400))
            assert convo.process.poll() is None
            assert convo.ended() == 0


@contextmanager
def half_a_request(convo: Running, body: dict[str, Any]) -> Iterator[Callable[[], bytes]]:
    """Send a request without the end of its body; yield a function that sends the end and reads the answer."""
    sent = json.dumps(body).encode()
    head = (
        f"POST {END} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}\r\n"
    )
    address = urlsplit(convo.url)

    def finish() -> bytes:
        connection.sendall(sent[50:])
        return read_answer(connection)

    with socket.create_connection((address.hostname or "", address.port or 0), 30) as connection:
        connection.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert read_answer(connection).startswith(b"HTTP/1.1 100 ")
        connection.sendall(sent[:50])
        yield finish


def test_sigterm_gives_back_analyses_that_do_not_end_in_time(database: str, tmp_path: Path) -> None:
    with fake_model("stuck") as url:
        settings = {"llm.base_url": url, "llm.model": "stuck", "jobs.workers": "4", "shutdown.workers_seconds": "1"}
        with running(tmp_path, database, settings) as convo, client_of(convo) as client:
            assert {answer.status_code for answer in post_all(client, many(6, "stuck"))} == {202}
            await_calls(url, 4)
            assert convo.stop() == 0
            assert "Traceback" not in convo.output
    rows = query(database, "SELECT state, attempts, leased_by, lease_token FROM job")
    assert [tuple(row) for row in rows] == [("ready", 0, None, None)] * 6
    # The parts that were done are kept, and the next process does the rest at once.
    assert query(database, "SELECT count(*) FROM part WHERE name = 'memories' AND state = 'done'")[0][0] == 4
    with running(tmp_path, database) as convo, client_of(convo) as client:
        for number in range(6):
            assert until_ended(client, f"/v1/conversations/stuck-{number}")["attempts"] == 1


# --- several, and what cannot start


@pytest.mark.long
def test_two_processes_on_one_database_share_the_work_and_do_each_job_once(database: str, tmp_path: Path) -> None:
    bodies = many(60, "shared")
    with fake_model("slow", "0.2") as url:
        settings = {"llm.base_url": url, "llm.model": "shared", "jobs.workers": "4", "jobs.poll_seconds": "0.1"}
        with (
            running(tmp_path / "1", database, settings) as one,
            running(tmp_path / "2", database, settings) as other,
            client_of(one) as client,
            client_of(other) as other_client,
        ):
            # Each process gets all of them at the same time, in opposite orders.
            with ThreadPoolExecutor(2) as pool:
                here, there = pool.map(post_all, (client, other_client), (bodies, bodies[::-1]))
            assert {answer.status_code for answer in (*here, *there)} == {202}
            assert [answer.content for answer in here] == [answer.content for answer in there[::-1]]
            told = [until_ended(other_client, answer.headers["location"]) for answer in here]
            assert {(one["state"], one["attempts"]) for one in told} == {("done", 1)}
            shares = [settled(client), settled(other_client)]
            assert sum(shares) == 60
            assert min(shares) > 0
        assert calls(url) == 60
    assert query(database, "SELECT sum(conversations) FROM relationship")[0][0] == 60


def settled(client: httpx.Client) -> int:
    figures = client.get("/metrics").text.splitlines()
    return sum(int(float(line.split()[-1])) for line in figures if "jobs_ended_total{" in line and "settle" in line)


def refused(data_dir: Path, database: str, *arguments: str, **settings: str) -> str:
    """Try to start a convo that must refuse; return its output."""
    ran = subprocess.run(
        [*command(data_dir), *arguments],
        env=environment(database) | settings,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "Traceback" not in ran.stderr
    return ran.stderr


def test_a_second_one_on_the_same_folder_or_port_says_what_is_in_its_way(database: str, tmp_path: Path) -> None:
    with running(tmp_path / "1", database) as convo, client_of(convo) as client:
        told = refused(tmp_path / "1", database)
        assert f"in use by the convo with pid {convo.pid}" in told
        assert "--data-dir" in told
        port = convo.url.rpartition(":")[2]
        told = refused(tmp_path / "2", database, "--port", port)
        assert f"server.port {port}" in told
        assert "--port" in told
        assert client.get("/readyz").status_code == 200


def test_settings_that_cannot_work_are_told_before_anything_starts(tmp_path: Path) -> None:
    told = refused(tmp_path, "", CONVO_WEB__REQUEST_SECONDS="30")
    assert "web.request_seconds + connection.write_seconds = 31.5 s" in told
    assert "ladder.gateway_seconds = 10 s" in told
    told = refused(tmp_path, "", CONVO_LLM__API_KEY="very-secret")
    assert "llm.model is empty" in told
    assert "very-secret" not in told
    told = refused(tmp_path, "postgresql://me:hidden@127.0.0.1:notaport/x")
    assert "database.url" in told
    assert "hidden" not in told
    assert not list(tmp_path.glob("postgres*"))
