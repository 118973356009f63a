from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jsonschema_rs
import pytest
import trio

from tests.support.fakes import answering, failing, open_memory, open_model, rejects_json_schema
from tests.support.running import away, dead_socket, ended, query, serving, until_ended

END = "/v1/conversations/end"
QUICK = {
    "database.acquire_seconds": "0.3",
    "database.statement_seconds": "0.7",
    "database.connect_seconds": "0.3",
    "observe.ping_seconds": "0.1",
}
METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def client_of(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=30)


# --- alive and ready


def test_a_process_that_serves_is_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    answer = client.get("/readyz")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    told = answer.json()
    assert (told["status"], told["warnings"]) == ("ready", [])
    assert told["dependencies"].keys() == {"database"}
    database = told["dependencies"]["database"]
    assert (database["ok"], database["detail"]) == (True, None)
    assert 0 < database["seconds"] < 30
    assert 0 <= database["age_seconds"] < 30
    assert "retry-after" not in answer.headers


async def test_while_the_database_is_away_it_lives_and_is_not_ready(
    postgres_url: str, database: str, tmp_path: Path
) -> None:
    async with serving(tmp_path, database, QUICK) as url, client_of(url) as client:
        async with away(postgres_url, database):
            answer = await ready_again(client, "unavailable")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            told = answer.json()
            assert (told["status"], told["dependencies"]["database"]["ok"]) == ("unavailable", False)
            assert told["dependencies"]["database"]["detail"]
            assert (await client.get("/livez")).status_code == 200
            for address in READS:
                await refused(client, address, "database_unavailable")
        assert (await ready_again(client, "ready")).status_code == 200
        # Other sessions than the ping's may not have noticed yet that theirs is gone.
        with trio.fail_after(20):
            while (await client.get("/v1/conversations")).status_code != 200:  # noqa: ASYNC110
                await trio.sleep(0.02)


async def ready_again(client: httpx.AsyncClient, status: str) -> httpx.Response:
    """Ask for ``/readyz`` until a ping has found the database so."""
    with trio.fail_after(20):
        while (answer := await client.get("/readyz")).json()["status"] != status:  # noqa: ASYNC110
            await trio.sleep(0.02)
    return answer


async def test_a_request_asks_no_dependency(database: str, tmp_path: Path) -> None:
    seldom = {"observe.ping_seconds": "600", "observe.remote_ping_seconds": "600"}
    async with open_model() as model:
        model.always = answering("{}")
        remote = {"llm.base_url": model.url, "llm.model": "fake", **seldom}
        async with serving(tmp_path, database, remote) as url, client_of(url) as client:
            await ready_with(client, "llm")
            before = await database_pings(client)
            for _ in range(20):
                assert (await client.get("/readyz")).status_code == 200
            assert await database_pings(client) == before
            # One ping, and what the start asks.
            assert [call.path for call in model.calls].count("/") <= 1
            assert model.work == []


async def database_pings(client: httpx.AsyncClient) -> float:
    """Read how many pings of the database have ended in this process."""
    figures = (await client.get("/metrics")).text
    found = re.search(r'^convo_wait_seconds_count{name="db.ping"} (\S+)$', figures, re.MULTILINE)
    assert found is not None
    return float(found[1])


READS = (
    "/v1/conversations",
    "/v1/conversations/some-1",
    "/v1/conversations/some-1/log",
    "/v1/users/some-1/relationship",
    "/v1/users/some-1/memories",
)


async def refused(client: httpx.AsyncClient, address: str, code: str) -> None:
    answer = await client.get(address)
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert (answer.json()["code"], answer.headers["retry-after"]) == (code, "1")


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "never speaks"])
async def test_before_the_database_was_ever_reached_it_lives_and_is_migrating(
    refuses: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    with dead_socket(refuses=refuses) as dead:
        async with serving(tmp_path, dead, QUICK, prepared=False) as url, client_of(url) as client:
            answer = await client.get("/readyz")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            told = answer.json()
            assert (told["status"], told["dependencies"]["database"]["ok"]) == ("migrating", False)
            for address in ("/livez", "/metrics", "/openapi.json", "/docs"):
                assert (await client.get(address)).status_code == 200
            for address in READS:
                await refused(client, address, "unavailable")


async def test_a_process_that_is_asked_to_stop_still_serves_for_as_long_as_it_gave_notice(
    database: str, tmp_path: Path
) -> None:
    notice = {"shutdown.notice_seconds": "1", "shutdown.intake_seconds": "5"}
    async with serving(tmp_path, database, notice) as url, client_of(url) as client:
        assert (await client.get("/readyz")).status_code == 200
        signal.raise_signal(signal.SIGTERM)
        # The answer itself takes long enough that the signal comes through.
        while (answer := await client.get("/readyz")).status_code == 200:
            pass
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["status"] == "draining"
        assert answer.json()["dependencies"]["database"]["ok"] is True
        assert (await client.get("/livez")).status_code == 200
        assert (await client.post(END, json=ended("late-1"))).status_code == 202
        assert (await client.get("/v1/conversations/late-1")).status_code == 200


async def test_every_dependency_is_asked_and_only_the_database_decides(database: str, tmp_path: Path) -> None:
    async with open_model() as model, open_memory() as memory:
        model.always = memory.always = answering("{}")
        remote = {"llm.base_url": model.url, "llm.model": "fake", "memory.url": memory.url}
        async with serving(tmp_path / "1", database, remote) as url, client_of(url) as client:
            told = (await ready_with(client, "memory")).json()
            found = {name: one["ok"] for name, one in told["dependencies"].items()}
            assert (told["status"], found) == ("ready", {"database": True, "llm": True, "memory": True})
    with dead_socket(refuses=True) as dead:
        port = urlsplit(dead).port
        remote = {"llm.base_url": f"http://127.0.0.1:{port}", "llm.model": "fake"}
        async with serving(tmp_path / "2", database, remote) as url, client_of(url) as client:
            answer = await ready_with(client, "llm")
            found = {name: one["ok"] for name, one in answer.json()["dependencies"].items()}
            assert (answer.status_code, found) == (200, {"database": True, "llm": False})


async def ready_with(client: httpx.AsyncClient, name: str) -> httpx.Response:
    """Ask for ``/readyz`` until the first ping of this dependency has ended."""
    with trio.fail_after(20):
        while True:
            answer = await client.get("/readyz")
            if answer.json()["dependencies"][name]["age_seconds"] is not None:
                return answer
            await trio.sleep(0.02)


async def test_what_a_models_server_takes_is_learnt_at_the_start_and_shown(database: str, tmp_path: Path) -> None:
    async with open_model() as model:
        model.always = rejects_json_schema
        remote = {"llm.base_url": model.url, "llm.model": "fake"}
        async with serving(tmp_path, database, remote) as url, client_of(url) as client:
            with trio.fail_after(10):
                while not (found := (await client.get("/readyz")).json()["dependencies"])["llm"]["takes"]:
                    pass
    assert found["llm"]["takes"] == "json_object, temperature 0, the role system"
    assert found["database"]["takes"] is None


async def test_a_conversation_that_a_content_filter_refuses_is_done_and_says_so(database: str, tmp_path: Path) -> None:
    async with open_model() as model:
        model.always = failing("400", "content_filter")
        remote = {"llm.base_url": model.url, "llm.model": "fake"}
        async with serving(tmp_path, database, remote) as url, client_of(url) as client:
            assert (await client.post(END, json=ended("refused-1"))).status_code == 202
            with trio.fail_after(20):
                while (shown := (await client.get("/v1/conversations/refused-1")).json())["state"] != "done":
                    pass
    assert (shown["attempts"], shown["score"]["final"]) == (1, True)
    for name in ("questions", "emotion"):
        part = shown["parts"][name]
        assert (part["state"], part[name]) == ("refused", None)
        assert "a content filter refuses this conversation" in part["error"]


async def test_a_database_that_may_lose_commits_is_a_warning(postgres_url: str, database: str, tmp_path: Path) -> None:
    name = urlsplit(database).path.removeprefix("/")
    lax = f"ALTER DATABASE {name} SET synchronous_commit = off"
    await trio.to_thread.run_sync(query, postgres_url, lax)
    async with serving(tmp_path, database) as url, client_of(url) as client:
        told = (await client.get("/readyz")).json()
        assert told["status"] == "ready"
        assert [warning for warning in told["warnings"] if "synchronous_commit = off" in warning]


# --- addresses and methods


@pytest.mark.parametrize(
    "address",
    ["/v1", "/v1/", "/nothing", "/livez/", "/v1//conversations", "/v1/users/user-1/", "/%00"],
)
def test_where_nothing_is_it_says_so(client: httpx.Client, address: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = client.request(method, address)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
        assert answer.json()["code"] == "not_found"
        assert "server-timing" in answer.headers


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        (END, {"DELETE", "GET", "POST"}),  # a conversation may be called "end"
        ("/v1/conversations", {"GET"}),
        ("/v1/conversations/some-1", {"DELETE", "GET"}),
        ("/v1/users/some-1", {"DELETE"}),
        ("/v1/conversations/some-1/log", {"GET"}),
        ("/v1/conversations/some-1/retry", {"POST"}),
        ("/v1/users/some-1/relationship", {"GET"}),
        ("/livez", {"GET"}),
        ("/docs", {"GET"}),
    ],
)
def test_another_method_is_405_and_says_which_ones_are_taken(
    client: httpx.Client, address: str, allowed: set[str]
) -> None:
    for method in (*sorted(METHODS - allowed), "BREW", "TRACE", "PROPFIND"):
        answer = client.request(method, address)
        assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json"), method
        assert answer.json()["code"] == "method_not_allowed"
        assert "total;dur=" in answer.headers["server-timing"]
        named = set(answer.headers["allow"].split(", "))
        assert named & METHODS == allowed


def test_a_head_is_a_get_without_the_body(client: httpx.Client) -> None:
    for address in ("/livez", "/docs", "/v1/conversations", "/v1/conversations/none-1"):
        head, got = client.head(address), client.get(address)
        assert (head.status_code, head.content) == (got.status_code, b"")


# --- what it tells of itself


def described(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    document: dict[str, Any] = answer.json()
    return document


def test_what_is_answered_is_what_is_described(client: httpx.Client) -> None:
    document = described(client)
    link = client.post(END, json=ended("described-1", user_id="described-user")).json()["links"]["self"]
    until_ended(client, link)
    answers = {
        "/v1/conversations/{conversation_id}": client.get(link),
        "/v1/conversations/{conversation_id}/log": client.get(f"{link}/log"),
        "/v1/conversations": client.get("/v1/conversations", params={"user_id": "described-user"}),
        "/v1/users/{user_id}/relationship": client.get("/v1/users/described-user/relationship"),
        "/v1/users/{user_id}/memories": client.get("/v1/users/described-user/memories"),
        "/livez": client.get("/livez"),
        "/readyz": client.get("/readyz"),
    }
    for path, answer in answers.items():
        content = document["paths"][path]["get"]["responses"]["200"]["content"]
        schema = content[answer.headers["content-type"]]["schema"]
        whole = {"components": document["components"]} | schema
        jsonschema_rs.Draft202012Validator(whole, validate_formats=True).validate(answer.json())


def test_the_served_page_loads_nothing_else(client: httpx.Client) -> None:
    answer = client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert END in answer.text
    # Only a link that one follows by hand may lead away.
    away_from_here = re.findall(r"""(?:src|srcset|data|action|poster)\s*=|<link|@import|url\(|fetch\(""", answer.text)
    assert away_from_here == []


def test_a_problem_points_to_its_place_in_the_page(client: httpx.Client) -> None:
    link = client.get("/v1/conversations/none-1").json()["type"]
    page, _, place = link.partition("#")
    assert f'id="{place}"' in client.get(page).text


def test_the_figures_are_prometheus_text(client: httpx.Client) -> None:
    client.request("BREW", "/livez")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert re.search(r'^\w+_requests_total{[^}]*route="/metrics"[^}]*} \d', client.get("/metrics").text, re.MULTILINE)
    assert "BREW" not in answer.text
