"""What the audit log of a database holds, for tests."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import trio

from tests.support.running import query

_ROWS = "SELECT * FROM audit_log ORDER BY number"


def audit_rows(database: str, *without: str) -> list[dict[str, Any]]:
    """Read all rows but those of these actions, in their order, each column by its name."""
    return [dict(row) for row in query(database, _ROWS) if row["action"] not in without]


async def audit_rows_soon(database: str, count: int, *without: str) -> list[dict[str, Any]]:
    """Read all rows but those of these actions as soon as there are so many; pytest's own alarm is the bound."""
    while len(found := await trio.to_thread.run_sync(audit_rows, database, *without)) < count:  # noqa: ASYNC110
        await trio.sleep(0.05)
    return found


def hashed_id(database: str, kind: str, id_: str) -> bytes:
    """Compute the HMAC of an id as a person would by hand."""
    ((key,),) = query(database, "SELECT key FROM installation_key")
    return hmac.new(key, f"{kind}\0{id_}".encode(), hashlib.sha256).digest()[:16]
