"""The sessions of browsers: how they are made for a key, stored as hashes, found, listed and ended.

Open it to change what a session holds, or how many there may be. A session stands for the key that was shown when it
was made. It ends with that key, at its time, or when somebody ends it. Its token is ``ID_SECRET``; only the browser has
it.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct

from convo.errors import NotFound
from convo.store import audit_log
from convo.store.audit_log import AuditEntry, Caller
from convo.store.keys import GOOD_KEY, ApiKey, digest_of, key_of_row
from convo.store.postgres import RELAXED, Connection, Postgres

SESSIONS_OF_KEY_MAX = 100
"""So many sessions one key may have: a further one ends the oldest."""
_OVER_MAX = 1_000
_LISTED_MAX = 1_000


class PageSession(Struct, frozen=True, kw_only=True):
    """One session that is valid, and the key that it stands for.

    ``expires_in`` is what was left, in seconds, when it was read; of session and key it is the one that ends first.
    """

    session_id: str
    digest: bytes
    key: ApiKey
    made_at: datetime
    expires_at: datetime
    expires_in: float


class MadeSession(Struct, frozen=True, kw_only=True):
    """A session that was just made, with its token, which cannot be read anywhere afterwards."""

    session: PageSession
    token: str


async def make_page_session(postgres: Postgres, key: ApiKey, seconds: float, caller: Caller) -> MadeSession | None:
    """Make a session for a key, at most so many ``seconds`` long; None where the key is not valid any more."""

    async def body(connection: Connection) -> MadeSession | None:
        session_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        await connection.execute(_TIDY, key.key_id, SESSIONS_OF_KEY_MAX - 1, _OVER_MAX)
        if await connection.fetchval(_NEW, session_id, digest_of(secret), key.key_id, seconds) is None:
            return None
        (session,) = await _find(connection, [session_id])
        entry = AuditEntry(
            action="session_made", tenant=key.reach.tenant, caller=caller, detail={"session_id": session_id}
        )
        await audit_log.append(connection, entry)
        return MadeSession(session=session, token=f"{session_id}_{secret}")

    return await postgres.run("db.keys", body)


async def find_page_sessions(postgres: Postgres, session_ids: Collection[str]) -> Mapping[str, PageSession]:
    """Read those of these sessions that are valid, by their ids.

    Raises:
        DatabaseUnavailable, DeadlineExceeded: they cannot be read now.
    """

    async def body(connection: Connection) -> Mapping[str, PageSession]:
        return {session.session_id: session for session in await _find(connection, session_ids)}

    return await postgres.run("db.keys", body, begin=RELAXED)


async def list_page_sessions(postgres: Postgres) -> list[PageSession]:
    """Read the sessions that are valid, newest first; at most a thousand."""

    async def body(connection: Connection) -> list[PageSession]:
        return [_session(row) for row in await connection.fetch(_LIST, _LISTED_MAX)]

    return await postgres.run("db.keys", body, begin=RELAXED)


async def end_page_session(postgres: Postgres, session_id: str, caller: Caller = audit_log.NO_CALLER) -> None:
    """End a session.

    Raises:
        NotFound: there is no valid session of this id.
    """

    async def body(connection: Connection) -> bool:
        found = await _find(connection, [session_id])
        await connection.execute(_END, [session_id])
        if found:
            key = found[0].key
            detail = {"session_id": session_id, "key_id": key.key_id}
            entry = AuditEntry(action="session_ended", tenant=key.reach.tenant, caller=caller, detail=detail)
            await audit_log.append(connection, entry)
        return bool(found)

    if not await postgres.run("db.keys", body):
        raise NotFound(f"there is no session {session_id!r}; `convo session list` shows the valid ones")


async def _find(connection: Connection, session_ids: Collection[str]) -> list[PageSession]:
    return [_session(row) for row in await connection.fetch(_FIND, list(session_ids))]


def _session(row: Mapping[str, Any]) -> PageSession:
    key, left = key_of_row(row), float(row["session_expires_in"])
    at = row["session_expires_at"]
    if key.expires_at is not None and key.expires_in is not None and key.expires_in < left:
        at, left = key.expires_at, key.expires_in
    return PageSession(
        session_id=row["session_id"],
        digest=row["session_digest"],
        key=key,
        made_at=row["made_at"],
        expires_at=at,
        expires_in=left,
    )


_NEW = f"""
INSERT INTO session (session_id, digest, key_id, expires_at)
SELECT $1, $2, $3, convo_now() + make_interval(secs => $4::float8)
WHERE EXISTS ({GOOD_KEY} AND key_id = $3) RETURNING 1
"""
# session_of_key, and session_by_end.
_TIDY = """
DELETE FROM session WHERE session_id = ANY(ARRAY(
    (SELECT session_id FROM session WHERE key_id = $1 ORDER BY made_at DESC OFFSET $2 LIMIT $3)
    UNION ALL (SELECT session_id FROM session WHERE expires_at <= convo_now() ORDER BY expires_at LIMIT $3)))
"""
_FIELDS = f"""
SELECT session_id, session.digest AS session_digest, made_at, session.expires_at AS session_expires_at,
       extract(epoch FROM session.expires_at - convo_now())::float8 AS session_expires_in, good_key.*
FROM session CROSS JOIN LATERAL ({GOOD_KEY} AND api_key.key_id = session.key_id OFFSET 0) AS good_key
WHERE session.expires_at > convo_now()
"""
_FIND = f"{_FIELDS} AND session_id = ANY($1::text[])"
_LIST = f"{_FIELDS} ORDER BY made_at DESC LIMIT $1"
_END = "DELETE FROM session WHERE session_id = ANY($1::text[])"
