"""Who is at work on this database, and how many connections each may open; it knows nothing of their work."""

from __future__ import annotations

from convo.store.postgres import RELAXED, Connection, Postgres


async def enter(postgres: Postgres, name: str, *, pid: int, host: str, connections_max: int) -> int:
    """Sign a process in; return the connections that all living processes together may open."""

    async def body(connection: Connection) -> int:
        await connection.execute(_ENTER, name, pid, host, connections_max)
        total: int = await connection.fetchval(_CONNECTIONS)
        return total

    return await postgres.run("db.enter", body)


async def leave(postgres: Postgres, name: str) -> None:
    """Sign a process out."""

    async def body(connection: Connection) -> None:
        await connection.execute("DELETE FROM process WHERE name = $1", name)

    await postgres.run("db.leave", body, begin=RELAXED)


async def seen(connection: Connection, name: str) -> None:
    """Note that a process lives."""
    await connection.execute("UPDATE process SET seen_at = convo_now() WHERE name = $1", name)


async def signed_in(postgres: Postgres) -> list[str]:
    """Read which processes were at work on this database within the last minute; none where there is no schema yet."""

    async def body(connection: Connection) -> list[str]:
        if await connection.fetchval("SELECT to_regclass('process')") is None:
            return []
        rows = await connection.fetch("SELECT name FROM process WHERE seen_at > convo_now() - interval '1 minute'")
        return [row["name"] for row in rows]

    return await postgres.run("db.signed_in", body)


_ENTER = """
INSERT INTO process (name, pid, host, connections_max) VALUES ($1, $2, $3, $4)
ON CONFLICT (name) DO UPDATE SET pid = $2, host = $3, connections_max = $4, started_at = convo_now(),
                                 seen_at = convo_now()
"""
_CONNECTIONS = """
SELECT sum(connections_max)::integer FROM process WHERE seen_at > convo_now() - interval '1 minute'
"""
