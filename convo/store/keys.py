"""The keys of clients: kept as hashes, made, listed and revoked; it knows no request.

A key is ``convo_ID_SECRET``. The secret has 256 bits from the system's source, so one SHA-256 of it is as good as any
slow hash, and fast enough to be computed for each request.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from msgspec import Struct

from convo.errors import NotFound
from convo.store.postgres import RELAXED, Connection, Postgres

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
PREFIX = "convo_"
KEYS_MAX = 10_000
"""So many are held in memory; the newest ones, if there are more."""


class Key(Struct, frozen=True, kw_only=True):
    """One key as the database knows it; ``requests_per_second`` 0 is no limit of its own."""

    key_id: str
    digest: bytes
    name: str
    scopes: tuple[str, ...]
    requests_per_second: float
    created_at: datetime
    last_used_at: datetime | None


def digest_of(secret: str) -> bytes:
    """Return what is kept of a key's secret."""
    return hashlib.sha256(secret.encode()).digest()


async def new(postgres: Postgres, name: str, scopes: Sequence[Scope], requests_per_second: float) -> str:
    """Make a key and return it whole: it is nowhere to be read again."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)

    async def body(connection: Connection) -> None:
        await connection.execute(_NEW, key_id, digest_of(secret), name, list(scopes), requests_per_second)

    await postgres.run("db.keys", body)
    return f"{PREFIX}{key_id}_{secret}"


async def good(postgres: Postgres) -> list[Key]:
    """Read the keys that are not revoked, newest first, at most ``KEYS_MAX``."""

    async def body(connection: Connection) -> list[Key]:
        return [_key(row) for row in await connection.fetch(_GOOD, KEYS_MAX)]

    return await postgres.run("db.keys", body, begin=RELAXED)


async def revoke(postgres: Postgres, key_id: str) -> None:
    """Let a key be good no longer.

    Raises:
        NotFound: there is none of this id that is good.
    """

    async def body(connection: Connection) -> object:
        return await connection.fetchval(_REVOKE, key_id)

    if await postgres.run("db.keys", body) is None:
        raise NotFound(f"there is no key {key_id!r} that is good; `convo key list` shows those that are")


async def note_used(postgres: Postgres, key_ids: Collection[str]) -> None:
    """Note that these keys were used just now."""

    async def body(connection: Connection) -> None:
        await connection.execute(_USED, list(key_ids))

    await postgres.run("db.keys", body, begin=RELAXED)


def _key(row: Mapping[str, Any]) -> Key:
    return Key(**{**row, "scopes": tuple(row["scopes"])})


_NEW = "INSERT INTO api_key (key_id, digest, name, scopes, requests_per_second) VALUES ($1, $2, $3, $4, $5)"
_GOOD = """
SELECT key_id, digest, name, scopes, requests_per_second, created_at, last_used_at
FROM api_key WHERE revoked_at IS NULL ORDER BY created_at DESC LIMIT $1
"""
_REVOKE = "UPDATE api_key SET revoked_at = convo_now() WHERE key_id = $1 AND revoked_at IS NULL RETURNING 1"
_USED = "UPDATE api_key SET last_used_at = convo_now() WHERE key_id = ANY($1::text[])"
