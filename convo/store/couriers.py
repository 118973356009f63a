"""How far a place that gets the events of the whole installation has confirmed them: leases, reads, moves its cursor.

A cursor moves over the numbers of ``store/event_numbers.py``, and only behind what the place has confirmed. A crash can
lose its last moves, and then events are delivered again, under the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from convo.event_types import EventType
from convo.store.courier_leases import LEASABLE, LEASE, LEASE_SECONDS
from convo.store.event_rows import EVENT_COLUMNS, EventPage, stored_event
from convo.store.postgres import RELAXED, Connection, Postgres


class LeasedCourier(Struct, frozen=True, kw_only=True):
    """A courier that this process is, with the token of its lease and its cursor."""

    name: str
    token: int
    cursor: int


async def lease_courier(postgres: Postgres, name: str, owner: str) -> LeasedCourier | None:
    """Lease a courier, or renew its lease; None where another process has it.

    One that is new begins with the oldest event that is kept: what happened before it was switched on is not lost.
    """

    async def body(connection: Connection) -> LeasedCourier | None:
        await connection.execute(_MAKE, name)
        row = await connection.fetchrow(_LEASE, owner, LEASE_SECONDS, name)
        return None if row is None else LeasedCourier(name=name, token=row["lease_token"], cursor=row["cursor"])

    return await postgres.run("db.courier", body, begin=RELAXED)


async def release_courier(postgres: Postgres, name: str, owner: str) -> None:
    """Give a courier back, if this process has it: another one takes it at once."""

    async def body(connection: Connection) -> None:
        await connection.execute(_RELEASE, name, owner)

    await postgres.run("db.courier", body, begin=RELAXED)


async def read_events(postgres: Postgres, after: int, rows: int, types: Sequence[EventType]) -> EventPage:
    """Read the next events behind ``after``, of all tenants; without ``types`` those of every type."""

    async def body(connection: Connection) -> EventPage:
        found = await connection.fetch(_PAGE, after, rows, list(types))
        wanted = [stored_event(row) for row in found if row["wanted"]]
        return EventPage(events=wanted, looked_to=found[-1]["sequence"] if found else after)

    return await postgres.run("db.courier", body, begin=RELAXED)


async def move_cursor(postgres: Postgres, courier: LeasedCourier, cursor: int) -> bool:
    """Note that all events up to ``cursor`` are confirmed; where the lease is lost, change nothing and return false."""

    async def body(connection: Connection) -> bool:
        return await connection.fetchval(_MOVE, courier.name, courier.token, cursor) is not None

    return await postgres.run("db.courier", body, begin=RELAXED)


_MAKE = "INSERT INTO courier (name) VALUES ($1) ON CONFLICT DO NOTHING"
_LEASE = f"UPDATE courier SET {LEASE} WHERE name = $3 AND {LEASABLE} RETURNING lease_token, cursor"
_RELEASE = "UPDATE courier SET leased_until = NULL WHERE name = $1 AND leased_by = $2"
# event_by_sequence
_PAGE = f"""
SELECT {EVENT_COLUMNS}, (cardinality($3::text[]) = 0 OR type = ANY($3)) AS wanted
FROM event WHERE sequence > $1 ORDER BY sequence LIMIT $2
"""
_MOVE = """
UPDATE courier SET cursor = greatest(cursor, $3) WHERE name = $1 AND lease_token = $2 AND leased_until IS NOT NULL
RETURNING name
"""
