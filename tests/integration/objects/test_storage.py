from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from convo.commands import reanalysing
from convo.errors import RemoteDenied, RemoteError
from convo.objects.s3 import Bucket
from convo.observe import log_records
from convo.runtime.bridge import open_bridge
from convo.settings import LogsSettings
from tests.support.buckets import S3Server, logs_settings, own_s3, variables
from tests.support.making import ask, open_store, shift_clock
from tests.support.old_logs import open_old_logs
from tests.support.proxy import Proxy, open_proxy
from tests.support.running import ended, loaded_settings, serving

END = "/v1/conversations/end"


@asynccontextmanager
async def client_of(folder: Path, database: str, settings: Mapping[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(folder, database, settings) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
async def proxy(s3: S3Server) -> AsyncIterator[Proxy]:
    async with open_proxy(("127.0.0.1", s3.port)) as opened:
        yield opened


def old(endpoint: str, bucket: str, **more: str) -> dict[str, str]:
    """Return settings under which logs move, and the object storage is given up soon."""
    times = {"attempt_seconds": "0.5", "write_seconds": "1", "breaker_failures": "2"}
    return variables(endpoint, bucket, pack_after_seconds="3600", **(times | more))


async def until(holds: Any, seconds: float = 20.0) -> None:
    with trio.fail_after(seconds):
        while not await holds():  # noqa: ASYNC110  (nothing rings)
            await trio.sleep(0.05)


async def posted(client: httpx.AsyncClient, *names: str) -> None:
    for name in names:
        answer = await client.post(END, json=ended(name))
        assert answer.status_code == 202, answer.text


async def done(client: httpx.AsyncClient, name: str) -> bool:
    answer = await client.get(f"/v1/conversations/{name}")
    return bool(answer.json()["state"] == "done")


async def moved(database: str, client: httpx.AsyncClient, *names: str) -> None:
    """Have conversations analysed, and their logs moved."""
    await posted(client, *names)
    async with open_store(database) as postgres:
        for name in names:
            await until(lambda name=name: done(client, name))
        await shift_clock(postgres, "3 days")

        async def none_here() -> bool:
            return not await ask(postgres, "SELECT count(*) FROM conversation_log WHERE body IS NOT NULL")

        await until(none_here)


async def test_while_the_object_storage_is_away_old_logs_are_503_and_all_else_goes_on(
    database: str, tmp_path: Path, s3: S3Server, bucket: str, proxy: Proxy
) -> None:
    settings = old(f"http://127.0.0.1:{proxy.port}", bucket)
    async with client_of(tmp_path, database, settings) as client:
        await moved(database, client, "talk-1", "old-cut", "old-hang")
        first = await client.get("/v1/conversations/talk-1/log")
        assert (first.status_code, len(first.json()["turns"])) == (200, 3)
        for fault in (proxy.cut, proxy.hang):
            fault()
            link = f"/v1/conversations/old-{fault.__name__}/log"
            for _ in range(4):
                answer = await client.get(link)
                assert (answer.status_code, answer.json()["code"]) == (503, "logs_unavailable"), answer.text
                assert int(answer.headers["retry-after"]) >= 1
            name = f"new-{fault.__name__}"
            await posted(client, name)
            await until(lambda name=name: done(client, name))
            assert (await client.get(f"/v1/conversations/{name}/log")).status_code == 200
            # What was read lately is at hand.
            assert (await client.get("/v1/conversations/talk-1/log")).status_code == 200

            async def raised() -> bool:
                active = (await client.get("/v1/alerts")).json()["active"]
                return any(one["type"] == "LOGS_UNAVAILABLE" for one in active)

            await until(raised)
            proxy.heal()

            async def read(link: str = link) -> bool:
                return (await client.get(f"{link}?as=sent")).status_code == 200

            await until(read)


async def test_a_job_whose_log_has_moved_parks_while_the_object_storage_is_away_and_ends_when_it_is_back(
    database: str, tmp_path: Path, bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convo.objects.packing._PRESSED_SECONDS", 0.0)
    settings = old(f"http://127.0.0.1:{proxy.port}", bucket)
    pressed = settings | {"logs.local_bytes_max": "1", "jobs.workers": "0"}
    async with client_of(tmp_path, database, pressed) as client, open_store(database) as postgres:
        await posted(client, "talk-1")

        async def none_here() -> bool:
            return not await ask(postgres, "SELECT count(*) FROM conversation_log WHERE body IS NOT NULL")

        await until(none_here)
    proxy.cut()
    async with client_of(tmp_path, database, settings | {"jobs.workers": "2"}) as client:

        async def parked() -> bool:
            found = (await client.get("/v1/conversations/talk-1")).json()
            return bool(found["waits_for"] == "s3" and found["state"] == "ready")

        await until(parked)
        explained = (await client.get("/v1/conversations/talk-1/explain")).json()
        assert explained["cause"]["kind"] == "parked"
        await posted(client, "talk-2")
        await until(lambda: done(client, "talk-2"))
        proxy.heal()
        await until(lambda: done(client, "talk-1"))
        found = (await client.get("/v1/conversations/talk-1")).json()
        assert found["attempts"] == 1


async def test_an_erasure_by_a_request_says_that_the_object_was_written_anew(
    database: str, tmp_path: Path, s3: S3Server, bucket: str, proxy: Proxy
) -> None:
    settings = old(f"http://127.0.0.1:{proxy.port}", bucket)
    async with client_of(tmp_path, database, settings) as client:
        await moved(database, client, "talk-1", "talk-2", "talk-3")
        before = s3.keys(bucket)
        receipt = (await client.delete("/v1/conversations/talk-1")).json()
        assert (receipt["told"], receipt["waiting"]) == ({"s3": 1}, {})
        assert "s3" in {one["where"] for one in receipt["remains"]}
        assert set(s3.keys(bucket)).isdisjoint(before)
        assert (await client.get("/v1/conversations/talk-2/log")).status_code == 200
        proxy.cut()
        receipt = (await client.delete("/v1/conversations/talk-2")).json()
        assert (receipt["told"], receipt["waiting"]) == ({}, {"s3": 1})
        proxy.heal()

        async def erased() -> bool:
            # The same request again shows how far it is.
            receipt = (await client.delete("/v1/conversations/talk-2")).json()
            return bool(receipt["told"] == {"s3": 1} and receipt["waiting"] == {})

        await until(erased)


async def test_a_bucket_with_object_lock_is_refused_at_the_start(database: str, tmp_path: Path, s3: S3Server) -> None:
    bucket = s3.made(lock=True)
    with pytest.raises(BaseException) as caught:  # noqa: PT011  (in groups of the nurseries around)
        async with client_of(tmp_path, database, old(s3.endpoint, bucket)):
            pytest.fail("it has started")
    assert "object lock" in str(leaves(caught.value))


def leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [one for inner in error.exceptions for one in leaves(inner)]
    return [error]


@pytest.mark.parametrize("what", ["wrong key", "no bucket", "away"])
async def test_it_starts_whatever_the_object_storage_answers_and_reports_what_is_wrong(
    database: str, tmp_path: Path, s3: S3Server, bucket: str, what: str
) -> None:
    wrong = {
        "wrong key": old(s3.endpoint, bucket, secret_access_key="wrong"),
        "no bucket": old(s3.endpoint, "there-is-none"),
        "away": old("http://127.0.0.1:1", bucket),
    }
    waiting: list[Mapping[str, Any]] = []

    def note(name: str, fields: Mapping[str, Any]) -> None:
        if name == "logs_waiting":
            waiting.append(fields)

    with log_records.record_observers.adding(note):
        async with client_of(tmp_path, database, wrong[what]) as client:
            await posted(client, "talk-1")
            await until(lambda: done(client, "talk-1"))

            async def reported() -> bool:
                return len(waiting) > 1

            await until(reported)
            warnings = (await client.get("/readyz")).json()["warnings"]
    assert any("LOGS_MISCONFIGURED" in one for one in warnings) == (what != "away")


async def test_it_starts_while_the_object_storage_does_not_answer(
    database: str, tmp_path: Path, bucket: str, proxy: Proxy
) -> None:
    proxy.hang()
    async with client_of(tmp_path, database, old(f"http://127.0.0.1:{proxy.port}", bucket)) as client:
        await posted(client, "talk-1")
        await until(lambda: done(client, "talk-1"))


async def test_a_server_that_is_killed_and_comes_back_loses_nothing(database: str, tmp_path: Path) -> None:
    async with own_s3(tmp_path / "s3") as server:
        bucket = server.made()
        async with client_of(tmp_path / "convo", database, old(server.endpoint, bucket)) as client:
            await moved(database, client, "talk-1")
            await trio.to_thread.run_sync(server.kill)
            await posted(client, "talk-2")
            await until(lambda: done(client, "talk-2"))
            await trio.to_thread.run_sync(server.start)

            async def read() -> bool:
                return (await client.get("/v1/conversations/talk-1/log")).status_code == 200

            await until(read, 30)


FAULTS = {
    "throttling": (503, "SlowDown"),
    "full": (507, "XMinioStorageFull"),
    "broken": (500, "InternalError"),
    "clock skew": (403, "RequestTimeTooSkewed"),
    "wrong key": (403, "SignatureDoesNotMatch"),
}


@asynccontextmanager
async def refusing(status: int, code: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Run an S3 that refuses every request so; yield its endpoint and the requests that came."""
    body = f"<Error><Code>{code}</Code></Error>".encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/xml\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    requests: list[bytes] = []

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            data = b""
            async for chunk in stream:
                data += chunk
                first, end, rest = data.partition(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in first.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
                )
                if end and len(rest) >= length:
                    requests.append(first.split(b"\r\n")[0])
                    data = rest[length:]
                    await stream.send_all(head + body)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, answer, 0)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", requests
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("fault", FAULTS)
async def test_whatever_it_answers_each_call_is_tried_as_often_as_the_settings_say_and_named(
    database: str, fault: str
) -> None:
    status, code = FAULTS[fault]
    async with (
        refusing(status, code) as (endpoint, requests),
        open_old_logs(database, endpoint, "logs", pack_after_seconds=3600.0, breaker_failures=3) as logs,
    ):
        await logs.settled("talk-1")
        await shift_clock(logs.postgres, "3 days")
        with pytest.raises(RemoteError, match=code) as caught:
            await logs.packer.pack()
        assert isinstance(caught.value, RemoteDenied) == (status == 403)
        assert caught.value.outage
        # obstore's own retries are off; a refusal for good is not tried again.
        assert len(requests) == (1 if status == 403 else 2)
        assert len(await logs.here()) == 1
        assert await logs.objects() == [("leaving", 1)]


async def test_a_refused_connection_is_noticed_at_once(database: str) -> None:
    async with open_old_logs(database, "http://127.0.0.1:1", "logs") as logs:
        began = trio.current_time()
        with pytest.raises(RemoteError):
            await logs.storage.packing.call("s3_pack.put", lambda: logs.bucket.put("key", b"x"))
        assert trio.current_time() - began < 1.0


async def test_a_start_without_objects_says_which_logs_it_cannot_read(
    database: str, tmp_path: Path, s3: S3Server, bucket: str
) -> None:
    async with client_of(tmp_path / "one", database, old(s3.endpoint, bucket)) as client:
        await moved(database, client, "talk-1")
    async with client_of(tmp_path / "two", database, {}) as client:
        assert any("LOGS_ELSEWHERE" in one for one in (await client.get("/readyz")).json()["warnings"])
        answer = await client.get("/v1/conversations/talk-1/log")
        assert (answer.status_code, answer.json()["code"]) == (503, "logs_unavailable")


async def test_calls_that_are_cancelled_at_any_moment_leave_a_bucket_that_answers(
    s3: S3Server, bucket: str, proxy: Proxy
) -> None:
    settings = LogsSettings(**logs_settings(f"http://127.0.0.1:{proxy.port}", bucket))
    async with open_bridge() as bridge, Bucket(bridge, settings) as opened:
        await opened.put("folder/00000/one", b"12345")
        for round_ in range(12):
            if round_ % 3 == 2:
                proxy.hang()
            for call in (
                lambda: opened.list_folder("folder/00000/"),
                lambda: opened.read("folder/00000/one", 1, 3),
                lambda n=round_: opened.put(f"folder/00000/{n}", bytes(100_000)),
                opened.inspect,
                lambda: opened.erase("folder/00000/none"),
            ):
                with trio.move_on_after(0.0003 * 2 ** (round_ % 9)):
                    await call()
            if round_ % 3 == 2:
                proxy.drop()
                proxy.heal()
            gc.collect()
            with trio.fail_after(10):
                assert await opened.read("folder/00000/one", 1, 3) == b"234"
                assert {one.key for one in (await opened.list_folder("folder/00000/")).objects} >= {"folder/00000/one"}


async def test_a_re_run_reads_logs_that_have_moved(s3: S3Server, bucket: str, database: str, tmp_path: Path) -> None:
    settings = old(s3.endpoint, bucket)
    async with client_of(tmp_path, database, settings) as client:
        await moved(database, client, "talk-1", "talk-2")
    loaded = loaded_settings(tmp_path, database, {name: value for name, value in settings.items() if "." in name})
    async with open_store(database) as postgres, reanalysing._log_store(loaded, postgres) as log_store:
        seq = await ask(postgres, "SELECT min(seq) FROM conversation")
        assert await log_store.take(seq) is not None
