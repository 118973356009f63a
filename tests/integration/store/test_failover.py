"""What an acknowledged conversation stands on when the database has a standby: real clusters, killed and promoted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.support.clusters import Cluster, Pair, clusters
from tests.support.running import Running, ended, query, running, serving

# One unit of work may take 1 s, so that what waits for an absent standby is over soon.
_SETTINGS = {
    "database.acquire_seconds": "0.4",
    "database.statement_seconds": "0.6",
    "database.connect_seconds": "0.4",
    "alerts.evaluate_seconds": "0.2",
    "alerts.slow_query_seconds": "0.9",
}
_AGAIN_SECONDS = 5.0


@pytest.fixture
def pair() -> Iterator[Pair]:
    with clusters() as made:
        yield made


@contextmanager
def serving_on(
    folder: Path, url: str, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[Running, httpx.Client]]:
    with (
        running(folder, url, {**_SETTINGS, "jobs.workers": "0", **(settings or {})}) as started,
        httpx.Client(base_url=started.url, timeout=10.0) as client,
    ):
        yield started, client


def post(client: httpx.Client, name: str) -> httpx.Response:
    return client.post("/v1/conversations/end", json=ended(name))


def seconds_until_accepted(client: httpx.Client, name: str, within: float) -> float:
    """Post new conversations until one is acknowledged; return how long that took."""
    began = time.monotonic()
    n = 0
    while (answer := post(client, f"{name}-{n}")).status_code != 202:
        assert answer.status_code == 503, answer.text
        if time.monotonic() - began > within:
            pytest.fail(f"no 202 within {within:g} s: {answer.text}")
        n += 1
        time.sleep(0.05)
    return time.monotonic() - began


def stored(cluster: Cluster) -> set[str]:
    return {row["conversation_id"] for row in query(cluster.url, "SELECT conversation_id FROM conversation")}


def until_alerted(client: httpx.Client, kind: str, component: str, *, active: bool = True) -> dict[str, Any]:
    until = time.monotonic() + 10
    while True:
        shown = client.get("/v1/alerts").json()
        for alert in shown["active" if active else "recent"]:
            if (alert["type"], alert["component"]) == (kind, component):
                found: dict[str, Any] = alert
                return found
        if time.monotonic() > until:
            pytest.fail(f"no {kind} of {component}: {shown}")
        time.sleep(0.05)


# --- what no standby has


def test_a_replay_waits_for_the_standby_as_the_first_answer_did(pair: Pair, tmp_path: Path) -> None:
    with serving_on(tmp_path, pair.url) as (_, client):
        assert post(client, "first").status_code == 202
        pair.standby.freeze()
        assert post(client, "alone").status_code == 503
        assert stored(pair.primary) == {"first", "alone"}  # committed here, and nowhere else
        for _attempt in range(3):
            assert post(client, "alone").status_code == 503
        pair.standby.thaw()
        pair.until_streaming()
        again = post(client, "alone")
        assert (again.status_code, again.headers["Idempotent-Replayed"]) == (202, "true")


@pytest.mark.long
def test_what_a_replay_acknowledged_outlives_the_primary(pair: Pair, tmp_path: Path) -> None:
    with serving_on(tmp_path, pair.url) as (_, client):
        assert post(client, "first").status_code == 202
        pair.standby.kill()
        answers = [post(client, "alone").status_code for _ in range(2)]
        pair.primary.kill()
        pair.standby.start()
        pair.standby.promote()
        assert 202 not in answers or "alone" in stored(pair.standby)
        seconds_until_accepted(client, "after", _AGAIN_SECONDS)


@pytest.mark.long
def test_a_wait_for_the_standby_that_somebody_cancels_is_no_receipt(pair: Pair, tmp_path: Path) -> None:
    with serving_on(tmp_path, pair.url) as (_, client):
        assert post(client, "first").status_code == 202
        pair.standby.freeze()
        answers: list[int] = []
        posting = threading.Thread(target=lambda: answers.append(post(client, "alone").status_code))
        posting.start()
        # The server answers as if all were well, with a warning beside.
        pair.primary.until(
            "SELECT coalesce(bool_or(pg_cancel_backend(pid)), false) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        )
        posting.join()
        assert answers == [503]


def test_a_database_without_standbys_waits_for_none(pair: Pair, tmp_path: Path) -> None:
    pair.primary.reload("synchronous_standby_names = ''")
    with serving_on(tmp_path, pair.url) as (_, client):
        pair.standby.freeze()
        assert [post(client, "one").status_code for _ in range(2)] == [202, 202]


def test_accepts_that_fail_are_an_alert_until_one_succeeds(pair: Pair, tmp_path: Path) -> None:
    with serving_on(tmp_path, pair.url) as (_, client):
        assert post(client, "first").status_code == 202
        pair.standby.freeze()
        for n in range(4):
            assert post(client, f"alone-{n}").status_code == 503
        alert = until_alerted(client, "POSTGRES_UNAVAILABLE", "accepts")
        assert alert["level"] == "CRITICAL"
        pair.standby.thaw()
        pair.until_streaming()
        assert post(client, "after").status_code == 202
        until_alerted(client, "POSTGRES_UNAVAILABLE", "accepts", active=False)


@pytest.mark.long
def test_a_start_without_the_standby_migrates_and_serves(pair: Pair, tmp_path: Path) -> None:
    pair.standby.freeze()
    began = time.monotonic()
    with serving_on(tmp_path, pair.url) as (_, client):
        assert time.monotonic() - began < 15
        assert client.get("/v1/conversations/none").status_code == 404
        assert post(client, "alone").status_code == 503
        pair.standby.thaw()
        seconds_until_accepted(client, "after", _AGAIN_SECONDS)


# --- the primary is another one


@pytest.mark.long
def test_202_again_soon_after_a_promotion(pair: Pair, tmp_path: Path) -> None:
    with serving_on(tmp_path, pair.url) as (_, client):
        assert post(client, "before").status_code == 202
        pair.fail_over()
        assert seconds_until_accepted(client, "after", _AGAIN_SECONDS) < _AGAIN_SECONDS
        assert "before" in stored(pair.standby)


def test_nothing_acknowledged_under_load_is_missing_after_a_failover(pair: Pair, tmp_path: Path) -> None:
    with serving_on(tmp_path, pair.url) as (started, client):
        assert post(client, "before").status_code == 202
        load = Load(started.url)
        with load.running(8):
            load.until(300)
            pair.fail_over()
            load.until(300)
        there = stored(pair.standby)
    missing = load.acknowledged - there
    print(f"acknowledged {len(load.acknowledged)}, refused {load.refused}, missing {len(missing)}")
    assert missing == set()


class Load:
    """Clients that each post one conversation after the other, and send again what was not acknowledged."""

    def __init__(self, url: str) -> None:
        self.acknowledged: set[str] = set()
        self.refused = 0
        self._url = url
        self._over = threading.Event()

    @contextmanager
    def running(self, clients: int) -> Iterator[None]:
        threads = [threading.Thread(target=self._post, args=(n,)) for n in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def until(self, more: int) -> None:
        """Wait for so many more receipts."""
        wanted, until = len(self.acknowledged) + more, time.monotonic() + 30
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < until, f"{len(self.acknowledged)} of {wanted} acknowledged"
            time.sleep(0.01)

    def _post(self, client: int) -> None:
        n = 0
        with httpx.Client(base_url=self._url, timeout=10.0) as session:
            while not self._over.is_set():
                if post(session, f"load-{client}-{n}").status_code == 202:
                    self.acknowledged.add(f"load-{client}-{n}")
                    n += 1
                else:
                    self.refused += 1
                    time.sleep(0.02)


def test_an_old_primary_that_comes_back_alone_is_refused(pair: Pair, tmp_path: Path) -> None:
    with serving_on(tmp_path, pair.url) as (_, client):
        pair.fail_over()
        seconds_until_accepted(client, "new", _AGAIN_SECONDS)
        pair.standby.kill()
        pair.primary.start()
        for n in range(3):
            assert post(client, f"old-{n}").status_code == 503
        alert = until_alerted(client, "POSTGRES_OLD_PRIMARY", "database")
        assert alert["level"] == "CRITICAL"
        pair.standby.start()
        # Both are up, and the old one stands first.
        seconds_until_accepted(client, "again", _AGAIN_SECONDS)
        assert stored(pair.primary) == set()


@pytest.mark.long
def test_a_process_that_starts_again_knows_the_old_primary(pair: Pair, tmp_path: Path) -> None:
    with serving_on(tmp_path, pair.url):
        pass
    pair.fail_over()
    with serving_on(tmp_path, pair.url) as (_, client):
        seconds_until_accepted(client, "new", _AGAIN_SECONDS)
    pair.standby.kill()
    pair.primary.start()
    trio.run(until_an_old_primary_is_refused, tmp_path, pair.primary.url)


async def until_an_old_primary_is_refused(folder: Path, database_url: str) -> None:
    async with serving(folder, database_url, _SETTINGS, prepared=False) as url, httpx.AsyncClient() as client:
        with trio.fail_after(15):
            while "POSTGRES_OLD_PRIMARY" not in (await client.get(f"{url}/v1/alerts")).text:  # noqa: ASYNC110
                await trio.sleep(0.05)
        answer = await client.post(f"{url}/v1/conversations/end", json=ended("old"))
        assert answer.status_code == 503


@pytest.mark.long
def test_of_two_primaries_the_one_on_the_higher_timeline_is_taken(pair: Pair, tmp_path: Path) -> None:
    pair.primary.reload("synchronous_standby_names = ''")
    pair.standby.promote()
    with serving_on(tmp_path, pair.url) as (_, client):
        assert post(client, "one").status_code == 202
        assert stored(pair.standby) == {"one"}


@pytest.mark.long
def test_a_primary_that_lives_on_is_left_when_its_standby_is_promoted(pair: Pair, tmp_path: Path) -> None:
    with serving_on(tmp_path, pair.url) as (_, client):
        assert post(client, "before").status_code == 202
        pair.standby.promote()
        seconds_until_accepted(client, "after", _AGAIN_SECONDS)
        assert any(name.startswith("after") for name in stored(pair.standby))


@pytest.mark.long
def test_sessions_that_go_on_beside_a_newer_primary_are_moved_to_it(pair: Pair, tmp_path: Path) -> None:
    pair.primary.reload("synchronous_standby_names = ''")
    with serving_on(tmp_path, pair.url) as (_, client):
        assert post(client, "before").status_code == 202
        pair.standby.promote()
        until, n = time.monotonic() + 15, 0
        while f"after-{n}" not in stored(pair.standby):
            assert time.monotonic() < until, "it still stores on the old primary"
            n += 1
            assert post(client, f"after-{n}").status_code in (202, 503)
            time.sleep(0.1)


@pytest.mark.long
def test_a_frozen_primary_holds_up_nobody_once_its_standby_is_promoted(pair: Pair, tmp_path: Path) -> None:
    with serving_on(tmp_path, pair.url, {"database.connect_seconds": "2"}) as (_, client):
        assert post(client, "before").status_code == 202
        pair.primary.freeze()
        pair.standby.promote()
        seconds_until_accepted(client, "after", _AGAIN_SECONDS)


# --- a server that became read-only


@pytest.mark.long
def test_sessions_on_a_server_that_became_read_only_are_dropped(pair: Pair, tmp_path: Path) -> None:
    with serving_on(tmp_path, pair.url, {"database.acquire_seconds": "2"}) as (started, client):
        assert post(client, "before").status_code == 202
        assert set(read_at_once(started.url, "before", 4)) == {"found"}  # each on a session of its own
        pair.primary.reload("default_transaction_read_only = on")
        pair.standby.promote()
        seconds_until_accepted(client, "after", _AGAIN_SECONDS)
        new = next(iter(stored(pair.standby) - {"before"}))
        assert set(read_at_once(started.url, new, 4)) == {"found"}  # the old server does not have it


def read_at_once(url: str, name: str, times: int) -> list[str]:
    def read(_: int) -> str:
        answer = httpx.get(f"{url}/v1/conversations/{name}", timeout=10.0)
        return "found" if answer.status_code == 200 else answer.text

    with ThreadPoolExecutor(times) as threads:
        return list(threads.map(read, range(times)))
