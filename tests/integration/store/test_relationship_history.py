from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from msgspec import structs

from convo.conversation.tenant import WHOLE_DEFAULT, Reach
from convo.errors import NotFound
from convo.store.conversations import Reader
from convo.store.relationship_history import FoundHistory, HistoryPlace
from tests.support.making import Process, ask, deleted, open_process, settled
from tests.support.tenants import ACME, OF_ACME, accept_of, make_tenants

PIKA = Reach(bots=("pika",))


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as found:
        yield found


async def page(
    process: Process,
    *,
    reach: Reach = WHOLE_DEFAULT,
    bot_id: str | None = None,
    place: HistoryPlace | None = None,
    limit: int = 50,
) -> FoundHistory:
    reader = Reader(process.postgres, process.log_store)
    return await reader.history(reach, "user-1", bot_id, place=place, limit=limit)


def told(found: FoundHistory) -> list[tuple[str, int, int]]:
    return [(point.conversation_id, point.points, point.score) for point in found.points]


async def scored(process: Process, *scores: int, bot_id: str = "pika", of: str = "talk") -> None:
    """Have conversations of one user that were scored so, one after the other."""
    for number, score in enumerate(scores):
        name = f"{of}-{number}"
        await process.accepted(name, bot_id=bot_id, user_id="user-1")
        await settled(process, 1)
        of_it = "(SELECT seq FROM conversation WHERE conversation_id = $2)"
        before = await ask(process.postgres, f"SELECT score FROM outcome WHERE seq = {of_it} AND $1 = 0", 0, name)
        await ask(process.postgres, f"UPDATE outcome SET score = $1 WHERE seq = {of_it}", score, name)
        moved = "UPDATE relationship SET score = score + $1 WHERE user_id = 'user-1' AND bot_id = $2"
        await ask(process.postgres, moved, score - before, bot_id)


async def test_each_point_has_the_sum_after_it(process: Process) -> None:
    await scored(process, 5, 0, 7)
    await scored(process, 100, bot_id="tom", of="other")
    assert told(await page(process)) == [
        ("other-0", 100, 112),
        ("talk-2", 7, 12),
        ("talk-1", 0, 5),
        ("talk-0", 5, 5),
    ]
    of_pika = [("talk-2", 7, 12), ("talk-1", 0, 5), ("talk-0", 5, 5)]
    assert told(await page(process, bot_id="pika")) == of_pika
    # Who reaches one bot only sees that one's points and sums.
    assert told(await page(process, reach=PIKA)) == of_pika
    assert told(await page(process, reach=PIKA, bot_id="tom")) == []


async def test_pages_go_on_with_the_sum(process: Process) -> None:
    await scored(process, 1, 2, 3, 4)
    found: list[tuple[str, int, int]] = []
    place: HistoryPlace | None = None
    pages = 0
    while pages == 0 or place is not None:
        one = await page(process, place=place, limit=1)
        found, place, pages = [*found, *told(one)], one.next_place, pages + 1
    assert found == [("talk-3", 4, 10), ("talk-2", 3, 6), ("talk-1", 2, 3), ("talk-0", 1, 1)]
    assert pages == 4


async def test_what_is_not_scored_has_no_point_and_what_is_gone_stays_in_the_sum(process: Process) -> None:
    await scored(process, 1, 2, 3)
    await process.accepted("waiting-1", user_id="user-1", bot_id="pika")
    assert told(await page(process, limit=1)) == []
    assert told(await page(process)) == [("talk-2", 3, 6), ("talk-1", 2, 3), ("talk-0", 1, 1)]
    await deleted(process, "outcome", "talk-0")
    assert told(await page(process)) == [("talk-2", 3, 6), ("talk-1", 2, 3)]


async def test_of_a_conversation_with_revisions_the_newest_counts(process: Process) -> None:
    await scored(process, 4, 6)
    await ask(process.postgres, "UPDATE conversation SET revised_by = 2 WHERE conversation_id = 'talk-0'")
    await ask(process.postgres, "UPDATE relationship SET score = 6")
    assert told(await page(process)) == [("talk-1", 6, 6)]


async def test_a_history_is_of_one_tenant(process: Process) -> None:
    await make_tenants(process.postgres)
    await scored(process, 4)
    await process.committer.accept(accept_of(ACME, "theirs-1", user_id="user-1", bot_id="pika"))
    await settled(process, 1)
    assert [name for name, _, _ in told(await page(process))] == ["talk-0"]
    assert [name for name, _, _ in told(await page(process, reach=OF_ACME))] == ["theirs-1"]
    with pytest.raises(NotFound):
        await page(process, reach=structs.replace(OF_ACME, tenant=structs.replace(ACME, number=9, name="nobody")))
