"""The table of convo processes on this database: who is at work, since when, and when each was last seen.

A row is one start of one process, by its name (``runtime.identity``). It is deleted when the process stops, when its
folder is claimed by the next start, and when it was not seen for so long that it counts as dead
(``store/jobs/crashes.py``). A process that finds its row gone writes it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct

from convo.store.history import RESTORE_LOCK
from convo.store.postgres import LOCAL, RELAXED, Connection, Postgres, application_name

LEAD_LOCK = 0x636F6E766F_03
"""The lock of the session whose process leads: it raises the alerts that all share, and keeps what one has to keep."""


class ProcessEntry(Struct, frozen=True, kw_only=True):
    """What the table holds of one process; ``host``, ``pid`` and ``workers`` are for people to read."""

    name: str
    folder: str
    host: str
    pid: int
    connections_max: int
    lease_seconds: float
    heartbeat_seconds: float
    workers: int = 0


class Namesake(Struct, frozen=True, kw_only=True):
    """Another start on a folder of the same id; ``connected`` when it has a session on this database."""

    name: str
    host: str
    seen_at: datetime
    heartbeat_seconds: float
    connected: bool


async def enter(postgres: Postgres, entry: ProcessEntry) -> int:
    """Register a process; return the connections that all living processes together may open."""

    async def body(connection: Connection) -> int:
        await write_entry(connection, entry)
        total: int = await connection.fetchval(_CONNECTIONS)
        return total

    return await postgres.run("db.enter", body, begin=LOCAL)


async def write_entry(connection: Connection, entry: ProcessEntry) -> None:
    """Write the row of a process that lives."""
    values = (entry.name, entry.folder, entry.host, entry.pid, entry.connections_max)
    await connection.execute(_PUT, *values, entry.lease_seconds, entry.heartbeat_seconds, entry.workers)


async def leave(postgres: Postgres, name: str) -> None:
    """Remove a process."""

    async def body(connection: Connection) -> None:
        await connection.execute("DELETE FROM process WHERE name = $1", name)

    await postgres.run("db.leave", body, begin=RELAXED)


async def seen(connection: Connection, name: str) -> bool:
    """Note that a process lives; return whether it still has a row."""
    return await connection.fetchval(_SEEN, name) is not None


async def namesakes(connection: Connection, folder: str, name: str) -> list[Namesake]:
    """Read which other processes are registered with this folder id."""
    rows = await connection.fetch(_NAMESAKES, folder, name)
    sessions = [application_name(row["name"].partition(".")[2] or folder) for row in rows]
    connected = {row["application_name"] for row in await connection.fetch(_CONNECTED, sessions)}
    return [Namesake(**dict(row), connected=one in connected) for row, one in zip(rows, sessions, strict=True)]


async def holders(postgres: Postgres) -> list[str]:
    """Describe whoever has a session of convo on this database, whether it answers or not, but for this process."""

    async def body(connection: Connection) -> list[str]:
        return [_described(row) for row in await connection.fetch(_HOLDERS, RESTORE_LOCK)]

    return await postgres.run("db.holders", body)


def _described(row: Mapping[str, Any]) -> str:
    pids = ", ".join(map(str, row["pids"]))
    return f"{row['name'] or 'a process'} ({row['client'] or 'a local socket'}; sessions {pids})"


_PUT = """
INSERT INTO process (name, folder, host, pid, connections_max, lease_seconds, heartbeat_seconds, workers)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (name) DO UPDATE SET connections_max = $5, lease_seconds = $6, heartbeat_seconds = $7, workers = $8,
                                 seen_at = convo_now(), steady_since = convo_now()
"""
# An older program has no share of the lock, but its sessions have the name.
_HOLDERS = """
SELECT application_name AS name, host(client_addr) AS client, array_agg(pid ORDER BY pid) AS pids
FROM pg_stat_activity AS session
WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND (application_name ~ '^convo( |$)' OR EXISTS (
      SELECT FROM pg_locks AS held
      WHERE held.pid = session.pid AND locktype = 'advisory' AND objsubid = 1
        AND classid::bigint << 32 | objid::bigint = $1::bigint))
GROUP BY application_name, client_addr ORDER BY 1, 2
"""
_CONNECTIONS = """
SELECT sum(connections_max)::integer FROM process WHERE seen_at > convo_now() - interval '1 minute'
"""
# After a gap nobody may call others dead for a while: it may be the network or the database that was away, for all.
_SEEN = """
UPDATE process SET seen_at = convo_now(), steady_since = CASE
    WHEN seen_at < convo_now() - make_interval(secs => lease_seconds) THEN convo_now() ELSE steady_since END
WHERE name = $1 RETURNING name
"""
_NAMESAKES = "SELECT name, host, seen_at, heartbeat_seconds FROM process WHERE folder = $1 AND name <> $2"
_CONNECTED = """
SELECT application_name FROM pg_stat_activity
WHERE datname = current_database() AND application_name = ANY($1::text[])
"""
