"""Adds what users had with an earlier service to their relationships, once under the id of the import.

Such a total stands in a relationship as that of conversations which retention has removed: in ``retired_score`` and
``retired_conversations``. So the audit finds that the scores of the conversations and these are the relationship.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from convo.conversation.model import CANARY_USER, EmotionName, Identifier
from convo.conversation.tenant import Tenant
from convo.store.erasures import erased_among
from convo.store.installation_key import read_installation_key
from convo.store.postgres import Connection

# A relationship's score is a bigint, and the sum of many; its count is an integer.
_Score = Annotated[int, Meta(ge=0, le=1_000_000_000)]
_Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class EarlierTotal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user had with one bot: the score, from how many conversations, and the last emotion."""

    user_id: Identifier
    bot_id: Identifier
    score: _Score
    conversations: _Count = 1
    last_emotion: EmotionName = "neutral"


class BookedTotals(Struct, frozen=True, kw_only=True):
    """How many totals were added, were added before under the same id, and are of users that were erased."""

    added: int = 0
    before: int = 0
    erased: int = 0

    def __add__(self, other: BookedTotals) -> BookedTotals:
        return BookedTotals(
            added=self.added + other.added, before=self.before + other.before, erased=self.erased + other.erased
        )


async def book_totals(
    connection: Connection, tenant: Tenant, import_id: str, totals: Sequence[EarlierTotal]
) -> BookedTotals:
    """Add these totals of a tenant, each of another user or bot, in the caller's transaction."""
    key = await read_installation_key(connection)
    of_users = {key.hmac_of("user", tenant.own(total.user_id)): total.user_id for total in totals}
    erased = {of_users[hmac] for hmac in await erased_among(connection, of_users)}
    # Sorted as settlers lock relationships.
    kept = sorted(
        (total for total in totals if total.user_id not in erased and total.user_id != CANARY_USER),
        key=lambda total: (total.user_id, total.bot_id),
    )
    hmacs = [key.hmac_of_total(import_id, tenant.own(total.user_id), total.bot_id) for total in kept]
    fresh = {row["hmac"] for row in await connection.fetch(_NOTE, sorted(hmacs))}
    added = [total for total, hmac in zip(kept, hmacs, strict=True) if hmac in fresh]
    columns = [
        [getattr(total, name) for total in added]
        for name in ("user_id", "bot_id", "score", "conversations", "last_emotion")
    ]
    await connection.execute(_ADD, *columns, tenant.number)
    return BookedTotals(added=len(added), before=len(kept) - len(added), erased=len(totals) - len(kept))


# Both by primary keys: of imported_relationship, and of relationship. A row that is new takes a number of the
# conversations' sequence, because bots are listed by it; what a relationship says of its newest conversation stays.
_NOTE = """
INSERT INTO imported_relationship (hmac) SELECT unnest($1::bytea[]) ON CONFLICT DO NOTHING RETURNING hmac
"""
_ADD = """
INSERT INTO relationship AS r (user_id, bot_id, score, conversations, last_emotion, last_seq,
                               retired_score, retired_conversations, tenant)
SELECT user_id, bot_id, score, conversations, last_emotion, nextval('conversation_seq_seq'), score, conversations, $6
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::integer[], $5::text[])
    AS total (user_id, bot_id, score, conversations, last_emotion)
ON CONFLICT (tenant, user_id, bot_id) DO UPDATE SET
    score = r.score + excluded.score,
    conversations = r.conversations + excluded.conversations,
    retired_score = coalesce(r.retired_score, 0) + excluded.retired_score,
    retired_conversations = coalesce(r.retired_conversations, 0) + excluded.retired_conversations,
    updated_at = convo_now()
"""
