from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from convo.conversation.model import Finding, Memories, MemoryFact, PartName
from convo.errors import BadRow, ConvoError, LeaseLost
from convo.store.jobs.lease import Lease
from tests.support.making import THREE, Process, ask, open_process, remembering, rows


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def leased(process: Process, *users: str) -> list[Lease]:
    for number, user in enumerate(users, 1):
        await process.accepted(f"talk-{number}", user_id=user)
    return sorted(await process.jobs.lease(len(users)), key=lambda lease: lease.seq)


async def together(process: Process, *found: tuple[Lease, PartName, Finding]) -> list[ConvoError | None]:
    """Store these at the same time: one batch, for all of them come before the writer runs."""
    outcomes: dict[int, ConvoError | None] = {}

    async def store(number: int, lease: Lease, name: PartName, finding: Finding) -> None:
        try:
            await process.part_writer.store(lease, name, "test/1", finding)
            outcomes[number] = None
        except ConvoError as error:
            outcomes[number] = error

    async with trio.open_nursery() as nursery:
        for number, one in enumerate(found):
            nursery.start_soon(store, number, *one)
    return [outcomes[number] for number in range(len(found))]


async def together_in_order(process: Process, *found: tuple[Lease, PartName, Finding]) -> list[LeaseLost | None]:
    return await process.jobs.store_parts([(lease, name, "test/1", finding) for lease, name, finding in found])


def units(process: Process, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counted: Counter[str] = Counter()
    run = process.postgres.run

    async def counting(name: str, body: Any, **how: Any) -> Any:
        counted[name] += 1
        return await run(name, body, **how)

    monkeypatch.setattr(process.postgres, "run", counting)
    return counted


async def test_parts_of_several_workers_are_stored_in_one_transaction(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = await leased(process, "user-1", "user-2", "user-3")
    counted = units(process, monkeypatch)
    all_parts = [(lease, name, finding) for lease in leases for name, finding in THREE.items()]
    assert await together(process, *all_parts) == [None] * 9
    assert counted == {"db.part": 1}
    assert await ask(process.postgres, "SELECT count(*) FROM part WHERE state = 'done'") == 9
    for lease in leases:
        assert (await process.settler.settle(lease)).final


async def test_a_lost_lease_in_a_batch_is_told_and_takes_nobody_along(process: Process) -> None:
    first, second = await leased(process, "user-1", "user-1")
    await process.jobs.release(first)
    (again,) = await process.jobs.lease(1)
    late, good, own = await together_in_order(
        process,
        (first, "memories", remembering("rain")),
        (again, "memories", remembering("tea")),
        (second, "memories", remembering("snow")),
    )
    assert isinstance(late, LeaseLost)
    assert good is own is None
    assert await rows(process.postgres, "SELECT key FROM memory ORDER BY key") == [("snow",), ("tea",)]


async def test_one_part_that_cannot_be_stored_leaves_the_others_of_its_batch_alone(process: Process) -> None:
    first, second, third = await leased(process, "user-1", "user-2", "user-3")
    bad = Memories(facts=(MemoryFact(key="b", text="a\0b"),))
    outcomes = await together(
        process, (first, "emotion", THREE["emotion"]), (second, "memories", bad), (third, "emotion", THREE["emotion"])
    )
    assert isinstance(outcomes[1], BadRow)
    assert (outcomes[0], outcomes[2]) == (None, None)
    assert await ask(process.postgres, "SELECT count(*) FROM part") == 2


async def test_conversations_of_one_user_in_a_batch_are_remembered_one_after_the_other(process: Process) -> None:
    first, second, third = await leased(process, "user-1", "user-1", "user-2")
    changed = Memories(facts=(MemoryFact(key="tea", text="Green tea", kind="fact", operation="UPDATE"),))
    assert await together_in_order(
        process,
        (first, "memories", remembering("tea", "rain")),
        (second, "memories", changed),
        (third, "memories", remembering("tea")),
    ) == [None, None, None]
    assert await rows(process.postgres, "SELECT user_id, key, text FROM memory ORDER BY user_id, key") == [
        ("user-1", "rain", "Knows rain"),
        ("user-1", "tea", "Green tea"),
        ("user-2", "tea", "Knows tea"),
    ]
    assert await rows(process.postgres, "SELECT new_memories FROM part ORDER BY seq") == [(2,), (0,), (1,)]


async def test_a_fact_that_two_conversations_of_a_batch_bring_is_new_once(process: Process) -> None:
    first, second = await leased(process, "user-1", "user-1")
    same = [(one, "memories", remembering("tea", "rain")) for one in (first, second)]
    assert await together_in_order(process, *same) == [None, None]
    assert await rows(process.postgres, "SELECT new_memories FROM part ORDER BY seq") == [(2,), (0,)]


async def test_the_same_part_twice_in_a_batch_is_the_first_one(process: Process) -> None:
    (lease,) = await leased(process, "user-1")
    first, second = remembering("tea"), remembering("rain")
    assert await together_in_order(process, (lease, "memories", first), (lease, "memories", second)) == [None, None]
    assert await rows(process.postgres, "SELECT key FROM memory") == [("tea",)]
