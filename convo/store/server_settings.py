"""The database server's own settings: which of them convo reads at its start, and what it refuses or warns of.

Open it when a server should be refused, or when a setting of the server puts stored conversations at risk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from convo.errors import ConvoError, Refused
from convo.store.postgres import Connection, DedicatedConnection, Postgres
from convo.store.purposes import RESERVED

# Without a setting of ours: it reads what the server's own are.
_SERVERS_OWN = "BEGIN"
_SECONDS = 10.0
_OLDEST = 150_000
# SQLSTATEs that no waiting can mend: wrong password, no such role or database.
_NEVER = ("28", "3D")
_DEDICATED = 4
"""The connections of the committer, the books, the alerts and the bell; all others use those of their purpose."""
_BESIDES = _DEDICATED + sum(RESERVED.values())

_RISKS = {
    "fsync": "a crash of its machine can lose or corrupt everything",
    "full_page_writes": "a crash of its machine can corrupt everything",
    "synchronous_commit": "convo overrides it for what it accepts and settles; what others store there may be lost",
}


def risks(found: Mapping[str, str]) -> dict[str, str]:
    """Describe, for each setting that is off and that a receipt depends on, what can be lost."""
    return {
        setting: f"the database runs with {setting} = off: {risk}"
        for setting, risk in _RISKS.items()
        if found[setting] == "off"
    }


def connections_wanted(pool_max: int) -> int:
    """Count the connections that one process may open."""
    return pool_max + _BESIDES


def connections_spare(found: Mapping[str, str]) -> int:
    """Count the connections that the server has for ordinary roles."""
    return int(found["max_connections"]) - int(found["superuser_reserved_connections"])


def check_room(found: Mapping[str, str], pool_max: int) -> None:
    """Check that the server takes all connections that one process may open.

    Raises:
        Refused: it takes fewer; both numbers are named.
    """
    if connections_wanted(pool_max) > connections_spare(found):
        raise Refused(
            f"database.pool_max = {pool_max} and {_BESIDES} connections besides are more than the"
            f" {connections_spare(found)} that the database takes (max_connections {found['max_connections']}): under"
            " load it would turn connections away; lower the one or raise the other"
        )


async def inspect(postgres: Postgres, dedicated: DedicatedConnection) -> dict[str, str]:
    """Read the settings of this server that convo depends on; return them by name.

    Raises:
        Refused: a server older than 15, a pooler that drops session settings, a login that can never work.
        DatabaseUnavailable: it cannot be reached now.
    """

    async def body(connection: Connection) -> list[Mapping[str, Any]]:
        return await connection.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", list(_INSPECTED))

    try:
        rows = await dedicated.run("db.inspect", body, begin=_SERVERS_OWN, seconds=_SECONDS)
    except ConvoError as error:
        never = _never(error)
        if never is None:
            raise
        raise never from error.__cause__
    found = {row["name"]: row["setting"] for row in rows}
    if int(found["server_version_num"]) < _OLDEST:
        raise Refused(f"the database is PostgreSQL {found['server_version']}; convo needs 15 or later")
    if found["statement_timeout"] != postgres.session_settings()["statement_timeout"]:
        raise Refused(_POOLER)
    return found


_INSPECTED: Iterable[str] = (
    "server_version",
    "server_version_num",
    "statement_timeout",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "max_connections",
    "superuser_reserved_connections",
)
_POOLER = (
    "database.url leads through a connection pooler (pgbouncer?) that drops session settings such as"
    " statement_timeout; give convo PostgreSQL's own port, or a pool in session mode without ignore_startup_parameters"
)


def _never(error: ConvoError) -> Refused | None:
    cause = error.__cause__
    sqlstate = getattr(cause, "sqlstate", None) or ""
    if sqlstate == "08P01" and "startup parameter" in str(cause):
        return Refused(_POOLER)
    if sqlstate.startswith(_NEVER):
        return Refused(f"database.url: the server refuses the login for good (SQLSTATE {sqlstate}: {cause})")
    return None
