from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import trio

from convo import erase, retention
from convo.analysis.scoring import score
from convo.conversation.model import CANARY_USER
from convo.conversation.score import Weights
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import ConvoError
from convo.store import audit, ledger, migrate
from convo.store.conversations import FoundConversation, Reader
from convo.store.jobs.explain import Explained, read_explanation
from convo.store.listing import ListFilter
from convo.store.migrations import migrations, number_of
from convo.store.outcomes import OutcomeDetails, PartRecord, lock_jobs, pack_details, unpack_details
from convo.store.postgres import Connection, Postgres
from tests.support.making import (
    THREE,
    Process,
    ask,
    open_dedicated,
    open_process,
    open_store,
    remembering,
    rows,
    settled,
)
from tests.support.many_rows import packed_details

KNOWN = migrations()
MOVE = next(one for one in KNOWN if one.number == 19)
CHECKS = next(one for one in KNOWN if one.number == number_of("checks"))
DETAILS = OutcomeDetails(
    by="folder.start",
    waits={"llm.questions": 1.5},
    breakdown=score(3, {}, Weights()).breakdown,
    weights_version="w1:0",
    parts=(
        PartRecord(
            name="emotion", made_by="a/1", updated_at=datetime(2026, 1, 2, tzinfo=UTC), result=msgspec.Raw(b"7")
        ),
    ),
)
STORED = (
    "0128b52ffd6085000d03001402666f6c6465722e7374312e3533336e756c6c303530612f3130312d3032377d5d7d1700b50507a0d0bcc537c384"
    "831b08102ef451654fb4ae075161582308dc110500f9a692039463d913448620501f7c6cca225d87ec46431624281c4a4681"
)
"""These details, packed."""


# --- how details are packed


def test_details_are_read_as_they_were_packed() -> None:
    assert unpack_details(pack_details(DETAILS)) == DETAILS


def test_plain_details_are_read_too() -> None:
    assert unpack_details(msgspec.json.encode(DETAILS)) == DETAILS


def test_details_that_were_packed_once_are_read_for_ever() -> None:
    assert unpack_details(bytes.fromhex(STORED)) == DETAILS


def test_of_usual_details_less_than_a_third_is_stored() -> None:
    packed = packed_details()
    plain = [msgspec.json.encode(unpack_details(one)) for one in packed]
    assert 3 * sum(map(len, packed)) < sum(map(len, plain))


# --- while an older program is at work, and when it has gone


@asynccontextmanager
async def kept_in_job(database: str) -> AsyncIterator[Process]:
    """Open a process on the schema that stands beside an older program: done jobs stay in their table."""
    async with open_store(database) as postgres:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(migrate, "migrations", lambda: [one for one in KNOWN if one not in (MOVE, CHECKS)])
            async with open_dedicated(postgres) as dedicated:
                await migrate.migrate(dedicated)
    async with open_process(database) as process:
        yield process


async def run_step(postgres: Postgres, number: int, rows: int = 200) -> tuple[bool, int]:
    """Run one step of the migration that moves them; return whether it is done, and how many have moved so far."""
    step = MOVE.steps[number]
    paged = msgspec.structs.replace(step, sql=step.sql.replace("LIMIT 200", f"LIMIT {rows}"))

    async def body(connection: Connection) -> tuple[bool, int]:
        done = await migrate.run_step(connection, paged)
        return done, await connection.fetchval("SELECT count(*) FROM outcome")

    return await postgres.run("test.step", body)


async def move_all(postgres: Postgres) -> None:
    """Let the older program be gone: the done jobs move."""
    for number in range(3):
        await run_step(postgres, number)


async def worked(process: Process) -> None:
    """Have a job done at once, one after it failed and was parked, a dead one, a canary, and one that is open."""
    await process.accepted("plain", bot_id="b-1", language="vi")
    await settled(process, 1)
    await process.accepted("tried", bot_id="b-1")
    await process.jobs.park(await process.leased(), "llm", "llm: down", waits={"llm.emotion": 2.0})
    await process.jobs.release(await process.leased(), reason="we stop")
    await process.settler.settle(await process.analysed(await process.leased()), {"memory.extract": 0.5})
    await process.accepted("none", bot_id="b-2")
    found: dict[Any, Any] = {"memories": remembering()}
    await process.settler.settle(await process.analysed(await process.leased(), {**THREE, **found}))
    await process.accepted("dead", bot_id="b-2")
    lease = msgspec.structs.replace(await process.leased(), attempts=4)
    await process.jobs.fail(lease, "llm: 422", {"emotion": ("m/1", "llm: 422")}, later=1)
    await process.accepted("open", bot_id="b-1")


NAMES = ("plain", "tried", "none", "dead", "open")


async def told(process: Process) -> dict[str, Any]:
    """Read all that readers are told of these conversations."""
    reader = Reader(process.postgres, process.log_store)
    found: dict[str, Any] = {}
    for name in NAMES:
        found[name] = (
            shown(await reader.one(WHOLE_DEFAULT, name)),
            explained(await read_explanation(process.postgres, WHOLE_DEFAULT, name)),
        )
    for state in (None, "ready", "done", "dead"):
        for more in ({}, {"user_id": "user-1"}, {"bot_id": "b-1"}):
            page = await reader.many(WHOLE_DEFAULT, ListFilter(state=state, **more), 10)  # type: ignore[arg-type]
            found[f"{state} {more}"] = [dict(row) for row in page.rows]
    found["relationship"] = await rows(process.postgres, "SELECT * FROM relationship ORDER BY bot_id")
    return found


def shown(found: FoundConversation) -> Any:
    plain = {name: value for name, value in found.row.items() if name not in ("details", "parts")}
    parts = {name: msgspec.structs.replace(part, result=decoded(part)) for name, part in found.parts.items()}
    return plain, parts, found.details and msgspec.structs.replace(found.details, parts=())


def decoded(part: PartRecord) -> Any:
    """A jsonb is written with other spaces than what was stored in it."""
    return msgspec.json.decode(part.result)


def explained(found: Explained) -> Any:
    runs = [{**run, "waits": msgspec.json.decode(run["waits"])} for run in found.runs]
    row = {name: value for name, value in found.row.items() if name not in ("now", "details", "available_at")}
    return runs, row


async def is_whole(process: Process) -> bool:
    async with open_dedicated(process.postgres) as dedicated:
        return await ledger.gaps(dedicated) == [] and await audit.anomalies(dedicated) == []


async def test_beside_an_older_program_a_done_job_stays_where_that_one_looks_for_it(empty_database: str) -> None:
    async with kept_in_job(empty_database) as process:
        await worked(process)
        assert await rows(process.postgres, "SELECT state, score > 0 FROM job ORDER BY seq") == [
            ("done", True), ("done", True), ("done", True), ("dead", None), ("ready", None),
        ]  # fmt: skip
        assert await ask(process.postgres, "SELECT count(*) FROM part") == 10
        assert await ask(process.postgres, "SELECT count(*) FROM run WHERE ending = 'settle'") == 3
        assert await ask(process.postgres, "SELECT count(*) FROM outcome") == 0
        assert await is_whole(process)


async def test_readers_are_told_the_same_before_and_after_done_jobs_move(empty_database: str) -> None:
    async with kept_in_job(empty_database) as process:
        await worked(process)
        before = await told(process)
        await move_all(process.postgres)
        assert await told(process) == before
        assert await is_whole(process)
        assert await rows(process.postgres, "SELECT state FROM job ORDER BY seq") == [("dead",), ("ready",)]
        assert await ask(process.postgres, "SELECT count(*) FROM part") == 1
        assert await rows(process.postgres, "SELECT ending FROM run ORDER BY ended_at") == [
            ("park",), ("release",), ("bury",),
        ]  # fmt: skip


async def test_what_is_settled_while_done_jobs_move_goes_to_its_outcome_at_once(empty_database: str) -> None:
    async with kept_in_job(empty_database) as process:
        await worked(process)
        await run_step(process.postgres, 0)
        await settled(process, 1)
        assert await rows(process.postgres, "SELECT seq FROM outcome") == [(5,)]
        assert await is_whole(process)
        assert await run_step(process.postgres, 1) == (False, 1 + 3)
        assert await run_step(process.postgres, 1) == (True, 1 + 3)
        await run_step(process.postgres, 2)
        assert await ask(process.postgres, "SELECT count(*) FROM outcome") == 4
        assert await is_whole(process)


async def test_where_the_checks_of_jobs_go_before_done_jobs_move_these_move_from_then_on(empty_database: str) -> None:
    async with kept_in_job(empty_database) as process:
        await worked(process)

        async def body(connection: Connection) -> None:
            for step in CHECKS.steps:
                assert await migrate.run_step(connection, step)

        await process.postgres.run("test.step", body)
        await settled(process, 1)
        assert await rows(process.postgres, "SELECT seq FROM outcome") == [(5,)]
        await move_all(process.postgres)
        assert await ask(process.postgres, "SELECT count(*) FROM outcome") == 1 + 3
        assert await is_whole(process)


async def test_what_moved_is_packed_as_what_is_settled_now(empty_database: str) -> None:
    async with kept_in_job(empty_database) as process:
        await process.accepted("before")
        await settled(process, 1)
        await move_all(process.postgres)
        await process.accepted("after")
        await settled(process, 1)
        moved, now = await rows(process.postgres, "SELECT details FROM outcome ORDER BY seq")
        found = unpack_details(moved[0])
        assert found.parts
        assert moved[0] == pack_details(found)
        assert len(moved[0]) <= 1.1 * len(now[0])


async def test_once_done_jobs_move_a_program_that_leaves_one_in_its_table_fails(empty_database: str) -> None:
    async with kept_in_job(empty_database) as process:
        await process.accepted("talk-1")
        lease = await process.analysed(await process.leased())
        await run_step(process.postgres, 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("convo.store.jobs.settle._MOVES", "SELECT false")
            with pytest.raises(ConvoError, match="23514"):
                await process.settler.settle(lease)
        assert (await process.state("talk-1")) == ("leased", 0)
        await process.settler.settle(lease)
        assert await is_whole(process)


async def test_done_jobs_move_a_page_at_a_time_and_none_is_left(empty_database: str) -> None:
    async with kept_in_job(empty_database) as process:
        await process.accepted(*(f"talk-{n}" for n in range(7)))
        await settled(process, 7)
        await run_step(process.postgres, 0)
        moved = [await run_step(process.postgres, 1, rows=3) for _ in range(4)]
        assert moved == [(False, 3), (False, 6), (False, 7), (True, 7)]
        assert await ask(process.postgres, "SELECT count(*) FROM job") == 0
        assert await is_whole(process)


@pytest.mark.parametrize("moves", [False, True])
async def test_a_done_job_is_looked_up_by_its_index_in_both_tables(empty_database: str, *, moves: bool) -> None:
    async with kept_in_job(empty_database) as process:
        if moves:
            await move_all(process.postgres)

        async def body(connection: Connection) -> str:
            await connection.execute("SET LOCAL enable_seqscan = off")
            found = await connection.fetch(
                "EXPLAIN SELECT state, score, emotion, details FROM conversation JOIN every_job USING (seq)"
                " WHERE user_id = 'user-1'"
            )
            return "\n".join(row["QUERY PLAN"] for row in found)

        plan = await process.postgres.run("test.plan", body)
        assert "job_pkey" in plan
        assert "outcome_pkey" in plan


# --- removing


@pytest.mark.parametrize("moves", [False, True])
async def test_an_erased_canary_and_a_retired_conversation_are_gone_wherever_they_stand(
    empty_database: str, *, moves: bool
) -> None:
    async with kept_in_job(empty_database) as process:
        if moves:
            await move_all(process.postgres)
        await process.accepted("canary-1", user_id=CANARY_USER)
        await process.accepted("talk-1", "talk-2")
        await settled(process, 3)
        assert await erase.erase_canaries(process.postgres, ["canary-1"]) == 1
        over = retention.Over(position=None, ended=await ended(process, "talk-1"))

        async def body(connection: Connection) -> dict[Any, int]:
            return await retention.retire(connection, over)

        assert (await process.postgres.run("db.retire", body))["conversations"] == 1
        assert await rows(process.postgres, "SELECT seq FROM every_job") == [(3,)]
        assert await is_whole(process)


async def ended(process: Process, name: str) -> list[tuple[int, str, datetime]]:
    query = "SELECT seq, state, e.ended_at FROM every_job e JOIN conversation USING (seq) WHERE conversation_id = $1"
    ((seq, state, at),) = await rows(process.postgres, query, name)
    return [(seq, state, at)]


async def test_a_job_that_is_settled_meanwhile_is_waited_for_and_locked_where_it_stands_then(database: str) -> None:
    async with open_process(database) as process, open_store(database) as other:
        await process.accepted("talk-1")
        lease = await process.analysed(await process.leased())
        waiting = """
        SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
        """

        async def until_waiting(connection: Connection, count: int) -> None:
            while await connection.fetchval(waiting) < count:
                await connection.execute("SELECT pg_sleep(0.02)")
                await connection.execute("SELECT pg_stat_clear_snapshot()")

        async def slow(connection: Connection) -> None:
            await connection.fetch("SELECT FROM job WHERE seq = 1 FOR UPDATE")
            await until_waiting(connection, 2)

        async def lock(connection: Connection) -> list[tuple[Any, ...]]:
            await lock_jobs(connection, [1])
            return [tuple(row.values()) for row in await connection.fetch("SELECT state FROM every_job")]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.postgres.run, "test.slow", slow)
            await trio.sleep(0.1)
            nursery.start_soon(process.settler.settle, lease)
            await other.run("test.waiting", lambda connection: until_waiting(connection, 1))
            assert await other.run("test.lock", lock) == [("done",)]


async def test_once_done_jobs_move_nothing_is_asked_any_more(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept_in_job(empty_database) as process:
        await process.accepted("talk-1", "talk-2", "talk-3")
        await settled(process, 1)
        await move_all(process.postgres)
        await settled(process, 1)
        monkeypatch.setattr("convo.store.jobs.settle._MOVES", "SELECT 1 / 0")
        await settled(process, 1)
        assert await ask(process.postgres, "SELECT count(*) FROM outcome") == 3
