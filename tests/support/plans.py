"""The plans that PostgreSQL makes for the queries of a unit of work, read through the product's own methods."""

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
