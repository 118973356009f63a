"""A marker goes every way that there is through the store; once it is erased, it stands nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
import zstandard
from structlog.testing import capture_logs

from convo import erasure, user_erasure
from convo.conversation.model import Memories, MemoryFact, Questions
from convo.conversation.tenant import DEFAULT, WHOLE_DEFAULT
from convo.erase_again import erase_again
from convo.store import erasure_list
from convo.store.audit_log import NO_CALLER
from convo.store.backup import restore_backup, write_backup
from convo.store.outcomes import unpack_details
from convo.store.postgres import Connection
from tests.support.making import (
    THREE,
    Process,
    expire_leases,
    open_process,
    open_store,
    store_part,
    vacuum,
)
from tests.support.running import serving

MARKER = "xq-marker-4711"
TALK = f"talk-{MARKER}"


def remembered(operation: Any = "ADD", note: str = "") -> Memories:
    fact = MemoryFact(key=f"likes {MARKER}", text=f"Likes {MARKER} {note}", kind="like", operation=operation)
    return Memories(facts=(fact,))


async def every_way(process: Process, user_id: str) -> None:
    """Accept, a remote service's ticket, a park, a rescue, all attempts, burial, retry, settle, and a revision."""
    names = {"bot_name": MARKER, "bot_type": MARKER, "agent_tag": MARKER, "metadata": {"note": MARKER}, MARKER: 1}
    await process.accepted("older", user_id=user_id)
    await process.leased()
    await process.accepted(TALK, user_id=user_id, said=(f"I like {MARKER}.", f"{MARKER}?"), **names)
    lease = await process.leased()
    await process.jobs.store_ticket(lease, "memories", f"ticket {MARKER}")
    await process.jobs.park(lease, "llm", f"llm: 503 {MARKER}")
    lease = await process.leased()
    await expire_leases(process)
    await process.jobs.rescue()
    while True:
        (lease,) = [one for one in await process.jobs.lease(2) if one.conversation_id == TALK]
        if await process.jobs.fail(lease, f"400 {MARKER}", {"emotion": ("test/1", MARKER)}, later=0):
            break
    await process.jobs.retry(WHOLE_DEFAULT, TALK, NO_CALLER)
    (lease,) = [one for one in await process.jobs.lease(2) if one.conversation_id == TALK]
    await store_part(process.jobs, lease, "questions", "test/1", Questions(questions=(f"{MARKER}?",)))
    await store_part(process.jobs, lease, "memories", "test/1", remembered())
    await process.jobs.store_ticket(lease, "emotion", f"ticket {MARKER}")
    await store_part(process.jobs, lease, "emotion", "test/1", THREE["emotion"])
    await process.settler.settle(lease)
    if user_id != "mia":
        # A revision by a later conversation, which has the words, too.
        await process.accepted("newer", user_id=user_id)
        (lease,) = [one for one in await process.jobs.lease(2) if one.conversation_id == "newer"]
        await store_part(process.jobs, lease, "memories", "test/1", remembered("UPDATE", "still"))
        await process.jobs.store_ticket(lease, "emotion", f"ticket {MARKER}")


async def found_in(postgres: Any) -> list[str]:
    """Look for the marker in every row of every table, in texts, in bytes and in what bytes are the packed form of."""

    async def body(connection: Connection) -> list[str]:
        tables = await connection.fetch(
            "SELECT relname::text AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relkind IN ('r', 'p') AND NOT relispartition"
        )
        found = []
        for table in tables:
            rows = await connection.fetch(f"SELECT * FROM {table['name']}")
            found += [table["name"] for row in rows if any(MARKER.encode() in one for one in unpacked(row.values()))]
        statistics = "SELECT tablename FROM pg_stats WHERE concat(most_common_vals, histogram_bounds) LIKE $1"
        return found + [
            f"statistics of {row['tablename']}" for row in await connection.fetch(statistics, f"%{MARKER}%")
        ]

    return sorted(set(await postgres.run("test.scan", body)))


def unpacked(values: Any) -> Sequence[bytes]:
    found = []
    for value in values:
        if isinstance(value, bytes):
            found.append(value)
            with suppress(zstandard.ZstdError):
                found.append(zstandard.ZstdDecompressor().decompress(value, max_output_size=1 << 20))
            with suppress(zstandard.ZstdError, msgspec.DecodeError):
                found.append(msgspec.json.encode(unpack_details(value)))
        elif value is not None:
            found.append(str(value).encode())
    return found


@pytest.mark.parametrize("what", ["conversation", "user"])
async def test_after_an_erasure_and_a_vacuum_the_marker_stands_in_no_row_no_answer_and_no_log_line(
    database: str, empty_database: str, tmp_path: Path, what: str
) -> None:
    user_id = "mia" if what == "conversation" else f"mia-{MARKER}"
    with capture_logs() as lines:
        async with open_process(database) as process:
            await every_way(process, user_id)
            # Somebody else: a table without rows keeps the statistics that it had.
            await process.accepted("other-1", user_id="tom")
            (lease,) = [one for one in await process.jobs.lease(2) if one.user_id == "tom"]
            await process.settler.settle(await process.analysed(lease))
            await process.accepted("other-2", user_id="tom")
        await vacuum(database, "VACUUM ANALYZE")
        await write_backup(database, tmp_path / "backup")
        for url in (database, empty_database):
            if url == empty_database:
                # What was erased there is erased here by the list, without a request.
                async with open_store(database) as postgres:
                    listed = await postgres.run("test.list", partial(erasure_list.read_list, place="here"))
                    assert listed is not None
                await restore_backup(url, tmp_path / "backup", ending=erasure_list.restoring([listed]))
            await vacuum(url, "ANALYZE")
            async with open_process(url) as process:
                everywhere = await found_in(process.postgres)
                assert set(everywhere) >= {"conversation", "conversation_log", "memory", "outcome", "run"}
                # Of a job that is not done; the settled one has left none.
                assert ({"part", "part_ticket"} <= set(everywhere)) is (what == "user")
                if url == database:
                    await erased(process, what, user_id)
                else:
                    assert await erase_again(process.postgres, erased=lambda _: None)
            await vacuum(url, "VACUUM ANALYZE" if what == "user" else "VACUUM")
            async with open_store(url) as postgres:
                assert await found_in(postgres) == []
        async with serving(tmp_path / "data", database) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            for path in (
                *("/v1/conversations", "/v1/dead-letters", "/v1/users/mia/memories", "/v1/users/mia/relationship"),
                *("/v1/audit-log", "/metrics", "/v1/conversations?state=dead"),
            ):
                answer = await client.get(path)
                assert MARKER not in answer.text, path
    # Ids stand in log lines: the receipt says so.
    shown = [{name: text for name, text in line.items() if name != "conversation_id"} for line in lines]
    assert MARKER not in str(shown)


async def erased(process: Process, what: str, user_id: str) -> None:
    if what == "conversation":
        await erasure.erase_conversation(process.postgres, WHOLE_DEFAULT, TALK, NO_CALLER, erased=lambda _: None)
        return
    until = trio.current_time() + 10
    await user_erasure.erase_user(process.postgres, DEFAULT, user_id, NO_CALLER, erased=lambda _: None, until=until)
