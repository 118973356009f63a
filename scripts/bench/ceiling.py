"""The ceiling of ``accept.py``: what is left of an accept when only its own work is done.

trio and httptools; the same decode, checks, digest and compression; the same rows by the same statement and the same
group commit on one connection. No routing, no limits, no metrics, no problems, no deadlines: what is wrong with a
request ends its connection. No server of anybody's.

    .venv/bin/python scripts/bench/ceiling.py HOST PORT DATABASE_URL
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httptools
import msgspec
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from convo.conversation.decode import decode
from convo.conversation.identity import id_hash
from convo.conversation.model import Receipt
from convo.errors import ConvoError
from convo.runtime.bridge import Bridge, open_bridge
from convo.settings import DatabaseSettings, IntakeSettings, WebSettings
from convo.store import intake
from convo.store.group import Group
from convo.store.intake import Accept
from convo.store.migrate import migrate
from convo.store.postgres import open_postgres
from convo.web.accept import make_accept
from convo.web.description import views

_ENCODER = msgspec.json.Encoder()
_CHUNK_BYTES = 65536
# As convo's own: from this size on the work goes to a thread.
_OFFLOAD_BYTES = WebSettings().offload_bytes
Row = Mapping[str, Any]
Accepts = Group[Accept, Row]


def prepare(body: bytes) -> Accept:
    """Do what convo does with a body."""
    return make_accept(decode(body))


class Request:
    """One request after another, as httptools tells of them."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.bodies: list[bytes] = []

    def on_body(self, part: bytes) -> None:
        """Keep a part of a body."""
        self._parts.append(part)

    def on_message_complete(self) -> None:
        """Put a body together."""
        self.bodies.append(b"".join(self._parts))
        self._parts.clear()


async def serve(stream: trio.SocketStream, group: Accepts) -> None:
    """Answer the requests of one connection until it ends."""
    request = Request()
    parser = httptools.HttpRequestParser(request)
    try:
        while data := await stream.receive_some(_CHUNK_BYTES):
            parser.feed_data(data)
            for body in request.bodies:
                await stream.send_all(await answer(body, group))
            request.bodies.clear()
    except (httptools.HttpParserError, trio.BrokenResourceError, ConvoError):
        return
    finally:
        await trio.aclose_forcefully(stream)


async def answer(body: bytes, group: Accepts) -> bytes:
    """Store one conversation; return the whole answer."""
    if not body:
        # The question whether we are there.
        return b"HTTP/1.1 204 No Content\r\n\r\n"
    accept = prepare(body) if len(body) < _OFFLOAD_BYTES else await trio.to_thread.run_sync(prepare, body)
    row = await group.submit(accept)
    conversation_id = accept.ended.conversation_id
    links = views.links(conversation_id)
    receipt = _ENCODER.encode(
        Receipt(
            conversation_id=conversation_id,
            digest=accept.digest,
            turns=accept.turns,
            received_at=row["received_at"],
            links=links,
        )
    )
    head = f"Content-Type: application/json\r\nContent-Length: {len(receipt)}\r\nLocation: {links.self}\r\n\r\n"
    return b"HTTP/1.1 202 Accepted\r\n" + head.encode() + receipt


def committing(bridge: Bridge, connection: Any) -> Accepts:
    """Return a group commit on one connection, with convo's own bounds."""
    insert = intake.insert_statements("user")[False, False]

    async def unit(batch: Sequence[Accept]) -> list[Row]:
        hashes = [id_hash(accept.ended.conversation_id) for accept in batch]
        rows = await connection.fetch(insert, *intake._columns(batch), hashes, [], [])
        found = {row["id_hash"]: row for row in rows}
        return [found[hashed] for hashed in hashes]

    async def commit(batch: Sequence[Accept]) -> list[Row]:
        return await bridge.cross(unit, batch)

    bounds = IntakeSettings()
    return Group(
        commit,
        rows_max=bounds.batch_rows,
        bytes_max=bounds.batch_bytes,
        unit_seconds=1.0,
        item_bytes=lambda accept: len(accept.body),
    )


async def main(host: str, port: int, url: str) -> None:
    """Serve until killed."""
    async with open_bridge() as bridge:
        async with open_postgres(bridge, url, DatabaseSettings()) as postgres:
            connection = postgres.dedicated()
            await migrate(connection)
            await connection.close()
        group = committing(
            bridge, await bridge.cross(partial(asyncpg.connect, url, server_settings=intake.SESSION_SETTINGS))
        )
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000)  # as convo's own
        async with trio.open_nursery() as nursery:
            await nursery.start(group.run)
            await trio.serve_tcp(lambda stream: serve(stream, group), port, host=host, backlog=1024)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3])
