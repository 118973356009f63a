from __future__ import annotations

import gzip
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from convo.conversation.model import CANARY_USER
from convo.rabbitmq.intake import QueueIntake
from convo.rabbitmq.queues import dead_name
from tests.support.brokers import URL, Client, client_of, needs_broker, needs_programs, own_broker, own_name
from tests.support.making import ask, open_store
from tests.support.running import ended, holding, query, running, serving

SETTINGS = {"jobs.workers": "0", "rabbitmq.backoff_seconds": "0.2", "rabbitmq.breaker_open_seconds": "0.5"}


def body(conversation_id: str, **fields: Any) -> bytes:
    return json.dumps(ended(conversation_id, **fields)).encode()


@asynccontextmanager
async def queue_of_conversations() -> AsyncIterator[tuple[Client, str]]:
    async with client_of(URL) as client:
        queue = own_name("intake")
        try:
            yield client, queue
        finally:
            await client.removed(queues=(queue, dead_name(queue)), exchanges=(dead_name(queue),))  # noqa: ASYNC102  (the client bounds it)


@asynccontextmanager
async def taking(folder: Path, database: str, queue: str, **settings: str) -> AsyncIterator[httpx.AsyncClient]:
    given = {**SETTINGS, "rabbitmq.url": URL, "rabbitmq.intake_queue": queue, **settings}
    async with serving(folder, database, given) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


async def stored(database: str, count: int, seconds: float = 15) -> set[str]:
    async with open_store(database) as postgres:
        with trio.fail_after(seconds):
            while await ask(postgres, "SELECT count(*) FROM conversation") < count:  # noqa: ASYNC110
                await trio.sleep(0.05)
        return set(await ask(postgres, "SELECT array_agg(conversation_id) FROM conversation"))


async def until_declared(client: Client, queue: str) -> None:
    with trio.fail_after(15):
        while True:
            try:
                await client.held(queue)
            except Exception:  # noqa: BLE001  (there is none yet; the broker then closes the channel)
                await client.close()
                await trio.sleep(0.1)
            else:
                return


async def emptied(client: Client, queue: str, count: int) -> list[Any]:
    got: list[Any] = []
    with trio.fail_after(15):
        while len(got) < count:
            got += await client.taken(queue)
            await trio.sleep(0.05)
    return got


@needs_broker
async def test_a_message_is_stored_as_a_post_and_a_replay_is_acknowledged(database: str, tmp_path: Path) -> None:
    async with queue_of_conversations() as (client, queue):
        async with taking(tmp_path, database, queue) as convo:
            await until_declared(client, queue)
            original = {
                "conversation_id": "old-1",
                "user_id": "user-1",
                "bot_id": "pika",
                "conversation_log": [{"character": "USER", "content": "Hello"}],
            }
            await client.sent(queue, body("talk-1"), body("talk-1"), json.dumps(original).encode())
            assert await stored(database, 2) == {"talk-1", "old-1"}
            receipt = await convo.get("/v1/conversations/talk-1")
            again = await convo.post("/v1/conversations/end", json=ended("talk-1"))
            assert (receipt.status_code, again.headers["idempotent-replayed"]) == (200, "true")
            packed = gzip.compress(body("talk-2"))
            await client.sent(queue, packed, content_encoding="gzip")
            await client.sent(queue, body("talk-3"), content_encoding="utf-8")
            await stored(database, 4)
            await trio.sleep(0.5)
        assert await client.held(queue) == 0, "all were acknowledged"
        assert await client.held(dead_name(queue)) == 0


@needs_broker
async def test_what_would_be_refused_is_put_aside_with_its_problem_and_holds_no_other_up(
    database: str, tmp_path: Path
) -> None:
    async with queue_of_conversations() as (client, queue):
        async with taking(tmp_path, database, queue) as convo:
            await until_declared(client, queue)
            assert (await convo.post("/v1/conversations/end", json=ended("talk-0"))).status_code == 202
            wrong = [b"{not json", body("talk-0", log=[]), body("x" * 300), body("talk-9", user_id=CANARY_USER)]
            await client.sent(queue, *wrong, headers={"trace": "7"}, message_id="m-1", content_type="application/json")
            await client.sent(queue, body("talk-1"))
            got = await emptied(client, dead_name(queue), 4)
            await stored(database, 2)
            await trio.sleep(0.3)
        assert await client.held(queue) == 0
    # What is wrong in itself goes at once, and a conflict after the commit.
    by_body = {one.body: one.headers for one in got}
    assert [(by_body[one]["convo-status"], by_body[one]["convo-code"]) for one in wrong] == [
        ("400", "bad_request"),
        ("409", "conflict"),
        ("422", "invalid"),
        ("422", "invalid"),
    ]
    assert by_body[wrong[1]]["convo-conversation-id"] == "talk-0"
    assert by_body[wrong[2]]["convo-path"] == "$.conversation_id"
    assert by_body[wrong[3]]["convo-path"] == "$.user_id"
    for one in got:
        assert (one.id, one.headers["trace"], one.content_type, one.persistent) == (
            "m-1",
            "7",
            "application/json",
            True,
        )
        assert one.headers["convo-detail"]


@needs_broker
async def test_a_bug_of_ours_ends_one_message_and_no_other(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prepared(self: QueueIntake, message: Any, *rest: Any) -> Any:
        if b"talk-1" in message.body:
            raise ZeroDivisionError
        return await original(self, message, *rest)

    original = QueueIntake._prepared
    monkeypatch.setattr(QueueIntake, "_prepared", prepared)
    async with queue_of_conversations() as (client, queue), taking(tmp_path, database, queue):
        await until_declared(client, queue)
        await client.sent(queue, body("talk-1"), body("talk-2"))
        (got,) = await emptied(client, dead_name(queue), 1)
        assert await stored(database, 1) == {"talk-2"}
    assert got.headers["convo-code"] == "internal"


@needs_broker
async def test_while_the_database_stores_nothing_no_message_is_acknowledged_and_few_are_held(
    database: str, tmp_path: Path
) -> None:
    async with queue_of_conversations() as (client, queue):
        async with taking(tmp_path, database, queue, **{"rabbitmq.prefetch": "5"}):
            await until_declared(client, queue)
            async with holding(database, "LOCK TABLE conversation IN ACCESS EXCLUSIVE MODE"):
                await client.sent(queue, *(body(f"talk-{n}") for n in range(12)))
                await trio.sleep(4)
                assert await client.held(queue) == 7
            assert len(await stored(database, 12, 30)) == 12
            await trio.sleep(0.5)
        assert await client.held(queue) == 0
        assert await client.held(dead_name(queue)) == 0


@needs_broker
async def test_a_tenant_and_its_limit_hold_for_the_queue(database: str, tmp_path: Path) -> None:
    async with queue_of_conversations() as (client, queue):
        settings = {
            "rabbitmq.intake_tenant": "acme",
            "clients.tenants": '{"acme": {"requests_per_second": 4}}',
        }
        async with taking(tmp_path, database, queue, **settings) as convo:
            with trio.fail_after(15):
                while "RABBITMQ_MISCONFIGURED" not in (await convo.get("/readyz")).text:  # noqa: ASYNC110
                    await trio.sleep(0.1)
            async with open_store(database) as postgres:
                await ask(postgres, "INSERT INTO tenant (number, name) VALUES (1, 'acme') RETURNING number")
            await until_declared(client, queue)
            began = trio.current_time()
            await client.sent(queue, *(body(f"talk-{n}") for n in range(10)))
            await stored(database, 10)
            assert trio.current_time() - began > 1
            async with open_store(database) as postgres:
                assert await ask(postgres, "SELECT array_agg(DISTINCT tenant) FROM conversation") == [1]
            await trio.sleep(0.5)
        assert await client.held(queue) == 0
        assert await client.held(dead_name(queue)) == 0


@needs_broker
async def test_a_queue_that_was_made_otherwise_is_taken_as_it_is(database: str, tmp_path: Path) -> None:
    async with queue_of_conversations() as (client, queue):

        async def make(channel: Any) -> None:
            await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum", "x-max-length": 99})

        await client.do(make)
        await client.sent(queue, body("talk-1"))
        async with taking(tmp_path, database, queue):
            await stored(database, 1)


@needs_broker
def test_a_stop_acknowledges_what_is_stored_and_leaves_the_rest(database: str, tmp_path: Path) -> None:
    async def sent(client: Client, queue: str) -> None:
        await client.sent(queue, *(body(f"talk-{n}") for n in range(600)))

    async def main() -> None:
        async with queue_of_conversations() as (client, queue):
            given = {**SETTINGS, "rabbitmq.url": URL, "rabbitmq.intake_queue": queue, "rabbitmq.prefetch": "20"}
            with running(tmp_path, database, given) as convo:
                await until_declared(client, queue)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(sent, client, queue)
                    await trio.sleep(0.4)
                    assert await trio.to_thread.run_sync(convo.stop) == 0
            (row,) = await trio.to_thread.run_sync(query, database, "SELECT count(*) AS n FROM conversation")
            found = row["n"]
            assert found > 0
            assert await client.held(queue) == 600 - found, "what is stored was acknowledged, and nothing else was"

    trio.run(main)


# A broker starts three times; the normal run has the faults of test_relay.py.
@pytest.mark.long
@needs_programs
async def test_what_a_broker_sends_again_after_its_restart_is_stored_once(database: str, tmp_path: Path) -> None:
    async with own_broker(tmp_path / "broker") as broker:
        settings = {"rabbitmq.url": broker.url, "rabbitmq.attempt_seconds": "2", "rabbitmq.heartbeat_seconds": "1"}
        async with taking(tmp_path / "convo", database, "in", **settings) as convo:
            for number, (fault, mend) in enumerate(
                (
                    # Not killed: RabbitMQ 3.10 then finds no leader for a quorum queue of one node.
                    (broker.stop, broker.start),
                    (lambda: broker.signal(signal.SIGSTOP), lambda: broker.signal(signal.SIGCONT)),
                )
            ):
                async with client_of(broker.url) as client:
                    await until_declared(client, "in")
                    await client.sent("in", *(body(f"talk-{number}-{n}") for n in range(50)))
                await trio.to_thread.run_sync(fault)
                await trio.sleep(4)
                assert (await convo.post("/v1/conversations/end", json=ended(f"post-{number}"))).status_code == 202
                await trio.to_thread.run_sync(mend)
            assert len(await stored(database, 102, 60)) == 102
            await trio.sleep(1)
            async with client_of(broker.url) as client:
                with trio.fail_after(20):
                    while await client.held("in"):  # noqa: ASYNC110
                        await trio.sleep(0.2)
                assert await client.held(dead_name("in")) == 0
