"""Bring the schema to this program's version; it knows the numbered files, not what is in them."""

from __future__ import annotations

from importlib import resources

from convo.errors import DatabaseUnavailable, Refused
from convo.store.postgres import Connection, Line

# Any number that no other program on this database uses.
_LOCK = 7_266_386_220
_SECONDS = 600.0
# Class 42: a right that is missing, a table of somebody else's. Waiting mends neither.
_NOT_ALLOWED = "42"


def migrations() -> list[tuple[int, str]]:
    """Return every migration of this program as (number, SQL), in order."""
    folder = resources.files("convo.store") / "schema"
    found = [(int(file.name[:4]), file.read_text("utf-8")) for file in folder.iterdir() if file.name.endswith(".sql")]
    return sorted(found)


async def migrate(line: Line) -> tuple[int, int]:
    """Apply what is missing, in one transaction, one process at a time; return the versions before and after.

    The lock belongs to the transaction, so that it is gone with a process that dies.

    Raises:
        Refused: the database has a schema that this program does not know yet, or does not let us make ours.
        DatabaseUnavailable: it cannot be reached now.
    """
    try:
        return await line.run("db.migrate", _migrate, seconds=_SECONDS)
    except DatabaseUnavailable as error:
        sqlstate = getattr(error.__cause__, "sqlstate", None) or ""
        if not sqlstate.startswith(_NOT_ALLOWED):
            raise
        raise Refused(
            f"the database does not let us make our tables (SQLSTATE {sqlstate}: {error.__cause__}); make the role of"
            " database.url the owner of its database, or GRANT CREATE, USAGE ON SCHEMA public to it"
        ) from error


async def stored_version(line: Line) -> int:
    """Read which version the database's schema has, changing nothing; 0 where there is none yet.

    Raises:
        Refused: the database has a schema that this program does not know yet.
        DatabaseUnavailable: it cannot be reached now.
    """

    async def body(connection: Connection) -> int:
        if await connection.fetchval("SELECT to_regclass('schema_version')") is None:
            return 0
        version: int = await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_version")
        return version

    version = await line.run("db.schema", body)
    _refuse_unknown(version)
    return version


def _refuse_unknown(version: int) -> None:
    newest = migrations()[-1][0]
    if version > newest:
        raise Refused(
            f"the database has schema version {version}, this program knows {newest}: start the newer convo that"
            " made it, or restore a backup from before it"
        )


async def _migrate(connection: Connection) -> tuple[int, int]:
    await connection.execute("SET LOCAL statement_timeout = 0")
    await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_version (version integer PRIMARY KEY, applied_at timestamptz DEFAULT now())"
    )
    before = await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_version")
    _refuse_unknown(before)
    known = migrations()
    newest = known[-1][0]
    for number, sql in known:
        if number > before:
            await connection.execute(sql)
            await connection.execute("INSERT INTO schema_version (version) VALUES ($1)", number)
    return before, newest
