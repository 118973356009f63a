from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import msgspec
import pytest

from convo.conversation.digest import expand
from convo.conversation.model import CANARY_USER, Mood
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import NotFound
from convo.settings import Settings
from convo.store import listing
from convo.store.conversations import Reader
from convo.store.listing import ListFilter
from convo.store.logs import unpack
from convo.store.postgres import DURABLE, SINGLE, Connection
from tests.support.making import THREE, Process, accept, ask, mood, open_process, remembering, store_part
from tests.support.plans import Planning


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


@pytest.fixture
def reader(process: Process) -> Reader:
    return Reader(process.postgres, process.log_store)


async def listed(reader: Reader, **asked: object) -> list[str]:
    return [row["conversation_id"] for row in (await reader.many(WHOLE_DEFAULT, ListFilter(**asked), 100)).rows]  # type: ignore[arg-type]


async def test_one_conversation_is_read_as_it_was_accepted(process: Process, reader: Reader) -> None:
    sent = accept("talk/1?", bot_name="Bản tin", agent_tag="", end_time="2026-11-22T08:00:00+01:00")
    await process.committer.accept(sent)
    found = await reader.one(WHOLE_DEFAULT, "talk/1?")
    assert found.parts == {}
    assert {key: found.row[key] for key in ("user_id", "bot_id", "bot_name", "bot_type", "agent_tag")} == {
        "user_id": "user-1",
        "bot_id": "bot-1",
        "bot_name": "Bản tin",
        "bot_type": None,
        "agent_tag": None,
    }
    assert (found.row["turns"], found.row["exchanges"], expand(found.row["digest"])) == (3, 1, sent.digest)
    assert (found.row["state"], found.row["attempts"], found.row["score"]) == ("ready", 0, None)
    assert found.row["started_at"].isoformat() == found.row["ended_at"].isoformat() == "2026-11-22T07:00:00+00:00"


async def test_without_any_times_the_arrival_is_the_end_and_the_start_equals_it(
    process: Process, reader: Reader
) -> None:
    await process.accepted("talk-1")
    row = (await reader.one(WHOLE_DEFAULT, "talk-1")).row
    assert row["started_at"] == row["ended_at"] == row["received_at"]


async def test_a_conversation_that_starts_after_its_arrival_does_not_end_before_it_starts(
    process: Process, reader: Reader
) -> None:
    await process.accepted("talk-1", start_time="2999-01-01T00:00:00Z")
    row = (await reader.one(WHOLE_DEFAULT, "talk-1")).row
    assert row["started_at"] == row["ended_at"] > row["received_at"]


async def test_its_parts_are_read_with_who_made_them_and_what_was_new(process: Process, reader: Reader) -> None:
    await process.accepted("talk-1")
    lease = await process.leased()
    await store_part(process.jobs, lease, "memories", "test/1", THREE["memories"])
    await process.jobs.fail(lease, "llm: 429", {"emotion": ("model/1", "llm: 429")}, later=0)
    found = await reader.one(WHOLE_DEFAULT, "talk-1")
    assert {name: (part.state, part.made_by, part.new_memories, part.error) for name, part in found.parts.items()} == {
        "memories": ("done", "test/1", 1, None),
        "emotion": ("failed", "model/1", 0, "llm: 429"),
    }
    assert (found.row["last_error"], found.row["attempts"]) == ("llm: 429", 1)


async def test_its_log_is_read_as_it_was_sent(process: Process, reader: Reader) -> None:
    sent = accept("talk-1")
    await process.committer.accept(sent)
    found = await reader.log_sizes(WHOLE_DEFAULT, "talk-1")
    assert await reader.packed_log(found) == sent.body
    assert (found.packed_bytes, found.unpacked_bytes) == (len(sent.body), len(unpack(sent.body)))
    assert found.row["log_hash"] == sent.log_hash


async def test_a_log_that_was_erased_before_it_was_read_is_not_found(process: Process, reader: Reader) -> None:
    await process.accepted("talk-1")
    found = await reader.log_sizes(WHOLE_DEFAULT, "talk-1")
    await ask(process.postgres, "DELETE FROM conversation_log WHERE seq = $1", found.row["seq"])
    with pytest.raises(NotFound, match="'talk-1'"):
        await reader.packed_log(found)
    with pytest.raises(NotFound, match="'talk-1'"):
        await reader.log_sizes(WHOLE_DEFAULT, "talk-1")


async def test_what_is_not_there_is_not_found(reader: Reader) -> None:
    for read in (reader.one, reader.log_sizes):
        with pytest.raises(NotFound, match="'talk-9'"):
            await read(WHOLE_DEFAULT, "talk-9")


async def test_a_list_is_newest_first_and_goes_on_where_it_ended(process: Process, reader: Reader) -> None:
    await process.accepted(*(f"talk-{n}" for n in range(5)))
    first = await reader.many(WHOLE_DEFAULT, ListFilter(), 2)
    assert [row["conversation_id"] for row in first.rows] == ["talk-4", "talk-3"]
    rest = await reader.many(WHOLE_DEFAULT, ListFilter(before=first.next_before), 3)
    assert [row["conversation_id"] for row in rest.rows] == ["talk-2", "talk-1", "talk-0"]
    assert rest.next_before is None


@pytest.mark.parametrize(
    "wanted",
    [
        {"user_id": "ann", "bot_id": "b-1"},
        {"bot_id": "b-1", "state": "ready"},
        {"user_id": "ann", "bot_id": "b-1", "state": "ready"},
        {"user_id": "ann", "bot_id": "b-2"},
        {"bot_id": "b-1", "state": "done"},
    ],
)
async def test_a_page_looks_at_so_many_rows_and_the_next_one_goes_on_behind_them(
    process: Process, reader: Reader, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, str]
) -> None:
    monkeypatch.setattr(listing, "LOOKED_AT_MAX", 3)
    others = (1, 2, 3, 4, 6)
    for n in range(9):
        await process.accepted(f"talk-{n}", user_id="ann", bot_id="b-2" if n in others else "b-1")
    seen: list[str] = []
    pages, before = 0, None
    while not pages or before is not None:
        found = await reader.many(WHOLE_DEFAULT, ListFilter(**wanted, before=before), 2)
        assert len(found.rows) <= 2
        seen += [row["conversation_id"] for row in found.rows]
        pages, before = pages + 1, found.next_before
    meant = [] if "done" in wanted.values() else [n for n in range(9) if (n in others) == (wanted["bot_id"] == "b-2")]
    assert seen == [f"talk-{n}" for n in reversed(meant)]
    assert pages >= 2


async def test_a_list_can_be_of_users_whose_ids_begin_alike(process: Process, reader: Reader) -> None:
    users = ("ann", "ann-2", "anna", "an", "bob", "Ann", "ann\U0010ffff", "an\u043e", "ano")
    for number, user in enumerate(users):
        await process.accepted(f"talk-{number}", user_id=user)
    for prefix in ("ann", "an", "ann-", "b", "anna", "annab", "A", "\U0010ffff", "ann\U0010ffff"):
        found = [f"talk-{number}" for number, user in enumerate(users) if user.startswith(prefix)]
        assert await listed(reader, user_prefix=prefix) == found[::-1], prefix
    assert await listed(reader, user_prefix="ann", user_id="anna") == ["talk-2"]
    assert await listed(reader, user_prefix="ann", user_id="bob") == []
    assert await listed(reader, user_prefix="ann", state="done") == []


@pytest.mark.parametrize("most", [1, 10])
async def test_a_list_of_many_users_and_one_of_few_have_all_their_conversations(
    process: Process, reader: Reader, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(listing, "USERS_MAX", most)
    monkeypatch.setattr("convo.store.conversations.USERS_MAX", most)
    monkeypatch.setattr(listing, "LOOKED_AT_MAX", 3)
    for n in range(12):
        await process.accepted(f"talk-{n}", user_id=("ann", "anna", "bob", "carl")[n % 4])
    seen: list[str] = []
    pages, before = 0, None
    while not pages or before is not None:
        found = await reader.many(WHOLE_DEFAULT, ListFilter(user_prefix="an", before=before), 2)
        seen += [row["conversation_id"] for row in found.rows]
        pages, before = pages + 1, found.next_before
    assert seen == [f"talk-{n}" for n in reversed(range(12)) if n % 4 < 2]


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


async def test_a_list_of_the_parked_has_those_that_wait_for_a_dependency_and_no_other_ready_ones(
    process: Process, reader: Reader
) -> None:
    await process.accepted("talk-1")
    lease = await process.leased()
    await process.accepted("talk-2")
    await process.jobs.park(lease, "llm", "llm: 401")
    assert await listed(reader, state="parked") == ["talk-1"]
    assert await listed(reader, state="ready") == ["talk-2", "talk-1"]
    assert await listed(reader, state="parked", user_id="user-2") == []


ROWS = 200_000


@pytest.mark.parametrize(
    "parked", [pytest.param(1, marks=pytest.mark.long), 1000, pytest.param(ROWS, marks=pytest.mark.long)]
)
async def test_at_200_000_rows_a_list_of_the_parked_reads_few_of_them(database: str, parked: int) -> None:
    database_settings = msgspec.structs.replace(Settings().database, statement_seconds=120.0)
    async with open_process(database, msgspec.structs.replace(Settings(), database=database_settings)) as process:

        async def fill(connection: Connection) -> None:
            await connection.execute(_CONVERSATIONS, ROWS)
            await connection.execute(_JOBS, ROWS // parked)
            await connection.execute("ANALYZE job")
            await connection.execute("ANALYZE conversation")

        await process.postgres.run("test.fill", fill)
        planning: Any = Planning(process.postgres)
        reader = Reader(planning, process.log_store)
        for asked in ({}, {"user_id": "user-7"}, {"before": ROWS // 2}):
            await listed(reader, state="parked", **asked)
    for plan in planning.plans:
        assert "Seq Scan" not in plan, plan
        read = re.findall(r"actual rows=(\d+)|Rows Removed by Filter: (\d+)", plan)
        assert max(int(rows or removed) for rows, removed in read) <= 1000, plan


_CONVERSATIONS = """
INSERT INTO conversation (conversation_id, user_id, bot_id, started_at, ended_at, received_at, turns, exchanges)
SELECT 'many-' || n, 'user-' || n % 1000, 'bot-1', now(), now(), now(), 0, 0 FROM generate_series(1, $1) AS n
"""
_JOBS = """
INSERT INTO job (seq, fair_key, waits_for, parked_since)
SELECT seq, user_id, CASE WHEN parks THEN 'llm' ELSE '' END, CASE WHEN parks THEN now() END
FROM (SELECT seq, user_id, seq % $1 = 0 AS parks FROM conversation) AS c
"""


async def test_a_users_memories_are_newest_first_and_each_names_where_it_was_first_said(
    process: Process, reader: Reader
) -> None:
    for conversation_id, keys in (("talk-1", ("tea",)), ("talk-2", ("tea", "rain"))):
        await process.accepted(conversation_id)
        await store_part(process.jobs, await process.leased(), "memories", "test/1", remembering(*keys))
    found = await reader.memories(WHOLE_DEFAULT, "user-1", before=None, limit=10)
    assert [(row["text"], row["conversation_id"]) for row in found] == [
        ("Knows rain", "talk-2"),
        ("Knows tea", "talk-1"),
    ]
    rest = await reader.memories(WHOLE_DEFAULT, "user-1", before=found[0]["memory_seq"], limit=10)
    assert [row["text"] for row in rest] == ["Knows tea"]
    assert await reader.memories(WHOLE_DEFAULT, "user-1", before=1, limit=10) == []


async def test_a_relationship_has_a_row_a_bot_the_one_with_the_newest_conversation_first(
    process: Process, reader: Reader
) -> None:
    for conversation_id, bot, emotion in (("talk-1", "b-1", "happy"), ("talk-2", "b-2", "sad")):
        await process.accepted(conversation_id, bot_id=bot)
        parts = mood(emotion)  # type: ignore[arg-type]
        assert isinstance(parts["emotion"], Mood)
        await process.settler.settle(await process.analysed(await process.leased(), parts))
    found = await reader.relationship(WHOLE_DEFAULT, "user-1", before=None, limit=10)
    assert [(row["bot_id"], row["score"], row["conversations"], row["last_emotion"]) for row in found.bots] == [
        ("b-2", 4, 1, "sad"),  # its memory was known by then
        ("b-1", 9, 1, "happy"),
    ]


async def test_each_page_of_a_relationship_has_the_sums_of_all_bots(process: Process, reader: Reader) -> None:
    add = "INSERT INTO relationship SELECT 'user-1', 'b-' || n, n, 2, 'sad', n FROM generate_series(1, 5) AS n"
    await ask(process.postgres, add)
    await ask(process.postgres, "UPDATE relationship SET last_emotion = 'happy' WHERE last_seq = 5")
    seen: list[list[str]] = []
    before = None
    for _ in range(4):
        found = await reader.relationship(WHOLE_DEFAULT, "user-1", before=before, limit=2)
        sums = (found.sums["total_score"], found.sums["total_conversations"], found.sums["newest_emotion"])
        assert sums == (15, 10, "happy")
        seen.append([row["bot_id"] for row in found.bots])
        before = found.bots[-1]["last_seq"] if found.bots else None
    assert seen == [["b-5", "b-4"], ["b-3", "b-2"], ["b-1"], []]


BOTS = """
INSERT INTO relationship
SELECT CASE WHEN n % 10 = 0 THEN 'user-1' ELSE 'user' || n % 1000 END, 'b-' || n, 1, 1, 'sad', n
FROM generate_series(1, 50000) AS n
"""


@pytest.mark.parametrize("before", [None, 20_000])
async def test_a_page_of_5_000_bots_reads_its_own_and_adds_up_the_others_in_the_index(
    process: Process, before: int | None
) -> None:
    async def vacuum(connection: Connection) -> None:
        await connection.execute("VACUUM ANALYZE relationship")

    await ask(process.postgres, BOTS)
    await process.postgres.run("test.vacuum", vacuum, begin=SINGLE)
    planning: Any = Planning(process.postgres)
    with pytest.raises(IndexError):  # what is planned returns no rows
        await Reader(planning, process.log_store).relationship(WHOLE_DEFAULT, "user-1", before=before, limit=51)
    plan = planning.plans[0]
    scans = re.findall(r"-> +(\S.*Scan.*) on relationship .*actual rows=(\d+)", plan)
    by_index = "Scan using relationship_newest_bots"
    assert sorted(scans) == [
        (f"Index Only {by_index}", "5000"), (f"Index {by_index}", "1"), (f"Index {by_index}", "51")
    ], plan  # fmt: skip


async def test_a_user_without_a_result_yet_has_nothing_and_one_of_whom_nothing_is_stored_is_not_found(
    process: Process, reader: Reader
) -> None:
    await process.accepted("talk-1", user_id="user-1")
    await process.accepted("canary-1", user_id=CANARY_USER)
    found = await reader.relationship(WHOLE_DEFAULT, "user-1", before=None, limit=10)
    assert (found.bots, found.sums["total_score"], found.sums["newest_emotion"]) == ([], 0, None)
    assert await reader.memories(WHOLE_DEFAULT, "user-1", before=None, limit=10) == []
    for user_id in ("user-2", "user", "user-11", CANARY_USER):
        with pytest.raises(NotFound, match=user_id):
            await reader.relationship(WHOLE_DEFAULT, user_id, before=None, limit=10)
        with pytest.raises(NotFound, match=user_id):
            await reader.memories(WHOLE_DEFAULT, user_id, before=None, limit=10)


async def test_a_ping_asks_for_nothing(reader: Reader) -> None:
    await reader.ping()


async def planned(process: Process, asked: dict[str, object]) -> str:
    """Return the plan of a list as the reader asks for it, in a database with 5,000 conversations."""
    await ask(process.postgres, MANY)
    await ask(process.postgres, MANY_JOBS)
    await ask(process.postgres, MANY_OUTCOMES)
    plan: list[str] = []

    class Explaining:
        def __init__(self, connection: Connection) -> None:
            self._connection = connection

        async def fetch(self, query: str, *values: object) -> list[Any]:
            await self._connection.execute("ANALYZE conversation, job, outcome")
            plan.extend(row["QUERY PLAN"] for row in await self._connection.fetch(f"EXPLAIN {query}", *values))
            return []

        async def fetchval(self, query: str, *values: object) -> None:
            await self.fetch(query, *values)

    class Planning:
        async def run(self, name: str, body: Callable[[Any], Awaitable[Any]], **_: object) -> object:
            return await process.postgres.run(name, lambda connection: body(Explaining(connection)))

    await listed(Reader(cast("Any", Planning()), process.log_store), **asked)
    return "\n".join(plan)


MANY = """
INSERT INTO conversation (conversation_id, user_id, bot_id, started_at, ended_at, received_at, turns, exchanges)
SELECT 'talk-' || n, 'user-' || n % 500, 'bot-' || n % 500, now(), now(), now(), 0, 0
FROM generate_series(1, 5000) n
"""
MANY_JOBS = "INSERT INTO job (seq, fair_key) SELECT seq, user_id FROM conversation WHERE seq % 10 = 1"
MANY_OUTCOMES = """
INSERT INTO outcome (seq, ended_at, score, attempts, crashes, details)
SELECT seq, now(), 1, 1, 0, '{}' FROM conversation WHERE seq % 10 <> 1
"""


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        ({}, "conversation_pkey"),
        ({"user_id": "user-7"}, "conversation_by_user"),
        ({"bot_id": "bot-7"}, "conversation_by_bot"),
        ({"state": "dead"}, "job_apart"),
        ({"state": "done"}, "outcome_pkey"),
        ({"state": "ready"}, "job_pkey"),
        ({"state": "parked"}, "job_apart"),
        ({"user_id": "user-7", "bot_id": "bot-8"}, "conversation_by_user"),
    ],
)
async def test_a_list_reads_one_index_and_never_a_whole_table(
    process: Process, asked: dict[str, object], index: str
) -> None:
    plan = await planned(process, asked)
    assert index in plan
    assert "Seq Scan" not in plan


async def test_a_read_is_one_round_trip_to_the_server_for_each_of_its_statements(
    process: Process, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    await process.accepted("talk-1")
    begun: list[tuple[str, str]] = []
    run = process.postgres.run

    async def noting(name: str, body: Callable[[Connection], Awaitable[object]], *, begin: str = DURABLE) -> object:
        begun.append((name, begin))
        return await run(name, body, begin=begin)

    monkeypatch.setattr(process.postgres, "run", noting)
    await reader.one(WHOLE_DEFAULT, "talk-1")
    await reader.packed_log(await reader.log_sizes(WHOLE_DEFAULT, "talk-1"))
    await reader.many(WHOLE_DEFAULT, ListFilter(), 10)
    await reader.relationship(WHOLE_DEFAULT, "user-1", before=None, limit=10)
    await reader.history(WHOLE_DEFAULT, "user-1", None, place=None, limit=10)
    await reader.memories(WHOLE_DEFAULT, "user-1", before=None, limit=10)
    names = ["db.read", "db.read", "db.log", "db.list", "db.read", "db.read", "db.read"]
    assert begun == [(name, SINGLE) for name in names]
