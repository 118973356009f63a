"""FastAPI and Celery on RabbitMQ: the row is committed, then the job is sent; what comes between them is lost.

A plain ``def`` handler, which FastAPI runs in its pool of threads: both SQLAlchemy's session and ``delay`` block.
Celery's settings are its defaults (persistent messages, no publisher confirms), with no result backend.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from fastapi import FastAPI
from kombu import Queue
from sqlalchemy import create_engine
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from scripts.bench.peers import wire
from scripts.bench.peers.tables import Base, ConversationEvent

_QUEUE = "bench.celery"
# FastAPI runs at most so many handlers in threads.
_THREADS = 40

app = FastAPI()
engine = create_engine(wire.database_url("psycopg2"), pool_size=wire.pool_room(_THREADS), max_overflow=0)
jobs = Celery("bench", broker=wire.RABBIT)
jobs.conf.update(
    task_default_queue=_QUEUE,
    task_queues=[Queue(_QUEUE, queue_arguments=wire.QUEUE_ARGUMENTS)],
    task_ignore_result=True,
    broker_pool_limit=_THREADS,
)


@jobs.task(name="analyse")
def analyse(conversation_id: str) -> None:
    """Stand for the analysis; no worker runs while accepting is measured."""


@app.post(wire.ROUTE, status_code=202)
def end(ended: wire.ConversationEnded) -> dict[str, Any]:
    """Store the row, then send the job."""
    meta = ended.model_dump(exclude={"conversation_logs"})
    with Session(engine) as session:
        rows = insert(ConversationEvent).values(**meta, conversation_log=wire.transformed(ended))
        fresh = session.execute(rows.on_conflict_do_nothing().returning(ConversationEvent.id)).first()
        session.commit()
    if fresh is not None:
        analyse.delay(ended.conversation_id)
    return wire.receipt(ended)


if __name__ == "__main__":
    Base.metadata.create_all(engine)
    wire.run(app, loop="uvloop", http="httptools")
