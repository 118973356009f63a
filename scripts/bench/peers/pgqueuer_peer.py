"""FastAPI and PgQueuer: the row and its job in one transaction, on an asyncpg connection of the application's pool.

``python pgqueuer_peer.py PORT DATABASE_URL`` serves; with ``worker FILE CONCURRENCY`` after it, it works instead:
a job does nothing but write its id and the time (the machine's monotonic clock, seconds) into FILE.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import uvloop
from fastapi import FastAPI
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from scripts.bench.peers import marks, wire

_TABLE = """
CREATE TABLE IF NOT EXISTS conversation (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    conversation_id text NOT NULL UNIQUE, user_id text NOT NULL, bot_id text NOT NULL,
    log jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now());
CREATE INDEX IF NOT EXISTS conversation_by_user ON conversation (user_id);
CREATE INDEX IF NOT EXISTS conversation_by_bot ON conversation (bot_id);
"""
_INSERT = """
INSERT INTO conversation (conversation_id, user_id, bot_id, log) VALUES ($1, $2, $3, $4)
ON CONFLICT (conversation_id) DO NOTHING RETURNING id
"""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep the pool for as long as the application runs."""
    async with asyncpg.create_pool(wire.database_url(), min_size=4, max_size=wire.pool_room(32)) as pool:
        app.state.pool = pool
        async with pool.acquire() as connection:
            await connection.execute(_TABLE)
            queries = Queries(AsyncpgDriver(connection))
            if not await queries.has_table("pgqueuer"):
                await queries.install()
        yield


app = FastAPI(lifespan=lifespan)


@app.post(wire.ROUTE, status_code=202)
async def end(ended: wire.ConversationEnded) -> dict[str, Any]:
    """Store the row and its job together; a conversation that is known makes no second job."""
    log = json.dumps(wire.transformed(ended))
    async with app.state.pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(_INSERT, ended.conversation_id, ended.user_id, ended.bot_id, log):
            await Queries(AsyncpgDriver(connection)).enqueue(["analyse"], [ended.conversation_id.encode()], [0])
    return wire.receipt(ended)


async def work(batch: int) -> None:
    """Work until SIGTERM."""
    connection = await asyncpg.connect(wire.database_url())
    queue = PgQueuer.from_asyncpg_connection(connection)

    @queue.entrypoint("analyse")
    async def analyse(job: Job) -> None:
        marks.mark((job.payload or b"").decode())

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, queue.shutdown.set)
    await queue.run(batch_size=batch)
    await connection.close()


if __name__ == "__main__":
    if sys.argv[3:4] == ["worker"]:
        marks.into(sys.argv[4])
        uvloop.run(work(int(sys.argv[5])))
    else:
        wire.run(app, loop="uvloop", http="httptools")
