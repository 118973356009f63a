"""Reads how a user's score came about: the scores of the user's conversations, newest first, with the sum after each.

Open it to change what a point of the history is. The sum is known for now alone; from there it goes back, conversation
by conversation. So each page needs the sum with which the one before it ended, and a conversation whose row is gone (by
retention, or of an earlier service) stays in the sum from which the history begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from convo.conversation.tenant import Reach
from convo.store.listing import NO_CANARY
from convo.store.postgres import Connection
from convo.store.reaching import reached

_NEWEST = (1 << 63) - 1


class HistoryPlace(Struct, frozen=True, kw_only=True):
    """Where a page of a history begins: below the conversation ``before``, with the sum that was there then."""

    before: int
    score: int


class HistoryPoint(Struct, frozen=True, kw_only=True):
    """One conversation that was scored: when, how many points it gave, and the sum after it."""

    at: datetime
    conversation_id: str
    bot_id: str
    emotion: str | None
    points: int
    score: int


class FoundHistory(Struct, frozen=True, kw_only=True):
    """A page of points, newest first, and where the next one begins; None behind the last page."""

    points: Sequence[HistoryPoint]
    next_place: HistoryPlace | None


async def read_history_page(  # noqa: PLR0913  (whose, and which page of it)
    connection: Connection,
    reach: Reach,
    user_id: str,
    *,
    bot_id: str | None,
    place: HistoryPlace | None,
    limit: int,
) -> FoundHistory:
    """Read the points of up to ``limit`` conversations: of all bots that are reached, or of one.

    Conversations that are not scored have no point, so a page may be short, or empty, and still have a next one.
    """
    last = _NEWEST if place is None else place.before - 1
    rows = await connection.fetch(_PAGE, user_id, *reach.values, bot_id, last, limit + 1, place is None)
    if not rows:
        return FoundHistory(points=(), next_place=None)
    total = rows[0]["total"] if place is None else place.score
    points: list[HistoryPoint] = []
    for row in rows[:limit]:
        if (gained := row["gained"]) is not None:
            points.append(_point(row, total))
            # Between two pages a score may have been taken back.
            total = max(0, total - gained)
    more = len(rows) > limit
    return FoundHistory(
        points=points, next_place=HistoryPlace(before=rows[limit - 1]["seq"], score=total) if more else None
    )


def _point(row: Mapping[str, Any], total: int) -> HistoryPoint:
    own = {name: row[name] for name in ("conversation_id", "bot_id", "emotion")}
    return HistoryPoint(at=row["scored_at"], points=row["gained"], score=total, **own)


# By the two ends of the index conversation_by_user and its order, as lists do it. OFFSET 0: one look-up for each. Of a
# conversation with several revisions the newest one counts.
_PAGE = f"""
SELECT looked.seq, looked.conversation_id, looked.bot_id, job.ended_at AS scored_at, job.score AS gained, job.emotion,
       CASE WHEN $7::boolean THEN (
           SELECT coalesce(sum(score), 0)::bigint FROM relationship AS c
           WHERE user_id = $1 AND {NO_CANARY} AND {reached("c", 2)} AND ($4::text IS NULL OR c.bot_id = $4)
       ) END AS total
FROM (
    SELECT seq, conversation_id, bot_id, revised_by FROM conversation AS c
    WHERE c.tenant = $2 AND {NO_CANARY} AND (user_id, seq) >= ($1, 0) AND (user_id, seq) <= ($1, $5)
    ORDER BY user_id DESC, seq DESC LIMIT $6
) AS looked
LEFT JOIN LATERAL (
    SELECT ended_at, score, emotion FROM every_job AS open
    WHERE open.seq = looked.seq AND open.state = 'done' AND looked.revised_by IS NULL
      AND ($3::text[] IS NULL OR looked.bot_id = ANY($3)) AND ($4::text IS NULL OR looked.bot_id = $4) OFFSET 0
) AS job ON true
ORDER BY looked.seq DESC
"""
