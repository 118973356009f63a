"""The published fix of the incident: all of it asynchronous, and the publish after the answer.

FastAPI on uvicorn with uvloop and httptools; SQLAlchemy on asyncpg with a pool of 50 and 100 more, and a wait of 10 s;
the log is transformed in a thread; the message is published by a task that nobody waits for (and that a stop loses).
``python seed_after.py PORT DATABASE_URL jsonb|message``: the log in the row, or in the message alone.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from scripts.bench.peers import wire
from scripts.bench.peers.tables import Base, ConversationEvent, row

_IN_ROW = sys.argv[3] == "jsonb"
_QUEUE = f"bench.seed_after.{sys.argv[3]}"

engine = create_async_engine(
    wire.database_url("asyncpg"),
    pool_size=wire.pool_room(50),
    max_overflow=wire.pool_room(150) - wire.pool_room(50),
    pool_timeout=10,
)
sessions = async_sessionmaker(engine, expire_on_commit=False)
# asyncio keeps only weak references to its tasks.
publishing: set[asyncio.Task[Any]] = set()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep the broker's connection and channel for as long as the application runs."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with await aio_pika.connect_robust(wire.RABBIT) as connection:
        app.state.channel = await connection.channel()
        await app.state.channel.declare_queue(_QUEUE, durable=True, arguments=wire.QUEUE_ARGUMENTS)
        yield


app = FastAPI(lifespan=lifespan)


@app.post(wire.ROUTE, status_code=202)
async def end(ended: wire.ConversationEnded) -> dict[str, Any]:
    """Look whether it is known, store it, and answer; the publish comes some time later."""
    log = await asyncio.to_thread(wire.transformed, ended)
    async with sessions() as session:
        known = select(ConversationEvent.id).where(ConversationEvent.conversation_id == ended.conversation_id)
        if await session.scalar(known) is None:
            session.add(row(ended, log if _IN_ROW else None))
            await session.commit()
    task = asyncio.create_task(_publish(wire.message(ended.conversation_id, None if _IN_ROW else log)))
    publishing.add(task)
    task.add_done_callback(publishing.discard)
    return wire.receipt(ended)


async def _publish(body: bytes) -> None:
    persistent = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    await app.state.channel.default_exchange.publish(persistent, _QUEUE)


if __name__ == "__main__":
    wire.run(app, loop="uvloop", http="httptools")
