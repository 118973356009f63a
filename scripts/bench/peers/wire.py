"""What every peer takes and answers: the seed's request as a Pydantic model, and a receipt as long as convo's."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import uvicorn
from pydantic import BaseModel, Field

ROUTE = "/v1/conversations/end"
RABBIT = os.environ.get("BENCH_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/")
# Nobody reads these queues while accepting is measured: what is past the length falls out, and a queue that nobody
# has used for a minute is gone, so that a run leaves nothing behind in the broker.
QUEUE_ARGUMENTS = {"x-max-length": 2000, "x-expires": 60_000}


class Item(BaseModel):
    """One line of the log."""

    character: Literal["BOT", "USER", "PIKA", "BOT_RESPONSE_CONVERSATION", "USER_RESPONSE_CONVERSATION"]
    content: str


class ConversationEnded(BaseModel):
    """The body of a request."""

    conversation_id: str = Field(min_length=3, max_length=255)
    user_id: str = Field(min_length=3, max_length=255)
    bot_id: str = ""
    bot_name: str | None = None
    bot_type: str | None = None
    agent_tag: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    conversation_logs: list[Item] = []


def transformed(ended: ConversationEnded) -> list[dict[str, str]]:
    """Turn the log into the shape that the analysis reads."""
    return [
        {"role": "user" if item.character.startswith("USER") else "assistant", "content": item.content}
        for item in ended.conversation_logs
        if item.content
    ]


def message(conversation_id: str, log: list[dict[str, str]] | None = None) -> bytes:
    """Make what goes to the broker: the id, and the log where it travels along."""
    return json.dumps({"conversation_id": conversation_id} | ({} if log is None else {"log": log})).encode()


def receipt(ended: ConversationEnded) -> dict[str, Any]:
    """Make the answer."""
    link = f"/v1/conversations/{ended.conversation_id}"
    return {
        "conversation_id": ended.conversation_id,
        "status": "PENDING",
        "turns": len(ended.conversation_logs),
        "received_at": datetime.now(UTC).isoformat(),
        "links": {"self": link, "log": f"{link}/log"},
    }


def database_url(driver: str = "") -> str:
    """Return the database's URL from the command line, for SQLAlchemy's ``driver`` where one is named."""
    return sys.argv[2].replace("postgresql://", f"postgresql+{driver}://" if driver else "postgresql://")


def pool_room(wanted: int) -> int:
    """Return how many connections a pool may have here: ``wanted``, or fewer where the server takes fewer."""
    return min(wanted, int(os.environ.get("BENCH_CONNECTIONS_MAX", wanted)))


def run(app: Any, **how: Any) -> None:
    """Serve on the port of the command line, one process as convo is one."""
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning", **how)
