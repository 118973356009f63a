"""Which program each process runs: its version, and the newest migration that it knows.

Open it to change who holds a contract step back. A process announces itself before it migrates, by the name of its
sessions (``runtime.identity``, the incarnation). A process that announced nothing, as those of 0.1, counts as older
than every migration.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from convo.store.postgres import RELAXED, Connection, Postgres

MAKE_PROGRAMS = """
CREATE TABLE IF NOT EXISTS process_program (
    name    text COLLATE "C" PRIMARY KEY,
    version text NOT NULL,
    knows   integer NOT NULL,
    at      timestamptz NOT NULL DEFAULT now()
)
"""
"""Not a migration: what it holds decides which migrations may be applied."""


class OlderProcess(Struct, frozen=True, kw_only=True):
    """A process that may not know a migration yet; ``version`` is empty where it announced none."""

    name: str
    host: str | None
    version: str | None
    seen_at: datetime | None
    connected: bool

    def __str__(self) -> str:
        version = f"convo {self.version}" if self.version else "a convo that states no version (0.1 or before)"
        seen = f"last seen at {self.seen_at:%Y-%m-%d %H:%M:%S} UTC" if self.seen_at else "not signed in"
        return (
            f"{self.name} on {self.host or 'an unknown host'}: {version}, {seen}"
            f"{'' if self.connected else ', without a session now'}"
        )


async def announce(connection: Connection, name: str, version: str, knows: int) -> None:
    """Note which program the process with this incarnation runs, and forget those that are long gone."""
    await connection.execute(_ANNOUNCE, name, version, knows)
    await connection.execute(_TIDY)


async def withdraw(postgres: Postgres, name: str) -> None:
    """Forget a process that stops."""

    async def body(connection: Connection) -> None:
        await connection.execute("DELETE FROM process_program WHERE name = $1", name)

    await postgres.run("db.leave", body, begin=RELAXED)


async def older_processes(connection: Connection, number: int) -> Sequence[OlderProcess]:
    """Read which processes are at work that do not know the migration ``number``."""
    return [OlderProcess(**dict(row)) for row in await connection.fetch(_OLDER, number)]


async def is_alone(connection: Connection) -> bool:
    """Return whether no other process of convo has a session on this database."""
    alone: bool = await connection.fetchval(_ALONE)
    return alone


_ANNOUNCE = """
INSERT INTO process_program (name, version, knows) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET version = $2, knows = $3, at = now()
"""
_SESSIONS = """
    SELECT split_part(application_name, ' ', 2) AS session FROM pg_stat_activity
    WHERE datname = current_database() AND application_name ~ '^convo .'
"""
# One that is cut off for so long and comes back has its process row and its announcement written again by its sign-in.
_TIDY = f"""
DELETE FROM process_program WHERE name = ANY(ARRAY(
    SELECT name FROM process_program
    WHERE at < now() - interval '1 day' AND name NOT IN ({_SESSIONS}) LIMIT 1000))
"""
# A process of 0.1 is named HOST/FOLDER, and its sessions after the folder; a later one FOLDER.INCARNATION, and its
# sessions after the incarnation. Without a session it counts for a minute: its server may have been started again.
_OLDER = f"""
WITH sessions AS (SELECT DISTINCT session FROM ({_SESSIONS} AND pid <> pg_backend_pid()) AS every), entries AS (
    SELECT name, host, seen_at,
           CASE WHEN strpos(name, '/') > 0 THEN split_part(name, '/', -1) ELSE split_part(name, '.', 2) END AS session
    FROM process
)
SELECT coalesce(entry.name, session) AS name, entry.host, program.version, entry.seen_at,
       sessions.session IS NOT NULL AS connected
FROM entries AS entry FULL JOIN sessions USING (session) LEFT JOIN process_program AS program ON program.name = session
WHERE coalesce(program.knows, 0) < $1
  AND (sessions.session IS NOT NULL OR entry.seen_at > convo_now() - interval '1 minute')
ORDER BY 1
"""
_ALONE = f"""
SELECT NOT EXISTS (SELECT FROM ({_SESSIONS} AND application_name <> current_setting('application_name')) AS others)
"""
