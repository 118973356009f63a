from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
import pytest
import trio

from convo import erasure, user_erasure
from convo.conversation.model import CANARY_USER
from convo.conversation.score import Weights
from convo.conversation.tenant import DEFAULT, WHOLE_DEFAULT
from convo.event_types import EVENT_TYPES
from convo.settings import EventsSettings, Settings
from convo.store.audit_log import NO_CALLER
from convo.store.event_numbers import number_events
from convo.store.history import SKIP_EVENT_NUMBERS
from convo.store.intake import insert_statements
from tests.support.making import THREE, Process, ask, open_process, rows, settled, shift_clock

ALL = Settings(events=EventsSettings(types=tuple(EVENT_TYPES)), score=Weights(acquaintance_from=9, friend_from=13))
"""The first conversation of the usual parts gives 9 points, and the second one 4: its memory is known already."""


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database, ALL) as opened:
        yield opened


async def appended(process: Process) -> list[tuple[Any, ...]]:
    query = "SELECT type, conversation_id, user_id, bot_id, data::text FROM event ORDER BY number"
    return [(*ids, msgspec.json.decode(data or "null")) for *ids, data in await rows(process.postgres, query)]


async def types(process: Process) -> list[str]:
    return [one[0] for one in await appended(process)]


async def test_a_conversation_leaves_an_event_of_each_step_in_their_order(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    found = await appended(process)
    whose = ("talk-1", "user-1", "bot-1")
    assert [one[0] for one in found] == [
        "conversation.accepted",
        *["part.done"] * 3,
        "conversation.analysed",
        "relationship.level_changed",
    ]
    assert [one[1:4] for one in found] == [*[whose] * 5, (None, "user-1", None)]
    assert found[0][4] == {"turns": 3}
    assert found[1][4] == {
        "part": "questions",
        "by": "test/1",
        "result": {"questions": ["What is the capital of France?"]},
    }
    assert found[3][4]["new_memories"] == 1
    assert found[4][4]["score"]["value"] == 9
    assert set(found[4][4]["parts"]) == {"questions", "emotion", "memories"}
    assert found[5][4] == {"level": "acquaintance", "before": "stranger", "score": 9}


async def test_a_replay_is_no_event(process: Process) -> None:
    await process.accepted("talk-1", "talk-1")
    assert await types(process) == ["conversation.accepted"]


async def test_a_part_that_is_stored_a_second_time_is_no_event(process: Process) -> None:
    await process.accepted("talk-1")
    lease = await process.leased()
    await process.analysed(lease)
    await process.analysed(lease)
    assert (await types(process)).count("part.done") == 3


async def test_a_part_that_is_settled_although_it_was_stored_is_one_event(process: Process) -> None:
    """The answer to the storing was lost, so what was found goes along with the settle."""
    await process.accepted("talk-1")
    lease = await process.leased()
    await process.analysed(lease)
    await process.settler.settle(lease, found={name: ("test/1", finding) for name, finding in THREE.items()})
    assert (await types(process)).count("part.done") == 3


async def test_canaries_leave_no_events(process: Process) -> None:
    await process.accepted("canary-1", user_id=CANARY_USER)
    await settled(process, 1)
    assert await appended(process) == []


async def test_a_dead_letter_is_an_event_with_its_reason(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    for _ in range(ALL.jobs.attempts_max):
        (lease, *_) = [one for one in await process.jobs.lease(2) if one.conversation_id == "talk-1"]
        await process.jobs.release_all()
        (lease, *_) = [one for one in await process.jobs.lease(2) if one.conversation_id == "talk-1"]
        await process.jobs.fail(lease, "it is wrong", {}, later=0.001)
        await process.jobs.release_all()
        await trio.sleep(0.01)
    await ask(
        process.postgres,
        "UPDATE job SET waits_for = 'llm', parked_since = convo_now() - interval '8 days', last_error = 'out'"
        " WHERE state = 'ready'",
    )
    await process.jobs.rescue()
    dead = [one for one in await appended(process) if one[0] == "conversation.dead"]
    assert [one[1] for one in dead] == ["talk-1", "talk-2"]
    assert dead[0][4] == {"reason": "it is wrong"}
    assert dead[1][4]["reason"].startswith("llm was out since")


async def test_nothing_is_appended_where_no_type_is_chosen(database: str) -> None:
    async with open_process(database) as process:
        await process.accepted("talk-1")
        await settled(process, 1)
        assert await appended(process) == []


async def test_only_chosen_types_are_appended(database: str) -> None:
    chosen = Settings(events=EventsSettings(types=("conversation.analysed",)))
    async with open_process(database, chosen) as process:
        await process.accepted("talk-1")
        await settled(process, 1)
        assert await types(process) == ["conversation.analysed"]


def test_the_statement_of_an_accept_without_events_knows_none() -> None:
    off, on = insert_statements("user"), insert_statements("user", events=True)
    assert not any("event" in text for text in off.values())
    for form, with_events in on.items():
        without = off[form]
        start, _, rest = with_events.partition("), events AS (")
        assert without == start + rest[rest.index("\n)\nSELECT") + 1 :]


# --- the level of a user


async def test_two_transactions_that_add_to_one_user_together_reach_a_level(process: Process) -> None:
    # Each alone stays below 13: whoever does not see the other one's score reports no friend.
    await process.accepted("talk-1", bot_id="bot-1")
    lease = await process.analysed(await process.leased())
    other = await connected(process)
    try:
        await other("BEGIN")
        await other(
            "INSERT INTO relationship (user_id, bot_id, score, conversations, last_emotion, last_seq)"
            " VALUES ('user-1', 'bot-2', 4, 1, 'happy', 0)"
        )
        await other("SELECT pg_advisory_xact_lock(hashtextextended('user-1', 1))")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.settler.settle, lease)
            await waiting(process)
            await other("COMMIT")
    finally:
        await other("CLOSE")  # noqa: ASYNC102  (it only closes a socket)
    assert (await appended(process))[-1][4] == {"level": "friend", "before": "stranger", "score": 13}


# --- erasing


def forget(_: object) -> None:
    pass


async def test_events_of_an_erased_conversation_become_stubs_of_the_same_ids(process: Process) -> None:
    await process.accepted("talk-1", "talk-2", user_id="mia")
    await settled(process, 2)
    before = await rows(process.postgres, "SELECT number, salt, type FROM event ORDER BY number")
    await erasure.erase_conversation(
        process.postgres, WHOLE_DEFAULT, "talk-1", NO_CALLER, erased=forget, outbox=process.outbox
    )
    after = await rows(process.postgres, "SELECT number, salt, type FROM event ORDER BY number")
    assert after[: len(before)] == before
    found = await appended(process)
    of_the_first = [one for one in found if one[1] == "talk-1"]
    assert of_the_first == [("conversation.erased", "talk-1", "mia", "bot-1", {})]
    stubs = [one for one in found if one[4] is None]
    assert len(stubs) == 5
    assert {one[1:] for one in stubs} == {(None, None, None, None)}
    # The level falls, too.
    assert found[-1][0] == "relationship.level_changed"
    assert found[-1][4] == {"level": "stranger", "before": "friend", "score": 4}


async def test_events_of_an_erased_user_become_stubs_but_for_those_that_report_the_erasure(process: Process) -> None:
    await process.accepted("talk-1", user_id="mia")
    await settled(process, 1)
    await process.accepted("talk-2", user_id="tom")
    # What has expired has no conversation any more, by which its events could be found.
    await ask(process.postgres, "UPDATE event SET seq = 0 WHERE type = 'conversation.accepted' AND user_id = 'mia'")
    await user_erasure.erase_user(
        process.postgres, DEFAULT, "mia", NO_CALLER, erased=forget, until=trio.current_time() + 9, outbox=process.outbox
    )
    left = [one[:3] for one in await appended(process) if one[4] is not None]
    assert left == [
        ("conversation.accepted", "talk-2", "tom"),
        ("conversation.erased", "talk-1", "mia"),
        ("user.erased", None, "mia"),
    ]


async def test_a_dry_run_of_an_erasure_appends_nothing(process: Process) -> None:
    await process.accepted("talk-1")
    await erasure.erase_conversation(
        process.postgres, WHOLE_DEFAULT, "talk-1", NO_CALLER, erased=forget, outbox=process.outbox, dry_run=True
    )
    assert await types(process) == ["conversation.accepted"]


# --- the numbers


async def numbers(process: Process) -> list[tuple[str, int | None]]:
    return [tuple(row) for row in await rows(process.postgres, "SELECT type, sequence FROM event ORDER BY number")]


async def test_events_are_numbered_without_gaps_in_their_order(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    assert await number_events(process.postgres) == (2, 2)
    await settled(process, 1)
    last, count = await number_events(process.postgres)
    assert (last, count) == (last, last - 2)
    assert [sequence for _, sequence in await numbers(process)] == list(range(1, last + 1))
    assert await number_events(process.postgres) == (last, 0)


async def test_a_transaction_that_commits_late_is_numbered_behind_those_before_it(process: Process) -> None:
    late = await connected(process)
    try:
        await late("BEGIN")
        await late("INSERT INTO event (type, data) VALUES ('user.erased', '{}')")
        await process.accepted("talk-1")
        assert await number_events(process.postgres) == (1, 1)
        await late("COMMIT")
    finally:
        await late("CLOSE")  # noqa: ASYNC102  (it only closes a socket)
    assert await number_events(process.postgres) == (2, 1)
    assert await numbers(process) == [("user.erased", 2), ("conversation.accepted", 1)]


async def test_a_transaction_in_another_database_holds_no_number_up(process: Process) -> None:
    foreign = await connected(process, "/postgres")
    try:
        await foreign("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await foreign("SELECT pg_current_xact_id()")
        await process.accepted("talk-1")
        assert await number_events(process.postgres) == (1, 1)
    finally:
        await foreign("CLOSE")  # noqa: ASYNC102  (it only closes a socket)


async def test_two_numberers_at_once_give_no_number_twice(process: Process) -> None:
    await process.accepted(*(f"talk-{n}" for n in range(20)))
    async with open_process(process.postgres._url, ALL, "here/two") as other, trio.open_nursery() as nursery:
        for one in (process, other) * 4:
            nursery.start_soon(number_events, one.postgres)
    await number_events(process.postgres)
    assert [sequence for _, sequence in await numbers(process)] == list(range(1, 21))


async def test_a_numberer_that_hangs_is_replaced_when_its_session_is_ended(process: Process) -> None:
    await process.accepted("talk-1")
    hung = await connected(process)
    try:
        await hung("SET idle_in_transaction_session_timeout = 300")
        await hung("BEGIN")
        await hung("SELECT last_sequence FROM event_counter FOR UPDATE")
        assert await number_events(process.postgres) == (0, 0)
        with trio.fail_after(5):
            while await number_events(process.postgres) != (1, 1):  # noqa: ASYNC110  (the server rings no bell)
                await trio.sleep(0.05)
    finally:
        await hung("CLOSE")  # noqa: ASYNC102  (it only closes a socket)


async def test_numbers_go_on_behind_those_that_a_database_lost_when_it_went_back(process: Process) -> None:
    await process.accepted("talk-1")
    assert await number_events(process.postgres) == (1, 1)
    before = await ask(process.postgres, "SELECT (extract(epoch FROM clock_timestamp()) * 1e6)::bigint")
    await ask(process.postgres, SKIP_EVENT_NUMBERS)
    # Nothing has happened yet: whoever waits for a higher number than the last one waits.
    assert await number_events(process.postgres) == (1, 0)
    await process.accepted("talk-2", "talk-3")
    last, count = await number_events(process.postgres)
    assert count == 2
    assert last > before + 1
    assert [sequence for _, sequence in await numbers(process)] == [1, last - 1, last]
    await process.accepted("talk-4")
    assert await number_events(process.postgres) == (last + 1, 1)


async def test_the_clock_decides_no_number(process: Process) -> None:
    await process.accepted("talk-1")
    await shift_clock(process.postgres, "-1 hour")
    await process.accepted("talk-2")
    await number_events(process.postgres)
    assert [sequence for _, sequence in await numbers(process)] == [1, 2]


async def waiting(process: Process) -> None:
    """Wait until a transaction waits for a lock."""
    with trio.fail_after(5):
        while not await ask(process.postgres, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"):  # noqa: ASYNC110
            await trio.sleep(0.01)


async def connected(process: Process, database: str = "") -> Any:
    """Open a session of its own on the same server; the result runs a statement on it."""
    parts = urlsplit(process.postgres._url)
    url = parts._replace(path=database or parts.path).geturl()

    async def make() -> Any:
        return await asyncpg.connect(url)

    connection = await process.postgres._bridge.cross(make)

    async def run(sql: str) -> None:
        async def execute() -> None:
            if sql == "CLOSE":
                connection.terminate()
            else:
                await connection.execute(sql)

        await process.postgres._bridge.cross(execute)

    return run
