from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from unittest import mock

import pytest
import trio

from convo.conversation.tenant import WHOLE_DEFAULT
from convo.errors import NotDead, NotFound
from convo.store import ledger
from convo.store.jobs import dead_letters
from convo.store.jobs.dead_letters import DeadFilter, DeadReasons, RetriedBatch
from tests.support.making import (
    THREE,
    Process,
    open_process,
    owned,
    rows,
    store_part,
)


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def test_a_dead_letter_is_retried_with_all_its_attempts_and_its_parts(process: Process) -> None:
    await process.accepted("talk-1")
    jobs = owned(process, "here/one", attempts_max=1)
    (one,) = await jobs.lease(1)
    await store_part(jobs, one, "emotion", "test/1", THREE["emotion"])
    await jobs.fail(one, "why", {"questions": ("test/1", "why")}, later=0)
    await jobs.retry(WHOLE_DEFAULT, "talk-1")
    assert await process.state() == ("ready", 0)
    assert (await process.leased()).parts == {"emotion": THREE["emotion"]}


async def test_only_a_dead_letter_can_be_retried(process: Process) -> None:
    with pytest.raises(NotFound, match="'talk-1'"):
        await process.jobs.retry(WHOLE_DEFAULT, "talk-1")
    await process.accepted("talk-1")
    with pytest.raises(NotDead, match="is ready"):
        await process.jobs.retry(WHOLE_DEFAULT, "talk-1")
    one = await process.leased()
    with pytest.raises(NotDead, match="is leased"):
        await process.jobs.retry(WHOLE_DEFAULT, "talk-1")
    await process.settler.settle(await process.analysed(one))
    with pytest.raises(NotDead, match="is done"):
        await process.jobs.retry(WHOLE_DEFAULT, "talk-1")


async def test_an_acknowledged_dead_letter_stays_dead_and_a_retried_one_has_to_be_reviewed_anew(
    process: Process,
) -> None:
    unreviewed = "SELECT count(*)::integer FROM job WHERE state = 'dead' AND reviewed_at IS NULL"
    await process.accepted("talk-1")
    jobs = owned(process, "here/one", attempts_max=1)
    with pytest.raises(NotFound, match="'talk-2'"):
        await jobs.acknowledge(WHOLE_DEFAULT, "talk-2")
    with pytest.raises(NotDead, match="is ready"):
        await jobs.acknowledge(WHOLE_DEFAULT, "talk-1")
    for _ in range(2):
        (one,) = await jobs.lease(1)
        await jobs.fail(one, "why", {}, later=0)
        assert await rows(process.postgres, unreviewed) == [(1,)]
        assert await jobs.acknowledge(WHOLE_DEFAULT, "talk-1") == 1
        assert await jobs.acknowledge(WHOLE_DEFAULT, "talk-1") == 1
        assert await process.state() == ("dead", 1)
        assert await rows(process.postgres, unreviewed) == [(0,)]
        await jobs.retry(WHOLE_DEFAULT, "talk-1")


# --- many at once

ALL = DeadFilter()
REVIVED = "SELECT conversation_id FROM job JOIN conversation USING (seq) WHERE state = 'ready' ORDER BY seq"


async def buried(process: Process, *reasons: str, prefix: str = "talk", **fields: str) -> None:
    """Accept and bury a conversation for each reason."""
    jobs = owned(process, "here/one", attempts_max=1)
    for number, reason in enumerate(reasons, 1):
        await process.accepted(f"{prefix}-{number}", **fields)
        (one,) = await jobs.lease(1)
        await jobs.fail(one, reason, {}, later=0)


async def retried(process: Process, wanted: DeadFilter, *, limit: int = 100, dry_run: bool = False) -> list[int]:
    """Retry batch after batch; return the size of each."""
    sizes, after = [], 0
    while True:
        batch = await process.jobs.retry_many(WHOLE_DEFAULT, wanted, after=after, limit=limit, dry_run=dry_run)
        sizes.append(batch.count)
        if batch.next_after is None:
            return sizes
        assert batch.next_after > after
        after = batch.next_after


def counted(found: DeadReasons) -> dict[str, int]:
    return {one.reason: one.count for one in found.reasons}


async def test_reasons_are_grouped_without_their_numbers_but_by_status(process: Process) -> None:
    await buried(
        process,
        "llm: answered 401",
        "llm: answered 401",
        "llm: answered 503",
        "llm was out since 2026-11-29 10:00; 5 attempts",
        "llm was out since 2026-11-28 09:59; 12 attempts",
        "llm was out since 2026-11-28 09:59; 12 attempts",
    )
    found = await process.jobs.dead_reasons(WHOLE_DEFAULT, ALL)
    assert counted(found) == {
        "llm was out since # #; # attempts": 3,
        "llm: answered 401": 2,
        "llm: answered 503": 1,
    }
    assert [one.count for one in found.reasons] == [3, 2, 1]
    assert (found.total, found.complete) == (6, True)
    assert all(one.oldest_at <= one.newest_at for one in found.reasons)


async def test_only_the_newest_are_counted_where_there_are_too_many(process: Process) -> None:
    await buried(process, "a", "b", "b")
    with mock.patch.object(dead_letters, "_COUNTED_MAX", 2):
        found = await process.jobs.dead_reasons(WHOLE_DEFAULT, ALL)
    assert (counted(found), found.total, found.complete) == ({"b": 2}, 2, False)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (ALL, ["a-1", "a-2", "a-3", "b-1"]),
        (DeadFilter(reason="401"), ["a-1"]),
        (DeadFilter(reason="LLM: Answered"), ["a-1", "a-2"]),
        (DeadFilter(reason="out since # #"), ["a-3"]),
        (DeadFilter(reason="out since 2026-11-29"), ["a-3"]),
        (DeadFilter(reason="out since 2026-11-30"), []),
        (DeadFilter(reason="%"), ["b-1"]),
        (DeadFilter(bot_id="bot-2"), ["b-1"]),
        (DeadFilter(user_id="user-2"), ["b-1"]),
        (DeadFilter(user_id="user-2", reason="401"), []),
        (DeadFilter(since=datetime(2001, 1, 1, tzinfo=UTC)), ["a-1", "a-2", "a-3", "b-1"]),
        (DeadFilter(since=datetime(2201, 1, 1, tzinfo=UTC)), []),
    ],
)
async def test_only_the_dead_letters_that_are_meant_are_retried(
    process: Process, wanted: DeadFilter, names: list[str]
) -> None:
    await buried(process, "llm: answered 401", "llm: answered 503", "llm was out since 2026-11-29 10:00", prefix="a")
    await buried(process, "100 % wrong", prefix="b", user_id="user-2", bot_id="bot-2")
    assert (await process.jobs.dead_reasons(WHOLE_DEFAULT, wanted)).total == len(names)
    assert await retried(process, wanted, dry_run=True) == [len(names)]
    assert await rows(process.postgres, REVIVED) == []
    assert await retried(process, wanted) == [len(names)]
    assert await rows(process.postgres, REVIVED) == [(name,) for name in names]
    assert (await ledger.totals(process.postgres)) == {"accepted": 4, "dead": 4 - len(names)}
    assert await retried(process, wanted) == [0]


async def test_batch_after_batch_looks_at_each_once_also_at_one_that_dies_again(process: Process) -> None:
    await buried(process, *("why" for _ in range(5)))
    first = await process.jobs.retry_many(WHOLE_DEFAULT, ALL, after=0, limit=2, dry_run=False)
    assert first.count == 2
    assert first.next_after is not None
    jobs = owned(process, "here/one", attempts_max=1)
    for one in await jobs.lease(2):
        await jobs.fail(one, "why", {}, later=0)
    second = await process.jobs.retry_many(WHOLE_DEFAULT, ALL, after=first.next_after, limit=3, dry_run=False)
    assert second.count == 3
    assert second.next_after is not None
    last = await process.jobs.retry_many(WHOLE_DEFAULT, ALL, after=second.next_after, limit=3, dry_run=False)
    assert last == RetriedBatch(count=0, next_after=None)
    assert (await process.jobs.dead_reasons(WHOLE_DEFAULT, ALL)).total == 2


async def test_a_batch_looks_at_no_more_than_its_bound_and_goes_on_behind_it(process: Process) -> None:
    await buried(process, "a", "a", "a", "b", "a")
    with mock.patch.object(dead_letters, "_LOOKED_AT_MAX", 2):
        assert await retried(process, DeadFilter(reason="b")) == [0, 1, 0]
    assert await rows(process.postgres, REVIVED) == [("talk-4",)]


async def test_two_operators_at_once_revive_each_dead_letter_once(process: Process) -> None:
    await buried(process, *("why" for _ in range(8)))
    counts: list[int] = []

    async def operate() -> None:
        counts.extend(await retried(process, ALL, limit=3))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(operate)
        nursery.start_soon(operate)
    assert sum(counts) == 8
    assert (await ledger.totals(process.postgres)) == {"accepted": 8, "dead": 0}


async def test_canaries_are_left_out(process: Process) -> None:
    await buried(process, "why", user_id="convo:canary")
    assert (await process.jobs.dead_reasons(WHOLE_DEFAULT, ALL)).total == 0
    assert await retried(process, ALL) == [0]
