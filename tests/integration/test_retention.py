from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from convo import erasure, retention, user_erasure
from convo.conversation.model import CANARY_USER
from convo.conversation.tenant import DEFAULT, WHOLE_DEFAULT
from convo.errors import Conflict, Erased, Expired
from convo.settings import BotRetention, RetentionSettings
from convo.store import audit, audit_log, ledger
from convo.store.audit_log import AuditEntry
from convo.store.conversations import Reader
from convo.store.jobs import counts
from convo.store.postgres import Connection
from tests.support.making import (
    THREE,
    Process,
    accept,
    ask,
    open_dedicated,
    open_process,
    remembering,
    rows,
    settled,
    shift_clock,
    store_part,
)

OWNED = ("conversation", "conversation_log", "job", "part", "run")


@pytest.fixture
async def process(database: str) -> AsyncIterator[Process]:
    async with open_process(database) as opened:
        yield opened


def after(**days: Any) -> RetentionSettings:
    return RetentionSettings(**days)


async def removed(process: Process, settings: RetentionSettings, page: int = 500) -> dict[str, int]:
    """Remove all that is over, as the keeper does; return the kinds of which something went."""
    found: dict[str, int] = {}

    async def body(connection: Connection, find: Any, position: Any) -> Any:
        over = await find(connection, settings, position, page)
        counted = await retention.count_over(connection, over)
        went = await retention.retire(connection, over)
        assert went == counted
        return over.position, went

    for find in retention.passes(settings).values():
        position, first = None, True
        while first or position:
            first = False
            position, went = await process.postgres.run("test.retire", partial(body, find=find, position=position))
            for kind, count in went.items():
                found[kind] = found.get(kind, 0) + count
    return {kind: count for kind, count in found.items() if count}


async def balanced(process: Process) -> bool:
    async with open_dedicated(process.postgres) as dedicated:
        gaps, odd = await ledger.gaps(dedicated), await audit.anomalies(dedicated)
    print(gaps, odd)
    return not gaps and not odd


async def stored(process: Process, *tables: str) -> dict[str, int]:
    return {table: await ask(process.postgres, f"SELECT count(*) FROM {table}") for table in tables or OWNED}


async def died(process: Process, *conversation_ids: str, **fields: Any) -> None:
    await process.accepted(*conversation_ids, **fields)
    for lease in await process.jobs.lease(len(conversation_ids)):
        assert await process.jobs.fail(msgspec.structs.replace(lease, attempts=4), "why", {}, later=0)


# --- conversations


@pytest.mark.parametrize("page", [1, 2, 500])
async def test_what_was_analysed_goes_with_all_that_it_has_and_the_books_balance(process: Process, page: int) -> None:
    await process.accepted("talk-1", "talk-2", "talk-3")
    await settled(process, 3)
    costs = "INSERT INTO part_cost (seq, call, part, made_by) SELECT seq, 1, 'emotion', 'm/1' FROM conversation"
    await ask(process.postgres, f"{costs} RETURNING 1")
    before = await rows(process.postgres, "SELECT user_id, bot_id, score, conversations FROM relationship")
    await shift_clock(process.postgres, "30 days 1 minute")
    await process.accepted("talk-4")
    assert await removed(process, after(conversations_days=30), page) == {"conversations": 3}
    assert await stored(process) == {"conversation": 1, "conversation_log": 1, "job": 1, "part": 0, "run": 0}
    assert await ask(process.postgres, "SELECT count(*) FROM part_cost") == 0
    assert await balanced(process)
    assert await ledger.totals(process.postgres) == {"accepted": 4, "done": 0, "retired": 3}
    after_ = await rows(process.postgres, "SELECT user_id, bot_id, score, conversations FROM relationship")
    assert after_ == before
    assert await removed(process, after(conversations_days=30), page) == {}


async def test_what_is_not_old_enough_stays(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    await shift_clock(process.postgres, "29 days 23 hours 59 minutes")
    every = after(conversations_days=30, logs_days=30, runs_days=30, dead_days=30, memories_days=30, audit_log_days=30)
    assert await removed(process, every) == {}


async def test_all_days_at_zero_look_through_nothing() -> None:
    assert retention.passes(RetentionSettings()) == {}
    assert retention.passes(after(bots={"pika": BotRetention(logs_days=0)})) == {}
    assert list(retention.passes(after(bots={"pika": BotRetention(logs_days=1)}))) == ["conversations"]


async def test_work_that_has_not_ended_never_goes(process: Process) -> None:
    await process.accepted("ready", "leased", "parked", "delayed")
    leases = await process.jobs.lease(4)
    await process.jobs.park(leases[2], "llm", "down")
    await process.jobs.fail(leases[3], "why", {}, later=1e7)
    await process.jobs.release(leases[0])
    await shift_clock(process.postgres, "400 days")
    every = after(conversations_days=1, logs_days=1, runs_days=1, dead_days=1)
    assert await removed(process, every) == {}
    assert await stored(process) == {"conversation": 4, "conversation_log": 4, "job": 4, "part": 0, "run": 3}
    assert await ledger.totals(process.postgres) == {"accepted": 4}


async def test_a_replay_of_what_has_expired_is_known_and_other_content_a_conflict(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    await shift_clock(process.postgres, "2 days")
    assert await removed(process, after(conversations_days=1)) == {"conversations": 1}
    again = await process.committer.accept(accept("talk-1"))
    assert (again.replayed, again.state) == (True, "expired")
    with pytest.raises(Conflict):
        await process.committer.accept(accept("talk-1", said=("Something else?",)))
    with pytest.raises(Expired, match="content"):
        await Reader(process.postgres, process.log_store).one(WHOLE_DEFAULT, "talk-1")
    assert await balanced(process)


async def test_a_canary_is_left_to_the_canaries(process: Process) -> None:
    await process.accepted("canary-1", user_id=CANARY_USER)
    await settled(process, 1)
    await shift_clock(process.postgres, "2 days")
    assert await removed(process, after(conversations_days=1, logs_days=1)) == {}


async def test_a_new_score_is_added_to_what_was_retired(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    await shift_clock(process.postgres, "2 days")
    await removed(process, after(conversations_days=1))
    await process.accepted("talk-2")
    await settled(process, 1)
    assert await balanced(process)
    found = await rows(process.postgres, "SELECT conversations, retired_conversations FROM relationship")
    assert found == [(2, 1)]
    await shift_clock(process.postgres, "4 days")
    await removed(process, after(conversations_days=1))
    assert await balanced(process)
    found = await rows(process.postgres, "SELECT conversations, retired_conversations FROM relationship")
    assert found == [(2, 2)]


async def test_the_audit_finds_a_relationship_that_lost_what_was_retired(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    await shift_clock(process.postgres, "2 days")
    await removed(process, after(conversations_days=1))
    await ask(process.postgres, "UPDATE relationship SET retired_score = retired_score - 1")
    assert not await balanced(process)


async def test_the_rate_of_those_done_is_not_lowered(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    await shift_clock(process.postgres, "2 days")
    await removed(process, after(conversations_days=1))
    recent = "SELECT coalesce(sum(n), 0)::integer FROM ledger WHERE at > convo_now() - interval '1 minute'"
    assert await ask(process.postgres, recent) == 0


# --- dead letters


async def test_dead_letters_go_by_their_death_alone_and_are_no_longer_counted(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    await shift_clock(process.postgres, "10 days")
    await died_of_leased(process)
    assert (await counts.count(process.postgres))[0]["dead"] == 2
    await shift_clock(process.postgres, "15 days")
    every = after(conversations_days=1, logs_days=1, runs_days=1, dead_days=7)
    assert await removed(process, every) == {}
    await shift_clock(process.postgres, "17 days 1 minute")
    assert await removed(process, every) == {"dead_letters": 2}
    found, _ = await counts.count(process.postgres)
    assert (found["dead"], found["ready"]) == (0, 0)
    assert await ledger.totals(process.postgres) == {"accepted": 2, "dead": 0, "retired": 2}
    assert await balanced(process)


async def died_of_leased(process: Process) -> None:
    for lease in await process.jobs.lease(2):
        assert await process.jobs.fail(msgspec.structs.replace(lease, attempts=4), "why", {}, later=0)


async def test_a_dead_letter_that_is_retried_meanwhile_stays(process: Process) -> None:
    await died(process, "talk-1", "talk-2")
    await shift_clock(process.postgres, "2 days")
    settings = after(dead_days=1)

    async def found(connection: Connection) -> retention.Over:
        return await retention.find_conversations(connection, settings, None, 500)

    over = await process.postgres.run("test.find", found)
    assert len(over.ended) == 2
    await process.jobs.retry(WHOLE_DEFAULT, "talk-1")
    await settled(process, 1)

    async def body(connection: Connection) -> Any:
        return await retention.retire(connection, over)

    went = await process.postgres.run("test.retire", body)
    assert (went["dead_letters"], went["conversations"]) == (1, 0)
    assert (await process.state("talk-1"))[0] == "done"
    assert await balanced(process)


# --- logs and runs


async def test_a_log_goes_before_its_conversation_which_says_so(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    await died(process, "dead-1")
    await shift_clock(process.postgres, "2 days")
    assert await removed(process, after(logs_days=1)) == {"logs": 1}
    assert await removed(process, after(logs_days=1)) == {}
    reader = Reader(process.postgres, process.log_store)
    with pytest.raises(Expired, match="log"):
        await reader.log_sizes(WHOLE_DEFAULT, "talk-1")
    assert (await reader.one(WHOLE_DEFAULT, "talk-1")).row["log_retired"]
    assert (await reader.log_sizes(WHOLE_DEFAULT, "dead-1")).packed_bytes
    assert await balanced(process)
    await shift_clock(process.postgres, "3 days")
    assert await removed(process, after(logs_days=1, conversations_days=1)) == {"conversations": 1}
    assert await balanced(process)


async def test_a_log_that_was_lost_is_found_beside_those_that_expired(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    await shift_clock(process.postgres, "2 days")
    await removed(process, after(logs_days=1))
    await process.accepted("talk-2")
    await ask(process.postgres, "DELETE FROM conversation_log")
    async with open_dedicated(process.postgres) as dedicated:
        (odd,) = await audit.anomalies(dedicated)
    assert (odd.what, odd.examples) == ("conversations without a log", ("talk-2",))


async def test_a_log_that_is_stored_although_it_expired_is_found(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    await ask(process.postgres, "UPDATE conversation SET log_retired = true")
    async with open_dedicated(process.postgres) as dedicated:
        (odd,) = await audit.anomalies(dedicated)
    assert (odd.what, odd.examples) == ("logs that are stored and count as expired", ("talk-1",))


async def test_runs_go_by_their_own_time_and_only_of_what_was_analysed(process: Process) -> None:
    await died(process, "dead-1")
    await process.accepted("early", "late")
    await process.jobs.release(await process.leased())
    await settled(process, 1)
    await shift_clock(process.postgres, "5 days")
    await process.jobs.release(await process.leased())
    await settled(process, 1)
    assert await removed(process, after(runs_days=1)) == {"runs": 1}
    assert await ask(process.postgres, "SELECT count(*) FROM run") == 2


# --- bots


async def test_a_bot_has_days_of_its_own(process: Process) -> None:
    await process.accepted("talk-1", bot_id="pika")
    await process.accepted("talk-2", bot_id="kept")
    await process.accepted("talk-3", bot_id="other")
    await settled(process, 3)
    await shift_clock(process.postgres, "10 days")
    bots = {"pika": BotRetention(conversations_days=5), "kept": BotRetention(logs_days=0)}
    settings = after(logs_days=7, bots=bots)
    assert await removed(process, settings, page=1) == {"conversations": 1, "logs": 1}
    left = await rows(process.postgres, "SELECT conversation_id, log_retired FROM conversation ORDER BY seq")
    assert left == [("talk-2", None), ("talk-3", True)]
    assert await balanced(process)


# --- memories


async def test_a_memory_goes_when_nobody_has_spoken_of_it_for_so_long(process: Process) -> None:
    for n, said in enumerate((("old", "renewed"), ("renewed",))):
        await process.accepted(f"talk-{n}")
        (lease,) = await process.jobs.lease(1)
        await store_part(process.jobs, lease, "memories", "test/1", remembering(*said))
        await process.jobs.release(lease, later=1e7)
        await shift_clock(process.postgres, "20 days")
    assert await removed(process, after(memories_days=10), page=1) == {"memories": 1}
    assert await rows(process.postgres, "SELECT key FROM memory") == [("renewed",)]


async def test_memories_and_the_relationship_outlive_the_conversations(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    await shift_clock(process.postgres, "2 days")
    await removed(process, after(conversations_days=1))
    reader = Reader(process.postgres, process.log_store)
    (memory,) = await reader.memories(WHOLE_DEFAULT, "user-1", before=None, limit=9)
    assert (memory["text"], memory["conversation_id"]) == ("Likes Paris", None)
    assert (await reader.relationship(WHOLE_DEFAULT, "user-1", before=None, limit=9)).sums["total_conversations"] == 1
    await shift_clock(process.postgres, "9 days")
    assert await removed(process, after(memories_days=3)) == {"memories": 1}
    assert await reader.memories(WHOLE_DEFAULT, "user-1", before=None, limit=9) == []


async def test_a_memory_that_is_spoken_of_meanwhile_stays(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    await shift_clock(process.postgres, "9 days")
    settings = after(memories_days=3)

    async def found(connection: Connection) -> retention.Over:
        return await retention.find_memories(connection, settings, None, 500)

    over = await process.postgres.run("test.find", found)
    assert len(over.memories) == 1
    await process.accepted("talk-2")
    await settled(process, 1)

    async def body(connection: Connection) -> Any:
        return await retention.retire(connection, over)

    assert (await process.postgres.run("test.retire", body))["memories"] == 0


# --- the audit log


async def test_rows_of_the_audit_log_go_by_their_time(process: Process) -> None:
    async def add(connection: Connection) -> None:
        await audit_log.append(connection, *[AuditEntry(action="reload")] * 3)

    await process.postgres.run("test.add", add)
    await shift_clock(process.postgres, "2 days")
    await process.postgres.run("test.add", add)
    assert await removed(process, after(audit_log_days=1), page=2) == {"audit_rows": 3}
    assert await ask(process.postgres, "SELECT count(*) FROM audit_log") == 3


# --- turns


async def test_a_job_that_waits_for_a_worker_comes_first(process: Process) -> None:
    await process.accepted("talk-1")
    assert await process.postgres.run("test.turn", retention.take_turn)
    await shift_clock(process.postgres, "2 seconds")
    assert not await process.postgres.run("test.turn", retention.take_turn)
    await process.jobs.lease(1)
    assert await process.postgres.run("test.turn", retention.take_turn)


async def test_one_transaction_at_a_time_has_the_turn(process: Process) -> None:
    holding = trio.Event()

    async def body(connection: Connection) -> None:
        assert await retention.take_turn(connection)
        holding.set()
        await connection.execute("SELECT pg_sleep(30)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.postgres.run, "test.hold", body)
        await holding.wait()
        assert not await process.postgres.run("test.turn", retention.take_turn)
        nursery.cancel_scope.cancel()


# --- and erasure

ERASED: dict[str, Any] = {"caller": audit_log.NO_CALLER, "erased": lambda _seqs: None}


async def relationships(process: Process) -> list[Any]:
    columns = "score, conversations, retired_score, retired_conversations, last_emotion"
    return list(await rows(process.postgres, f"SELECT {columns} FROM relationship"))


async def test_what_is_erased_is_taken_off_and_what_was_retired_stays_in_the_sum(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    await shift_clock(process.postgres, "31 days")
    await process.accepted("talk-2")
    await settled(process, 1)
    assert await removed(process, after(conversations_days=30)) == {"conversations": 1}
    ((score, number, retired_score, retired, _),) = await relationships(process)
    assert (number, retired) == (2, 1)
    await erasure.erase_conversation(process.postgres, WHOLE_DEFAULT, "talk-2", **ERASED)
    assert await relationships(process) == [(retired_score, 1, retired_score, 1, "neutral")]
    assert score > retired_score
    assert await balanced(process)


async def test_a_retired_conversation_is_erased_from_its_receipt(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    await shift_clock(process.postgres, "31 days")
    assert await removed(process, after(conversations_days=30)) == {"conversations": 1}
    hashed = await ask(process.postgres, "SELECT id_hash FROM receipt")
    await erasure.erase_conversation(process.postgres, WHOLE_DEFAULT, "talk-1", **ERASED)
    assert await rows(process.postgres, "SELECT state::text FROM receipt") == [("e",)]
    assert await ask(process.postgres, "SELECT id_hash FROM receipt") != hashed
    assert await balanced(process)
    with pytest.raises(Erased):
        await process.committer.accept(accept("talk-1"))


async def test_with_a_retired_conversation_goes_what_is_remembered_from_it_and_does_not_come_back(
    process: Process,
) -> None:
    for name in ("talk-0", "talk-1", "talk-2"):
        await process.accepted(name)
    late, *leases = await process.jobs.lease(3)
    for lease, key in zip(leases, ("a dog", "a cat"), strict=True):
        await process.settler.settle(await process.analysed(lease, THREE | {"memories": remembering(key)}))
    await shift_clock(process.postgres, "31 days")
    assert await removed(process, after(conversations_days=30)) == {"conversations": 2}
    erased = await erasure.erase_conversation(process.postgres, WHOLE_DEFAULT, leases[0].conversation_id, **ERASED)
    assert erased.counts.removed["memory"] == 1
    assert await rows(process.postgres, "SELECT key FROM memory") == [("a cat",)]
    await store_part(process.jobs, late, "memories", "test/1", remembering("a dog"))
    assert await rows(process.postgres, "SELECT key FROM memory") == [("a cat",)]


async def test_with_a_user_goes_what_was_retired_of_the_relationship(process: Process) -> None:
    await process.accepted("talk-1", "talk-2")
    await settled(process, 2)
    await shift_clock(process.postgres, "31 days")
    await process.accepted("talk-3")
    await settled(process, 1)
    assert await removed(process, after(conversations_days=30)) == {"conversations": 2}
    user = await ask(process.postgres, "SELECT user_id FROM relationship")
    await user_erasure.erase_user(process.postgres, DEFAULT, user, until=trio.current_time() + 60, **ERASED)
    assert await relationships(process) == []
    assert await balanced(process)


async def test_what_a_user_keeps_after_the_erasure_is_the_whole_sum(process: Process) -> None:
    await process.accepted("talk-1")
    await settled(process, 1)
    await shift_clock(process.postgres, "31 days")
    assert await removed(process, after(conversations_days=30)) == {"conversations": 1}
    await process.accepted("talk-2")
    await settled(process, 1)
    score = await ask(process.postgres, "SELECT score FROM every_job")
    # As if it had been received while the erasure was under way.
    await shift_clock(process.postgres, "30 days")
    await user_erasure.erase_user(process.postgres, DEFAULT, "user-1", until=trio.current_time() + 60, **ERASED)
    assert await relationships(process) == [(score, 1, None, None, "happy")]
    assert await balanced(process)
