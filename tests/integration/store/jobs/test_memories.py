from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from convo import erase
from convo.conversation.model import Memories, MemoryFact
from convo.conversation.tenant import DEFAULT, WHOLE_DEFAULT
from convo.store.conversations import Reader
from convo.store.jobs.lease import Lease
from convo.store.migrations import migrations
from convo.store.postgres import Connection
from tests.support.making import Process, ask, open_process, rows, store_part

Operation = Literal["ADD", "UPDATE", "DELETE", "NONE"]
Facts = Sequence[tuple[str, Operation]]


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def leases(process: Process, count: int, user_id: str = "user-1") -> list[Lease]:
    """Lease the jobs of so many conversations, in the order in which they came."""
    number = await ask(process.postgres, "SELECT count(*) FROM conversation")
    names = [f"talk-{number + n + 1}" for n in range(count)]
    await process.accepted(*names, user_id=user_id)
    return sorted(await process.jobs.lease(count), key=lambda lease: lease.seq)


def finding(facts: Facts, lease: Lease) -> Memories:
    """Make of operations by key what this conversation says: its text names it."""
    return Memories(
        facts=tuple(
            MemoryFact(key=key, text=f"{key} by {lease.seq}", kind=f"kind {lease.seq}", operation=operation)
            for key, operation in facts
        )
    )


async def say(process: Process, lease: Lease, *facts: tuple[str, Operation], **fields: Any) -> int:
    """Store what this conversation says; return how many memories are new by it."""
    found = Memories(facts=finding(facts, lease).facts, **fields)
    await store_part(process.jobs, lease, "memories", "test/1", found)
    new: int = await ask(process.postgres, "SELECT new_memories FROM part WHERE seq = $1", lease.seq)
    return new


async def known(process: Process, user_id: str = "user-1") -> list[tuple[str, str]]:
    """Read what a client is shown of a user's memories: the text, and where it was first told."""
    found = await Reader(process.postgres, process.log_store).memories(WHOLE_DEFAULT, user_id, before=None, limit=100)
    return sorted((row["text"], row["conversation_id"]) for row in found)


# --- the order is that of the conversations


async def test_an_update_of_something_unknown_is_kept_and_counts_nothing(process: Process) -> None:
    (first,) = await leases(process, 1)
    assert await say(process, first, ("tea", "UPDATE")) == 0
    assert await known(process) == [(f"tea by {first.seq}", "talk-1")]


async def test_an_add_that_comes_after_the_newer_update_counts_and_changes_no_text(process: Process) -> None:
    first, second = await leases(process, 2)
    assert await say(process, second, ("tea", "UPDATE")) == 0
    assert await say(process, first, ("tea", "ADD")) == 1
    assert await known(process) == [(f"tea by {second.seq}", "talk-1")]


async def test_an_older_update_does_not_overwrite_a_newer_one(process: Process) -> None:
    first, second, third = await leases(process, 3)
    await say(process, first, ("tea", "ADD"))
    await say(process, third, ("tea", "UPDATE"))
    await say(process, second, ("tea", "UPDATE"))
    assert await known(process) == [(f"tea by {third.seq}", "talk-1")]


async def test_an_older_delete_does_not_remove_what_a_newer_conversation_told(process: Process) -> None:
    first, second, third = await leases(process, 3)
    await say(process, first, ("tea", "ADD"))
    await say(process, third, ("tea", "UPDATE"))
    await say(process, second, ("tea", "DELETE"))
    assert await known(process) == [(f"tea by {third.seq}", "talk-1")]


async def test_an_add_that_comes_after_its_delete_does_not_bring_the_memory_back(process: Process) -> None:
    first, second = await leases(process, 2)
    assert await say(process, second, ("tea", "DELETE")) == 0
    assert await say(process, first, ("tea", "ADD")) == 1
    assert await known(process) == []


async def test_nothing_of_a_deleted_text_is_kept(process: Process) -> None:
    first, second = await leases(process, 2)
    await say(process, first, ("tea", "ADD"))
    await say(process, second, ("tea", "DELETE"))
    assert await rows(process.postgres, "SELECT text, deleted FROM memory") == [("", True)]


async def test_add_delete_add_is_known_again_and_counts_once(process: Process) -> None:
    first, second, third = await leases(process, 3)
    assert await say(process, first, ("tea", "ADD")) == 1
    assert await say(process, second, ("tea", "DELETE")) == 0
    assert await say(process, third, ("tea", "ADD")) == 0
    assert await known(process) == [(f"tea by {third.seq}", "talk-1")]


async def test_several_words_on_one_key_in_one_conversation_count_once_and_the_last_stands(process: Process) -> None:
    first, second = await leases(process, 2)
    assert await say(process, first, ("tea", "ADD"), ("tea", "DELETE"), ("tea", "ADD")) == 1
    assert await known(process) == [(f"tea by {first.seq}", "talk-1")]
    assert await say(process, second, ("rain", "ADD"), ("rain", "DELETE")) == 1
    assert await known(process) == [(f"tea by {first.seq}", "talk-1")]


async def test_a_second_run_of_a_conversation_counts_the_same(process: Process) -> None:
    first, second = await leases(process, 2)
    assert await say(process, first, ("tea", "ADD"), ("rain", "ADD")) == 2
    await say(process, second, ("tea", "DELETE"))
    await ask(process.postgres, "DELETE FROM part WHERE seq = $1", first.seq)
    assert await say(process, first, ("tea", "ADD"), ("rain", "ADD")) == 2
    assert await known(process) == [(f"rain by {first.seq}", "talk-1")]


async def test_conversations_of_one_user_in_one_batch_are_put_in_order_too(process: Process) -> None:
    first, second = await leases(process, 2)
    await process.jobs.store_parts(
        [
            (second, "memories", "test/1", finding([("tea", "DELETE"), ("rain", "ADD")], second)),
            (first, "memories", "test/1", finding([("tea", "ADD"), ("rain", "ADD")], first)),
        ]
    )
    assert await known(process) == [(f"rain by {second.seq}", "talk-1")]
    assert await ask(process.postgres, "SELECT sum(new_memories) FROM part") == 2


# --- any order of arrival

_OPERATIONS: list[Operation] = ["ADD", "UPDATE", "DELETE", "NONE"]
_TALK = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(_OPERATIONS)), max_size=3)
_users = itertools.count(1)


Known = tuple[list[tuple[Any, ...]], int]
"""What is known of a user, and how much of it was new."""


async def told_in_orders(url: str, talks: Sequence[Facts], *orders: Sequence[int]) -> list[Known]:
    """Let a new user's conversations be analysed in each of these orders; return what is known then."""
    async with open_process(url) as process:
        return [await told_in_order(process, talks, order) for order in orders]


async def told_in_order(process: Process, talks: Sequence[Facts], order: Sequence[int]) -> Known:
    user = f"user-{next(_users)}"
    mine = await leases(process, len(talks), user)
    for number in order:
        await store_part(process.jobs, mine[number], "memories", "test/1", finding(talks[number], mine[number]))
    base = mine[0].seq
    shown = await rows(
        process.postgres,
        "SELECT key, replace(text, ' by ' || last_seq, ''), seq - $2, last_seq - $2, kind = 'kind ' || last_seq"
        " FROM memory WHERE user_id = $1 AND NOT deleted ORDER BY key",
        user,
        base,
    )
    new = await ask(process.postgres, "SELECT sum(new_memories) FROM part WHERE seq >= $1", base)
    for lease in mine:
        await process.jobs.fail(lease, "over", {}, later=500)
    return shown, new


@settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(talks=st.lists(_TALK, min_size=2, max_size=5), data=st.data())
def test_any_order_of_arrival_gives_the_same_memories_and_as_many_new_ones(
    database: str, talks: list[Facts], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(talks))))
    one, other = trio.run(told_in_orders, database, talks, order, range(len(talks)))
    assert one == other


async def test_several_processes_at_once_give_the_same_as_one_after_the_other(database: str, process: Process) -> None:
    talks: list[Facts] = [
        [(key, _OPERATIONS[(talk + place) % 3]) for place, key in enumerate("abcdefgh")] for talk in range(12)
    ]
    expected = await told_in_order(process, talks, range(12))
    mine = await leases(process, 12, "user-many")
    async with open_process(database, owner="there/two") as other, trio.open_nursery() as nursery:
        for number, lease in enumerate(mine):
            jobs = (process, other)[number % 2].jobs
            nursery.start_soon(store_part, jobs, lease, "memories", "test/1", finding(talks[number], lease))
    new = await ask(process.postgres, "SELECT sum(new_memories) FROM part WHERE seq >= $1", mine[0].seq)
    assert new == expected[1] == 8
    shown = await rows(
        process.postgres,
        "SELECT key, seq - $1, last_seq - $1 FROM memory WHERE user_id = 'user-many' AND NOT deleted ORDER BY key",
        mine[0].seq,
    )
    assert shown == [(key, first, last) for key, _, first, last, _ in expected[0]]


# --- what an earlier program stored


async def test_a_row_of_the_old_schema_is_read_and_was_last_spoken_of_by_its_conversation(process: Process) -> None:
    first, second, third, fourth = await leases(process, 4)
    old = "INSERT INTO memory (user_id, key, kind, text, seq) VALUES ('user-1', $1, 'fact', $1, $2)"
    for key in ("tea", "rain", "snow"):
        await ask(process.postgres, old, key, second.seq)
    assert await known(process) == [("rain", "talk-2"), ("snow", "talk-2"), ("tea", "talk-2")]
    assert await say(process, first, ("tea", "DELETE"), ("rain", "UPDATE")) == 0
    assert await known(process) == [("rain", "talk-1"), ("snow", "talk-2"), ("tea", "talk-2")]
    assert await say(process, third, ("tea", "ADD"), ("rain", "UPDATE"), ("snow", "DELETE")) == 0
    assert await known(process) == [(f"rain by {third.seq}", "talk-1"), (f"tea by {third.seq}", "talk-2")]
    assert await say(process, fourth, ("snow", "ADD")) == 0


def test_the_migration_reads_and_rewrites_no_row() -> None:
    (sql,) = [step.sql for one in migrations() for step in one.steps if "ADD COLUMN last_seq" in step.sql]
    assert "UPDATE memory" not in sql
    assert "NOT VALID" in sql


# --- a NONE that stands for an ADD whose answer is lost


async def test_a_none_that_the_service_lists_and_nobody_counts_is_an_add(process: Process) -> None:
    first, second = await leases(process, 2)
    assert await say(process, first, ("tea", "NONE"), ("rain", "NONE"), listed=("tea",)) == 1
    assert await known(process) == [(f"tea by {first.seq}", "talk-1")]
    operations = (
        "SELECT result->'facts'->0->>'operation', result->'facts'->1->>'operation', result ? 'listed' FROM part"
    )
    assert await rows(process.postgres, operations) == [("ADD", "NONE", False)]
    assert await say(process, second, ("tea", "NONE"), listed=("tea",)) == 0


async def test_a_none_that_is_listed_and_known_here_stays_a_none(process: Process) -> None:
    first, second = await leases(process, 2)
    await say(process, first, ("tea", "ADD"))
    assert await say(process, second, ("tea", "NONE"), listed=("tea",)) == 0
    assert await known(process) == [(f"tea by {first.seq}", "talk-1")]


async def test_a_listed_none_counts_where_only_a_newer_update_is_known(process: Process) -> None:
    first, second = await leases(process, 2)
    await say(process, second, ("tea", "UPDATE"))
    assert await say(process, first, ("tea", "NONE"), listed=("tea",)) == 1
    assert await known(process) == [(f"tea by {second.seq}", "talk-1")]


async def test_a_listed_none_brings_back_what_only_an_older_conversation_deleted(process: Process) -> None:
    first, second, third, fourth = await leases(process, 4)
    await say(process, first, ("tea", "ADD"))
    await say(process, second, ("tea", "DELETE"))
    assert await say(process, third, ("tea", "NONE"), listed=("tea",)) == 0
    assert await known(process) == [(f"tea by {third.seq}", "talk-1")]
    await say(process, fourth, ("tea", "DELETE"))
    await ask(process.postgres, "DELETE FROM part WHERE seq = $1", third.seq)
    assert await say(process, third, ("tea", "NONE"), listed=("tea",)) == 0
    assert await known(process) == []


# --- which run may have been answered before


async def test_a_first_lease_was_not_asked_before_and_one_after_a_lost_lease_was(process: Process) -> None:
    await process.accepted("talk-1")
    lease = await process.leased()
    assert not lease.asked_before
    await process.jobs.release(lease)
    assert (await process.leased()).asked_before


async def test_a_job_that_failed_was_asked_before(process: Process) -> None:
    await process.accepted("talk-1")
    await process.jobs.fail(await process.leased(), "why", {}, later=0)
    assert (await process.leased()).asked_before


@pytest.mark.parametrize("called", ["llm.questions", "memory.extract"])
async def test_a_parked_job_was_asked_before_if_its_run_called_the_memory_service(
    process: Process, called: str
) -> None:
    await process.accepted("talk-1")
    await process.jobs.park(await process.leased(), "memory", "out", waits={called: 1.0})
    (lease,) = await process.jobs.lease_probe("memory")
    assert lease.asked_before is (called == "memory.extract")


# --- erasure


async def test_a_tombstone_goes_with_the_conversation_that_left_it(process: Process) -> None:
    first, second, other = await leases(process, 3)
    await say(process, first, ("tea", "ADD"))
    await say(process, second, ("tea", "DELETE"), ("rain", "DELETE"))
    await say(process, other, ("snow", "ADD"))
    await erased(process, second)
    assert await rows(process.postgres, "SELECT key FROM memory") == [("snow",)]


async def test_the_words_of_an_erased_conversation_go_and_so_does_its_count(process: Process) -> None:
    first, second, third = await leases(process, 3)
    await say(process, second, ("tea", "ADD"), ("rain", "ADD"))
    await say(process, first, ("tea", "UPDATE"))
    await say(process, third, ("tea", "UPDATE"))
    await erased(process, second)
    assert await rows(process.postgres, "SELECT key, seq, last_seq, new_seq FROM memory") == [
        ("tea", first.seq, third.seq, None)
    ]


async def erased(process: Process, lease: Lease) -> None:
    async def body(connection: Connection) -> None:
        await erase.erase_conversations(connection, DEFAULT, [lease.seq])

    await process.postgres.run("test.erase", body)
