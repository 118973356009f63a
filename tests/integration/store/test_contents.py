from __future__ import annotations

from datetime import UTC, datetime

from convo.store import contents
from convo.store.contents import Contents, read_contents
from tests.support.asking import ask
from tests.support.making import open_store

INSERT = """
INSERT INTO conversation (conversation_id, user_id, bot_id, started_at, ended_at, received_at, turns, exchanges)
SELECT 'c' || n, 'u', 'b', now(), now(), '2026-11-29 10:00:00Z'::timestamptz + n * interval '1 minute', 1, 1
FROM generate_series(1, 3) n
"""


async def test_a_database_is_described_by_its_conversations(database: str) -> None:
    async with open_store(database) as postgres:
        assert (await read_contents(postgres)).description == "no conversations"
        await ask(database, INSERT)
        found = await read_contents(postgres)
    assert (found.conversations, found.newest_at) == (3, datetime(2026, 11, 29, 10, 3, tzinfo=UTC))
    assert found.description.startswith("3 conversations, the newest received at 2026-11-29 10:03:00 UTC; ")
    assert found.size_bytes > 1 << 20


async def test_a_database_without_our_tables_holds_no_conversations(empty_database: str) -> None:
    async with open_store(empty_database) as postgres:
        assert (await read_contents(postgres)).description == "no conversations"


def test_many_are_not_counted_to_the_last() -> None:
    many = Contents(
        conversations=contents._COUNTED_MAX + 1, newest_at=datetime(2026, 1, 2, tzinfo=UTC), size_bytes=1 << 30
    )
    assert (
        many.description
        == "more than 1,000,000 conversations, the newest received at 2026-01-02 00:00:00 UTC; 1,024 MiB"
    )
