"""Erasing conversations: everything that any table holds of them goes, and what was counted for them is taken back.

Open it when a new table holds something of a conversation: its module says how that is erased, and ``ERASURES`` lists
it. A test reads the database's catalogue and fails while one is missing. Today only canaries are erased.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from convo.conversation.model import CANARY_USER
from convo.store import intake, ledger, logs
from convo.store.jobs import memories, parts, runs, settle, table, tickets
from convo.store.postgres import Connection, Postgres

# In this order: what reads other tables comes before what empties them.
ERASURES: Mapping[str, tuple[str, ...]] = {
    "ledger": (ledger.ERASE_BOOKED,),
    "relationship": settle.ERASE_RELATIONSHIPS,
    "memory": memories.ERASE_MEMORIES,
    "part": (parts.ERASE_PARTS,),
    "part_ticket": (tickets.ERASE_TICKETS,),
    "run": (runs.ERASE_RUNS,),
    "conversation_log": (logs.LogStore.ERASE,),
    "job": (table.ERASE_JOBS,),
    "conversation": (intake.ERASE_CONVERSATIONS,),
    "receipt": (intake.ERASE_RECEIPTS,),
}
"""By table, the statements of its owner that erase conversations; ``$1`` are their ``seq``."""

# At one canary a minute, a day of failed erasures is mended within three minutes.
_ROWS_MAX = 500


async def erase_conversations(connection: Connection, seqs: Sequence[int]) -> None:
    """Erase these conversations, whose jobs have ended and are locked, in the caller's transaction."""
    for statements in ERASURES.values():
        for statement in statements:
            await connection.execute(statement, seqs)


async def erase_canaries(postgres: Postgres, conversation_ids: Sequence[str]) -> int:
    """Erase these canaries, as far as they have ended, and older ones that a dead process left; return how many.

    Their score and their place in the books go in the same transaction, so that both balance at every moment.
    """

    async def body(connection: Connection) -> int:
        seqs = [
            row["seq"]
            for row in await connection.fetch(_ENDED_CANARIES, CANARY_USER, list(conversation_ids), _ROWS_MAX)
        ]
        if seqs:
            await erase_conversations(connection, seqs)
        return len(seqs)

    return await postgres.run("db.canary", body)


# conversation_by_user: a handful of rows, as each is erased when it has come through. After days of failing erasures
# there are thousands: the oldest go first, and the next canary takes the next ones.
_ENDED_CANARIES = """
SELECT seq FROM conversation JOIN job USING (seq)
WHERE user_id = $1 AND state IN ('done', 'dead')
  AND (conversation_id = ANY($2::text[]) OR received_at < convo_now() - interval '1 hour')
ORDER BY seq LIMIT $3 FOR UPDATE OF job
"""
