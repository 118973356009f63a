"""How many bytes the tables of convo take, and how many conversations are in them: what a month of them will take."""

from __future__ import annotations

from convo.capacity.planning import StoredBytes, Surroundings
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.server_settings import connections_wanted


async def read_surroundings(postgres: Postgres, pool_max: int) -> Surroundings:
    """Read what is stored, how many processes of convo live, and how many connections the server has.

    ``pool_max`` is ``database.pool_max``, on which it depends how many one process may open.

    Raises:
        DatabaseUnavailable, DeadlineExceeded: the database does not answer.
    """

    async def body(connection: Connection) -> Surroundings:
        row = await connection.fetchrow(_STORED) or {}
        return Surroundings(
            processes=row["processes"],
            connections=connections_wanted(pool_max),
            connections_spare=row["connections"],
            stored=StoredBytes(conversations=row["conversations"], bytes=row["bytes"]),
        )

    return await postgres.run("db.capacity", body, begin=RELAXED)


# Each partition is counted by itself. What was retired is in no table any more, but booked as accepted.
_STORED = """
SELECT (SELECT coalesce(sum(CASE kind WHEN 'accepted' THEN n WHEN 'retired' THEN -n END), 0)::bigint FROM ledger)
           AS conversations,
       (SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r') AS bytes,
       current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
           AS connections,
       (SELECT count(*)::integer FROM process WHERE seen_at > convo_now() - interval '1 minute') AS processes
"""
