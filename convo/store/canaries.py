"""Erasing canaries: what they left in the tables goes, and with it what was booked for them."""

from __future__ import annotations

from collections.abc import Sequence

from convo.conversation.model import CANARY_USER
from convo.store import ledger
from convo.store.postgres import Connection, Postgres


async def erase(postgres: Postgres, conversation_ids: Sequence[str]) -> int:
    """Erase these canaries, as far as they have ended, and older ones that their process left; return how many.

    Their score and their place in the books go in the same transaction, so that both balance at every moment.
    """

    async def body(connection: Connection) -> int:
        rows = await connection.fetch(_ENDED, CANARY_USER, list(conversation_ids))
        seqs = [row["seq"] for row in rows]
        if seqs:
            await ledger.book(connection, "accepted", seqs, -1)
            await ledger.book(connection, "done", [row["seq"] for row in rows if row["state"] == "done"], -1)
            await ledger.book(connection, "dead", [row["seq"] for row in rows if row["state"] == "dead"], -1)
            await connection.execute(_UNRELATE, seqs)
            await connection.execute(_UNRELATED, CANARY_USER)
            await connection.execute(_FORGET, CANARY_USER, seqs)
            for table in _TABLES:
                await connection.execute(f"DELETE FROM {table} WHERE seq = ANY($1::bigint[])", seqs)
        return len(seqs)

    return await postgres.run("db.canary", body)


# conversation_by_user: a handful of rows, as each is erased when it has come through
_ENDED = """
SELECT seq, state FROM conversation JOIN job USING (seq)
WHERE user_id = $1 AND state IN ('done', 'dead')
  AND (conversation_id = ANY($2::text[]) OR received_at < convo_now() - interval '1 hour')
ORDER BY seq FOR UPDATE OF job
"""
_UNRELATE = """
UPDATE relationship AS r SET score = r.score - gone.score, conversations = r.conversations - gone.conversations
FROM (
    SELECT user_id, bot_id, sum(job.score) AS score, count(*) AS conversations
    FROM conversation JOIN job USING (seq) WHERE seq = ANY($1::bigint[]) AND state = 'done' GROUP BY user_id, bot_id
) AS gone
WHERE r.user_id = gone.user_id AND r.bot_id = gone.bot_id
"""
_UNRELATED = "DELETE FROM relationship WHERE user_id = $1 AND conversations = 0"
_FORGET = "DELETE FROM memory WHERE user_id = $1 AND seq = ANY($2::bigint[])"
_TABLES = ("part", "conversation_log", "job", "conversation")
