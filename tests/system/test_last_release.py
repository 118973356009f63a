"""The last release and today's program on one database: what it left is read, and both run beside each other."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from convo.conversation.digest import expand
from convo.store.migrations import migrations
from tests.support.faking import fake, seen
from tests.support.last_release import load_last_release, unpack_last_release
from tests.support.one_contract_more import known
from tests.support.ports import free_port
from tests.support.running import ROOT, Running, ended, environment, query, running, until_ended
from tests.support.running import command as command_line
from tests.support.stored_parts import JOBS, parts_of

END = "/v1/conversations/end"
QUICK = {
    "jobs.lease_seconds": "6",
    "jobs.heartbeat_seconds": "1",
    "jobs.backoff_seconds": "0.1",
    "jobs.workers": "4",
}
USERS = 20


@pytest.fixture(scope="module")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_last_release(tmp_path_factory.mktemp("last-release"))


NEEDED = [one.number for one in migrations() if one.kind == "contract" and one.needed]
beside = pytest.mark.skipif(
    bool(NEEDED),
    reason=f"migrations {NEEDED} wait until the last release has gone: it cannot run beside today's program",
)


def both_orders(last_release: Path) -> dict[str, tuple[Path, Path]]:
    return {"old first": (last_release, ROOT), "new first": (ROOT, last_release)}


# --- what it left


def test_what_the_last_release_stored_is_read_as_it_answered_it(empty_database: str, tmp_path: Path) -> None:
    left = load_last_release(empty_database)
    with running(tmp_path, empty_database) as convo, httpx.Client(base_url=convo.url, timeout=15) as client:
        for one in left["conversations"]:
            again = client.post(END, json=one["body"])
            assert (again.status_code, again.headers.get("idempotent-replayed")) == (202, "true")
            assert without_empty(again.json()) == one["receipt"]
            link = one["receipt"]["links"]["self"]
            assert kept(client.get(link).json(), one["view"]) == one["view"]
            assert kept(client.get(f"{link}/log").json(), one["log"]) == one["log"]
            changed = {**one["body"], "bot_name": "another"}
            assert client.post(END, json=changed).status_code == 409
        for user_id, known in left["relationships"].items():
            now = client.get(f"/v1/users/{user_id}/relationship").json()
            assert kept(now, known) == known
    assert audit(ROOT, empty_database, tmp_path) == "the tables agree with the ledger"


def without_empty(receipt: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in receipt.items() if value != []}


def kept(now: Any, before: Any) -> Any:
    """Return of an answer what an earlier one had as well: there may be more fields today."""
    if isinstance(before, dict) and isinstance(now, dict):
        return {name: kept(now.get(name), value) for name, value in before.items()}
    if isinstance(before, list) and isinstance(now, list) and len(now) == len(before):
        return [kept(one, other) for one, other in zip(now, before, strict=True)]
    return now


def audit(tree: Path, database: str, data_dir: Path) -> str:
    return command(tree, database, data_dir, "audit").strip()


def command(tree: Path, database: str, data_dir: Path, *words: str) -> str:
    line = [sys.executable, "-m", "convo", *words, "--data-dir", str(data_dir)]
    done = subprocess.run(line, cwd=tree, env=environment(database), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- beside each other


@contextmanager
def an_older_process(database: str) -> Iterator[None]:
    """Keep a session as a process of the last release has one, so that no contract step is applied meanwhile.

    It stands for the rest of those that are to be replaced, also where today's program is the first to start here.
    """
    opened, done = threading.Event(), threading.Event()

    async def hold() -> None:
        connection = await asyncpg.connect(database, server_settings={"application_name": "convo older"})
        opened.set()
        await asyncio.to_thread(done.wait)
        connection.terminate()

    thread = threading.Thread(target=asyncio.run, args=(hold(),))
    thread.start()
    try:
        assert opened.wait(15)
        yield
    finally:
        done.set()
        thread.join()


class Load:
    """Clients that post to whichever process runs, each until it has a receipt; ``receipts`` are those given."""

    def __init__(self) -> None:
        self.urls: dict[str, str] = {}
        self.receipts: dict[str, dict[str, Any]] = {}
        self.answered: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._post_on) for _ in range(3)]

    def _post_on(self) -> None:
        with httpx.Client(timeout=15) as client:
            while not self._stop.is_set():
                number = next(self._numbers)
                body = ended(f"rolling-{number:05}", user_id=f"user-{number % USERS}")
                self._until_receipt(client, body)
                # Some twenty a second in all: the analyses must keep up.
                time.sleep(0.12)

    def _until_receipt(self, client: httpx.Client, body: dict[str, Any]) -> None:
        while True:
            name, url = random.choice(list(self.urls.items()))
            try:
                answer = client.post(url + END, json=body)
            except httpx.TransportError:
                continue
            if answer.status_code == 202:
                self.receipts[body["conversation_id"]] = answer.json()
                self.answered[name] += 1
                return
            # 503: it starts or drains, or the other release's digest is not known to it. Nothing else may come.
            assert answer.status_code == 503, answer.text
            time.sleep(0.01)

    def until(self, name: str, count: int) -> None:
        """Wait until this process has given so many more receipts."""
        wanted, until = self.answered[name] + count, time.monotonic() + 60
        while self.answered[name] < wanted:
            assert time.monotonic() < until, f"{name}: {self.answered}"
            time.sleep(0.02)

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Post no more, once each client has its last receipt."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def every_receipt_is_kept_once(database: str, receipts: dict[str, dict[str, Any]]) -> None:
    """Nothing that was acknowledged is lost, and nothing counts twice."""
    stored = query(database, STORED)
    assert {row["conversation_id"]: expand(row["digest"]) for row in stored} == {
        conversation_id: receipt["digest"] for conversation_id, receipt in receipts.items()
    }
    count = len(receipts)
    assert Counter(row["state"] for row in stored) == {"done": count}
    assert [tuple(row) for row in query(database, COUNTS)] == [(count,) * 6]
    assert {len(parts_of(row)) for row in query(database, JOBS)} == {3}


STORED = """
SELECT conversation_id, receipt.digest, job.state
FROM receipt FULL JOIN conversation USING (seq) LEFT JOIN every_job AS job USING (seq)
"""
COUNTS = """
SELECT (SELECT count(*) FROM conversation_log), (SELECT count(*) FROM every_job),
       (SELECT sum(n) FROM ledger WHERE kind = 'accepted'), (SELECT sum(n) FROM ledger WHERE kind = 'done'),
       (SELECT sum(conversations) FROM relationship),
       (SELECT count(*) FROM every_job WHERE state = 'done' AND began_at IS NOT NULL)
"""


def until_all_ended(database: str) -> None:
    until = time.monotonic() + 90
    while (left := query(database, "SELECT count(*) FROM job WHERE state IN ('ready', 'leased')")[0][0]) > 0:
        assert time.monotonic() < until, f"{left} jobs are left"
        time.sleep(0.1)


@beside
# The order of an upgrade, in which the older one writes to a schema of its own first, is tried in every run.
@pytest.mark.parametrize("order", ["old first", pytest.param("new first", marks=pytest.mark.long)])
def test_both_run_on_one_database_under_load_and_a_kill_of_each_loses_nothing_and_counts_nothing_twice(
    order: str, last_release: Path, empty_database: str, tmp_path: Path
) -> None:
    load = Load()
    trees = both_orders(last_release)[order]
    with an_older_process(empty_database), ExitStack() as stack:

        def start(name: str, tree: Path) -> Running:
            started = stack.enter_context(running(tmp_path / name, empty_database, QUICK, tree=tree))
            load.urls[name] = started.url
            return started

        first = start("first", trees[0])
        with load.running():
            load.until("first", 12)
            second = start("second", trees[1])
            load.until("second", 12)
            for name, process, tree in (("first", first, trees[0]), ("second", second, trees[1])):
                load.until(name, 12)
                process.kill()
                load.until("second" if name == "first" else "first", 12)
                # It comes back on its folder, beside the other one.
                start(name, tree)
                load.until(name, 12)
        until_all_ended(empty_database)
    every_receipt_is_kept_once(empty_database, load.receipts)
    assert audit(ROOT, empty_database, tmp_path / "audit") == "the tables agree with the ledger"


@pytest.mark.long
@beside
def test_where_nothing_crashes_each_part_is_paid_once(last_release: Path, empty_database: str, tmp_path: Path) -> None:
    load = Load()
    with fake("model", "healthy") as model:
        settings = {**QUICK, "llm.base_url": model, "llm.model": "m", "llm.api_key": "k"}
        with (
            running(tmp_path / "old", empty_database, settings, tree=last_release) as old,
            running(tmp_path / "new", empty_database, settings) as new,
        ):
            load.urls = {"old": old.url, "new": new.url}
            with load.running():
                load.until("old", 12)
                load.until("new", 12)
            until_all_ended(empty_database)
        paid = Counter(":".join(key.split(":")[:2]) for key in seen(model)["paid"] if key.startswith("rolling-"))
    every_receipt_is_kept_once(empty_database, load.receipts)
    assert set(paid.values()) == {1}
    assert {key.split(":")[0] for key in paid} == set(load.receipts)
    workers = query(empty_database, "SELECT DISTINCT split_part(made_by, '/', 2) <> '' AS is_old FROM run")
    assert len(workers) == 2  # both took jobs


READS = (
    *("/v1/conversations", "/v1/conversations?state=dead", "/v1/alerts", "/readyz", "/metrics"),
    *("/v1/users/user-1/relationship", "/v1/users/user-1/memories"),
)


@beside
def test_every_command_and_read_of_the_last_release_works_on_todays_schema(
    last_release: Path, empty_database: str, tmp_path: Path
) -> None:
    with an_older_process(empty_database), running(tmp_path / "new", empty_database) as new:
        link = httpx.post(new.url + END, json=ended("beside-1"), timeout=15).headers["location"]
        with httpx.Client(base_url=new.url, timeout=15) as client:
            until_ended(client, link)
        with (
            running(tmp_path / "old", empty_database, tree=last_release) as old,
            httpx.Client(base_url=old.url, timeout=15) as client,
        ):
            for path in (*(f"{link}{below}" for below in ("", "/log", "/explain")), *READS):
                answer = client.get(path)
                assert answer.status_code == 200, f"{path}: {answer.text}"
            # Its digest is of today's version, which the last release does not know: it says neither yes nor no.
            assert client.post(END, json=ended("beside-1")).status_code == 503
            assert client.post(f"{link}/retry").status_code == 409
            own = client.post(END, json=ended("beside-2")).headers["location"]
            until_ended(client, own)
        assert httpx.post(new.url + END, json=ended("beside-2"), timeout=15).headers["idempotent-replayed"] == "true"
    for words in (("key", "new", "client"), ("key", "list"), ("audit",), ("backup", str(tmp_path / "backup"))):
        command(last_release, empty_database, tmp_path / "old", *words)


IDS = 60


@pytest.mark.long
@beside
def test_an_id_that_is_sent_to_both_at_once_is_stored_once(
    last_release: Path, empty_database: str, tmp_path: Path
) -> None:
    """Every other id with other content at each: then one of them is refused. Then the old one goes, under load."""
    receipts: dict[str, list[dict[str, Any]]] = {f"same-{n:02}": [] for n in range(IDS)}
    odd: list[str] = []

    def send(url: str, name: str, ids: Sequence[str], together: threading.Barrier) -> None:
        with httpx.Client(base_url=url, timeout=15) as client:
            for one in ids:
                fields = {"bot_name": name} if int(one[-2:]) % 2 else {}
                together.wait(30)
                answer = client.post(END, json=ended(one, **fields))
                if answer.status_code == 202:
                    receipts[one].append({**answer.json(), "by": name})
                # The old one does not know today's digest, and says neither yes nor no. Same content is no conflict.
                elif not (answer.status_code == 409 and fields) and not (answer.status_code == 503 and name == "old"):
                    odd.append(f"{name} {one}: {answer.status_code} {answer.text}")

    with running(tmp_path / "new", empty_database, tree=last_release) as first:
        httpx.post(first.url + END, json=ended("left-by-the-old"), timeout=15).raise_for_status()
    with running(tmp_path / "old", empty_database, tree=last_release) as old:
        with running(tmp_path / "new", empty_database) as new:
            threads = []
            for part in range(4):
                ids, together = sorted(receipts)[part::4], threading.Barrier(2)
                threads += [
                    threading.Thread(target=send, args=(process.url, name, ids, together))
                    for name, process in (("old", old), ("new", new))
                ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert odd == []
            for one, given in receipts.items():
                assert given, one
                assert len({(receipt["digest"], receipt["received_at"]) for receipt in given}) == 1, given
                assert len(given) == 1 or int(one[-2:]) % 2 == 0, given
            assert {receipt["by"] for given in receipts.values() for receipt in given} == {"old", "new"}
            stored = {row["conversation_id"]: expand(row["digest"]) for row in query(empty_database, STORED)}
            assert len(stored) == len(query(empty_database, STORED)) == IDS + 1
            assert {one: stored[one] for one in receipts} == {
                one: given[0]["digest"] for one, given in receipts.items()
            }
            until_all_ended(empty_database)
            assert audit(ROOT, empty_database, tmp_path / "audit") == "the tables agree with the ledger"
            # The old one goes: the contract step is applied under today's program, which goes on.
            old.process.terminate()
            until(lambda: query(empty_database, "SELECT to_regclass('conversation_by_id')")[0][0] is None)
            for number, one in enumerate([*receipts, "left-by-the-old", "after-1", "after-2"]):
                answer = httpx.post(new.url + END, json=ended(one), timeout=15)
                assert answer.status_code in {202, 409}, answer.text
                assert answer.headers.get("idempotent-replayed") == "true" or number > IDS or answer.status_code == 409
                assert httpx.get(f"{new.url}/v1/conversations/{one}", timeout=15).status_code == 200
            until_all_ended(empty_database)
        assert audit(ROOT, empty_database, tmp_path / "audit") == "the tables agree with the ledger"


# --- held back by a contract step


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def readyz(url: str) -> tuple[int, str]:
    try:
        answer = httpx.get(f"{url}/readyz", timeout=15)
    except httpx.TransportError:
        return 0, ""
    return answer.status_code, answer.text


@contextmanager
def held_back(data_dir: Path, database: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run today's program, with a contract step more, as far as it comes; yield its process and its URL."""
    data_dir.mkdir()
    port = free_port()
    line = command_line(data_dir, program=("tests.support.one_contract_more",))
    line[line.index("--port") + 1] = str(port)
    with (data_dir / "output.txt").open("wb") as output:
        process = subprocess.Popen(line, cwd=ROOT, env=environment(database, QUICK), stdout=output, stderr=output)
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(40)


@pytest.mark.long
def test_a_contract_step_waits_for_the_last_release_under_load_and_nothing_is_lost_or_counts_twice(
    last_release: Path, empty_database: str, tmp_path: Path
) -> None:
    number = known()[-1].number
    load = Load()
    with running(tmp_path / "old", empty_database, QUICK, tree=last_release) as old:
        load.urls["old"] = old.url
        with load.running(), held_back(tmp_path / "new", empty_database) as (_, url):
            load.until("old", 12)
            until(lambda: "MIGRATION_WAITS" in readyz(url)[1])
            status, text = readyz(url)
            assert status == 503
            assert f"{socket.gethostname()}/" in text
            assert "a convo that states no version (0.1 or before), last seen at" in text
            # What could be applied is applied, and the old one serves on.
            load.until("old", 12)
            old.kill()
            # Its database may have been away: it counts for a minute yet.
            until(lambda: "without a session now" in readyz(url)[1])
            query(empty_database, "UPDATE process SET seen_at = seen_at - interval '61 s'")
            until(lambda: readyz(url)[0] == 200)
            load.urls["new"] = url
            load.until("new", 12)
            line = command_line(tmp_path / "old")
            again = subprocess.run(
                line, cwd=last_release, env=environment(empty_database), capture_output=True, text=True, check=False
            )
            assert again.returncode != 0
            assert re.search(r"schema version \d+, this program knows 1: start the newer convo", again.stderr)
            load.stop()
            until_all_ended(empty_database)
    assert query(empty_database, "SELECT max(version) FROM schema_version")[0][0] == number
    every_receipt_is_kept_once(empty_database, load.receipts)
