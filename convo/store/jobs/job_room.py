"""The room that the table of jobs takes on the disk: its indexes keep the size of the largest backlog, and are rebuilt.

Open it to change when that is worth it. After a backlog autovacuum cuts the rows' file, but no index: what 200,000 jobs
needed stays for ever, and each vacuum reads it. ``REINDEX CONCURRENTLY`` would lock nobody out, but waits for every old
transaction, keeps autovacuum from the table meanwhile, and leaves broken indexes where it is interrupted. So a table of
few rows is locked instead, for as long as it takes to write its indexes anew.
"""

from __future__ import annotations

from msgspec import Struct

from convo.store.postgres import Connection

INDEX_BYTES_MAX = 4 << 20
"""Smaller indexes stay as they are: some 25,000 jobs need that much."""

ROW_BYTES_MAX = 1 << 20
"""With more rows the indexes are in use, or would be locked for long: some 5,000 jobs take that much."""

# An accept that comes while the lock is waited for waits behind it, and then for the indexes (measured: 0.2 s on two
# cores with a load of 20).
_LOCK_MILLISECONDS = 50
_UNDER_LOCK_MILLISECONDS = 400


class RebuiltIndexes(Struct, frozen=True, kw_only=True):
    """How many bytes the indexes of the table of jobs had before, and have now."""

    bytes_before: int
    bytes_now: int


async def rebuild_indexes(connection: Connection) -> RebuiltIndexes | None:
    """Rebuild the indexes of the table of jobs if they are large and it has few rows; None if not.

    It gives way to whoever uses the table for longer than a moment: then a lock is not got, or a statement cancelled.
    """
    if not await _is_worth_it(connection):
        return None
    await connection.execute(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}")
    await connection.execute("LOCK TABLE job IN ACCESS EXCLUSIVE MODE")
    # Others may have added rows before the lock was ours.
    if not await _is_worth_it(connection):
        return None
    await connection.execute(f"SET LOCAL statement_timeout = {_UNDER_LOCK_MILLISECONDS}")
    before = await connection.fetchval(_INDEX_BYTES)
    await connection.execute("REINDEX TABLE job")
    return RebuiltIndexes(bytes_before=before, bytes_now=await connection.fetchval(_INDEX_BYTES))


async def _is_worth_it(connection: Connection) -> bool:
    return bool(await connection.fetchval(_IS_WORTH_IT, INDEX_BYTES_MAX, ROW_BYTES_MAX))


# They ask for the sizes of files, and read no row.
_INDEX_BYTES = "SELECT pg_indexes_size('job')"
_IS_WORTH_IT = "SELECT pg_indexes_size('job') > $1 AND pg_relation_size('job') <= $2"
