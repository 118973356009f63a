from __future__ import annotations

from convo.store import logs
from convo.store.jobs import brought
from convo.store.jobs.brought import Brought
from convo.store.postgres import Connection
from tests.support.making import THREE, Process, ask, open_process, store_part


async def test_a_lease_brings_the_log_and_what_an_earlier_one_found(database: str) -> None:
    async with open_process(database) as process:
        await process.accepted("talk-1")
        process.recent_logs.clear()
        first = await process.leased()
        await store_part(process.jobs, first, "emotion", "m/1", THREE["emotion"])
        await process.jobs.store_ticket(first, "memories", "ticket-1")
        await process.jobs.release(first)
        process.recent_logs.clear()

        lease = await process.leased()
        assert lease.parts == {"emotion": THREE["emotion"]}
        assert lease.tickets == {"memories": "ticket-1"}
        assert not process.recent_logs.lacks(lease.seq)
        packed = await process.recent_logs.take(lease.seq, lease.digest)
        assert packed is not None
        assert logs.hash_of(packed) == lease.log_hash


async def test_a_long_log_is_left_to_its_worker(database: str) -> None:
    async with open_process(database) as process:
        await process.accepted("talk-1")
        await ask(process.postgres, f"UPDATE conversation_log SET body = repeat('x', {brought.LOG_BYTES + 1})::bytea")
        process.recent_logs.clear()
        lease = await process.leased()
        assert process.recent_logs.lacks(lease.seq)
        assert len(await process.recent_logs.take(lease.seq, lease.digest) or b"") == brought.LOG_BYTES + 1


async def test_only_the_logs_that_are_wanted_come_along(database: str) -> None:
    async with open_process(database) as process:
        await process.accepted("talk-1", "talk-2")
        first, second = sorted([one.seq for one in process.taken])
        found = await brought_along(process, [first, second], [second])
    assert (found[first].log, len(found[second].log)) == ([], 1)
    assert (found[first].parts, found[first].tickets) == ({}, {})


async def brought_along(process: Process, seqs: list[int], logs_of: list[int]) -> dict[int, Brought]:
    async def body(connection: Connection) -> dict[int, Brought]:
        return await brought.bring(connection, seqs, logs_of=logs_of)

    return await process.postgres.run("test.bring", body)
