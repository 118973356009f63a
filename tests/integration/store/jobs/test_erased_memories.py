from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from convo import erasure
from convo.conversation.model import CANARY_USER
from convo.conversation.tenant import WHOLE_DEFAULT
from convo.erase import erase_canaries
from convo.store.audit_log import NO_CALLER
from convo.store.jobs.lease import Lease
from tests.integration.store.jobs.test_memories import known, leases, say
from tests.support.making import Process, ask, expire_leases, open_process, rows


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


async def erase(process: Process, lease: Lease) -> None:
    await erasure.erase_conversation(
        process.postgres, WHOLE_DEFAULT, lease.conversation_id, NO_CALLER, erased=lambda _: None
    )


async def test_the_retry_of_an_older_conversation_does_not_bring_back_what_was_erased(process: Process) -> None:
    first, second = await leases(process, 2)
    await say(process, second, ("tea", "ADD"))
    await erase(process, second)
    assert await say(process, first, ("tea", "ADD"), ("cake", "ADD")) == 1
    assert [text for text, _ in await known(process)] == [f"cake by {first.seq}"]


async def test_one_that_was_accepted_before_the_erasure_and_analysed_later_does_not_either(process: Process) -> None:
    (first,) = await leases(process, 1)
    await say(process, first, ("tea", "ADD"))
    await process.accepted("waits")
    await erase(process, first)
    (later,) = await process.jobs.lease(1)
    assert await say(process, later, ("tea", "UPDATE")) == 0
    assert await known(process) == []


async def test_what_a_later_conversation_adds_is_known_again_and_new(process: Process) -> None:
    (first,) = await leases(process, 1)
    await say(process, first, ("tea", "ADD"))
    await erase(process, first)
    await process.accepted("later")
    (later,) = await process.jobs.lease(1)
    assert await say(process, later, ("tea", "ADD")) == 1
    assert await known(process) == [(f"tea by {later.seq}", "later")]


async def test_what_a_service_still_lists_is_not_read_as_an_add_of_a_later_conversation(process: Process) -> None:
    (first,) = await leases(process, 1)
    await say(process, first, ("tea", "ADD"))
    await erase(process, first)
    await process.accepted("later")
    (later,) = await process.jobs.lease(1)
    assert await say(process, later, ("tea", "NONE"), listed=("tea",)) == 0
    assert await known(process) == []


async def test_another_user_of_the_same_words_is_not_barred(process: Process) -> None:
    (mine,) = await leases(process, 1)
    (other,) = await leases(process, 1, "user-2")
    await say(process, mine, ("tea", "ADD"))
    await erase(process, mine)
    assert await say(process, other, ("tea", "ADD")) == 1


async def test_a_tombstone_holds_hmacs_alone(process: Process) -> None:
    (first,) = await leases(process, 1)
    await say(process, first, ("tea", "ADD"), ("cake", "ADD"))
    await erase(process, first)
    found = await rows(process.postgres, "SELECT user_hmac, key_hmac, until_seq FROM erased_memory")
    assert [(len(user), len(key), seq) for user, key, seq in found] == [(16, 16, 1)] * 2
    assert len({key for _, key, _ in found}) == 2


async def test_canaries_leave_no_tombstones(process: Process) -> None:
    (first,) = await leases(process, 1, CANARY_USER)
    await say(process, first, ("tea", "ADD"))
    await expire_leases(process)
    await ask(
        process.postgres,
        "WITH x AS (UPDATE job SET state = 'dead', ended_at = now(), lease_token = NULL RETURNING 1) SELECT 1 FROM x",
    )
    assert await erase_canaries(process.postgres, [first.conversation_id]) == 1
    assert await ask(process.postgres, "SELECT count(*) FROM erased_memory") == 0
