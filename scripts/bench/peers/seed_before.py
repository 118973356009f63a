"""The incident's way: blocking calls inside ``async def``, the log as JSONB, a blocking publish inside the request.

FastAPI on uvicorn as plainly installed; synchronous SQLAlchemy with a pool of 150 and a wait of 30 s; one kept pika
connection. Kept as it was, which is the point of it: while one request waits for the disk, nobody else is served.
"""

from __future__ import annotations

from typing import Any

import pika
from fastapi import FastAPI
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from scripts.bench.peers import wire
from scripts.bench.peers.tables import Base, ConversationEvent, row

_QUEUE = "bench.seed_before"

app = FastAPI()
engine = create_engine(wire.database_url("psycopg2"), pool_size=wire.pool_room(150), max_overflow=0, pool_timeout=30)
# No heartbeat: nobody would answer it between two requests.
broker = pika.BlockingConnection(pika.URLParameters(wire.RABBIT + "?heartbeat=0"))
channel = broker.channel()


@app.post(wire.ROUTE, status_code=202)
async def end(ended: wire.ConversationEnded) -> dict[str, Any]:
    """Look whether it is known, store it, publish it, and only then answer."""
    with Session(engine) as session:
        known = select(ConversationEvent.id).where(ConversationEvent.conversation_id == ended.conversation_id)
        if session.scalar(known) is None:
            session.add(row(ended, wire.transformed(ended)))
            session.commit()
    persistent = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
    channel.basic_publish("", _QUEUE, wire.message(ended.conversation_id), persistent)
    return wire.receipt(ended)


if __name__ == "__main__":
    Base.metadata.create_all(engine)
    channel.queue_declare(_QUEUE, durable=True, arguments=wire.QUEUE_ARGUMENTS)
    wire.run(app, loop="asyncio", http="h11")
