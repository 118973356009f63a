"""The plans and buffers of the queries of a unit of work, read through the product's own methods."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from convo.store.postgres import Postgres


class Planning:
    """Stands for a ``Postgres``: each query is run under EXPLAIN ANALYZE, its plan is kept, and it returns no rows."""

    def __init__(self, postgres: Postgres, setting: str = "") -> None:
        self.plans: list[str] = []
        self._postgres = postgres
        self._setting = setting

    async def run(self, name: str, body: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
        async def planned(connection: Any) -> Any:
            if self._setting:
                await connection.execute(f"SET LOCAL {self._setting}")
            return await body(_Connection(connection, self.plans))

        return await self._postgres.run(name, planned, **options)


class _Connection:
    def __init__(self, connection: Any, plans: list[str]) -> None:
        self._connection = connection
        self._plans = plans

    async def fetch(self, query: str, *values: object) -> list[Any]:
        rows = await self._connection.fetch(f"EXPLAIN (ANALYZE, TIMING OFF) {query}", *values)
        self._plans.append("\n".join(row["QUERY PLAN"] for row in rows))
        return []

    async def fetchval(self, query: str, *values: object) -> None:
        await self.fetch(query, *values)

    async def execute(self, query: str, *values: object) -> str:
        await self.fetch(query, *values)
        return ""


class Counting:
    """Stands for a ``Postgres``: counts how many buffers of ``job`` and its indexes the last unit of work touched."""

    def __init__(self, postgres: Postgres) -> None:
        self.buffers = 0
        self._postgres = postgres

    async def run(self, name: str, body: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
        async def counted(connection: Any) -> Any:
            before = await connection.fetchval(_BUFFERS)
            found = await body(connection)
            self.buffers = await connection.fetchval(_BUFFERS) - before
            return found

        return await self._postgres.run(name, counted, **options)


# What a session has counted is not only of this transaction: hence the difference.
_BUFFERS = """
SELECT sum(pg_stat_get_xact_blocks_fetched(oid))::bigint FROM (
    SELECT 'job'::regclass AS oid UNION ALL SELECT indexrelid FROM pg_index WHERE indrelid = 'job'::regclass) AS job
"""
