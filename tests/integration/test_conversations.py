from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from convo.conversation.model import Mood
from convo.errors import NotFound
from convo.store import logs
from convo.store.conversations import Reader
from tests.making import THREE, Process, accept, mood, open_process, remembering


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


@pytest.fixture
def reader(process: Process) -> Reader:
    return Reader(process.postgres)


async def listed(reader: Reader, **asked: object) -> list[str]:
    usual: dict[str, object] = {"user_id": None, "bot_id": None, "state": None, "before": None, "limit": 100}
    return [row["conversation_id"] for row in await reader.many(**{**usual, **asked})]  # type: ignore[arg-type]


async def test_one_conversation_is_read_as_it_was_accepted(process: Process, reader: Reader) -> None:
    sent = accept("talk/1?", bot_name="Bản tin", agent_tag="", end_time="2026-11-22T08:00:00+01:00")
    await process.committer.accept(sent)
    found = await reader.one("talk/1?")
    assert found.parts == {}
    assert {key: found.row[key] for key in ("user_id", "bot_id", "bot_name", "bot_type", "agent_tag")} == {
        "user_id": "user-1",
        "bot_id": "bot-1",
        "bot_name": "Bản tin",
        "bot_type": None,
        "agent_tag": None,
    }
    assert (found.row["turns"], found.row["exchanges"], found.row["digest"]) == (3, 1, sent.digest)
    assert (found.row["state"], found.row["attempts"], found.row["score"]) == ("ready", 0, None)
    assert found.row["started_at"].isoformat() == found.row["ended_at"].isoformat() == "2026-11-22T07:00:00+00:00"


async def test_without_any_times_the_arrival_is_the_end_and_the_start_equals_it(
    process: Process, reader: Reader
) -> None:
    await process.accepted("talk-1")
    row = (await reader.one("talk-1")).row
    assert row["started_at"] == row["ended_at"] == row["received_at"]


async def test_a_conversation_that_starts_after_its_arrival_does_not_end_before_it_starts(
    process: Process, reader: Reader
) -> None:
    await process.accepted("talk-1", start_time="2999-01-01T00:00:00Z")
    row = (await reader.one("talk-1")).row
    assert row["started_at"] == row["ended_at"] > row["received_at"]


async def test_its_parts_are_read_with_who_made_them_and_what_was_new(process: Process, reader: Reader) -> None:
    await process.accepted("talk-1")
    lease = await process.leased()
    await process.jobs.store_part(lease, "memories", "test/1", THREE["memories"])
    await process.jobs.fail(lease, "llm: 429", {"emotion": ("model/1", "llm: 429")}, later=0)
    found = await reader.one("talk-1")
    assert {
        name: (part["state"], part["made_by"], part["new_memories"], part["error"])
        for name, part in found.parts.items()
    } == {"memories": ("done", "test/1", 1, None), "emotion": ("failed", "model/1", 0, "llm: 429")}
    assert (found.row["last_error"], found.row["attempts"]) == ("llm: 429", 1)


async def test_its_log_is_read_as_it_was_sent(process: Process, reader: Reader) -> None:
    sent = accept("talk-1")
    await process.committer.accept(sent)
    assert logs.unpack((await reader.log("talk-1"))["body"]) == sent.log_bytes


async def test_what_is_not_there_is_not_found(reader: Reader) -> None:
    for read in (reader.one, reader.log):
        with pytest.raises(NotFound, match="'talk-9'"):
            await read("talk-9")


async def test_a_list_is_newest_first_and_goes_on_where_it_ended(process: Process, reader: Reader) -> None:
    await process.accepted(*(f"talk-{n}" for n in range(5)))
    first = await reader.many(user_id=None, bot_id=None, state=None, before=None, limit=2)
    assert [row["conversation_id"] for row in first] == ["talk-4", "talk-3"]
    assert await listed(reader, before=first[-1]["seq"]) == ["talk-2", "talk-1", "talk-0"]


async def test_a_list_can_be_of_a_user_of_a_bot_and_of_a_state(process: Process, reader: Reader) -> None:
    for user, bot in (("ann", "b-1"), ("bob", "b-1"), ("ann", "b-2")):
        await process.accepted(f"{user}-{bot}", user_id=user, bot_id=bot)
    lease = await process.leased()
    await process.settler.settle(await process.analysed(lease))
    assert await listed(reader, user_id="ann") == ["ann-b-2", "ann-b-1"]
    assert await listed(reader, bot_id="b-1") == ["bob-b-1", "ann-b-1"]
    assert await listed(reader, user_id="ann", bot_id="b-2") == ["ann-b-2"]
    assert await listed(reader, state="done") == ["ann-b-1"]
    assert await listed(reader, state="ready", user_id="ann") == ["ann-b-2"]
    assert await listed(reader, state="dead") == []


async def test_a_users_memories_are_newest_first_and_each_names_where_it_was_first_said(
    process: Process, reader: Reader
) -> None:
    for conversation_id, keys in (("talk-1", ("tea",)), ("talk-2", ("tea", "rain"))):
        await process.accepted(conversation_id)
        await process.jobs.store_part(await process.leased(), "memories", "test/1", remembering(*keys))
    found = await reader.memories("user-1", before=None, limit=10)
    assert [(row["text"], row["conversation_id"]) for row in found] == [
        ("Knows rain", "talk-2"),
        ("Knows tea", "talk-1"),
    ]
    rest = await reader.memories("user-1", before=found[0]["memory_seq"], limit=10)
    assert [row["text"] for row in rest] == ["Knows tea"]
    assert await reader.memories("user-2", before=None, limit=10) == []


async def test_a_relationship_has_a_row_a_bot_the_one_with_the_newest_conversation_first(
    process: Process, reader: Reader
) -> None:
    for conversation_id, bot, emotion in (("talk-1", "b-1", "happy"), ("talk-2", "b-2", "sad")):
        await process.accepted(conversation_id, bot_id=bot)
        parts = mood(emotion)  # type: ignore[arg-type]
        assert isinstance(parts["emotion"], Mood)
        await process.settler.settle(await process.analysed(await process.leased(), parts))
    assert [tuple(row.values()) for row in await reader.relationship("user-1")] == [
        ("b-2", 4, 1, "sad"),  # its memory was known by then
        ("b-1", 9, 1, "happy"),
    ]
    assert await reader.relationship("user-2") == []


async def test_a_ping_asks_for_nothing(reader: Reader) -> None:
    await reader.ping()
