"""Tickets: what a remote service said to ask with later, for a part that it has taken and is still at work on.

A ticket is stored as soon as it is there, and goes with the part's result. So the service is not given the same
conversation twice, in whichever process the job is leased next. It knows no leases: its callers hold the job.
"""

from __future__ import annotations

from collections.abc import Collection

from convo.conversation.model import PartName
from convo.store.postgres import Connection


async def write(connection: Connection, seq: int, name: PartName, ticket: str) -> None:
    """Store the ticket of a part in place of the one before; an empty one removes it."""
    if ticket:
        await connection.execute(_WRITE, seq, name, ticket)
    else:
        await remove(connection, [(seq, name)])


async def remove(connection: Connection, parts: Collection[tuple[int, PartName]]) -> None:
    """Remove the tickets of these parts."""
    await connection.execute(_REMOVE, [seq for seq, _ in parts], [name for _, name in parts])


_WRITE = """
INSERT INTO part_ticket (seq, name, ticket) VALUES ($1, $2, $3)
ON CONFLICT (seq, name) DO UPDATE SET ticket = $3, made_at = convo_now()
"""
_REMOVE = """
DELETE FROM part_ticket USING unnest($1::bigint[], $2::text[]) AS gone (seq, name)
WHERE part_ticket.seq = gone.seq AND part_ticket.name = gone.name
"""
ERASE_TICKETS = "DELETE FROM part_ticket WHERE seq = ANY($1::bigint[])"
