from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import pytest
import trio

from convo.client import AsyncClient, Client, ClientError, Conflict, NotFound, NotReached, ProblemError
from tests.support.faulty_server import FaultyServer, serving
from tests.support.running import Running, ended

T = TypeVar("T")


async def apart(work: Callable[[], T]) -> T:
    """Run what blocks in a thread, as a program without an event loop would."""
    return await trio.to_thread.run_sync(work)


def body(name: str) -> dict[str, object]:
    return {"conversation_id": name, "user_id": "mia", "bot_id": "pika"}


# --- the four faults of clients that held the server which convo replaces, and what a client of ours leaves behind


async def test_a_late_answer_costs_the_server_no_connection() -> None:
    async with serving() as server:
        server.faults = ["late"]

        def work() -> None:
            with Client(server.url, call_seconds=0.3) as client, pytest.raises(NotReached, match=r"within 0\.3 s"):
                client.post(body("one"))

        await apart(work)
        await server.left.wait()


async def test_an_answer_that_comes_byte_by_byte_ends_with_the_time_of_the_call() -> None:
    async with serving() as server:
        server.faults = ["drip"]

        def work() -> float:
            began = time.monotonic()
            with Client(server.url, call_seconds=0.4) as client, pytest.raises(NotReached):
                client.post(body("one"))
            return time.monotonic() - began

        assert await apart(work) < 2.0


async def test_every_answer_is_read_whole_so_one_connection_serves_them_all() -> None:
    async with serving() as server:
        server.faults = ["padded"] * 5

        def work() -> None:
            with Client(server.url, connections=1) as client:
                for number in range(5):
                    client.post(body(f"n-{number}"))

        await apart(work)
        assert server.connections_most == 1
        assert len(server.stored) == 5


async def test_many_threads_share_its_connections_and_none_is_left_behind() -> None:
    async with serving() as server:
        before = threading.active_count()

        def work() -> None:
            with Client(server.url, connections=2) as client:
                threads = [threading.Thread(target=client.post, args=(body(f"n-{number}"),)) for number in range(20)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

        await apart(work)
        assert len(server.stored) == 20
        assert server.connections_most == 2
        await _closed(server)
        # The thread that did the work is Trio's, which keeps it.
        assert threading.active_count() <= before + 1


async def test_what_breaks_out_of_the_block_closes_its_connections() -> None:
    async with serving() as server:

        def work() -> None:
            with Client(server.url) as client:
                client.post(body("one"))
                raise KeyError

        with pytest.raises(KeyError):
            await apart(work)
        await _closed(server)
        # Cancelled as well.
        server.faults = ["late"]
        with trio.move_on_after(0.3):
            async with AsyncClient(server.url) as client:
                await client.post(body("two"))
        await _closed(server)


async def _closed(server: FaultyServer) -> None:
    with trio.fail_after(5):
        while server.connections:  # noqa: ASYNC110  (the server has no event for it)
            await trio.sleep(0.01)


async def test_outside_its_block_nothing_is_sent() -> None:
    client = Client("http://127.0.0.1:1")
    with pytest.raises(ClientError, match="use it inside its `with` block"):
        client.post(body("one"))
    with pytest.raises(ClientError, match="neither http"):
        await apart(Client("ftp://nowhere").__enter__)


# --- beside a real convo


def test_a_conversation_is_posted_awaited_and_read_in_every_way(convo: Running) -> None:
    with Client(convo.url) as client:
        receipt = client.post(ended("client-1", user_id="client-user"))
        assert (receipt.turns, receipt.replayed) == (3, False)
        assert client.post(ended("client-1", user_id="client-user")).replayed
        with pytest.raises(Conflict):
            client.post(ended("client-1", user_id="another"))

        found = client.wait("client-1", seconds=30)
        assert (found.state, found.score.final) == ("done", True)
        assert client.conversation("client-1").user_id == "client-user"
        assert client.conversation("client-1").cost is None
        cost = client.conversation("client-1", cost=True).cost
        assert cost is not None
        assert (cost.price, cost.tokens_in, cost.complete, cost.parts) == (0.0, 0, True, ())
        assert [turn.speaker for turn in client.turns("client-1")] == ["bot", "user", "bot"]
        assert client.log_as_sent("client-1").startswith(b"[")

        assert client.relationship("client-user").score == found.score.value
        assert [bot.conversations for bot in client.bots("client-user")] == [1]
        assert all(memory.conversation_id == "client-1" for memory in client.memories("client-user"))
        assert [row.conversation_id for row in client.conversations(user_id="client-user")] == ["client-1"]
        assert [row.conversation_id for row in client.conversations(user_prefix="client-us")] == ["client-1"]
        assert list(client.conversations(user_prefix="lient-us")) == []
        with pytest.raises(NotFound):
            client.relationship("nobody-at-all")
        with pytest.raises(ProblemError, match="not_dead"):
            client.retry("client-1")


async def test_lists_of_more_than_a_page_are_read_to_their_end(convo: Running) -> None:
    names = {f"client-list-{number}" for number in range(120)}
    async with AsyncClient(convo.url) as client:
        for name in names:
            await client.post(ended(name, user_id="client-lists"))
        listed = [row.conversation_id async for row in client.conversations(user_id="client-lists")]
    assert len(listed) == 120
    assert set(listed) == names
