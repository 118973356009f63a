from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import trio

from convo import erasure, user_erasure
from convo.conversation.tenant import DEFAULT, WHOLE_DEFAULT
from convo.store import audit, ledger
from convo.store.audit_log import Caller
from convo.store.imported import BookedTotals, EarlierTotal, book_totals
from convo.store.postgres import Connection
from tests.support.making import Process, ask, open_dedicated, open_process, rows

CALLER = Caller(key_id="5f0c9a7e3b1d", address="192.0.2.7")


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


def total(user_id: str, bot_id: str, score: int, **fields: Any) -> EarlierTotal:
    return EarlierTotal(user_id=user_id, bot_id=bot_id, score=score, **fields)


async def booked(process: Process, import_id: str, *totals: EarlierTotal) -> BookedTotals:
    async def body(connection: Connection) -> BookedTotals:
        return await book_totals(connection, DEFAULT, import_id, totals)

    return await process.postgres.run("db.import", body)


async def score_of(process: Process, user_id: str) -> tuple[int, int, list[str]]:
    """Return the sums of a user's scores and conversations, and the bots, the one with the newest first."""
    query = "SELECT score, conversations, bot_id FROM relationship WHERE user_id = $1 ORDER BY last_seq DESC"
    found = await rows(process.postgres, query, user_id)
    return sum(row[0] for row in found), sum(row[1] for row in found), [row[2] for row in found]


async def settled(process: Process, conversation_id: str, **fields: Any) -> None:
    await process.accepted(conversation_id, **fields)
    await process.settler.settle(await process.analysed(await process.leased()))


async def differences(process: Process) -> list[object]:
    async with open_dedicated(process.postgres) as dedicated:
        return [*await ledger.gaps(dedicated), *await audit.anomalies(dedicated)]


async def test_a_total_is_added_once_under_an_id_before_and_after_conversations(process: Process) -> None:
    await settled(process, "talk-1", user_id="mia", bot_id="pika")
    before, _, _ = await score_of(process, "mia")
    totals = (total("mia", "pika", 700, conversations=12), total("mia", "owl", 50), total("tom", "pika", 3100))

    assert await booked(process, "cutover", *totals) == BookedTotals(added=3)
    assert await booked(process, "cutover", *totals, total("tom", "owl", 1)) == BookedTotals(added=1, before=3)

    assert await score_of(process, "mia") == (before + 750, 14, ["owl", "pika"])
    assert (await score_of(process, "tom"))[0] == 3101
    await settled(process, "talk-2", user_id="tom", bot_id="pika")
    after = await score_of(process, "tom")
    assert (after[0], after[2][0]) == (3101 + before, "pika")
    assert await differences(process) == []
    # Under another id it is another total.
    assert await booked(process, "second", total("tom", "pika", 10)) == BookedTotals(added=1)
    assert (await score_of(process, "tom"))[0] == 3111 + before
    assert await differences(process) == []


async def test_two_imports_at_once_add_it_once(process: Process) -> None:
    totals = [total(f"user-{number}", "pika", 500) for number in range(50)]
    found: list[BookedTotals] = []

    async def one(order: list[EarlierTotal]) -> None:
        found.append(await booked(process, "cutover", *order))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, totals)
        nursery.start_soon(one, totals[::-1])
    assert sorted((one.added, one.before) for one in found) == [(0, 50), (50, 0)]
    assert await ask(process.postgres, "SELECT sum(score) FROM relationship") == 25_000


async def test_what_was_erased_is_not_brought_back_and_what_was_imported_can_be_erased(process: Process) -> None:
    await settled(process, "talk-1", user_id="mia", bot_id="pika")
    await booked(process, "cutover", total("mia", "pika", 700), total("tom", "pika", 900))

    await erasure.erase_conversation(process.postgres, WHOLE_DEFAULT, "talk-1", CALLER, erased=process.ended.extend)
    assert (await score_of(process, "mia"))[0] == 700
    assert await differences(process) == []

    for user in ("mia", "tom"):
        until = trio.current_time() + 5
        await user_erasure.erase_user(
            process.postgres, DEFAULT, user, CALLER, erased=process.ended.extend, until=until, dry_run=False
        )
    assert await ask(process.postgres, "SELECT count(*) FROM relationship") == 0
    assert await booked(process, "other", total("mia", "pika", 700)) == BookedTotals(erased=1)
    assert await ask(process.postgres, "SELECT count(*) FROM relationship") == 0
    assert await differences(process) == []


@pytest.mark.parametrize(
    "line",
    [
        b'{"user_id":"a","bot_id":"b"}',
        b'{"user_id":"a","bot_id":"b","score":-1}',
        b'{"user_id":"a","bot_id":"b","score":1.5}',
        b'{"user_id":"..","bot_id":"b","score":1}',
        b'{"user_id":"a","bot_id":"b","score":1,"conversations":0}',
        b'{"user_id":"a","bot_id":"b","score":1,"conversatoins":3}',
    ],
)
def test_a_total_that_is_none_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(line, type=EarlierTotal)
