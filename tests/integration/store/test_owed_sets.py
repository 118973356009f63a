from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from convo.conversation.model import Answered
from convo.conversation.owed import DEFAULT_OWED, DeclaredPart, owed_of
from convo.errors import ConvoError
from convo.store.owed_sets import OwedSets
from convo.store.postgres import Connection
from tests.support.making import Process, ask, open_process, rows, store_part

SCHEMA = {"type": "object", "properties": {"z": {"type": "null"}, "a": {"type": "null"}}}
OWED = owed_of([DeclaredPart(name="tier", who="llm", version="p1:1", schema=SCHEMA, required=True)])
OTHER = owed_of([DeclaredPart(name="crm", who="http", version="p1:2", required=True)])


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as process:
        yield process


async def stored(process: Process, sets: OwedSets, *owed: object) -> None:
    async def body(connection: Connection) -> None:
        await sets.store(connection, owed)  # type: ignore[arg-type]

    await process.postgres.run("test.store", body)


async def test_a_set_is_stored_once_and_read_back_with_its_keys_in_their_order(process: Process) -> None:
    for _ in range(2):
        await stored(process, OwedSets(), OWED, OTHER)
    assert await rows(process.postgres, "SELECT count(*) FROM part_set") == [(2,)]
    sets = OwedSets()

    async def body(connection: Connection) -> None:
        await sets.load(connection, [OWED.number, None, 0])

    await process.postgres.run("test.load", body)
    assert sets.get(OWED.number) == OWED
    assert list(sets.get(OWED.number).asked["tier"].schema["properties"]) == ["z", "a"]
    assert sets.get(None) is sets.get(0) is DEFAULT_OWED


async def test_what_is_known_costs_no_statement(process: Process) -> None:
    sets = OwedSets()
    await stored(process, sets, OWED)
    await ask(process.postgres, "DROP TABLE part_set")
    await stored(process, sets, OWED)

    async def body(connection: Connection) -> None:
        await sets.load(connection, [OWED.number, 0, None])

    await process.postgres.run("test.load", body)


async def test_a_set_that_is_nowhere_is_an_error_and_so_it_is_after_the_database_went_back(process: Process) -> None:
    sets = OwedSets()
    await stored(process, sets, OWED)
    sets.forget()
    with pytest.raises(ConvoError, match="is not in the database"):
        sets.get(OWED.number)


# --- with the jobs


async def test_without_declared_parts_a_job_has_no_set_and_is_owed_the_three(process: Process) -> None:
    await process.accepted("talk-1")
    assert await rows(process.postgres, "SELECT owed, waits_for, parked_since FROM job") == [(None, "", None)]
    assert (await process.leased()).owed is DEFAULT_OWED
    assert await rows(process.postgres, "SELECT count(*) FROM part_set") == [(0,)]


async def test_what_is_owed_stands_with_the_job_from_the_accept_on_and_with_its_outcome(database: str) -> None:
    async with open_process(database) as process:
        process.owe(lambda _: OWED)
        await process.accepted("talk-1")
        assert await rows(process.postgres, "SELECT owed FROM job") == [(OWED.number,)]
    async with open_process(database, owner="here/two") as other:
        lease = await other.leased()
        assert lease.owed == OWED
        await store_part(other.jobs, lease, "tier", "m/p1:1", Answered(answer={"a": None}))
        assert await rows(other.postgres, "SELECT name, version FROM part") == [("tier", "p1:1")]
        assert (await other.settler.settle(lease)).final
        (found,) = await other.outcomes()
    assert (found.owed, found.parts[0].version) == (OWED.number, "p1:1")


async def test_a_job_that_needs_a_service_is_left_to_processes_that_have_it(database: str) -> None:
    async with open_process(database) as process:
        process.owe(lambda _: OTHER)
        await process.accepted("talk-1")
        ((waits_for, parked),) = await rows(process.postgres, "SELECT waits_for, parked_since IS NOT NULL FROM job")
        assert (waits_for, parked) == ("part.crm@p1:2", True)
        assert await process.jobs.lease(1) == []
        process.jobs._dependencies = ("part.crm@p1:2",)
        assert (await process.leased()).owed == OTHER


def test_a_set_is_small() -> None:
    assert len(msgspec.json.encode(OWED.parts)) < 300
