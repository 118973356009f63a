from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest
import trio

from convo.conversation.model import Finding, Memories, MemoryFact, Mood, PartName, Questions
from convo.errors import BadRow
from convo.store.jobs import parts
from convo.store.postgres import Connection
from tests.support.making import THREE, Process, ask, open_process, remembering, rows, store_part


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def remember(
    process: Process, conversation_id: str, *facts: str, operation: str = "ADD", user_id: str = "user-1"
) -> int:
    """Let one more conversation find these facts; return how many of them were new."""
    return await store(process, conversation_id, remembering(*facts, operation=operation), user_id)


async def store(process: Process, conversation_id: str, found: Memories, user_id: str = "user-1") -> int:
    await process.accepted(conversation_id, user_id=user_id)
    lease = await process.leased()
    await store_part(process.jobs, lease, "memories", "test/1", found)
    new: int = await ask(process.postgres, "SELECT new_memories FROM part WHERE seq = $1", lease.seq)
    return new


async def known(process: Process, user_id: str = "user-1") -> list[tuple[str, str]]:
    return [
        (key, text)
        for key, text in await rows(
            process.postgres,
            "SELECT key, text FROM memory WHERE user_id = $1 AND NOT deleted ORDER BY memory_seq",
            user_id,
        )
    ]


async def hold_up(process: Process, body: Callable[[Connection], Awaitable[None]]) -> None:
    with suppress(KeyError):
        await process.postgres.run("test.hold_up", body)


FINDINGS: list[tuple[PartName, Finding]] = [
    ("questions", Questions(questions=("Có thể nói lại không?", 'He said "why"?', "line\nbreak?"))),
    ("questions", Questions(questions=())),
    ("emotion", Mood(emotion="boring")),
    ("memories", Memories(facts=(MemoryFact(key="k", text="t", kind="name", operation="UPDATE"),))),
]


@pytest.mark.parametrize(("name", "finding"), FINDINGS)
async def test_a_finding_is_read_back_as_it_was_stored(process: Process, name: PartName, finding: Finding) -> None:
    await process.accepted("talk-1")
    lease = await process.leased()
    await store_part(process.jobs, lease, name, "test/1", finding)
    await process.jobs.release(lease)
    assert (await process.leased()).parts == {name: finding}


# --- what is new


async def test_new_memories_are_the_rows_that_storing_the_part_inserted(process: Process) -> None:
    assert await remember(process, "talk-1", "tea", "rain") == 2
    assert await known(process) == [("rain", "Knows rain"), ("tea", "Knows tea")]


async def test_the_same_fact_in_another_conversation_counts_nothing(process: Process) -> None:
    assert await remember(process, "talk-1", "tea") == 1
    assert await remember(process, "talk-2", "tea", "rain") == 1
    assert await remember(process, "talk-3", "tea", "rain") == 0
    assert len(await known(process)) == 2


async def test_the_same_fact_about_another_user_is_new(process: Process) -> None:
    assert await remember(process, "talk-1", "tea") == 1
    assert await remember(process, "talk-2", "tea", user_id="user-2") == 1


async def test_a_fact_told_twice_in_one_conversation_counts_once(process: Process) -> None:
    assert await remember(process, "talk-1", "tea", "tea") == 1


async def test_an_update_changes_what_is_known_and_counts_nothing(process: Process) -> None:
    await remember(process, "talk-1", "tea", "rain")
    changed = Memories(facts=(MemoryFact(key="tea", text="Likes coffee now", operation="UPDATE"),))
    assert await store(process, "talk-2", changed) == 0
    assert await known(process) == [("rain", "Knows rain"), ("tea", "Likes coffee now")]


async def test_an_update_or_a_deletion_touches_no_other_user(process: Process) -> None:
    await remember(process, "talk-1", "tea", "rain", user_id="user-2")
    await store(process, "talk-2", Memories(facts=(MemoryFact(key="rain", text="Hates rain", operation="UPDATE"),)))
    await remember(process, "talk-3", "tea", operation="DELETE")
    assert await known(process, "user-2") == [("rain", "Knows rain"), ("tea", "Knows tea")]


async def test_a_fact_that_is_no_news_to_its_finder_is_left_alone(process: Process) -> None:
    assert await remember(process, "talk-1", "tea", operation="NONE") == 0
    assert await known(process) == []


async def test_operations_of_one_finding_stand_beside_each_other(process: Process) -> None:
    await remember(process, "talk-1", "tea", "rain")
    both = Memories(
        facts=(
            MemoryFact(key="snow", text="Knows snow"),
            MemoryFact(key="rain", text="", operation="DELETE"),
            MemoryFact(key="tea", text="Likes green tea", operation="UPDATE"),
        )
    )
    assert await store(process, "talk-2", both) == 1
    assert await known(process) == [("tea", "Likes green tea"), ("snow", "Knows snow")]


async def test_long_keys_are_told_apart_to_their_end(process: Process) -> None:
    # PostgreSQL would pack a long key that repeats itself until it fits its index.
    long = "".join(random.Random(29).choices("aăâbcdđeêghiklmnoôơpqrstuưvxy", k=5000))
    assert await remember(process, "talk-1", long + "a", long + "b") == 2
    assert await remember(process, "talk-2", long + "a", long + "c") == 1


async def test_a_finding_of_nothing_counts_nothing(process: Process) -> None:
    assert await remember(process, "talk-1") == 0


async def test_two_conversations_of_one_user_remember_side_by_side(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    facts = [f"fact {n:02}" for n in range(50)]
    first, second = await process.jobs.lease(2)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    written = trio.Event()

    async def body(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO memory (user_id, key, kind, text, seq) VALUES ('user-1', 'fact 25', 'fact', 'x', 9)"
        )
        written.set()
        while await connection.fetchval(waiting) < 2:
            await connection.fetchval("SELECT pg_sleep(0.01), pg_stat_clear_snapshot()")
        raise KeyError("not to be stored")

    # Both are held up in the middle by a third one that then takes its fact back: in opposite orders they would each
    # have what the other one waits for.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold_up, process, body)
        await written.wait()
        nursery.start_soon(store_part, process.jobs, first, "memories", "test/1", remembering(*facts))
        nursery.start_soon(store_part, process.jobs, second, "memories", "test/1", remembering(*facts[::-1]))
    assert await ask(process.postgres, "SELECT sum(new_memories) FROM part") == 50


# --- states of a part


async def test_a_part_that_is_done_stays_as_it_is(process: Process) -> None:
    await process.accepted("talk-1")
    lease = await process.leased()
    await store_part(process.jobs, lease, "emotion", "first/1", Mood(emotion="happy"))
    await store_part(process.jobs, lease, "emotion", "second/1", Mood(emotion="sad"))
    await process.jobs.fail(lease, "why", {"emotion": ("third/1", "why")}, later=0)
    assert await rows(process.postgres, "SELECT state, made_by, result->>'emotion', error FROM part") == [
        ("done", "first/1", "happy", None)
    ]


async def test_a_failed_part_names_who_tried_last_and_why_until_it_is_done(process: Process) -> None:
    await process.accepted("talk-1")
    for number in (1, 2):
        await process.jobs.fail(await process.leased(), "why", {"emotion": (f"try/{number}", f"why {number}")}, later=0)
    assert await rows(process.postgres, "SELECT state, made_by, error, result FROM part") == [
        ("failed", "try/2", "why 2", None)
    ]
    lease = await process.leased()
    assert lease.parts == {}
    await store_part(process.jobs, lease, "emotion", "try/3", THREE["emotion"])
    assert await rows(process.postgres, "SELECT state, made_by, error FROM part") == [("done", "try/3", None)]


async def test_a_finding_that_postgresql_cannot_hold_is_refused_and_leaves_no_memory(process: Process) -> None:
    await process.accepted("talk-1")
    lease = await process.leased()
    bad = Memories(facts=(MemoryFact(key="a", text="good"), MemoryFact(key="b", text="a\0b")))
    with pytest.raises(BadRow):
        await store_part(process.jobs, lease, "memories", "test/1", bad)
    assert await known(process) == []
    assert await ask(process.postgres, "SELECT count(*) FROM part") == 0


def test_a_stored_result_is_read_by_its_parts_own_shape() -> None:
    assert parts.finding("emotion", '{"emotion":"sad"}') == Mood(emotion="sad")
