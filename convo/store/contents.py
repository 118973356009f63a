"""What a database holds, in a few figures: for a person who is about to replace it."""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct

from convo.plural import plural
from convo.store.postgres import Connection, Postgres

# Enough to be recognised by; to count a hundred million would take longer than a person waits.
_COUNTED_MAX = 1_000_000
_FIGURES = f"""
SELECT (SELECT count(*) FROM (SELECT FROM public.conversation LIMIT {_COUNTED_MAX} + 1) AS counted) AS conversations,
       (SELECT received_at FROM public.conversation ORDER BY seq DESC LIMIT 1) AS newest_at,
       pg_database_size(current_database()) AS size_bytes
"""


class Contents(Struct, frozen=True, kw_only=True):
    """How many conversations a database holds, when the newest was received, and its size on the disk."""

    conversations: int
    newest_at: datetime | None
    size_bytes: int

    @property
    def description(self) -> str:
        """The contents in one line for a person."""
        if self.newest_at is None:
            return "no conversations"
        many = self.conversations > _COUNTED_MAX
        count = f"more than {_COUNTED_MAX:,}" if many else f"{self.conversations:,}"
        noun = plural(self.conversations, "conversation")
        size = f"{self.size_bytes / (1 << 20):,.0f} MiB"
        return f"{count} {noun}, the newest received at {self.newest_at:%Y-%m-%d %H:%M:%S} UTC; {size}"


async def read_contents(postgres: Postgres) -> Contents:
    """Read what the database holds.

    Raises:
        DatabaseUnavailable: it cannot be reached now.
    """

    async def body(connection: Connection) -> Contents:
        if await connection.fetchval("SELECT to_regclass('public.conversation')") is None:
            size = await connection.fetchval("SELECT pg_database_size(current_database())")
            return Contents(conversations=0, newest_at=None, size_bytes=size)
        return Contents(**dict(await connection.fetchrow(_FIGURES) or {}))

    return await postgres.run("db.contents", body)
