from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from convo import user_erasure
from convo.alerts.causes import UNTOLD_SECONDS
from convo.alerts.shared import SharedState
from convo.analysis.memory import MemoryService
from convo.conversation.tenant import DEFAULT
from convo.settings import AlertsSettings, MemorySettings
from convo.store import untold
from convo.store.audit_log import NO_CALLER
from convo.store.postgres import Connection, Postgres
from convo.store.untold import Telling
from convo.telling import Teller, telling_of
from tests.support.fakes import (
    FakeServer,
    Remembering,
    failing,
    healthy,
    open_server,
    rate_limited,
    reset,
    stuck,
)
from tests.support.making import ask, open_process, open_store, rows, shift_clock
from tests.support.running import ended, serving
from tests.support.tenants import ACME, BETA, accept_of, make_tenants

END = "/v1/conversations/end"
QUICK: dict[str, Any] = {"attempts": 1, "attempt_seconds": 0.5, "backoff_seconds": 0.01, "backoff_max_seconds": 0.02}


@asynccontextmanager
async def open_mem0() -> AsyncIterator[tuple[FakeServer, Remembering]]:
    remembering = Remembering()
    async with open_server(remembering) as server:
        yield server, remembering


def mem0(server: FakeServer, **others: Any) -> dict[str, str]:
    return {"memory.dialect": "mem0", "memory.url": server.url, **{f"memory.{k}": str(v) for k, v in others.items()}}


async def talked(client: httpx.AsyncClient, conversation_id: str, text: str, **fields: Any) -> None:
    said = [{"role": "user", "content": text}, {"role": "assistant", "content": "Fine."}]
    await client.post(END, json=ended(conversation_id, said, **fields))
    answer = await client.get(f"/v1/conversations/{conversation_id}", params={"wait": "5"})
    assert answer.json()["state"] == "done", answer.text


async def receipt(client: httpx.AsyncClient, path: str) -> Any:
    return (await client.delete(path)).json()


async def told(client: httpx.AsyncClient, path: str) -> Any:
    """Ask for the receipt again until nothing waits."""
    with trio.fail_after(15):
        while (found := await receipt(client, path))["waiting"]:  # noqa: ASYNC110  (it changes in another process)
            await trio.sleep(0.05)
    return found


async def test_mem0_deletes_what_it_has_of_an_erased_conversation_and_nothing_else(
    database: str, tmp_path: Path
) -> None:
    async with (
        open_mem0() as (server, remembering),
        serving(tmp_path, database, mem0(server)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        await talked(client, "talk-1", "I like tea.", user_id="mia")
        await talked(client, "talk-2", "I like jam.", user_id="mia")
        found = await told(client, "/v1/conversations/talk-1")
    assert remembering.known() == ["Likes jam"]
    assert (found["told"], found["waiting"]) == ({"memory": 2}, {})
    (place,) = [one for one in found["remains"] if one["where"] == "memory"]
    assert "confirmed" in place["until"]


async def test_mem0_deletes_all_of_an_erased_user_and_keeps_what_comes_later(database: str, tmp_path: Path) -> None:
    async with open_mem0() as (server, remembering), open_store(database) as postgres:
        settings = mem0(server, attempts=1)
        async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url) as client:
            await talked(client, "mia-1", "I like tea. I like jam.", user_id="mia")
            await talked(client, "tom-1", "I like figs.", user_id="tom")
            server.always = failing("503")
            assert (await receipt(client, "/v1/users/mia"))["waiting"] == {"memory": 1}
            await server.until(lambda one: one.calls[-1].method == "DELETE")
            server.always = healthy
            await talked(client, "mia-2", "I like rice.", user_id="mia")
            assert remembering.known() == ["Likes figs", "Likes jam", "Likes rice", "Likes tea"]
            with trio.fail_after(15):
                while await ask(postgres, "SELECT count(*) FROM untold"):
                    await due_now(postgres)
                    await trio.sleep(0.05)
    assert remembering.known() == ["Likes figs", "Likes rice"]


async def test_mem0_deletes_all_of_a_user_who_is_gone_in_one_call(database: str, tmp_path: Path) -> None:
    async with (
        open_mem0() as (server, remembering),
        serving(tmp_path, database, mem0(server)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        await talked(client, "mia-1", "I like tea. I like jam.", user_id="mia")
        found = await told(client, "/v1/users/mia")
    assert found["told"] == {"memory": 1}
    assert remembering.known() == []
    assert [call.path for call in server.calls if call.method == "DELETE"] == ["/memories?user_id=mia"]


async def due_now(postgres: Postgres) -> None:
    await ask(postgres, "WITH x AS (UPDATE untold SET due_at = convo_now() RETURNING 1) SELECT count(*) FROM x")


# --- a service that does not answer


@asynccontextmanager
async def teller_of(postgres: Postgres, server: FakeServer, **others: Any) -> AsyncIterator[Teller]:
    settings = MemorySettings(dialect="mem0", url=server.url, **{**QUICK, **others})
    async with MemoryService(settings) as service:
        yield Teller(postgres, service)


async def noted(postgres: Postgres, *ids: str) -> None:
    """Note deletions as an erasure does."""

    async def body(connection: Connection) -> None:
        await connection.execute("INSERT INTO erasure (id_hmac, kind, ended_at) VALUES ('e', 'user', convo_now())")
        for one in ids:
            await connection.execute(
                "INSERT INTO untold (erasure, service, kind, whose, what) VALUES ('e', 'memory', 'memory', 'mia', $1)",
                one,
            )

    await postgres.run("test.note", body)


@pytest.mark.parametrize(
    "fault",
    [stuck, reset, failing("503"), failing("401"), rate_limited("1")],
    ids=["stuck", "reset", "503", "401", "429"],
)
async def test_what_a_service_has_not_confirmed_waits_and_is_told_again(database: str, fault: Any) -> None:
    async with open_mem0() as (server, _), open_store(database) as postgres:
        await noted(postgres, "m-1")
        server.then(fault)
        async with teller_of(postgres, server) as teller:
            assert await teller.send_due() == 0
        ((attempts, reason),) = await rows(postgres, "SELECT attempts, last_error FROM untold")
        assert (attempts, reason.startswith("memory")) == (1, True), reason
        # It is not due at once.
        async with teller_of(postgres, server) as teller:
            assert await teller.send_due() == 0
            await due_now(postgres)
            assert await teller.send_due() == 1
        assert [call.method for call in server.calls] == ["DELETE", "DELETE"]
        assert await ask(postgres, "SELECT counts -> 'told' ->> 'memory' FROM erasure") == "1"


async def test_what_the_service_does_not_have_is_deleted(database: str) -> None:
    async with open_mem0() as (server, _), open_store(database) as postgres:
        await noted(postgres, "m-1")
        server.then(failing("404"))
        async with teller_of(postgres, server) as teller:
            assert await teller.send_due() == 1


async def test_while_the_breaker_is_open_nothing_is_told(database: str) -> None:
    async with open_mem0() as (server, _), open_store(database) as postgres:
        await noted(postgres, "m-1", "m-2", "m-3")
        server.always = reset
        async with teller_of(postgres, server, breaker_failures=2) as teller:
            await teller.send_due()
            assert len(server.calls) == 2
            await due_now(postgres)
            await teller.send_due()
            assert len(server.calls) == 2


async def test_a_process_that_died_while_it_told_leaves_it_to_another_one(database: str) -> None:
    async with open_mem0() as (server, _), open_store(database) as postgres:
        await noted(postgres, "m-1")
        assert await untold.take_due(postgres, "memory") is not None
        assert await untold.take_due(postgres, "memory") is None
        await shift_clock(postgres, "61 seconds")
        async with teller_of(postgres, server) as teller:
            assert await teller.send_due() == 1


async def test_what_waits_for_long_is_a_warning_and_after_a_day_an_alert(database: str) -> None:
    async with open_mem0() as (server, _), open_store(database) as postgres:
        await noted(postgres, "m-1")
        server.always = failing("500")
        async with teller_of(postgres, server) as teller:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(teller.run)
                teller.ring()
                await server.until(lambda one: len(one.calls) == 1)
                await trio.sleep(0.2)
                assert teller.warning == ""
                await shift_clock(postgres, "11 minutes")
                teller.ring()
                with trio.fail_after(5):
                    while not teller.warning:  # noqa: ASYNC110  (it sets no event)
                        await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
            assert teller.warning.startswith("ERASURES_NOT_TOLD: 1 deletion waits for memory, the oldest for 11 min")
        shared = SharedState(postgres, AlertsSettings())
        await shift_clock(postgres, "25 hours")
        vitals = await shared.vitals()
        await shared.close()
        assert vitals.untold == 1
        assert vitals.untold_seconds > UNTOLD_SECONDS


@pytest.mark.parametrize(
    ("version", "one", "all_"),
    [
        ("", "/memories/m%201", "/memories?user_id=mia%2F1"),
        ("v1", "/v1/memories/m%201/", "/v1/memories/?user_id=mia%2F1"),
        ("v3", "/v1/memories/m%201/", "/v1/memories/?user_id=mia%2F1"),
    ],
)
async def test_it_is_called_in_the_words_of_its_version(version: Any, one: str, all_: str) -> None:
    async with open_mem0() as (server, _):
        settings = MemorySettings(dialect="mem0", url=server.url, api_version=version, **QUICK)
        async with MemoryService(settings) as service:
            await service.forget("m 1")
            await service.forget_user("mia/1")
    assert [(call.method, call.path) for call in server.calls] == [("DELETE", one), ("DELETE", all_)]


async def test_a_dialect_without_deletion_is_not_told_and_the_receipt_says_so(database: str, tmp_path: Path) -> None:
    async with open_mem0() as (server, _):
        settings = {"memory.url": server.url}
        async with MemoryService(MemorySettings(url=server.url)) as service:
            assert telling_of(service) is None
        async with serving(tmp_path, database, settings) as url, httpx.AsyncClient(base_url=url) as client:
            await talked(client, "talk-1", "I like tea.")
            found = await receipt(client, "/v1/conversations/talk-1")
    assert (found["told"], found["waiting"]) == ({}, {})
    (place,) = [one for one in found["remains"] if one["where"] == "memory"]
    assert place["until"] == "you erase it there: it has no way to be told"
    assert telling_of(None) is None


async def test_a_service_is_told_of_the_user_of_one_tenant(database: str) -> None:
    # A user of the default tenant, too, whose id looks like that of another one.
    users = ((DEFAULT, "mia"), (DEFAULT, "acme/mia"), (ACME, "mia"), (ACME, "x/mia"), (BETA, "mia"))
    known = ["mia", "default/acme/mia", "acme/mia", "acme/x/mia", "beta/mia"]
    telling = Telling(service="memory", lists=True)
    async with open_process(database) as process:
        await make_tenants(process.postgres)
        for n, (tenant, user_id) in enumerate(users):
            await process.committer.accept(accept_of(tenant, f"talk-{n}", user_id=user_id))
        memories = "INSERT INTO memory (user_id, key, kind, text, seq, tenant) SELECT user_id, 'm-' || seq, 'like', '',"

        async def body(connection: Connection) -> None:
            await connection.execute(f"{memories} seq, tenant FROM conversation")
            for seq, (tenant, user_id) in enumerate(users, 1):
                hmac = b"%d" % seq
                await untold.note_deletions(connection, telling, hmac, [seq])
                await untold.note_user(connection, telling, hmac, tenant, user_id)
            await connection.execute("INSERT INTO erasure (id_hmac, kind) VALUES ('o', 'conversation')")
            await untold.note_outliving(connection, telling, b"o", range(1, 6))

        await process.postgres.run("test.note", body)
        for kind in ("memory", "user", "conversation"):
            query = "SELECT whose FROM untold WHERE kind = $1 AND erasure <> 'o' ORDER BY erasure"
            assert [whose for (whose,) in await rows(process.postgres, query, kind)] == known
        assert {
            whose for (whose,) in await rows(process.postgres, "SELECT whose FROM untold WHERE erasure = 'o'")
        } == set(known)
        told_of = "SELECT what FROM untold WHERE kind = 'conversation' ORDER BY erasure"
        talks = ["talk-0", "default/talk-1", "acme/talk-2", "acme/talk-3", "beta/talk-4"]
        assert [what for (what,) in await rows(process.postgres, told_of)] == talks
        # Asked in the words of the service, each finds its own conversation and no other.
        for whose, talk in zip(known, talks, strict=True):
            assert await untold.stored_of_user(process.postgres, whose, talks) == (True, {talk})
        assert await untold.stored_of_user(process.postgres, "beta/x/mia", talks) == (False, set())


async def test_with_a_user_of_one_tenant_the_same_id_of_another_keeps_its_memories_at_the_service(
    database: str,
) -> None:
    async with open_mem0() as (server, _), open_process(database) as process:
        await make_tenants(process.postgres)
        await process.committer.accept(accept_of(DEFAULT, user_id="mia"))
        await process.committer.accept(accept_of(ACME, user_id="mia"))
        until = trio.current_time() + 9
        telling = Telling(service="memory", lists=True)
        await user_erasure.erase_user(
            process.postgres, ACME, "mia", NO_CALLER, erased=lambda _: None, until=until, telling=telling
        )
        async with teller_of(process.postgres, server) as teller:
            while await ask(process.postgres, "SELECT count(*) FROM untold"):
                await due_now(process.postgres)
                await teller.send_due()
        assert [call.path for call in server.calls if call.method == "DELETE"] == ["/memories?user_id=acme%2Fmia"]


async def test_a_conversation_at_work_is_told_of_when_its_lease_is_over(database: str) -> None:
    async with open_process(database) as process:
        await process.accepted("talk-1")
        await process.leased()

        async def body(connection: Connection) -> None:
            await untold.note_deletions(connection, Telling(service="memory", lists=True), b"e", [1])

        await process.postgres.run("test.note", body)
        query = "SELECT untold.due_at = job.leased_until FROM untold, job"
        assert await rows(process.postgres, query) == [(True,)]
