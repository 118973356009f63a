"""What a stream of events reads from the database: where it begins, and what it has missed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct

from convo.conversation.tenant import Reach
from convo.event_types import EventType
from convo.store.event_rows import EVENT_COLUMNS, LAST_SEQUENCE, EventPage, stored_event
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.reaching import reached

_PASSED_OVER_ROWS = 10_000
_COUNTED_ROWS = 20_000


class StreamFilter(Struct, frozen=True, kw_only=True):
    """What a client wants to get: events within its reach, of these types, of this user and this bot; None is all."""

    reach: Reach
    types: tuple[EventType, ...] = ()
    user_id: str | None = None
    bot_id: str | None = None


class EventCount(Struct, frozen=True, kw_only=True, gc=False):
    """How many events of one type there were of a tenant, by its number, and of one bot; None: of all not named."""

    tenant: int
    bot_id: str | None
    type: EventType
    count: int


async def last_sequence(postgres: Postgres) -> int:
    """Return the last number that was given to an event; 0 for none."""

    async def body(connection: Connection) -> int:
        found: int = await connection.fetchval(LAST_SEQUENCE)
        return found

    return await postgres.run("db.stream", body, begin=RELAXED)


async def read_of_types(
    postgres: Postgres, after: int, last: int, types: Collection[EventType], rows: int
) -> EventPage:
    """Read the next events of these types behind ``after``, up to ``last``, of all tenants: at most ``rows``.

    What is of another type is neither sent by the database nor made an event of, and of those, 10,000 numbers are
    passed over at most.
    """

    async def body(connection: Connection) -> EventPage:
        until = await connection.fetchval(_UNTIL, after, last, _PASSED_OVER_ROWS)
        found = await connection.fetch(_OF_TYPES, after, until, list(types), rows)
        events = [stored_event(row) for row in found]
        return EventPage(events=events, looked_to=events[-1].sequence if len(events) == rows else until)

    return await postgres.run("db.stream", body, begin=RELAXED)


async def count_changes(
    postgres: Postgres, after: int, last: int, reaches: Collection[Reach]
) -> tuple[Sequence[EventCount], int]:
    """Count the events behind ``after``, up to ``last``, of the tenants of these reaches, by type.

    Those of bots that one of them is bound to are counted by themselves; of the others ``bot_id`` is None. At most
    20,000 numbers are looked at: up to which one is returned as well.
    """
    tenants = sorted({reach.tenant.number for reach in reaches})
    bots = sorted({bot for reach in reaches for bot in reach.bots or ()})

    async def body(connection: Connection) -> tuple[Sequence[EventCount], int]:
        until = await connection.fetchval(_UNTIL, after, last, _COUNTED_ROWS)
        return [EventCount(**row) for row in await connection.fetch(_COUNTS, after, until, tenants, bots)], until

    return await postgres.run("db.stream", body, begin=RELAXED)


async def read_missed(postgres: Postgres, wanted: StreamFilter, after: int, rows: int) -> EventPage:
    """Read what a client has missed behind ``after``: at most ``rows`` are looked at."""

    async def body(connection: Connection) -> EventPage:
        found = await connection.fetch(
            _MISSED, after, rows, *wanted.reach.values, list(wanted.types), wanted.user_id, wanted.bot_id
        )
        events = [stored_event(row) for row in found if row["wanted"]]
        return EventPage(events=events, looked_to=found[-1]["sequence"] if found else after)

    return await postgres.run("db.stream", body, begin=RELAXED)


# event_by_sequence. From the next number that there is: behind those that were given before a database went back
# there are billions that never will be.
_UNTIL = """
SELECT least($2, $3::bigint - 1 + coalesce(
    (SELECT sequence FROM event WHERE sequence > $1 ORDER BY sequence LIMIT 1), $2))::bigint
"""
# event_by_sequence; few numbers lie between the two.
_OF_TYPES = f"""
SELECT {EVENT_COLUMNS} FROM event
WHERE sequence > $1 AND sequence <= $2 AND type = ANY($3::text[]) ORDER BY sequence LIMIT $4
"""
# event_by_sequence, as above. Only its own tenants' rows are counted, and few rows come of it, however many there are.
_COUNTS = """
SELECT event.tenant, CASE WHEN bot_id = ANY($4::text[]) THEN bot_id END AS bot_id, type, count(*)::integer AS count
FROM event WHERE sequence > $1 AND sequence <= $2 AND event.tenant = ANY($3::smallint[]) GROUP BY 1, 2, 3
"""
# event_by_sequence
_MISSED = f"""
SELECT {EVENT_COLUMNS}, coalesce(
    {reached("event", 3)} AND (cardinality($5::text[]) = 0 OR type = ANY($5))
    AND ($6::text IS NULL OR user_id = $6) AND ($7::text IS NULL OR bot_id = $7), false) AS wanted
FROM event WHERE sequence > $1 ORDER BY sequence LIMIT $2
"""
