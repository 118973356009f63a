"""Removes events that were kept for ``events.keep_days``, and finds those that a receiver would never get then."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from convo.store.postgres import RELAXED, Connection, Postgres

_BATCH_ROWS = 1000
# In the last fifth of its time an event counts as one that may expire.
_SOON = 0.8


class Expiring(Struct, frozen=True, kw_only=True):
    """A receiver, and when the oldest event happened that it has not confirmed: an endpoint, or a courier's place."""

    receiver: str
    at: datetime


async def expire_events(postgres: Postgres, keep_days: int) -> bool:
    """Remove a batch of what is over; return whether there may be more."""

    async def body(connection: Connection) -> bool:
        events: int = await connection.fetchval(_EXPIRE, keep_days, _BATCH_ROWS)
        attempts: int = await connection.fetchval(_EXPIRE_ATTEMPTS, keep_days, _BATCH_ROWS)
        return _BATCH_ROWS in (events, attempts)

    return await postgres.run("db.events", body, begin=RELAXED)


async def find_expiring(postgres: Postgres, keep_days: int) -> Sequence[Expiring]:
    """Find the receivers that have not confirmed an event which will be over soon."""

    async def body(connection: Connection) -> Sequence[Expiring]:
        rows = await connection.fetch(_EXPIRING, keep_days * 86_400.0 * _SOON)
        return [Expiring(receiver=row["receiver"], at=row["at"]) for row in rows]

    return await postgres.run("db.events", body, begin=RELAXED)


# The oldest by the primary key; those among them that are over are the first ones, but for a clock that was set back.
_EXPIRE = """
WITH gone AS (
    DELETE FROM event WHERE number = ANY(ARRAY(
        SELECT number FROM (SELECT number, at FROM event ORDER BY number LIMIT $2) AS oldest
        WHERE at < convo_now() - make_interval(days => $1)))
    RETURNING number
), aside AS (
    DELETE FROM webhook_aside USING gone WHERE webhook_aside.number = gone.number
)
SELECT count(*) FROM gone
"""
_EXPIRE_ATTEMPTS = """
WITH gone AS (
    DELETE FROM webhook_attempt WHERE attempt = ANY(ARRAY(
        SELECT attempt FROM (SELECT attempt, at FROM webhook_attempt ORDER BY attempt LIMIT $2) AS oldest
        WHERE at < convo_now() - make_interval(days => $1)))
    RETURNING attempt
)
SELECT count(*) FROM gone
"""
# The few endpoints, and for each one probe of event_by_sequence and one of webhook_aside's key. A courier counts as
# long as a process is switched on that has it.
_EXPIRING = """
SELECT w.webhook_id AS receiver, min(oldest.at) AS at
FROM webhook w, LATERAL (
    (SELECT at FROM event WHERE sequence > w.cursor ORDER BY sequence LIMIT 1)
    UNION ALL
    (SELECT at FROM event WHERE number = (SELECT min(number) FROM webhook_aside WHERE webhook_id = w.webhook_id))
) AS oldest
WHERE w.state <> 'off' AND oldest.at < convo_now() - make_interval(secs => $1)
GROUP BY w.webhook_id
UNION ALL
SELECT c.name, oldest.at
FROM courier c, LATERAL (SELECT at FROM event WHERE sequence > c.cursor ORDER BY sequence LIMIT 1) AS oldest
WHERE c.leased_until > convo_now() AND oldest.at < convo_now() - make_interval(secs => $1)
"""
