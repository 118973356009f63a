from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from convo.conversation.identity import id_hash
from convo.errors import Erased
from convo.store import erasures, intake
from convo.store.erasures import ErasedCounts
from convo.store.installation_key import read_installation_key
from convo.store.postgres import Connection
from tests.support.making import Process, accept, ask, open_dedicated, open_process


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


def test_counts_are_added_up_by_table() -> None:
    one = ErasedCounts(removed={"job": 1, "part": 3}, changed={"receipt": 1})
    assert one + ErasedCounts(removed={"part": 2, "run": 1}) == ErasedCounts(
        removed={"job": 1, "part": 5, "run": 1}, changed={"receipt": 1}
    )
    assert one + ErasedCounts() == one


async def test_a_session_looks_on_the_list_from_the_first_erasure_on(process: Process) -> None:
    async def body(connection: Connection) -> list[bool]:
        found = [await erasures.meet_list(connection) is not None]
        await erasures.note_begin(connection, "user", b"sixteen bytes ..")
        found.append(erasures.met_list(connection) is not None)
        await erasures.meet_list(connection)
        found.append(erasures.met_list(connection) is not None)
        return found

    async with open_dedicated(process.postgres) as dedicated:
        assert await dedicated.run("test.list", body) == [False, False, True]


async def test_the_first_erasure_costs_an_accept_that_meets_it_nothing_but_a_second_look(process: Process) -> None:
    await process.accepted("talk-1")
    await ask(
        process.postgres,
        "WITH x AS (INSERT INTO erasure VALUES ('sixteen bytes ..', 'user') RETURNING 1) SELECT 1 FROM x",
    )
    # What was stored before, what is new, and the same again, in one batch each.
    assert (await process.committer.accept(accept("talk-1"))).replayed
    assert not (await process.committer.accept(accept("talk-2"))).replayed
    assert (await process.committer.accept(accept("talk-2"))).replayed
    assert await ask(process.postgres, "SELECT sum(n) FROM ledger WHERE kind = 'accepted'") == 2


async def test_a_list_of_many_erasures_costs_an_accept_a_probe_for_each_conversation(process: Process) -> None:
    await ask(
        process.postgres,
        """
        WITH noted AS (
            INSERT INTO erasure (id_hmac, kind) SELECT decode(md5(n::text), 'hex'), 'conversation'
            FROM generate_series(1, 20000) AS n RETURNING 1)
        SELECT count(*) FROM noted
        """,
    )

    async def body(connection: Connection) -> str:
        await connection.execute("ANALYZE erasure")
        rows = [accept(f"talk-{n}") for n in range(64)]
        key = await read_installation_key(connection)
        hashes = [id_hash(row.ended.conversation_id) for row in rows]
        values = (*intake._columns(rows), hashes, *intake._hmacs(key, rows))
        insert = intake.insert_statements("user")[True, False]
        plan = await connection.fetch(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {insert}", *values)
        return "\n".join(row["QUERY PLAN"] for row in plan)

    plan = await process.postgres.run("test.plan", body)
    assert "Seq Scan on erasure" not in plan
    assert plan.count("Index Scan using erasure_pkey on erasure") == 2, plan


async def test_what_is_on_the_list_is_refused_in_whichever_batch_it_comes(process: Process) -> None:
    async def body(connection: Connection) -> None:
        key = await read_installation_key(connection)
        await erasures.note_begin(connection, "conversation", key.hmac_of("conversation", "talk-1"))
        await erasures.note_conversations(connection, [key.hmac_of("conversation", "talk-2")], [b"x"])

    await process.postgres.run("test.begin", body)
    for one in ("talk-1", "talk-2"):
        with pytest.raises(Erased):
            await process.accepted(one)
    # The id of a user is no id of a conversation.
    await process.accepted("talk-3", user_id="talk-1")
