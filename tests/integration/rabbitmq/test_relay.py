from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio

from convo.event_types import EVENT_TYPES
from convo.observe import log_records
from tests.support.brokers import (
    URL,
    Client,
    Got,
    client_of,
    needs_broker,
    needs_programs,
    own_broker,
    own_name,
    queue_of_events,
)
from tests.support.making import ask, open_store
from tests.support.ports import free_port
from tests.support.running import ended, serving

END = "/v1/conversations/end"
ACCEPTED = {"events.types": '["conversation.accepted"]', "jobs.workers": "0"}


@asynccontextmanager
async def posting(folder: Path, database: str, settings: Mapping[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(folder, database, settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


async def posted(client: httpx.AsyncClient, *names: str, user_id: str = "user-1") -> None:
    for name in names:
        answer = await client.post(END, json=ended(name, user_id=user_id))
        assert answer.status_code == 202, answer.text


async def taken(client: Client, queue: str, count: int, seconds: float = 15) -> list[Got]:
    """Take ``count`` messages from a queue, and what else comes in a moment."""
    got: list[Got] = []
    with trio.fail_after(seconds):
        while len(got) < count:
            got += await client.taken(queue)
            await trio.sleep(0.05)
    await trio.sleep(0.3)
    return got + await client.taken(queue)


def subjects(got: list[Got]) -> list[str]:
    return [json.loads(one.body)["subject"] for one in got]


async def cursor(database: str) -> int:
    async with open_store(database) as postgres:
        found: int = await ask(postgres, "SELECT cursor FROM courier WHERE name = 'rabbitmq'")
        return found


@asynccontextmanager
async def recorded(*names: str) -> AsyncIterator[list[tuple[str, float, Mapping[str, Any]]]]:
    """Yield the log records of these names as they come, each with its time."""
    found: list[tuple[str, float, Mapping[str, Any]]] = []

    def note(name: str, fields: Mapping[str, Any]) -> None:
        if name in names:
            found.append((name, trio.current_time(), fields))

    with log_records.record_observers.adding(note):
        yield found


async def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    with trio.fail_after(seconds):
        while not holds():  # noqa: ASYNC110  (a record rings no bell)
            await trio.sleep(0.02)


@needs_broker
async def test_every_event_is_published_persistently_under_its_type_and_its_id(database: str, tmp_path: Path) -> None:
    async with queue_of_events() as (client, exchange, queue):
        settings = {
            "events.types": json.dumps(list(EVENT_TYPES)),
            "rabbitmq.url": URL,
            "rabbitmq.exchange": exchange,
        }
        async with posting(tmp_path, database, settings) as convo:
            await posted(convo, "talk-1")
            got = await taken(client, queue, 5)
    assert [one.routing_key for one in got] == ["conversation.accepted", *["part.done"] * 3, "conversation.analysed"]
    events = [json.loads(one.body) for one in got]
    assert [one["sequence"] for one in events] == [1, 2, 3, 4, 5]
    for one, event in zip(got, events, strict=True):
        assert (one.id, one.type, one.routing_key) == (event["id"], event["type"], event["type"])
        assert (one.persistent, one.content_type) == (True, "application/cloudevents+json")
        assert one.headers == {"tenant": "default"}
        assert event["subject"] == "talk-1"


@needs_broker
async def test_what_no_queue_takes_waits_and_comes_when_one_is_bound(database: str, tmp_path: Path) -> None:
    exchange, queue = own_name("events"), own_name("queue")
    settings = {
        **ACCEPTED,
        "rabbitmq.url": URL,
        "rabbitmq.exchange": exchange,
        "rabbitmq.backoff_seconds": "0.1",
        "rabbitmq.breaker_open_seconds": "0.5",
    }
    async with client_of(URL) as client:
        try:
            async with (
                recorded("misconfigured", "breaker_opened", "breaker_closed") as records,
                posting(tmp_path, database, settings) as convo,
            ):
                await posted(convo, "mia-1", "mia-2", user_id="mia")
                await until(lambda: "breaker_opened" in [name for name, _, _ in records])
                assert await cursor(database) == 0
                ready = (await convo.get("/readyz")).json()
                assert "RABBITMQ_MISCONFIGURED: rabbitmq: no queue takes" in str(ready["warnings"])
                await client.bound(queue, exchange)
                got = await taken(client, queue, 2)
                await until(lambda: "breaker_closed" in [name for name, _, _ in records])
                assert subjects(got) == ["mia-1", "mia-2"]
                with trio.fail_after(5):
                    while await cursor(database) < 2:  # noqa: ASYNC110
                        await trio.sleep(0.05)
        finally:
            await client.removed(queues=(queue,), exchanges=(exchange,))  # noqa: ASYNC102  (the client bounds it)
    assert records[0][2]["dependency"] == "rabbitmq"


@needs_broker
async def test_where_the_queue_is_full_a_users_order_is_kept_and_nothing_is_lost(database: str, tmp_path: Path) -> None:
    async with client_of(URL) as client:
        exchange, queue = own_name("events"), own_name("queue")
        await client.bound(queue, exchange, arguments={"x-max-length": 7, "x-overflow": "reject-publish"})
        settings = {
            **ACCEPTED,
            "rabbitmq.url": URL,
            "rabbitmq.exchange": exchange,
            "rabbitmq.backoff_seconds": "0.1",
            "rabbitmq.breaker_open_seconds": "0.1",
        }
        try:
            async with posting(tmp_path, database, settings) as convo:
                for n in range(10):
                    for user in ("mia", "tom", "ann"):
                        await posted(convo, f"{user}-{n}", user_id=user)
                got: list[Got] = []
                with trio.fail_after(40):
                    while len({one.id for one in got}) < 30:
                        got += await client.taken(queue)
                        await trio.sleep(0.1)
        finally:
            await client.removed(queues=(queue,), exchanges=(exchange,))  # noqa: ASYNC102  (the client bounds it)
    first = list(dict.fromkeys(subjects(got)))
    for user in ("mia", "tom", "ann"):
        assert [one for one in first if one.startswith(user)] == [f"{user}-{n}" for n in range(10)]
    assert len({(one.id, subject) for one, subject in zip(got, subjects(got), strict=True)}) == 30


@needs_broker
async def test_what_was_erased_while_it_waited_is_published_as_a_stub(database: str, tmp_path: Path) -> None:
    exchange, queue = own_name("events"), own_name("queue")
    settings = {
        **ACCEPTED,
        "rabbitmq.url": URL,
        "rabbitmq.exchange": exchange,
        "rabbitmq.backoff_seconds": "0.1",
        "rabbitmq.breaker_open_seconds": "1",
    }
    async with client_of(URL) as client:
        try:
            async with posting(tmp_path, database, settings) as convo:
                await posted(convo, "talk-1")
                await trio.sleep(0.5)
                assert (await convo.delete("/v1/conversations/talk-1")).status_code in (200, 202)
                await client.bound(queue, exchange)
                (got,) = await taken(client, queue, 1)
        finally:
            await client.removed(queues=(queue,), exchanges=(exchange,))  # noqa: ASYNC102  (the client bounds it)
    event = json.loads(got.body)
    assert "subject" not in event
    assert "data" not in event
    assert event["id"] == got.id


async def test_a_broker_that_is_not_there_is_tried_three_times_two_seconds_apart(database: str, tmp_path: Path) -> None:
    settings = {**ACCEPTED, "rabbitmq.url": f"amqp://guest:guest@127.0.0.1:{free_port()}/"}
    async with recorded("breaker_opened") as records, posting(tmp_path, database, settings) as convo:
        began = trio.current_time()
        await posted(convo, "talk-1")
        await until(lambda: bool(records))
        answer = await convo.post(END, json=ended("talk-2"))
        assert answer.status_code == 202
    ((_, at, fields),) = records
    assert 3.9 < at - began < 8
    assert (fields["dependency"], fields["seconds"]) == ("rabbitmq", 10.0)
    assert "Connect" in fields["reason"]
    assert "guest" not in fields["reason"]


@needs_programs
async def test_a_broker_that_freezes_is_killed_and_comes_back_loses_nothing(database: str, tmp_path: Path) -> None:
    async with own_broker(tmp_path / "broker") as broker:
        exchange, queue = "convo.events", "all"
        settings = {
            **ACCEPTED,
            "rabbitmq.url": broker.url,
            "rabbitmq.attempt_seconds": "1",
            "rabbitmq.backoff_seconds": "0.2",
            "rabbitmq.breaker_open_seconds": "0.5",
        }
        names = [f"mia-{n}" for n in range(8)]
        async with (
            recorded("breaker_opened", "breaker_closed") as records,
            posting(tmp_path / "convo", database, settings) as convo,
        ):
            async with client_of(broker.url) as client:
                await client.bound(queue, exchange)
            await posted(convo, *names[:2], user_id="mia")
            await trio.sleep(1)
            for number, (fault, mend) in enumerate(
                (
                    (lambda: broker.signal(signal.SIGSTOP), lambda: broker.signal(signal.SIGCONT)),
                    (
                        lambda: broker.control("set_vm_memory_high_watermark", "absolute", "1MB"),
                        lambda: broker.control("set_vm_memory_high_watermark", "absolute", "2GB"),
                    ),
                    (broker.kill, broker.start),
                )
            ):
                seen = len(records)
                await trio.to_thread.run_sync(fault)
                began = trio.current_time()
                await posted(convo, *names[2 + 2 * number : 4 + 2 * number], user_id="mia")
                assert trio.current_time() - began < 2, "accepts wait for no broker"
                await until(lambda seen=seen: "breaker_opened" in [one[0] for one in records[seen:]])  # type: ignore[misc]
                await trio.to_thread.run_sync(mend)
                await until(lambda: records[-1][0] == "breaker_closed", 30)
            async with client_of(broker.url) as client:
                got = await taken(client, queue, 8, 30)
    assert list(dict.fromkeys(subjects(got))) == names
    assert len({one.id for one in got}) == 8
