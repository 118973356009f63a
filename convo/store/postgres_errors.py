"""Which of our errors a failure of the database is: by the type of asyncpg's error, or by its SQLSTATE.

Open it to change what is tried again, what a client may send again, and what it must not.
"""

from __future__ import annotations

import asyncpg

from convo.errors import (
    BadRow,
    ConvoError,
    DatabaseDeadlineExceeded,
    DatabaseUnavailable,
    DeadlineExceeded,
    DiskFull,
    TransactionLost,
)
from convo.observe import log_records, metrics

# SQLSTATEs, by how they begin. The transaction is gone, and the same one may succeed at once: a lost connection, a
# server that stops, a serialization failure, a deadlock.
_LOST = ("08", "57P01", "57P02", "57P05", "40001", "40P01", "25P03")
# Where a row may be there, statements say ON CONFLICT. Where two unique indexes have the same columns, as between the
# two steps of a migration, that does not see a row which is made under the other one at the same moment.
_MADE_MEANWHILE = "23505"
# The content itself cannot be stored.
_BAD_ROW = ("22", "23", "54")
# A lock was taken, it took too long under its own, or it met a deadlock.
_HELD_UP = ("55P03", "57014", "40P01")


class mapped_errors:  # noqa: N801  (reads as a statement)
    """Raise our errors in the place of the library's, and count those that say the database is unavailable."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        mapped = None if error is None else _map(error)
        failure = mapped or error
        if isinstance(failure, DatabaseUnavailable):
            metrics.database_failures_total.labels(failure.code).inc()
        if mapped is not None:
            raise mapped from error


def is_held_up(error: ConvoError) -> bool:
    """Return whether a unit under bounds of its own met the locks of others: it is tried again later."""
    return getattr(error.__cause__, "sqlstate", None) in _HELD_UP


def _map(error: BaseException) -> ConvoError | None:
    if type(error) is DeadlineExceeded:
        return DatabaseDeadlineExceeded(error.name, error.seconds, error.budget)
    if isinstance(error, asyncpg.PostgresError):
        return _map_sqlstate(error.sqlstate or "", error)
    # asyncpg itself refused to encode a value, which never reached the server.
    if isinstance(error, asyncpg.DataError):
        return BadRow("a value cannot be stored", sqlstate="22000")
    if isinstance(error, OSError | asyncpg.TargetServerAttributeNotMatched):
        return DatabaseUnavailable(f"the database cannot be reached ({type(error).__name__})")
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError | EOFError):
        return TransactionLost("the connection to the database was lost")
    return None


def _map_sqlstate(sqlstate: str, error: BaseException) -> ConvoError:
    if sqlstate == _MADE_MEANWHILE:
        return TransactionLost(f"another transaction made the same row at this moment (SQLSTATE {sqlstate})")
    if sqlstate.startswith(_BAD_ROW):
        return BadRow(f"the database refuses the content (SQLSTATE {sqlstate})", sqlstate=sqlstate)
    if sqlstate == "53100":
        log_records.disk_full(error=f"SQLSTATE {sqlstate}")
        return DiskFull("the database's disk is full (SQLSTATE 53100); nothing was stored")
    if sqlstate.startswith(_LOST):
        return TransactionLost(f"the transaction was lost (SQLSTATE {sqlstate})")
    return DatabaseUnavailable(f"the database cannot do this now (SQLSTATE {sqlstate}: {type(error).__name__})")
