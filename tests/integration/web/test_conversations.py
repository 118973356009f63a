from __future__ import annotations

import base64
import itertools
import os
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trio

from convo.conversation.model import Memories, MemoryFact, Mood, Questions
from convo.conversation.score import Weights
from convo.runtime.bridge import open_bridge
from convo.settings import DatabaseSettings, JobsSettings
from convo.store.jobs.settle import Settler
from convo.store.jobs.table import Jobs
from convo.store.postgres import Postgres, open_postgres
from tests.support.fakes import Exchange, FakeServer, failing, healthy, open_model
from tests.support.making import store_part
from tests.support.running import ended, eventually, holding, query, serving, until_ended

END = "/v1/conversations/end"
_numbers = itertools.count(1)
# Nothing that is waited for is ever answered because the wait is over: the client would give up long before.
PATIENT = {
    "web.request_seconds": "3600",
    "ladder.gateway_seconds": "3700",
    "database.acquire_seconds": "60",
}


def new_id(prefix: str = "read") -> str:
    return f"{prefix}-{next(_numbers)}"


def post(client: httpx.Client, body: dict[str, Any]) -> str:
    """Post a conversation; return its link."""
    answer = client.post(END, json=body)
    assert answer.status_code == 202, answer.text
    link: str = answer.json()["links"]["self"]
    return link


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    told: dict[str, Any] = answer.json()
    assert (told["status"], told["code"]) == (status, code)
    return told


async def shown(client: httpx.AsyncClient, link: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Read a conversation again and again until it is as wanted."""
    with trio.fail_after(15):
        while True:
            told: dict[str, Any] = (await client.get(link)).json()
            if wanted(told):
                return told
            await trio.sleep(0.05)


# --- one conversation


def test_a_finished_conversation_is_shown_whole(client: httpx.Client) -> None:
    conversation_id, user_id = new_id(), new_id("user")
    times = {"start_time": "2026-03-02T15:00:00+07:00", "end_time": "2026-03-02T08:04:23Z"}
    more: dict[str, Any] = {"language": "vi", "timezone": "Asia/Ho_Chi_Minh", "metadata": {"campaign": ["spring", 1.5]}}
    link = post(
        client,
        ended(conversation_id, user_id=user_id, bot_name="Pika", bot_type="TALK", agent_tag="a", **times, **more),
    )
    told = until_ended(client, link)
    parts, score = told.pop("parts"), told.pop("score")
    assert told.pop("received_at").endswith("Z")
    assert told.pop("digest").startswith("2:")
    assert told == {
        "conversation_id": conversation_id,
        "user_id": user_id,
        "bot_id": "pika",
        "bot_name": "Pika",
        "bot_type": "TALK",
        "agent_tag": "a",
        "language": "vi",
        "timezone": "Asia/Ho_Chi_Minh",
        "metadata": {"campaign": ["spring", 1.5]},
        "started_at": "2026-03-02T08:00:00Z",
        "ended_at": "2026-03-02T08:04:23Z",
        "turns": 3,
        "state": "done",
        "attempts": 1,
        "waits_for": None,
        "parked_since": None,
        "log_state": "stored",
        "revision": 1,
        "last_error": None,
        "links": {"self": link, "log": f"{link}/log"},
    }
    told_of = {name: (part["state"], part["by"], part["error"]) for name, part in parts.items()}
    assert told_of == dict.fromkeys(("questions", "emotion", "memories"), ("done", "local/2", None))
    assert parts["questions"]["questions"] == ["Why do dogs bark?"]
    assert parts["memories"]["new"] == len(parts["memories"]["memories"]) == 1
    shares = score["breakdown"]
    assert {name: share.get("count", share.get("name")) for name, share in shares.items()} == {
        "exchanges": 1,
        "questions": 1,
        "memories": 1,
        "emotion": parts["emotion"]["emotion"],
        "cap": None,
    }
    assert score["final"] is True
    assert score["value"] == max(0, sum(share["points"] for share in shares.values()))


async def test_a_log_that_has_expired_is_410_and_its_conversation_says_so(database: str, tmp_path: Path) -> None:
    settings = {"retention.logs_days": "1", "retention.look_seconds": "0.1", "alerts.look_seconds": "0.1"}
    async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url, timeout=15) as client:
        link = (await client.post(END, json=ended("old-1"))).headers["location"]
        await shown(client, link, lambda told: told["state"] == "done")
        aged = "UPDATE conversation SET received_at = received_at - interval '2 days'"
        await trio.to_thread.run_sync(query, database, aged)
        told = await shown(client, link, lambda told: told["log_state"] == "expired")
        assert told["score"]["final"]
        for form in ("", "?as=sent"):
            found = problem(await client.get(f"{link}/log{form}"), 410, "expired")
            assert (found["conversation_id"], "log" in found["detail"]) == ("old-1", True)
        assert (await client.get(f"{link}/explain")).status_code == 200
        assert 'convo_retired_total{what="logs"}' in (await client.get("/metrics")).text


async def test_memories_and_scores_outlive_their_conversation(database: str, tmp_path: Path) -> None:
    settings = {"retention.conversations_days": "1", "retention.look_seconds": "0.1", "alerts.look_seconds": "0.1"}
    async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url, timeout=15) as client:
        link = (await client.post(END, json=ended("old-1", user_id="mia"))).headers["location"]
        await shown(client, link, lambda told: told["state"] == "done")
        before = (await client.get("/v1/users/mia/relationship")).json()
        for table in ("conversation", "receipt"):
            aged = f"UPDATE {table} SET received_at = received_at - interval '2 days'"
            await trio.to_thread.run_sync(query, database, aged)
        with trio.fail_after(15):
            while (await client.get(link)).status_code == 200:  # noqa: ASYNC110  (a delete tells nobody)
                await trio.sleep(0.05)
        problem(await client.get(link), 410, "expired")
        assert (await client.get("/v1/users/mia/relationship")).json() == before
        (memory,) = (await client.get("/v1/users/mia/memories")).json()["memories"]
        assert (memory["conversation_id"], bool(memory["text"])) == (None, True)
        again = await client.post(END, json=ended("old-1", user_id="mia"))
        assert (again.status_code, again.json()["state"]) == (202, "expired")


@pytest.mark.parametrize("below", ["", "/log"])
def test_what_is_not_there_is_404_with_its_id(client: httpx.Client, below: str) -> None:
    told = problem(client.get(f"/v1/conversations/no%20such{below}"), 404, "not_found")
    assert told["conversation_id"] == "no such"
    told = problem(client.post("/v1/conversations/no%20such/retry"), 404, "not_found")
    assert told["conversation_id"] == "no such"


@pytest.mark.parametrize(
    "path",
    ["%00", "a%00b", "a" * 3000, "%F0%9F%98%80", "%252e", "a%2fb", "..%2f..", "%0d%0aX:%20y"],
)
def test_no_id_in_a_path_is_an_error_of_ours(client: httpx.Client, path: str) -> None:
    for address in (f"/v1/conversations/{path}", f"/v1/conversations/{path}/log"):
        problem(client.get(address), 404, "not_found")
    problem(client.post(f"/v1/conversations/{path}/retry"), 404, "not_found")
    for address in (f"/v1/users/{path}/relationship", f"/v1/users/{path}/memories"):
        assert client.get(address).status_code in (200, 404)


@pytest.mark.parametrize("path", ["%ff%fe", "%ed%a0%80"])
def test_an_id_that_is_not_utf_8_is_400(client: httpx.Client, path: str) -> None:
    problem(client.get(f"/v1/conversations/{path}"), 400, "bad_request")


@pytest.mark.parametrize("wait", ["", "soon", "-1", "nan", "inf", "-inf", "1e999", "0x10", "1_0", "٣", " 5", "5\0"])
def test_a_wait_that_is_no_number_of_seconds_is_422(client: httpx.Client, wait: str) -> None:
    link = post(client, ended(new_id()))
    told = problem(client.get(link, params={"wait": wait}), 422, "invalid")
    assert (told["path"], told["conversation_id"]) == ("wait", link.rpartition("/")[2])


@pytest.mark.parametrize("wait", ["0", "0.5", "5", "+1", "1e1", "99999999999"])
def test_a_wait_of_any_length_is_taken(client: httpx.Client, wait: str) -> None:
    link = post(client, ended(new_id()))
    until_ended(client, link)
    assert client.get(link, params={"wait": wait}).json()["state"] == "done"


@pytest.mark.parametrize("below", ["", "/log"])
def test_what_the_client_has_already_is_304(client: httpx.Client, below: str) -> None:
    link = post(client, ended(new_id()))
    until_ended(client, link)
    answer = client.get(link + below)
    tag = answer.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get(link + below, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    for other in ('"other"', "", tag.strip('"'), ",,,", '"'):
        assert client.get(link + below, headers={"If-None-Match": other}).content == answer.content


# --- waiting


@asynccontextmanager
async def waiting_room(
    database: str, folder: Path, **settings: str
) -> AsyncIterator[tuple[httpx.AsyncClient, FakeServer, trio.Event]]:
    """Serve with a model that answers nobody before a gate is opened."""
    gate = trio.Event()

    async def behind_the_gate(exchange: Exchange) -> None:
        await gate.wait()
        await healthy(exchange)

    async with open_model() as model:
        model.always = behind_the_gate
        fake = {"llm.base_url": model.url, "llm.model": "fake", **PATIENT, **settings}
        async with (
            serving(folder, database, fake) as url,
            httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=200)) as client,
        ):
            yield client, model, gate


async def accepted(client: httpx.AsyncClient, conversation_id: str) -> str:
    answer = await client.post(END, json=ended(conversation_id, user_id=f"user-of-{conversation_id}"))
    assert answer.status_code == 202, answer.text
    return f"/v1/conversations/{conversation_id}"


async def test_a_wait_that_is_over_answers_with_the_present_state(database: str, tmp_path: Path) -> None:
    async with waiting_room(database, tmp_path) as (client, _, _):
        link = await accepted(client, "open-1")
        early = await client.get(link, params={"wait": "0.2"})
        assert early.status_code == 200
        told = early.json()
        assert told["state"] in ("ready", "leased")
        assert told["score"]["final"] is False
        assert told["parts"]["emotion"] == {
            "state": "waiting",
            "by": None,
            "version": None,
            "emotion": None,
            "judged": True,
            "error": None,
            "updated_at": None,
        }


async def test_who_works_on_a_conversation_is_told_by_host_and_pid_and_by_its_whole_name(
    database: str, tmp_path: Path
) -> None:
    async with waiting_room(database, tmp_path) as (client, model, _):
        link = await accepted(client, "open-1")
        await model.until(lambda one: bool(one.work))
        cause = (await client.get(f"{link}/explain")).json()["cause"]
    folder, _, incarnation = cause["by"].partition(".")
    assert (cause["kind"], len(folder), len(incarnation)) == ("working", 32, 16)
    assert cause["sentence"].startswith(f"working: {socket.gethostname()}/{os.getpid()} works on it since")


async def test_a_wait_is_cut_to_the_budget_that_the_client_sends(database: str, tmp_path: Path) -> None:
    async with waiting_room(database, tmp_path) as (client, _, _):
        link = await accepted(client, "open-1")
        answer = await client.get(link, params={"wait": "1000"}, headers={"Request-Timeout": "1.5"})
        assert (answer.status_code, answer.json()["state"]) == (200, "leased")


async def test_a_wait_longer_than_the_budget_is_cut_before_the_budget_ends_it(database: str, tmp_path: Path) -> None:
    short = {"web.request_seconds": "1.2", "database.acquire_seconds": "0.2", "database.statement_seconds": "0.3"}
    short |= {"connection.head_seconds": "1", "connection.body_seconds": "1"}
    async with waiting_room(database, tmp_path, **short) as (client, _, _):
        link = await accepted(client, "open-1")
        answer = await client.get(link, params={"wait": "1000"})
        assert (answer.status_code, answer.json()["score"]["final"]) == (200, False)


class Counted:
    """Counts every unit of work of the service by its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.units: Counter[str] = Counter()
        run = Postgres.run

        async def counting(postgres: Postgres, name: str, body: Callable[[Any], Awaitable[Any]], **how: Any) -> Any:
            self.units[name] += 1
            return await run(postgres, name, body, **how)

        monkeypatch.setattr(Postgres, "run", counting)


async def settle_elsewhere(database: str, conversation_id: str) -> None:
    """Do the one ready job as another process would."""
    settings = DatabaseSettings()
    async with open_bridge() as bridge, open_postgres(bridge, database, settings) as postgres:
        jobs, settler = Jobs(postgres, JobsSettings(), "elsewhere/1"), Settler(postgres, Weights())
        (lease,) = await jobs.lease(1)
        assert lease.conversation_id == conversation_id
        await store_part(jobs, lease, "questions", "other/1", Questions(questions=("Why?",)))
        await store_part(jobs, lease, "emotion", "other/1", Mood(emotion="interesting"))
        fact = MemoryFact(key="dog", text="has a dog")
        await store_part(jobs, lease, "memories", "other/1", Memories(facts=(fact,)))
        async with trio.open_nursery() as nursery:
            await nursery.start(settler.run)
            await settler.settle(lease)
            nursery.cancel_scope.cancel()


async def test_waiters_hear_of_what_another_process_settled_and_cost_no_query_each(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, answers = 40, list[httpx.Response]()
    async with waiting_room(database, tmp_path, **{"jobs.workers": "1", "jobs.poll_seconds": "0.2"}) as (
        client,
        model,
        _,
    ):
        await accepted(client, "held-1")
        await model.until(lambda server: len(server.work) == 2)
        link = await accepted(client, "open-1")
        counted = Counted(monkeypatch)

        async def wait() -> None:
            answers.append(await client.get(link, params={"wait": "3000"}))

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(wait)
            # One read to see that it is not done, one more once it is watched.
            await eventually(lambda: counted.units["db.read"] == 2 * count)
            looked = counted.units["db.watch"]
            await eventually(lambda: counted.units["db.watch"] >= looked + 3)
            # All that waiting costs, however many wait: the one look for all.
            assert counted.units["db.read"] == 2 * count
            assert not answers
            await settle_elsewhere(database, "open-1")
    assert [answer.json()["state"] for answer in answers] == ["done"] * count
    assert answers[0].json()["parts"]["questions"]["by"] == "other/1"
    assert answers[0].json()["score"]["value"] == 1 + 3 + 5 + 15
    assert counted.units["db.read"] == 3 * count


async def test_a_waiting_reader_is_answered_at_once_when_its_own_process_settles(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The look for all stands still: only the news of this process can wake the waiter.
    still = {"jobs.poll_seconds": "500"}
    async with waiting_room(database, tmp_path, **still) as (client, model, gate):
        link = await accepted(client, "open-1")
        await model.until(lambda server: len(server.work) == 2)
        counted = Counted(monkeypatch)
        told: dict[str, Any] = {}

        async def wait() -> None:
            told.update((await client.get(link, params={"wait": "3000"})).json())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await eventually(lambda: counted.units["db.read"])
            gate.set()
        assert told["state"] == "done"
        assert counted.units["db.watch"] == 0


# --- the log


LOGS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str, str]]]] = {
    "character": (
        [
            {"character": "BOT_RESPONSE_CONVERSATION", "content": "Hi!"},
            {"character": "USER_RESPONSE_CONVERSATION", "content": ""},
            {"character": "PIKA", "content": "Are you there?", "timestamp": "2026-03-02T08:00:10Z"},
            {"character": "USER", "content": "Yes."},
        ],
        [("bot", "Hi!", "08:00:00"), ("bot", "Are you there?", "08:00:10"), ("user", "Yes.", "08:01:00")],
    ),
    "speaker": (
        [
            {"speaker": "user", "turn_id": 1, "text": "Chào!", "timestamp": "2026-03-02T15:00:05+07:00"},
            {"speaker": "pika", "turn_id": "2", "text": "Chào bạn!"},
            {"speaker": "user", "turn_id": None, "text": "Bạn khoẻ không?", "timestamp": "2026-03-02T08:00:15Z"},
        ],
        [("user", "Chào!", "08:00:05"), ("bot", "Chào bạn!", "08:00:10"), ("user", "Bạn khoẻ không?", "08:00:15")],
    ),
    "role": (
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}]},
            {"role": "tool", "content": "{}"},
            {"role": "assistant", "content": "Hello."},
        ],
        [("user", "Hi\nyou", "08:00:00"), ("bot", "Hello.", "08:01:00")],
    ),
    "from": (
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}, {"from": "human", "value": "Bye"}],
        [("user", "Hi", "08:00:00"), ("bot", "Hello.", "08:00:30"), ("user", "Bye", "08:01:00")],
    ),
    "mixed": (
        [{"character": "USER", "content": "Hi"}, {"from": "gpt", "value": "Hello."}],
        [("user", "Hi", "08:00:00"), ("bot", "Hello.", "08:01:00")],
    ),
    "empty": ([], []),
}


@pytest.mark.parametrize("shape", LOGS)
def test_the_log_of_every_shape_is_read_as_turns_with_times(client: httpx.Client, shape: str) -> None:
    items, turns = LOGS[shape]
    times = {"start_time": "2026-03-02T08:00:00Z", "end_time": "2026-03-02T08:01:00Z"}
    link = post(client, ended(new_id(), items, **times))
    told = client.get(f"{link}/log").json()
    assert told == {
        "conversation_id": link.rpartition("/")[2],
        "turns": [{"speaker": who, "text": what, "at": f"2026-03-02T{at}Z"} for who, what, at in turns],
        "next_cursor": None,
    }


def test_a_log_without_any_time_is_read_between_arrival_and_arrival(client: httpx.Client) -> None:
    link = post(client, ended(new_id()))
    received = client.get(link).json()["received_at"]
    assert {turn["at"] for turn in client.get(f"{link}/log").json()["turns"]} == {received}


def test_a_log_of_two_megabytes_is_read_back(client: httpx.Client) -> None:
    text = "Tại sao chó lại sủa? " * 60_000
    link = post(client, ended(new_id(), [{"character": "USER", "content": text}]))
    assert client.get(f"{link}/log").json()["turns"][0]["text"] == text


# --- lists


def listed(client: httpx.Client, **filters: object) -> dict[str, Any]:
    answer = client.get("/v1/conversations", params={key: str(value) for key, value in filters.items()})
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


def names(page: dict[str, Any]) -> list[str]:
    return [one["conversation_id"] for one in page["conversations"]]


def test_a_list_is_newest_first_and_filtered(client: httpx.Client) -> None:
    user_id, ids = new_id("user"), [new_id() for _ in range(6)]
    links = [
        post(client, ended(one, user_id=user_id, bot_id=("bot-odd", "bot-even")[n % 2])) for n, one in enumerate(ids)
    ]
    shown = [until_ended(client, link) for link in links]
    assert names(listed(client, user_id=user_id)) == ids[::-1]
    assert names(listed(client, user_id=user_id, bot_id="bot-even")) == ids[1::2][::-1]
    assert names(listed(client, user_id=user_id, state="done")) == ids[::-1]
    assert names(listed(client, user_id=user_id, state="dead")) == []
    assert names(listed(client, user_id="nobody at all")) == []
    page = listed(client, user_id=user_id, bot_id="bot-odd", state="done", limit=1)
    (one,) = page["conversations"]
    same = ("conversation_id", "user_id", "bot_id", "started_at", "ended_at", "received_at", "turns", "state")
    assert {key: one[key] for key in same} == {key: shown[4][key] for key in same}
    assert (one["score"], one["links"]) == (shown[4]["score"]["value"], shown[4]["links"])
    assert page["next_cursor"]


@pytest.mark.parametrize("limit", [1, 3, 5, 7, 100_000])
def test_all_pages_together_are_everything_once(client: httpx.Client, limit: int) -> None:
    user_id, ids = new_id("user"), [new_id() for _ in range(10)]
    for one in ids:
        post(client, ended(one, user_id=user_id, log=[]))
    assert walk(client, lambda: None, user_id=user_id, limit=limit) == ids[::-1]


def test_pages_have_no_gaps_and_no_repeats_while_new_ones_arrive(client: httpx.Client) -> None:
    user_id, ids = new_id("user"), [new_id() for _ in range(12)]
    for one in ids:
        post(client, ended(one, user_id=user_id, log=[]))

    def arrive() -> None:
        for _ in range(3):
            post(client, ended(new_id(), user_id=user_id, log=[]))

    assert walk(client, arrive, user_id=user_id, limit=5) == ids[::-1]


def walk(client: httpx.Client, between: Callable[[], None], **filters: object) -> list[str]:
    """Follow the cursor to the end; return all names in the order they came."""
    page = listed(client, **filters)
    found = names(page)
    while page["next_cursor"] is not None:
        between()
        page = listed(client, cursor=page["next_cursor"], **filters)
        assert page["conversations"]
        found += names(page)
    return found


def encoded(number: object) -> str:
    return base64.urlsafe_b64encode(str(number).encode()).decode()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("limit", value) for value in ("", "0", "-1", "many", "1.5", "9" * 30, "٣", "+1", "1\0")),
        *(
            ("cursor", value)
            for value in ("", "x", "!", "é", "\0", encoded(-1), encoded(2**63), encoded("1.5"), "A" * 5000)
        ),
        *(("state", value) for value in ("", "DONE", "waiting", "done,dead", "done\0", "'")),
        ("user_id", "a\0b"),
        ("bot_id", "\0\0\0"),
    ],
)
def test_a_filter_that_is_none_is_422_with_its_name(client: httpx.Client, field: str, value: str) -> None:
    told = problem(client.get("/v1/conversations", params={field: value}), 422, "invalid")
    assert told["path"] == field
    if field in ("limit", "cursor"):
        for other in ("/v1/users/user-1/memories", "/v1/users/user-1/relationship", "/v1/conversations/some-1/log"):
            told = problem(client.get(other, params={field: value}), 422, "invalid")
            assert told["path"] == field


@pytest.mark.parametrize(
    ("address", "path", "told"),
    [
        ("/v1/conversations?usr_id=ann", "usr_id", "did you mean user_id?"),
        ("/v1/conversations?userId=ann", "userId", "did you mean user_id?"),
        ("/v1/conversations?status=done", "status", "did you mean state?"),
        ("/v1/conversations?state=done&limits=5", "limits", "did you mean limit?"),
        ("/v1/conversations?State=done", "State", "did you mean state?"),
        ("/v1/conversations?zzz", "zzz", "takes user_id, bot_id, state, limit, cursor"),
        ("/v1/conversations?state=done&state=dead", "state", "sent twice"),
        ("/v1/conversations?user_id=a%FF", "query", "not UTF-8"),
        ("/v1/conversations/some-1?waits=5", "waits", "did you mean wait?"),
        ("/v1/users/some-1/memories?wait=5", "wait", "takes limit, cursor"),
        ("/v1/users/some-1/relationship?limits=5", "limits", "did you mean limit?"),
        ("/v1/conversations/some-1/log?as=sent&limit=5", "limit", "as=sent is the whole log"),
        ("/v1/conversations/some-1/log?as=sent&cursor=NQ", "cursor", "as=sent is the whole log"),
        ("/metrics?name=x", "name", "takes none"),
        ("/livez?x", "x", "takes none"),
        ("/docs?topic=ladder", "topic", "takes none"),
        ("/docs/ladder?x=1", "x", "takes none"),
    ],
)
def test_a_query_parameter_that_nobody_knows_is_422_with_the_nearest_one(
    client: httpx.Client, address: str, path: str, told: str
) -> None:
    found = problem(client.get(address), 422, "invalid")
    assert (found["path"], told in found["detail"]) == (path, True), found["detail"]


def test_a_post_with_a_parameter_that_nobody_knows_stores_nothing(client: httpx.Client) -> None:
    name = new_id()
    told = problem(client.post(f"{END}?dry_run=true", json=ended(name)), 422, "invalid")
    assert told["path"] == "dry_run"
    problem(client.get(f"/v1/conversations/{name}"), 404, "not_found")


@pytest.mark.parametrize("value", ["' OR true --", "%", "\U0001f436" * 600, "a", "\ufffe"])
def test_a_filter_is_only_ever_a_value(client: httpx.Client, value: str) -> None:
    post(client, ended(new_id(), log=[]))
    assert names(listed(client, user_id=value)) == []
    assert names(listed(client, bot_id=value)) == []


# --- dead letters


async def test_a_dead_letter_is_shown_and_comes_back_by_retry(database: str, tmp_path: Path) -> None:
    once = {"jobs.attempts_max": "1", "llm.attempts": "1"}
    async with waiting_room(database, tmp_path, **once) as (client, model, _):
        model.always = failing("413", "too_long")
        link = await accepted(client, "poor-1")
        dead = (await client.get(link, params={"wait": "3000"})).json()
        assert (dead["state"], dead["attempts"], dead["score"]["final"]) == ("dead", 1, False)
        assert "413" in dead["last_error"]
        assert {name: part["state"] for name, part in dead["parts"].items()} == {
            "questions": "failed",
            "emotion": "failed",
            "memories": "done",
        }
        nothing = (await client.get("/v1/users/user-of-poor-1/relationship")).json()
        assert (nothing["score"], nothing["conversations"], nothing["level"]) == (0, 0, "stranger")
        assert [one["conversation_id"] for one in await of_state(client, "dead")] == ["poor-1"]
        model.always = healthy
        retried = await client.post(f"{link}/retry")
        assert (retried.status_code, retried.headers["location"]) == (202, link)
        assert retried.json() == {"conversation_id": "poor-1", "state": "ready", "attempts": 0, "links": dead["links"]}
        done = (await client.get(link, params={"wait": "3000"})).json()
        assert (done["state"], done["last_error"], done["score"]["final"]) == ("done", None, True)
        # What was found before it died is kept.
        assert done["parts"]["memories"] == dead["parts"]["memories"]
        again = await client.post(f"{link}/retry")
        told = problem(again, 409, "not_dead")
        assert told["conversation_id"] == "poor-1"
        assert await of_state(client, "dead") == []


async def of_state(client: httpx.AsyncClient, state: str) -> list[dict[str, Any]]:
    page: list[dict[str, Any]] = (await client.get("/v1/conversations", params={"state": state})).json()[
        "conversations"
    ]
    return page


# --- users


def test_a_relationship_is_the_sum_over_all_bots_and_lists_each(client: httpx.Client) -> None:
    user_id = new_id("user")
    shown = [
        until_ended(client, post(client, ended(new_id(), user_id=user_id, bot_id=bot_id)))
        for bot_id in ("bot-1", "bot-2", "bot-1")
    ]
    told = client.get(f"/v1/users/{user_id}/relationship").json()
    scores = [one["score"]["value"] for one in shown]
    assert (told["user_id"], told["score"], told["conversations"]) == (user_id, sum(scores), 3)
    assert (told["level"], told["last_emotion"]) == ("stranger", shown[-1]["parts"]["emotion"]["emotion"])
    bots = [(bot["bot_id"], bot["score"], bot["level"], bot["conversations"]) for bot in told["bots"]]
    assert bots == [("bot-1", scores[0] + scores[2], "stranger", 2), ("bot-2", scores[1], "stranger", 1)]
    assert told["bots"][1]["last_emotion"] == shown[1]["parts"]["emotion"]["emotion"]


def test_one_post_of_20_000_turns_makes_an_acquaintance_and_no_friend(client: httpx.Client) -> None:
    user_id = new_id("user")
    log = [{"role": ("user", "assistant")[n % 2], "content": "Why?"} for n in range(20_000)]
    found = until_ended(client, post(client, ended(new_id(), log, user_id=user_id)))["score"]
    cap = found["breakdown"].pop("cap")
    points = sum(share["points"] for share in found["breakdown"].values())
    assert found["breakdown"]["exchanges"]["points"] == 10_000
    assert (found["value"], cap) == (500, {"max": 500, "points": 500 - points})
    told = client.get(f"/v1/users/{user_id}/relationship").json()
    assert (told["score"], told["level"]) == (500, "acquaintance")


async def test_a_user_with_thousands_of_bots_is_read_in_pages(database: str, tmp_path: Path) -> None:
    add = "INSERT INTO relationship SELECT 'user-1', 'b-' || n, 1, 1, 'happy', n FROM generate_series(1, 2000) AS n"
    await trio.to_thread.run_sync(query, database, add)
    async with serving(tmp_path, database) as url, httpx.AsyncClient(base_url=url) as client:
        page = (await client.get("/v1/users/user-1/relationship")).json()
        assert (len(page["bots"]), page["score"], page["conversations"]) == (50, 2000, 2000)
        bots: list[str] = []
        parameters = {"limit": "1000000"}
        while True:
            page = (await client.get("/v1/users/user-1/relationship", params=parameters)).json()
            assert (len(page["bots"]), page["score"]) == (200, 2000)
            bots += [bot["bot_id"] for bot in page["bots"]]
            if page["next_cursor"] is None:
                break
            parameters["cursor"] = page["next_cursor"]
    assert bots == [f"b-{number}" for number in range(2000, 0, -1)]


async def test_each_bot_has_a_level_of_its_own(database: str, tmp_path: Path) -> None:
    add = "INSERT INTO relationship VALUES ('user-1', $1, $2, 1, 'happy', $2)"
    for bot_id, score in (("bot-1", 499), ("bot-2", 500), ("bot-3", 3000)):
        await trio.to_thread.run_sync(query, database, add, bot_id, score)
    async with serving(tmp_path, database) as url, httpx.AsyncClient(base_url=url) as client:
        told = (await client.get("/v1/users/user-1/relationship")).json()
    assert told["level"] == "friend"
    levels = {bot["bot_id"]: bot["level"] for bot in told["bots"]}
    assert levels == {"bot-1": "stranger", "bot-2": "acquaintance", "bot-3": "friend"}


@pytest.mark.parametrize("below", ["relationship", "memories"])
def test_a_user_of_whom_nothing_was_ever_stored_is_404(client: httpx.Client, below: str) -> None:
    told = problem(client.get(f"/v1/users/nobody-1/{below}"), 404, "not_found")
    assert "'nobody-1'" in told["detail"]


async def test_a_user_without_a_result_yet_is_a_stranger(database: str, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, database, {"jobs.workers": "0"}) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        await client.post(END, json=ended("talk-1", user_id="nobody-1"))
        told = (await client.get("/v1/users/nobody-1/relationship")).json()
        memories = (await client.get("/v1/users/nobody-1/memories")).json()
    assert told == {
        "user_id": "nobody-1",
        "score": 0,
        "level": "stranger",
        "conversations": 0,
        "last_emotion": None,
        "bots": [],
        "next_cursor": None,
    }
    assert memories == {"user_id": "nobody-1", "memories": [], "next_cursor": None}


def test_memories_are_listed_once_newest_first_and_by_pages(client: httpx.Client) -> None:
    user_id = new_id("user")
    pets = ["Rex", "Bruno", "Mimi", "Luna"]
    ids = []
    for pet in (*pets, "Rex"):
        log = [{"character": "USER", "content": f"I have a dog named {pet}."}]
        ids.append(new_id())
        until_ended(client, post(client, ended(ids[-1], log, user_id=user_id)))
    first = client.get(f"/v1/users/{user_id}/memories", params={"limit": "3"}).json()
    rest = client.get(f"/v1/users/{user_id}/memories", params={"cursor": first["next_cursor"]}).json()
    found = first["memories"] + rest["memories"]
    assert [next(pet for pet in pets if pet.casefold() in one["text"].casefold()) for one in found] == pets[::-1]
    assert [one["conversation_id"] for one in found] == ids[:4][::-1]
    assert rest["next_cursor"] is None
    assert all(datetime.fromisoformat(one["first_seen_at"]).tzinfo for one in found)


# --- why


async def test_a_parked_conversation_says_what_it_waits_for_and_what_it_waited_for(
    database: str, tmp_path: Path
) -> None:
    async with waiting_room(database, tmp_path, **{"llm.attempts": "1"}) as (client, model, _):
        model.always = failing("401", "no_such_key")
        link = await accepted(client, "why-1")
        with trio.fail_after(20):
            while (await client.get(link)).json()["waits_for"] is None:  # noqa: ASYNC110
                await trio.sleep(0.02)
        told = (await client.get(f"{link}/explain")).json()
        assert (told["state"], told["cause"]["kind"], told["attempts"]) == ("ready", "parked", 0)
        parked = (await client.get("/v1/conversations", params={"state": "parked"})).json()
        assert [(one["conversation_id"], one["state"]) for one in parked["conversations"]] == [("why-1", "ready")]
        assert "llm: answered 401 (no_such_key)" in told["cause"]["sentence"]
        assert told["here"].startswith("llm: ")
        (run, *_) = told["runs"]
        assert run["ending"] == "park"
        assert {"llm.parts", "job.part"} <= run["waits"].keys()
        for one in run["timeline"]:
            assert one["name"] in run["waits"]
            assert run["began_at"] <= one["began_at"] <= one["ended_at"]


def test_what_is_done_is_explained_as_done_and_what_is_not_there_is_404(client: httpx.Client) -> None:
    link = client.post(END, json=ended("why-done")).headers["location"]
    client.get(link, params={"wait": "5"})
    told = client.get(f"{link}/explain").json()
    assert (told["cause"]["kind"], told["ahead"], [run["ending"] for run in told["runs"]]) == ("done", None, ["settle"])
    problem(client.get("/v1/conversations/why-none/explain"), 404, "not_found")


@pytest.mark.parametrize("tail", ["/", "a/b", "/a//b/", "%2F", "a%1Fb/c", "../x", "a/./b"])
def test_a_slash_is_data_in_an_id(client: httpx.Client, tail: str) -> None:
    conversation_id = f"{new_id()}{tail}"
    link = post(client, ended(conversation_id, user_id=f"{conversation_id}/u"))
    told = until_ended(client, link)
    assert (told["conversation_id"], told["links"]["self"]) == (conversation_id, link)
    assert len(client.get(f"{link}/log").json()["turns"]) == 3
    user = quote(f"{conversation_id}/u", safe="")
    assert client.get(f"/v1/users/{user}/relationship").json()["user_id"] == f"{conversation_id}/u"


@pytest.mark.parametrize(
    "path", ["/v1%2Fconversations", "/v1/conversations/a%2Fb%2Flog%2F/nothing", "/v1/conversations/a%2Fb%1F"]
)
def test_an_encoded_slash_separates_nothing(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


# --- many and large reads


def test_a_long_log_is_read_in_pages(client: httpx.Client) -> None:
    log = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}"} for n in range(2_300)]
    link = post(client, ended(new_id(), log))
    found: list[str] = []
    lengths: list[int] = []
    parameters: dict[str, str] = {}
    while True:
        page = client.get(f"{link}/log", params=parameters).json()
        found += [turn["text"] for turn in page["turns"]]
        lengths.append(len(page["turns"]))
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]
    assert (lengths, found) == ([1000, 1000, 300], [f"turn {n}" for n in range(2_300)])
    assert len(client.get(f"{link}/log", params={"limit": "5000"}).json()["turns"]) == 1000
    assert len(client.get(f"{link}/log", params={"limit": "7"}).json()["turns"]) == 7
    assert len(client.get(f"{link}/log", params={"as": "sent"}).json()) == 2_300


async def test_a_log_is_unpacked_in_a_thread_by_its_own_length_not_by_its_packed_one(
    database: str, tmp_path: Path
) -> None:
    # 400 KB of one letter, and a few hundred bytes once they are packed.
    log = [{"role": "user", "content": "a" * 400_000}, {"role": "assistant", "content": "yes"}]
    async with serving(tmp_path, database) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        before = {name: await waits(client, name) for name in ("analysis.decode", "web.encode")}
        await client.post(END, json=ended("talk-1", log))
        await client.get("/v1/conversations/talk-1?wait=7")
        assert await waits(client, "analysis.decode") == before["analysis.decode"] + 1
        for number, form in enumerate(("turns", "sent"), 1):
            answer = await client.get("/v1/conversations/talk-1/log", params={"as": form})
            assert (answer.status_code, len(answer.content) > 400_000) == (200, True)
            assert await waits(client, "web.encode") == before["web.encode"] + number


async def waits(client: httpx.AsyncClient, name: str) -> float:
    figures = (await client.get("/metrics")).text
    found = re.search(rf'^convo_wait_seconds_count{{name="{name}"}} (\S+)$', figures, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_reads_over_the_limit_are_refused_at_once_and_accepts_are_not(database: str, tmp_path: Path) -> None:
    limits = {"web.reads_max": "2", "jobs.workers": "0"}
    async with serving(tmp_path, database, limits) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        assert (await client.post(END, json=ended("talk-1"))).status_code == 202
        lock = "LOCK TABLE part, relationship, memory IN ACCESS EXCLUSIVE MODE"
        async with holding(database, lock), trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(client.get, "/v1/users/user-1/relationship")
            # Those two wait for the lock.
            await reads_under_way(client, 2)
            for path in READ_PATHS:
                answer = await client.get(path)
                assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
                assert 1 <= int(answer.headers["retry-after"]) <= 3
            assert (await client.post(END, json=ended("talk-2"))).status_code == 202
        await reads_under_way(client, 0)
        assert (await client.get("/v1/conversations")).status_code == 200
        figures = (await client.get("/metrics")).text
        assert "convo_reads_in_flight_bytes 0.0\n" in figures


READ_PATHS = (
    "/v1/conversations",
    "/v1/conversations/talk-1",
    "/v1/conversations/talk-1?wait=5",
    "/v1/conversations/talk-1/log",
    "/v1/conversations/talk-1/explain",
    "/v1/users/user-1/relationship",
    "/v1/users/user-1/memories",
)


async def reads_under_way(client: httpx.AsyncClient, count: int) -> None:
    with trio.fail_after(10):
        while f"convo_reads_in_flight {count}.0\n" not in (await client.get("/metrics")).text:  # noqa: ASYNC110
            await trio.sleep(0.01)
