"""Erasing conversations and users: everything that any table holds of them goes, and what was counted is taken back.

Open it when a new table holds something of a conversation or a user: its module says how that is erased, and
``ERASURES`` or ``ERASURES_OF_USER`` lists it. A test reads the database's catalogue and fails while one is missing.
Canaries are erased here; what an operator has erased goes by ``convo/erasure.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from convo.conversation.model import CANARY_USER
from convo.conversation.tenant import DEFAULT, Tenant
from convo.store import costs, intake, ledger, logs, outbox, outcomes
from convo.store.erasures import ErasedCounts
from convo.store.jobs import memories, part_jobs, parts, reruns, runs, settle, table, tickets
from convo.store.jobs.erased_memories import leave_tombstones
from convo.store.postgres import Connection, Postgres

# In this order: what reads other tables comes before what empties them.
ERASURES: Mapping[str, tuple[str, ...]] = {
    "ledger": (ledger.ERASE_BOOKED,),
    "relationship": settle.ERASE_RELATIONSHIPS,
    "memory": memories.ERASE_MEMORIES,
    "part": (parts.ERASE_PARTS,),
    "part_ticket": (tickets.ERASE_TICKETS,),
    "part_job": (part_jobs.ERASE_PART_JOBS,),
    "candidate": (reruns.ERASE_CANDIDATES,),
    "run": (runs.ERASE_RUNS,),
    "conversation_log": (logs.LogStore.ERASE,),
    "event": (outbox.ERASE_EVENTS,),
    "job": (table.ERASE_JOBS,),
    "outcome": (outcomes.ERASE_OUTCOMES,),
    "log_prefix": (intake.ERASE_PREFIXES,),
    "conversation": (intake.ERASE_CONVERSATIONS,),
    # Behind it: a process that stores costs of a conversation keeps it from being erased until that is done.
    "part_cost": (costs.ERASE_COSTS,),
    "receipt": (intake.ERASE_RECEIPTS,),
}
"""By table, the statements of its owner that erase conversations; ``$1`` are their ``seq``."""

ERASURES_OF_USER: Mapping[str, tuple[str, ...]] = {
    "memory": (memories.ERASE_USER_MEMORIES,),
    "relationship": settle.ERASE_USER_RELATIONSHIPS,
    "event": (outbox.ERASE_USER_EVENTS,),
}
"""The same for what a user has besides the conversations.

``$1`` is the user, ``$2`` the number of the tenant, ``$3`` when the erasure began.
"""

# At one canary a minute, a day of failed erasures is mended within three minutes.
_ROWS_MAX = 500


async def erase_conversations(
    connection: Connection, tenant: Tenant, seqs: Sequence[int], hmacs: Sequence[bytes] | None = None
) -> ErasedCounts:
    """Erase these conversations of one tenant in the caller's transaction; return how many rows that were.

    Their jobs are locked. Their receipts stay, under these ``hmacs`` of their ids; without them they go, as those of
    canaries do.
    """
    counts = ErasedCounts()
    user_ids = [row["user_id"] for row in await connection.fetch(_USERS, seqs)]
    await memories.lock_users(connection, [tenant.own(one) for one in user_ids])
    # In the order in which settling locks them.
    await connection.execute(_LOCK_RELATIONSHIPS, user_ids, tenant.number)
    if hmacs is not None:
        await leave_tombstones(connection, tenant, seqs)
    for table_name, statements in ERASURES.items():
        if hmacs is not None and table_name == "receipt":
            tags = [await connection.execute(intake.ERASE_FROM_RECEIPTS, seqs, hmacs)]
        else:
            tags = [await connection.execute(statement, seqs) for statement in statements]
        counts += _counted(table_name, tags)
    return counts


async def erase_rest_of_user(connection: Connection, tenant: Tenant, user_id: str, until: datetime) -> ErasedCounts:
    """Erase what is left of a user without the conversations, as far as it is from ``until`` or before."""
    await memories.lock_users(connection, [tenant.own(user_id)])
    await connection.execute(_LOCK_RELATIONSHIPS, [user_id], tenant.number)
    counts = ErasedCounts()
    for table_name, statements in ERASURES_OF_USER.items():
        for statement in statements:
            values = (user_id, tenant.number, until) if "$3" in statement else (user_id, tenant.number)
            counts += _counted(table_name, [await connection.execute(statement, *values)])
    return counts


def _counted(table_name: str, tags: Iterable[str]) -> ErasedCounts:
    """Read what statements did out of their tags, such as ``DELETE 3``; a row that several changed counts once."""
    removed = sum(int(tag.split()[-1]) for tag in tags if tag.startswith("DELETE"))
    changed = max((int(tag.split()[-1]) for tag in tags if tag.startswith("UPDATE")), default=0)
    return ErasedCounts(
        removed={table_name: removed} if removed else {}, changed={table_name: changed} if changed else {}
    )


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
            await outcomes.lock_jobs(connection, seqs)
            await erase_conversations(connection, DEFAULT, seqs)
        return len(seqs)

    return await postgres.run("db.canary", body)


# conversation_by_user: a handful of rows, as each is erased when it has come through. After days of failing erasures
# there are thousands: the oldest go first, and the next canary takes the next ones.
_ENDED_CANARIES = """
SELECT seq FROM conversation JOIN every_job USING (seq)
WHERE user_id = $1 AND tenant = 0 AND state IN ('done', 'dead')
  AND (conversation_id = ANY($2::text[]) OR received_at < convo_now() - interval '1 hour')
ORDER BY seq LIMIT $3
"""
_USERS = "SELECT DISTINCT user_id FROM conversation WHERE seq = ANY($1::bigint[])"
_LOCK_RELATIONSHIPS = """
SELECT FROM relationship WHERE user_id = ANY($1::text[]) AND tenant = $2 ORDER BY user_id, bot_id FOR UPDATE
"""
