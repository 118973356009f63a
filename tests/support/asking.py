"""What a test asks a database directly, without convo's own code."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import trio


async def ask(url: str, *queries: str) -> list[Any]:
    """Run each query on one new connection; return the first value of each result."""

    async def on_asyncio() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return [await connection.fetchval(query) for query in queries]
        finally:
            connection.terminate()

    return await trio.to_thread.run_sync(asyncio.run, on_asyncio())
