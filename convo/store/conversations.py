"""What readers ask: one conversation, many, a user's relationship and memories; it changes nothing.

Rows come as mappings of the columns named in each query; the web layer makes answers of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from msgspec import Struct

from convo.conversation.model import CANARY_USER
from convo.errors import NotFound
from convo.store.postgres import RELAXED, Connection, Postgres

Row = Mapping[str, Any]
T = TypeVar("T")


class Found(Struct, frozen=True, kw_only=True):
    """One conversation with its job (``row``) and its stored parts by name."""

    row: Row
    parts: dict[str, Row]


class Reader:
    """Reads for the web layer, a pooled connection and a deadline each."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def one(self, conversation_id: str) -> Found:
        """Read one conversation.

        Raises:
            NotFound: there is none of this id.
        """

        async def body(connection: Connection) -> Found | None:
            row = await connection.fetchrow(_ONE, conversation_id)
            if row is None:
                return None
            return Found(row=row, parts={part["name"]: part for part in await connection.fetch(_PARTS, row["seq"])})

        return _there(await self._postgres.run("db.read", body, begin=RELAXED), conversation_id)

    async def log(self, conversation_id: str) -> Row:
        """Read one conversation's packed log (``body``), with ``started_at`` and ``ended_at``.

        Raises:
            NotFound: there is none of this id.
        """

        async def body(connection: Connection) -> Row | None:
            return await connection.fetchrow(_LOG, conversation_id)

        return _there(await self._postgres.run("db.read", body, begin=RELAXED), conversation_id)

    async def many(
        self, *, user_id: str | None, bot_id: str | None, state: str | None, before: int | None, limit: int
    ) -> Sequence[Row]:
        """Read up to ``limit`` conversations, newest first, those with a smaller ``seq`` than ``before``."""
        values = [value for value in (user_id, bot_id) if value is not None]
        filters = [_NO_CANARY, *([] if user_id is None else ["c.user_id = $1"])]
        filters += [] if bot_id is None else [f"c.bot_id = ${len(values)}"]
        filters += [] if before is None else [f"c.seq < {before:d}"]
        # A state stands in the query's own text: only then does the planner see the partial index of that state.
        filters += [] if state is None else [_STATES[state]]
        query = f"{_MANY} WHERE {' AND '.join(filters)} ORDER BY c.seq DESC LIMIT {limit:d}"

        async def body(connection: Connection) -> Sequence[Row]:
            return await connection.fetch(query, *values)

        return await self._postgres.run("db.list", body, begin=RELAXED)

    async def relationship(self, user_id: str) -> Sequence[Row]:
        """Read a user's relationship, a row a bot, the one with the newest conversation first."""

        async def body(connection: Connection) -> Sequence[Row]:
            return await connection.fetch(_RELATIONSHIP, user_id)

        return await self._postgres.run("db.read", body, begin=RELAXED)

    async def memories(self, user_id: str, *, before: int | None, limit: int) -> Sequence[Row]:
        """Read up to ``limit`` memories of a user, newest first, of those with a ``memory_seq`` below ``before``."""

        async def body(connection: Connection) -> Sequence[Row]:
            return await connection.fetch(_MEMORIES, user_id, before, limit)

        return await self._postgres.run("db.read", body, begin=RELAXED)

    async def ping(self) -> None:
        """Ask the database for nothing, to see that it answers."""

        async def body(connection: Connection) -> None:
            await connection.fetchval("SELECT 1")

        await self._postgres.run("db.ping", body, begin=RELAXED)


def _there(found: T | None, conversation_id: str) -> T:
    if found is None:
        raise NotFound(f"there is no conversation {conversation_id!r}")
    return found


_NO_CANARY = f"c.user_id <> '{CANARY_USER}'"
_STATES = {state: f"job.state = '{state}'" for state in ("ready", "leased", "done", "dead")}
_SUMMARY = """
c.seq, c.conversation_id, c.user_id, c.bot_id, c.started_at, c.ended_at, c.received_at, c.turns,
job.state, job.attempts, job.last_error, job.score
"""
_ONE = f"""
SELECT {_SUMMARY}, c.bot_name, c.bot_type, c.agent_tag, c.digest, c.exchanges,
       job.waits_for, job.parked_since, job.breakdown, job.weights_version
FROM conversation c JOIN job USING (seq) WHERE c.conversation_id = $1
"""
_PARTS = "SELECT name, state, made_by, result, new_memories, error, updated_at FROM part WHERE seq = $1"
_LOG = """
SELECT c.conversation_id, c.started_at, c.ended_at, l.body
FROM conversation c JOIN conversation_log l USING (seq) WHERE c.conversation_id = $1
"""
_MANY = f"SELECT {_SUMMARY} FROM conversation c JOIN job USING (seq)"
_RELATIONSHIP = f"""
SELECT bot_id, score, conversations, last_emotion
FROM relationship c WHERE user_id = $1 AND {_NO_CANARY} ORDER BY last_seq DESC
"""
_MEMORIES = f"""
SELECT m.memory_seq, m.text, m.kind, m.first_seen_at, c.conversation_id
FROM memory m JOIN conversation c USING (seq)
WHERE m.user_id = $1 AND {_NO_CANARY} AND ($2::bigint IS NULL OR m.memory_seq < $2)
ORDER BY m.memory_seq DESC LIMIT $3
"""
