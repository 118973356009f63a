from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from convo.event_types import EVENT_TYPES
from convo.store import keys
from convo.store.couriers import read_events
from convo.store.history import SKIP_EVENT_NUMBERS
from convo.web import event_stream
from tests.support.both_doors import at_both
from tests.support.making import ask, open_store
from tests.support.running import ended, running, serving

END = "/v1/conversations/end"
ON = {"events.types": json.dumps(list(EVENT_TYPES))}
ACCEPTED = {"events.types": '["conversation.accepted"]', "jobs.workers": "0"}


class Reader:
    """One stream: its events so far, and its comments."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.comments: list[str] = []
        self.ended = trio.Event()
        self.opened = trio.Event()

    async def read(self, client: httpx.AsyncClient, query: str = "", headers: Mapping[str, str] | None = None) -> None:
        async with client.stream("GET", f"/v1/events{query}", headers=dict(headers or {})) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/event-stream"
            lines: dict[str, str] = {}
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if not line and "data" in lines:
                    event = json.loads(lines["data"])
                    assert (lines["id"], lines["event"]) == (str(event["sequence"]), event["type"])
                    self.events.append(event)
                    self.ids.append(lines["id"])
                    lines = {}
                elif line.startswith(":"):
                    self.comments.append(line)
                    self.opened.set()
                elif line:
                    lines[name] = value
        self.ended.set()

    async def got(self, count: int, seconds: float = 10) -> list[str]:
        with trio.fail_after(seconds):
            while len(self.events) < count:  # noqa: ASYNC110  (a stream rings no bell)
                await trio.sleep(0.02)
        return [one.get("subject", "") for one in self.events]


@asynccontextmanager
async def convo(folder: Path, database: str, settings: Mapping[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=400)
    async with (
        serving(folder, database, settings) as url,
        httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client,
    ):
        yield client


async def numbered(database: str, last: int) -> None:
    async with open_store(database) as postgres:
        with trio.fail_after(10):
            while await ask(postgres, "SELECT last_sequence FROM event_counter") < last:  # noqa: ASYNC110
                await trio.sleep(0.05)


async def posted(client: httpx.AsyncClient, *names: str, **fields: Any) -> None:
    for name in names:
        assert (await client.post(END, json=ended(name, **fields))).status_code == 202


async def test_a_stream_gets_every_event_as_it_happens_with_its_number(database: str, tmp_path: Path) -> None:
    async with convo(tmp_path, database, ON) as client, trio.open_nursery() as nursery:
        await posted(client, "before")
        await trio.sleep(1)
        reader = Reader()
        nursery.start_soon(reader.read, client)
        await reader.opened.wait()
        await posted(client, "talk-1")
        assert await reader.got(5) == ["talk-1"] * 5
        assert [one["type"] for one in reader.events] == [
            "conversation.accepted",
            *["part.done"] * 3,
            "conversation.analysed",
        ]
        assert reader.ids == [str(n) for n in range(6, 11)]
        nursery.cancel_scope.cancel()


async def test_the_framework_alone_sends_the_same_stream(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        at_both(database, tmp_path, monkeypatch, ACCEPTED) as urls,
        httpx.AsyncClient(base_url=urls["ours"], timeout=30) as ours,
        httpx.AsyncClient(base_url=urls["stock"], timeout=30) as stock,
        trio.open_nursery() as nursery,
    ):
        readers = [Reader(), Reader()]
        for client, reader in zip((ours, stock), readers, strict=True):
            nursery.start_soon(reader.read, client)
            await reader.opened.wait()
        await posted(stock, "talk-1", "talk-2")
        assert await readers[1].got(2) == ["talk-1", "talk-2"]
        assert await readers[0].got(2) == ["talk-1", "talk-2"]
        assert readers[0].events == readers[1].events
        nursery.cancel_scope.cancel()


async def test_a_stream_comes_back_where_it_was_and_passes_over_what_it_does_not_want(
    database: str, tmp_path: Path
) -> None:
    async with convo(tmp_path, database, ACCEPTED) as client, trio.open_nursery() as nursery:
        await posted(client, *(f"mia-{n}" for n in range(3)), user_id="mia")
        await posted(client, *(f"tom-{n}" for n in range(3)), user_id="tom", bot_id="other")
        await numbered(database, 6)
        readers = {
            name: Reader() for name in ("all", "?user_id=tom", "?bot_id=pika", "?types=user.erased,conversation.dead")
        }
        for name, reader in readers.items():
            nursery.start_soon(reader.read, client, "" if name == "all" else name, {"Last-Event-ID": "1"})
            await reader.opened.wait()
        assert await readers["all"].got(5) == ["mia-1", "mia-2", "tom-0", "tom-1", "tom-2"]
        await posted(client, "tom-3", user_id="tom")
        assert await readers["?user_id=tom"].got(4) == ["tom-0", "tom-1", "tom-2", "tom-3"]
        assert await readers["?bot_id=pika"].got(3) == ["mia-1", "mia-2", "tom-3"]
        assert await readers["all"].got(6) == ["mia-1", "mia-2", "tom-0", "tom-1", "tom-2", "tom-3"]
        await trio.sleep(0.3)
        assert readers["?types=user.erased,conversation.dead"].events == []
        nursery.cancel_scope.cancel()


async def test_a_wrong_filter_or_number_is_refused_and_without_events_there_is_no_stream(
    database: str, tmp_path: Path
) -> None:
    async with convo(tmp_path / "on", database, ACCEPTED) as client:
        for query, headers in (("?types=nothing", {}), ("", {"Last-Event-ID": "one"}), ("?user=mia", {})):
            answer = await client.get(f"/v1/events{query}", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    async with convo(tmp_path / "off", database, {"jobs.workers": "0"}) as client:
        answer = await client.get("/v1/events")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_key_gets_the_events_of_its_tenant_and_its_bots_alone(database: str, tmp_path: Path) -> None:
    async with convo(tmp_path, database, {**ACCEPTED, "auth.keys": "true"}) as client:
        async with open_store(database) as postgres:
            scopes: list[Any] = ["read", "write"]
            whole = await keys.new(postgres, "whole", scopes, 0)
            bound = await keys.new(postgres, "bound", scopes, 0, bots=["pika"])
            other = await keys.new(postgres, "other", scopes, 0, tenant="acme")
        for key, name, bot in ((whole, "before-1", "other"), (whole, "before-2", "pika"), (other, "before-3", "pika")):
            await client.post(END, json=ended(name, bot_id=bot), headers={"Authorization": f"Bearer {key}"})
        await numbered(database, 3)
        async with trio.open_nursery() as nursery:
            readers = {key: Reader() for key in (whole, bound, other)}
            for key, reader in readers.items():
                nursery.start_soon(reader.read, client, "", {"Authorization": f"Bearer {key}"})
                await reader.opened.wait()
            for key, name, bot in ((whole, "one", "other"), (whole, "two", "pika"), (other, "three", "pika")):
                answer = await client.post(
                    END, json=ended(name, bot_id=bot), headers={"Authorization": f"Bearer {key}"}
                )
                assert answer.status_code == 202, answer.text
            assert await readers[whole].got(2) == ["one", "two"]
            assert await readers[bound].got(1) == ["two"]
            assert await readers[other].got(1) == ["three"]
            await trio.sleep(0.5)
            assert [len(reader.events) for reader in readers.values()] == [2, 1, 1]
            # What was before the first stream is read from the database.
            for key, names in ((bound, ["before-2", "two"]), (other, ["before-3", "three"])):
                again = Reader()
                nursery.start_soon(again.read, client, "", {"Authorization": f"Bearer {key}", "Last-Event-ID": "0"})
                assert await again.got(2) == names
            nursery.cancel_scope.cancel()


async def test_a_stream_ends_with_its_key_in_time_and_others_go_on(database: str, tmp_path: Path) -> None:
    settings = {**ACCEPTED, "auth.keys": "true", "auth.refresh_seconds": "2"}
    async with convo(tmp_path, database, settings) as client, open_store(database) as postgres:
        scopes: list[Any] = ["read", "write"]
        gone, kept = [await keys.new(postgres, name, scopes, 0) for name in ("gone", "kept")]
        async with trio.open_nursery() as nursery:
            readers = {key: Reader() for key in (gone, kept)}
            for key, reader in readers.items():
                nursery.start_soon(reader.read, client, "", {"Authorization": f"Bearer {key}"})
                await reader.opened.wait()
            await trio.sleep(2.5)
            assert not readers[gone].ended.is_set()
            await keys.revoke(postgres, gone.split("_")[1])
            with trio.fail_after(2.5):
                await readers[gone].ended.wait()
            await client.post(END, json=ended("later"), headers={"Authorization": f"Bearer {kept}"})
            assert await readers[kept].got(1) == ["later"]
            assert readers[gone].events == []
            nursery.cancel_scope.cancel()


async def test_two_hundred_streams_share_one_look_and_one_more_is_refused(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    async def read(postgres: Any, after: int, *rest: Any) -> Any:
        looks.append(after)
        return await read_events(postgres, after, *rest)

    monkeypatch.setattr(event_stream, "read_events", read)
    settings = {**ACCEPTED, "events.streams_max": "200"}
    async with convo(tmp_path, database, settings) as client, trio.open_nursery() as nursery:
        readers = [Reader() for _ in range(200)]
        for reader in readers:
            nursery.start_soon(reader.read, client)
        for reader in readers:
            await reader.opened.wait()
        answer = await client.get("/v1/events")
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        await posted(client, *(f"talk-{n}" for n in range(20)))
        for reader in readers:
            assert await reader.got(20, 60) == [f"talk-{n}" for n in range(20)]
        assert len(looks) <= 20
        nursery.cancel_scope.cancel()


async def test_a_stream_in_which_nothing_happens_sends_heartbeats(database: str, tmp_path: Path) -> None:
    settings = {**ACCEPTED, "events.heartbeat_seconds": "0.2"}
    async with convo(tmp_path, database, settings) as client, trio.open_nursery() as nursery:
        reader = Reader()
        nursery.start_soon(reader.read, client)
        await trio.sleep(1.5)
        assert 4 <= reader.comments.count(": heartbeat") <= 8
        assert (await client.get("/metrics")).text.count("convo_event_streams 1.0") == 1
        nursery.cancel_scope.cancel()


async def test_a_client_that_reads_nothing_is_cut_off_and_holds_no_other_up(database: str, tmp_path: Path) -> None:
    settings = {**ACCEPTED, "connection.write_seconds": "0.5", "events.heartbeat_seconds": "0.2"}
    async with convo(tmp_path, database, settings) as client, trio.open_nursery() as nursery:
        reader = Reader()
        nursery.start_soon(reader.read, client)
        await reader.opened.wait()
        port = client.base_url.port
        assert port is not None
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", port))
            slow.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await trio.sleep(0.3)
            async with open_store(database) as postgres:
                await ask(
                    postgres,
                    "INSERT INTO event (type, user_id, data) SELECT 'user.erased', 'mia', jsonb_build_object('t',"
                    " repeat('x', 3000)) FROM generate_series(1, 2000) RETURNING number",
                )
            await reader.got(2000, 20)
            with trio.fail_after(10):
                while "convo_event_streams 1.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110
                    await trio.sleep(0.1)
        assert 'reason="write_deadline"' in (await client.get("/metrics")).text
        nursery.cancel_scope.cancel()


async def test_a_client_that_has_gone_is_noticed_at_the_next_piece(database: str, tmp_path: Path) -> None:
    settings = {**ACCEPTED, "events.heartbeat_seconds": "0.2"}
    async with convo(tmp_path, database, settings) as client:
        async with client.stream("GET", "/v1/events") as answer:
            assert answer.status_code == 200
            assert "convo_event_streams 1.0" in (await client.get("/metrics")).text
        with trio.fail_after(5):
            while "convo_event_streams 0.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110
                await trio.sleep(0.05)


async def test_a_stream_outlives_the_time_of_a_request(database: str, tmp_path: Path) -> None:
    settings = {**ACCEPTED, "events.heartbeat_seconds": "0.2"}
    async with convo(tmp_path, database, settings) as client:
        port = client.base_url.port
        assert port is not None
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            host = f"localhost:{port}".encode()
            await stream.send_all(b"GET http://%b/v1/events HTTP/1.1\r\nHost: %b\r\n\r\n" % (host, host))
            got = b""
            with trio.fail_after(20):
                while b"heartbeat" not in got:
                    got += await stream.receive_some()
                began = trio.current_time()
                while trio.current_time() < began + 9:
                    got += await stream.receive_some()
                await posted(client, "talk-1")
                while b'"subject":"talk-1"' not in got:
                    got += await stream.receive_some()
        assert b"text/event-stream" in got
        with trio.fail_after(5):
            while "convo_event_streams 0.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110
                await trio.sleep(0.05)
        answer = await client.head("/v1/events")
        assert (answer.status_code, answer.content) == (200, b"")
        assert "convo_event_streams 0.0" in (await client.get("/metrics")).text


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_stop_ends_streams_in_order(version: str, database: str, tmp_path: Path) -> None:
    with running(tmp_path, database, ACCEPTED) as started:
        host, _, port = started.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), 20) as stream:
            stream.sendall(f"GET /v1/events HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
            got = stream.recv(65536)
            while b": open" not in got:
                got += stream.recv(65536)
            assert started.stop() == 0
            while piece := stream.recv(65536):
                got += piece
    assert got.endswith(b"0\r\n\r\n") is (version == "1.1")
    assert b"connection: close" in got.lower()


# --- alerts


ALERTING = {
    "alerts.disk_free_bytes": str(1 << 50),
    "alerts.evaluate_seconds": "0.05",
    "alerts.look_seconds": "0.1",
    "jobs.workers": "0",
}


DISK = {"type": "DISK_LOW"}


async def lines_until(client: httpx.AsyncClient, query: str, end: str, act: Any) -> list[str]:
    """Read a stream until a line begins with ``end``; once it is open, ``act``."""
    found: list[str] = []
    with trio.fail_after(10):
        async with client.stream("GET", f"/v1/events{query}") as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                found.append(line)
                if line == ": open":
                    await act()
                if line.startswith(end):
                    break
    return found


@pytest.mark.parametrize("events", [{}, ON])
async def test_a_stream_that_asks_for_alerts_gets_them_without_a_number(
    database: str, tmp_path: Path, events: dict[str, str]
) -> None:
    async with convo(tmp_path, database, {**ALERTING, **events}) as client:

        async def act() -> None:
            while (await client.post("/v1/alerts/acknowledge", json=DISK)).status_code == 404:  # noqa: ASYNC110
                await trio.sleep(0.05)

        lines = await lines_until(client, "?types=alert", 'data: {"type":"alert.acknowledged"', act)
        assert "event: alert" in lines
        assert not any(line.startswith("id:") for line in lines)
        data = json.loads(lines[-1].removeprefix("data: "))["data"]
        assert (data["type"], data["component"]) == ("DISK_LOW", "data_dir")
        assert data["acknowledged_by"] == "somebody without a key"


async def test_a_stream_of_both_has_events_with_numbers_and_alerts_and_one_of_events_has_no_alert(
    database: str, tmp_path: Path
) -> None:
    async with convo(tmp_path, database, {**ALERTING, **ON}) as client, trio.open_nursery() as nursery:
        plain = Reader()
        nursery.start_soon(plain.read, client)
        await plain.opened.wait()

        async def act() -> None:
            while (await client.post("/v1/alerts/acknowledge", json=DISK)).status_code == 404:  # noqa: ASYNC110
                await trio.sleep(0.05)
            await posted(client, "talk-1")

        lines = await lines_until(client, "?types=alert,conversation.accepted", "id:", act)
        assert "event: alert" in lines
        # Its reader takes nothing but events.
        assert await plain.got(1) == ["talk-1"]
        nursery.cancel_scope.cancel()


async def test_alerts_are_for_keys_that_reach_the_whole_installation(database: str, tmp_path: Path) -> None:
    settings = {**ALERTING, "auth.keys": "true"}
    async with open_store(database) as postgres, convo(tmp_path, database, settings) as client:
        own = await keys.new(postgres, "own", ("read",), 0)
        acme = await keys.new(postgres, "acme", ("read",), 0, tenant="acme")
        admin = await keys.new(postgres, "admin", ("read", "admin"), 0)
        await trio.sleep(1)
        for key, status in ((acme, 403), (own, 403), (admin, 200)):
            headers = {"Authorization": f"Bearer {key}"}
            async with client.stream("GET", "/v1/events?types=alert", headers=headers) as answer:
                assert answer.status_code == status


async def test_what_no_stream_wants_is_not_read_and_a_stream_of_other_types_misses_nothing(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    sent_event = event_stream.sent_event

    def sent(event: Any) -> bytes:
        kept.append(event.conversation_id)
        return sent_event(event)

    monkeypatch.setattr(event_stream, "sent_event", sent)
    async with convo(tmp_path, database, ACCEPTED) as client, trio.open_nursery() as nursery:
        dead, every = Reader(), Reader()
        nursery.start_soon(dead.read, client, "?types=conversation.dead")
        await dead.opened.wait()
        await posted(client, "talk-1", "talk-2")
        await numbered(database, 2)
        await trio.sleep(1.5)
        assert kept == []
        # It wants what the others passed over, also what they have passed over already.
        nursery.start_soon(every.read, client, "", {"Last-Event-ID": "1"})
        await every.opened.wait()
        await posted(client, "talk-3")
        assert await every.got(2) == ["talk-2", "talk-3"]
        assert dead.events == []
        nursery.cancel_scope.cancel()


async def test_numbers_that_were_never_given_are_not_looked_through(database: str, tmp_path: Path) -> None:
    async with convo(tmp_path, database, ACCEPTED) as client, trio.open_nursery() as nursery:
        accepted, every = Reader(), Reader()
        nursery.start_soon(accepted.read, client, "?types=conversation.accepted")
        await accepted.opened.wait()
        await posted(client, "before")
        assert await accepted.got(1) == ["before"]
        async with open_store(database) as postgres:
            await ask(postgres, SKIP_EVENT_NUMBERS)
        await posted(client, "after")
        assert await accepted.got(2) == ["before", "after"]
        nursery.start_soon(every.read, client, "", {"Last-Event-ID": "1"})
        assert await every.got(1) == ["after"]
        nursery.cancel_scope.cancel()
