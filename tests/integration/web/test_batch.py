"""A batch at both doors: our own connection, and the framework under stock hypercorn."""

from __future__ import annotations

import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import zstandard

from convo.client import AsyncClient, Conflict, Receipt
from convo.store import keys
from convo.store.postgres import Postgres
from tests.support.both_doors import at_both
from tests.support.doors import get
from tests.support.making import ask, open_store
from tests.support.running import Running, ended, serving

BATCH = "/v1/conversations/batch"
TYPE = "application/x-ndjson"
BOM = b"\xef\xbb\xbf"
DOORS = ("ours", "stock")


def lines_of(*bodies: object, end: bytes = b"\n") -> bytes:
    return b"".join(json.dumps(body).encode() + end for body in bodies)


def numbered(prefix: str, count: int, **fields: object) -> list[dict[str, Any]]:
    return [ended(f"{prefix}-{number}", **fields) for number in range(count)]  # type: ignore[arg-type]


def answers(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.content.endswith(b"\n") or not response.content
    return [json.loads(line) for line in response.content.splitlines()]


async def post(
    url: str, content: bytes | Iterable[bytes], headers: Mapping[str, str] | None = None, media: str = TYPE
) -> httpx.Response:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in content:
            assert isinstance(piece, bytes)
            yield piece

    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        sent = content if isinstance(content, bytes) else pieces()
        return await client.post(BATCH, content=sent, headers={"content-type": media, **(headers or {})})


async def posted(url: str, content: bytes | Iterable[bytes], headers: Mapping[str, str] | None = None) -> list[Any]:
    return answers(await post(url, content, headers))


def told(found: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return the id of each receipt, and the status of each problem."""
    return [one.get("status") or one["conversation_id"] for one in found]


async def hold(connection: Any) -> None:
    """Let nothing be stored for a while."""
    await connection.execute("BEGIN; LOCK TABLE receipt IN SHARE MODE; SELECT pg_sleep(1.7); COMMIT")


LOCKED = "SELECT count(*) FROM pg_locks WHERE relation = 'receipt'::regclass AND mode = 'ShareLock' AND granted"


async def _until_stored(postgres: Postgres, count: int) -> None:
    with trio.fail_after(10):
        while await ask(postgres, "SELECT count(*) FROM receipt") < count:  # noqa: ASYNC110  (it does not notify)
            await trio.sleep(0.02)


async def test_each_line_is_answered_in_order_at_both_doors(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_both(database, tmp_path, monkeypatch) as urls:
        for door, url in urls.items():
            first, other = ended(f"{door}-1"), ended(f"{door}-1", user_id="other")
            body = lines_of(first, {"conversation_id": f"{door}-2"}, ended(f"{door}-3"), first, other) + b"{\n"
            response = await post(url, body)

            assert response.headers["content-type"] == TYPE
            assert "total;dur=" in response.headers["server-timing"]
            one, invalid, three, again, conflict, broken = answers(response)
            assert (one["conversation_id"], one["turns"], one["replayed"]) == (f"{door}-1", 3, False)
            assert one["links"]["self"] == f"/v1/conversations/{door}-1"
            assert (invalid["status"], invalid["code"], invalid["path"]) == (422, "invalid", "$.user_id")
            assert invalid["conversation_id"] == f"{door}-2"
            assert three["conversation_id"] == f"{door}-3"
            assert again == {**one, "replayed": True}
            assert (conflict["status"], conflict["conversation_id"]) == (409, f"{door}-1")
            assert (broken["status"], broken["code"]) == (400, "bad_request")

            async with httpx.AsyncClient(base_url=url) as client:
                receipt = await client.post("/v1/conversations/end", json=first)
                assert receipt.headers["idempotent-replayed"] == "true"
                assert {**receipt.json(), "replayed": False} == one
        async with open_store(database) as postgres:
            assert await ask(postgres, "SELECT count(*) FROM conversation") == 4


async def test_lines_may_be_written_in_any_way(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three = [f"w-{number}" for number in range(3)]
    bodies = [ended(name) for name in three]
    whole = lines_of(*bodies)
    bodies_as: dict[str, bytes | list[bytes]] = {
        "no newline at the end": whole.rstrip(b"\n"),
        "CRLF": lines_of(*bodies, end=b"\r\n"),
        "blank lines": b"\n \n\r\n" + lines_of(*bodies, end=b"\n\n\t\r\n\n"),
        "BOM": BOM + whole,
        "BOM in a line of its own": BOM + b"\n" + whole,
        "in chunks": [whole[at : at + 100] for at in range(0, len(whole), 100)],
        "byte by byte": [whole[at : at + 1] for at in range(len(whole))],
    }
    async with at_both(database, tmp_path, monkeypatch) as urls:
        for url in urls.values():
            for name, body in bodies_as.items():
                assert told(await posted(url, body)) == three, name
            for encoding, packed in {"gzip": gzip.compress(whole), "zstd": zstandard.compress(whole)}.items():
                assert told(await posted(url, packed, {"content-encoding": encoding})) == three, encoding
            jsonl = await post(url, whole, media="application/jsonl; charset=utf-8")
            assert (jsonl.headers["content-type"], told(answers(jsonl))) == ("application/jsonl", three)
            for nothing in (b"", b"\n\n", BOM):
                assert (await post(url, nothing)).content == b""


async def test_what_is_wrong_with_a_whole_request_is_its_answer(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = lines_of(ended("whole-1"))
    async with at_both(database, tmp_path, monkeypatch) as urls:
        for url in urls.values():
            json_ = await post(url, body, media="application/json")
            assert (json_.status_code, json_.json()["code"]) == (415, "unsupported_media")
            assert "application/x-ndjson or application/jsonl" in json_.json()["detail"]
            assert (await post(url, body, {"content-encoding": "br"})).status_code == 415
            assert (await post(url, body, {"content-encoding": "gzip"})).status_code == 400
            assert (await post(url, b"x" * ((16 << 20) + 1))).status_code == 413
            assert (await post(url, body, {"request-timeout": "soon"})).status_code == 400
            async with httpx.AsyncClient(base_url=url) as client:
                assert (await client.put(BATCH, content=body)).status_code == 405
                read = await client.get(BATCH)
                assert (read.status_code, "use POST" in read.json()["detail"]) == (404, True)


async def test_a_thousand_lines_are_a_batch_and_one_more_is_answered_and_not_read(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_both(database, tmp_path, monkeypatch) as urls:
        for door, url in urls.items():
            names = [f"{door}-{number}" for number in range(1003)]
            bodies = numbered(door, 1003)
            assert told(await posted(url, lines_of(*bodies[:1000]))) == names[:1000]
            over = await posted(url, lines_of(*bodies))
            assert told(over) == [*names[:1000], 413]
            assert over[-1]["detail"] == "a batch has at most 1,000 lines; send what follows in another one"
        async with open_store(database) as postgres:
            assert await ask(postgres, "SELECT count(*) FROM conversation") == 2000


async def test_a_line_over_the_limit_of_a_body_harms_no_other(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = ended("long", log=[{"role": "user", "content": "x" * (2 << 20)}])
    audio = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QUJD" * 1_000_000}}]}
    spoken = ended("spoken", log=[{"role": "user", "content": "Hello"}, audio])
    async with at_both(database, tmp_path, monkeypatch) as urls:
        for url in urls.values():
            before, wrong, recorded, after = await posted(url, lines_of(ended("before"), long, spoken, ended("after")))
            assert told([before, recorded, after]) == ["before", "spoken", "after"]
            assert (wrong["status"], wrong["code"]) == (413, "too_large")
            assert "web.body_bytes_max" in wrong["detail"]


async def test_what_exceeds_the_limit_of_a_request_ends_the_answer(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"web.raw_bytes_max": "100000", "web.body_bytes_max": "100000"}
    async with at_both(database, tmp_path, monkeypatch, settings) as urls:
        for door, url in urls.items():
            whole = lines_of(*numbered(door, 500))
            assert len(whole) > 100_000
            for sent, headers in ((list(_pieces(whole)), {}), (gzip.compress(whole), {"content-encoding": "gzip"})):
                response = await post(url, sent, headers)
                if door == "stock" and response.status_code == 413:
                    continue  # the framework looks at what it has not handed on yet
                found = answers(response)
                assert found[-1]["status"] == 413
                assert len(found) < 500
                assert told(found[:-1]) == [f"{door}-{number}" for number in range(len(found) - 1)]
                assert door == "stock" or len(found) > 200


def _pieces(body: bytes) -> Iterable[bytes]:
    return (body[at : at + 4096] for at in range(0, len(body), 4096))


async def test_when_the_time_is_over_what_is_stored_is_said_and_the_rest_is_to_be_sent_again(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_both(database, tmp_path, monkeypatch) as urls:
        for door, url in urls.items():
            bodies = numbered(door, 1000)
            async with open_store(database) as postgres, trio.open_nursery() as nursery:
                nursery.start_soon(postgres.run, "db.read", hold)
                await trio.sleep(0.1)
                found = await posted(url, lines_of(*bodies), {"request-timeout": "1"})
            assert len(found) == 1000
            late = [one for one in found if one.get("status")]
            assert late
            assert {one["code"] for one in late} == {"deadline_exceeded"}
            assert "send it again" in late[0]["detail"]
            # The same again is stored, or said to be.
            again = await posted(url, lines_of(*bodies))
            assert told(again) == [body["conversation_id"] for body in bodies]


async def test_the_lines_that_arrive_before_the_client_vanishes_are_stored_once(database: str, tmp_path: Path) -> None:
    bodies = numbered("gone", 100)
    whole = lines_of(*bodies)
    async with serving(tmp_path, database, {"jobs.workers": "0"}) as url:
        port = int(url.rpartition(":")[2])
        head = get(BATCH, f"Content-Type: {TYPE}", f"Content-Length: {len(whole)}", method="POST")
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(head + whole[: len(whole) // 2])
        async with open_store(database) as postgres:
            await _until_stored(postgres, 40)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()
            found = await posted(url, whole)
            assert told(found) == [body["conversation_id"] for body in bodies]
            assert sum(one["replayed"] for one in found) >= 40
            assert await ask(postgres, "SELECT count(*) FROM receipt") == 100
            # Nothing of the request that vanished is held.
            async with httpx.AsyncClient(base_url=url) as client:
                text = (await client.get("/metrics")).text
            assert "convo_intake_in_flight 0.0" in text
            assert "convo_intake_in_flight_bytes 0.0" in text


async def test_a_slow_client_is_cut_off_by_its_own_time_and_not_by_ours(database: str, tmp_path: Path) -> None:
    # The server stores for longer than a client may be silent, and that is not the client's silence.
    settings = {"jobs.workers": "0", "connection.body_patience_seconds": "0.3"}
    bodies = numbered("slow", 400)
    async with (
        serving(tmp_path, database, settings) as url,
        open_store(database) as postgres,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(postgres.run, "db.read", hold)
        await trio.sleep(0.1)
        found = await posted(url, list(_pieces(lines_of(*bodies))))
    assert told(found) == [body_["conversation_id"] for body_ in bodies]


async def test_lines_count_against_the_limit_of_their_client_and_need_its_scope(database: str, tmp_path: Path) -> None:
    async with open_store(database) as postgres:
        writes = await keys.new(postgres, "writes", ["write"], 0)
        reads = await keys.new(postgres, "reads", ["read"], 0)
        slow = await keys.new(postgres, "slow", ["write"], 5)
    body = lines_of(*numbered("key", 20))
    settings = {"auth.keys": "true", "clients.requests_per_second": "1", "clients.requests_burst": "12"}
    async with serving(tmp_path, database, settings) as url:
        assert (await post(url, body)).status_code == 401
        assert (await post(url, body, {"authorization": f"Bearer {reads}"})).status_code == 403
        found = await posted(url, body, {"authorization": f"Bearer {writes}"})
        assert told(found) == [*(f"key-{number}" for number in range(12)), *[429] * 8]
        assert found[-1]["retry_after_seconds"] > 0
        of_its_own = await posted(url, body, {"authorization": f"Bearer {slow}"})
        assert [one.get("status") for one in of_its_own] == [None] * 5 + [429] * 15


async def test_a_batch_waits_for_its_own_lines_and_is_refused_where_others_take_the_room(
    database: str, tmp_path: Path
) -> None:
    settings = {"intake.in_flight_max": "1", "jobs.workers": "0", "connection.body_patience_seconds": "6"}
    async with serving(tmp_path, database, settings) as url, open_store(database) as postgres:
        # Its own lines take more than there is, one after the other.
        names = [f"load-{number}" for number in range(100)]
        assert told(await posted(url, lines_of(*numbered("load", 100)))) == names

        taken, left = trio.Event(), trio.Event()

        async def other() -> None:
            async with AsyncClient(url) as client:
                await client.post(ended("other"))
            left.set()

        async def lines() -> AsyncIterator[bytes]:
            yield lines_of(ended("first"))
            await _until_stored(postgres, 101)
            nursery.start_soon(postgres.run, "db.read", hold)
            while not await ask(postgres, LOCKED):  # noqa: ASYNC110  (the database does not notify)
                await trio.sleep(0.02)
            nursery.start_soon(other)
            while "convo_intake_in_flight 1.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110  (nor this)
                await trio.sleep(0.02)
            taken.set()
            yield lines_of(ended("second"))
            await left.wait()
            await trio.sleep(0.1)
            yield lines_of(ended("third"))

        async with trio.open_nursery() as nursery, httpx.AsyncClient(base_url=url, timeout=30) as client:
            nursery.start_soon(_refused_as_a_whole, url, taken)
            first, second, third = answers(await client.post(BATCH, content=lines(), headers={"content-type": TYPE}))
    assert told([first, third]) == ["first", "third"]
    assert (second["status"], second["code"]) == (503, "overloaded")
    assert second["retry_after_seconds"] > 0


async def _refused_as_a_whole(url: str, taken: trio.Event) -> None:
    await taken.wait()
    refused = await post(url, lines_of(ended("whole")))
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1


async def test_a_user_of_the_canaries_and_an_erased_id_are_refused_as_at_the_single_route(
    database: str, tmp_path: Path
) -> None:
    async with serving(tmp_path, database, {"jobs.workers": "0"}) as url:
        await posted(url, lines_of(ended("erased-1")))
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.delete("/v1/conversations/erased-1")).status_code == 200
        canary, erased, good = await posted(
            url, lines_of(ended("c-1", user_id="convo:canary"), ended("erased-1"), ended("good-1"))
        )
    assert (canary["status"], canary["path"]) == (422, "$.user_id")
    assert (erased["status"], erased["code"]) == (410, "erased")
    assert good["conversation_id"] == "good-1"


async def test_a_batch_through_the_client_is_stored_and_analysed(convo: Running) -> None:
    bodies = numbered("batched", 50, user_id="batched-user")
    async with AsyncClient(convo.url) as client:
        found = [one async for one in client.batch([*bodies, {**bodies[0], "bot_id": "other"}])]
        assert [type(one) for one in found] == [Receipt] * 50 + [Conflict]
        assert (await client.wait("batched-49", 30)).state == "done"
    async with httpx.AsyncClient(base_url=convo.url) as reader:
        metrics = (await reader.get("/metrics")).text
    assert 'convo_batch_lines_total{status="202"}' in metrics
    assert 'convo_batch_lines_total{status="409"}' in metrics
