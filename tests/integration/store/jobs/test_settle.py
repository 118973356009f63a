from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from convo.analysis.scoring import Score
from convo.conversation.model import EmotionName
from convo.conversation.score import Weights, weights_version
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import ConvoError, DatabaseUnavailable, LeaseLost
from convo.store.jobs.lease import Lease
from convo.store.outcomes import unpack_details
from convo.store.postgres import Connection
from tests.support.making import THREE, Process, ask, mood, open_process, remembering, rows, shift_clock

RELATIONSHIP = "SELECT bot_id, score, conversations, last_emotion FROM relationship WHERE user_id = $1 ORDER BY bot_id"


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def settle(process: Process, lease: Lease, outcomes: dict[int, Score | ConvoError]) -> None:
    try:
        outcomes[lease.token] = await process.settler.settle(lease)
    except ConvoError as error:
        outcomes[lease.token] = error


async def settle_all(process: Process, leases: list[Lease]) -> dict[int, Score | ConvoError]:
    """Settle these at the same time: one batch, for all of them come before the settler runs."""
    outcomes: dict[int, Score | ConvoError] = {}
    async with trio.open_nursery() as nursery:
        for lease in leases:
            nursery.start_soon(settle, process, lease, outcomes)
    return outcomes


async def ready_to_settle(process: Process, count: int, emotion: EmotionName = "happy", **fields: Any) -> list[Lease]:
    await process.accepted(*(f"talk-{n}" for n in range(count)), **fields)
    return [await process.analysed(lease, mood(emotion)) for lease in await process.jobs.lease(count)]


async def relationship(process: Process, user_id: str = "user-1") -> list[tuple[Any, ...]]:
    return await rows(process.postgres, RELATIONSHIP, user_id)


async def test_a_job_is_settled_with_its_score_and_all_that_made_it(process: Process) -> None:
    (lease,) = await ready_to_settle(process, 1, "interesting")
    found = await process.settler.settle(lease)
    assert (found.value, found.final) == (1 + 3 + 5 + 15, True)
    query = "SELECT began_at <= ended_at, score, attempts, crashes, emotion, details FROM outcome"
    ((*plain, packed),) = await rows(process.postgres, query)
    assert plain == [True, 24, 1, 0, "interesting"]
    details = unpack_details(packed)
    assert (details.by, details.waits) == ("here/one", {})
    assert (details.breakdown.memories.points, details.weights_version) == (5, weights_version(Weights()))
    assert [part.name for part in details.parts] == ["questions", "emotion", "memories"]
    for table in ("job", "part", "part_ticket", "run"):
        assert await ask(process.postgres, f"SELECT count(*) FROM {table}") == 0, table
    assert await relationship(process) == [("bot-1", 24, 1, "interesting")]


async def test_a_score_counts_once_however_often_its_job_is_settled(process: Process) -> None:
    (lease,) = await ready_to_settle(process, 1)
    await process.settler.settle(lease)
    for _ in range(2):
        with pytest.raises(LeaseLost):
            await process.settler.settle(lease)
    assert await relationship(process) == [("bot-1", 9, 1, "happy")]


async def test_a_score_below_nothing_is_nothing(process: Process) -> None:
    await process.accepted("talk-1", said=("Hm.",))
    lease = await process.leased()
    await process.analysed(lease, {**mood("boring"), "memories": remembering()})
    assert (await process.settler.settle(lease)).value == 0
    assert await relationship(process) == [("bot-1", 0, 1, "boring")]


async def test_several_jobs_settle_in_one_transaction(process: Process) -> None:
    leases = await ready_to_settle(process, 10)
    outcomes = await settle_all(process, leases)
    assert all(isinstance(outcome, Score) for outcome in outcomes.values())
    assert await ask(process.postgres, "SELECT count(DISTINCT ended_at) FROM every_job") == 1
    assert await relationship(process) == [("bot-1", 10 * 4 + 5, 10, "happy")]  # what it says was new once


async def test_a_lost_lease_among_them_is_told_and_the_others_settle(process: Process) -> None:
    leases = await ready_to_settle(process, 3)
    await process.jobs.release(leases[1])
    outcomes = await settle_all(process, leases)
    assert [type(outcomes[lease.token]) for lease in leases] == [Score, LeaseLost, Score]
    assert [await process.state(f"talk-{n}") for n in range(3)] == [("done", 1), ("ready", 0), ("done", 1)]
    assert (await relationship(process))[0][2] == 2


@pytest.mark.parametrize("order", [1, -1])
async def test_of_two_leases_on_one_job_only_the_good_one_settles(process: Process, order: int) -> None:
    (late,) = await ready_to_settle(process, 1)
    await process.jobs.release(late)
    good = await process.leased()
    outcomes = await settle_all(process, [late, good][::order])
    assert isinstance(outcomes[late.token], LeaseLost)
    assert isinstance(outcomes[good.token], Score)
    assert await relationship(process) == [("bot-1", 9, 1, "happy")]


async def test_a_job_whose_part_was_lost_is_not_settled_and_the_others_are(process: Process) -> None:
    # A part commits without waiting for the disk: a crash of the database may forget it and remember its lease.
    leases = await ready_to_settle(process, 3)
    await ask(
        process.postgres, "WITH lost AS (DELETE FROM part WHERE seq = $1 AND name = 'emotion') SELECT 1", leases[1].seq
    )
    outcomes = await settle_all(process, leases)
    assert [type(outcomes[lease.token]) for lease in leases[::2]] == [Score, Score]
    assert isinstance(outcomes[leases[1].token], DatabaseUnavailable)
    assert await process.state("talk-1") == ("leased", 0)
    assert (await relationship(process))[0][2] == 2
    await process.jobs.release(leases[1])
    again = await process.leased()
    assert set(again.parts) == {"questions", "memories"}
    await process.analysed(again, {"emotion": THREE["emotion"]})
    assert (await process.settler.settle(again)).final


async def test_a_user_has_a_row_for_each_bot(process: Process) -> None:
    await process.accepted("talk-1", "talk-2", bot_id="b-1")
    await process.accepted("talk-3", bot_id="b-2")
    await process.accepted("talk-4", bot_id="b-1", user_id="user-2")
    for lease in [*await process.jobs.lease(4), *await process.jobs.lease(4)]:
        await process.settler.settle(await process.analysed(lease))
    assert await relationship(process) == [("b-1", 9 + 4, 2, "happy"), ("b-2", 4, 1, "happy")]
    assert await relationship(process, "user-2") == [("b-1", 9, 1, "happy")]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("together", [True, False])
async def test_the_last_emotion_is_the_newest_conversations_in_whatever_order_they_settle(
    process: Process, order: int, *, together: bool
) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    emotions: tuple[EmotionName, ...] = ("sad", "angry", "interesting")
    leases = [
        await process.analysed(lease, mood(emotion))
        for lease, emotion in zip(await process.jobs.lease(3), emotions, strict=True)
    ]
    if together:
        await settle_all(process, leases[::order])
    else:
        for lease in leases[::order]:
            await process.settler.settle(lease)
    ((_, _, conversations, last_emotion),) = await relationship(process)
    assert (conversations, last_emotion) == (3, "interesting")


async def test_two_processes_settling_the_same_users_in_opposite_order_do_not_wait_for_each_other_in_a_circle(
    process: Process, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [f"user-{number}" for number in range(9)]
    for user in users:
        await process.accepted(f"one-{user}", user_id=user)
    for user in users[::-1]:
        await process.accepted(f"two-{user}", user_id=user)
    first: list[Lease] = []
    last: list[Lease] = []
    for lease in await process.jobs.lease(18):
        (first if lease.conversation_id.startswith("one") else last).append(await process.analysed(lease))
    await ask(process.postgres, "INSERT INTO relationship VALUES ('user-4', 'bot-1', 0, 0, 'sad', 0)")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    locked = trio.Event()

    async def hold_up(connection: Connection) -> None:
        await connection.fetchval("SELECT 1 FROM relationship FOR UPDATE")
        locked.set()
        while await connection.fetchval(waiting) < 2:
            await connection.fetchval("SELECT pg_sleep(0.01), pg_stat_clear_snapshot()")

    async with open_process(database, owner="there/two") as other:
        runs: list[str] = []
        for one in (process, other):
            monkeypatch.setattr(one.postgres, "run", noting(one.postgres.run, runs))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.postgres.run, "test.hold_up", hold_up)
            await locked.wait()
            nursery.start_soon(settle_all, process, first)
            nursery.start_soon(settle_all, other, last)
    assert runs.count("db.settle") == 2  # a deadlock would have been repeated
    assert await rows(process.postgres, "SELECT sum(score), sum(conversations) FROM relationship") == [(9 * 13, 18)]


def noting(run: Callable[..., Awaitable[Any]], names: list[str]) -> Callable[..., Awaitable[Any]]:
    async def noted(name: str, *arguments: Any, **settings: Any) -> Any:
        names.append(name)
        return await run(name, *arguments, **settings)

    return noted


async def test_a_settle_after_the_clock_was_set_back_still_settles(process: Process) -> None:
    (lease,) = await ready_to_settle(process, 1)
    await shift_clock(process.postgres, "-1 day")
    assert (await process.settler.settle(lease)).value == 9


async def test_a_job_that_was_retried_after_its_burial_adds_its_score_once(process: Process) -> None:
    await process.accepted("talk-1")
    for _ in range(5):
        await process.jobs.fail(await process.leased(), "why", {}, later=0)
    assert await process.state() == ("dead", 5)
    assert await relationship(process) == []
    await process.jobs.retry(WHOLE_DEFAULT, "talk-1")
    await process.settler.settle(await process.analysed(await process.leased()))
    assert await process.state() == ("done", 1)
    assert await relationship(process) == [("bot-1", 9, 1, "happy")]
