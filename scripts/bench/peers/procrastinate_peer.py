"""FastAPI and Procrastinate: the row and its job in one transaction, on the application's own psycopg connection.

``python procrastinate_peer.py PORT DATABASE_URL`` serves; with ``worker FILE CONCURRENCY`` after it, it works instead:
a job does nothing but write its id and the time (the machine's monotonic clock, seconds) into FILE.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import procrastinate
from fastapi import FastAPI
from procrastinate import exceptions
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from scripts.bench.peers import marks, wire

_TABLE = """
CREATE TABLE IF NOT EXISTS conversation (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    conversation_id text NOT NULL UNIQUE, user_id text NOT NULL, bot_id text NOT NULL,
    bot_name text, bot_type text, agent_tag text, start_time timestamptz, end_time timestamptz,
    log jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now());
CREATE INDEX IF NOT EXISTS conversation_by_user ON conversation (user_id);
CREATE INDEX IF NOT EXISTS conversation_by_bot ON conversation (bot_id);
"""
_INSERT = """
INSERT INTO conversation (conversation_id, user_id, bot_id, bot_name, bot_type, agent_tag, start_time, end_time, log)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (conversation_id) DO NOTHING
"""

jobs = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=wire.database_url()))
pool = AsyncConnectionPool(wire.database_url(), min_size=4, max_size=wire.pool_room(32), open=False)


@jobs.task(name="analyse")
async def analyse(conversation_id: str) -> None:
    """Do nothing but say when it started."""
    marks.mark(conversation_id)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Keep both pools for as long as the application runs."""
    async with pool, jobs.open_async():
        await _prepare()
        yield


async def _prepare() -> None:
    async with pool.connection() as connection:
        await connection.execute(_TABLE)
    try:
        await jobs.schema_manager.apply_schema_async()
    except exceptions.ConnectorException:
        # There already: it is not made to be applied twice.
        return


app = FastAPI(lifespan=lifespan)


@app.post(wire.ROUTE, status_code=202)
async def end(ended: wire.ConversationEnded) -> dict[str, Any]:
    """Store the row and its job together; a conversation that is known makes no second job."""
    meta = ended.model_dump(exclude={"conversation_logs"})
    async with pool.connection() as connection:
        inserted = await connection.execute(_INSERT, (*meta.values(), Jsonb(wire.transformed(ended))))
        if inserted.rowcount:
            await analyse.configure(connection=connection).defer_async(conversation_id=ended.conversation_id)
    return wire.receipt(ended)


async def work(concurrency: int) -> None:
    """Work until SIGTERM."""
    async with jobs.open_async():
        await jobs.run_worker_async(concurrency=concurrency, delete_jobs="never")


if __name__ == "__main__":
    if sys.argv[3:4] == ["worker"]:
        marks.into(sys.argv[4])
        asyncio.run(work(int(sys.argv[5])))
    else:
        wire.run(app, loop="uvloop", http="httptools")
