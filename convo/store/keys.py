"""The API keys of clients: how they are made, stored as hashes, read, noted as used, replaced and revoked.

Open it to change what a key holds. A key is ``convo_ID_SECRET``. The secret has 256 random bits, so one SHA-256 of it
is as safe as a slow hash, and fast enough to compute for each request.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import trio
from msgspec import Struct, structs

from convo.audit_actions import AuditAction
from convo.conversation.identity import DEFAULT_TENANT
from convo.conversation.tenant import DEFAULT, WHOLE_DEFAULT, Reach, Tenant
from convo.errors import NotFound, Refused
from convo.store import audit_log, tenants
from convo.store.audit_log import AuditEntry
from convo.store.installation_key import FINGERPRINT
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.reaching import TENANT_NAME

Scope = Literal["read", "write", "erase", "webhooks", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "erase", "webhooks", "admin")
PREFIX = "convo_"
KEYS_MAX = 10_000
"""So many are held in memory: the newest ones, if there are more."""
# So many are made at a time: others run in between.
_SLICE = 256
Expiry = datetime | timedelta | Literal["never"]
"""When a key expires: at a time, or so long after it was made by the database's clock."""


class ApiKey(Struct, frozen=True, kw_only=True):
    """One key as the database knows it; ``requests_per_second`` 0 is no limit of its own.

    ``expires_in`` is what was left, in seconds, when it was read: below 0 for a key that has expired, None for one that
    does not expire.
    """

    key_id: str
    digest: bytes
    name: str
    scopes: tuple[str, ...]
    requests_per_second: float
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    expires_in: float | None
    replaces: str | None
    reach: Reach = WHOLE_DEFAULT


class GoodKeys(Struct, frozen=True, kw_only=True):
    """All valid keys, and a mark that changes with them; ``keys`` is None where the mark was known already.

    10,000 keys take 100 ms of the loop, so they are only read after a change. ``several``: there is another tenant than
    the default one. ``installation`` tells this database from every other one, also from one restored of its backup.
    """

    mark: str
    keys: list[ApiKey] | None
    several: bool = False
    installation: str = ""


def digest_of(secret: str) -> bytes:
    """Return what is stored of a key's secret."""
    return hashlib.sha256(secret.encode()).digest()


async def new(  # noqa: PLR0913  (what it allows, how much, how long, and whose it is)
    postgres: Postgres,
    name: str,
    scopes: Sequence[Scope],
    requests_per_second: float,
    *,
    expires: Expiry = "never",
    tenant: str = DEFAULT_TENANT,
    bots: Sequence[str] = (),
) -> str:
    """Make a key and return it in full: it cannot be read anywhere afterwards.

    It is of ``tenant``, which is made where there is none of that name, and bound to ``bots``, or to none where that is
    empty.

    Raises:
        Refused: it would have expired already, the tenant cannot be made, an older program is at work that would let
            the key reach more, or a key that is bound to bots would have the scope ``admin``.
    """
    if bots and "admin" in scopes:
        raise Refused("a key with the scope admin concerns all bots: leave admin out of --scopes, or leave --bots out")

    async def body(connection: Connection) -> str:
        whose = await tenants.find_or_make(connection, tenant)
        if bots:
            await tenants.check_alone(connection, "the key cannot be bound to bots")
        kept = (name, list(scopes), requests_per_second, whose.number, list(bots) or None)
        key = await _insert(connection, kept, expires)
        bound = {"bots": list(bots)} if bots else {}
        await _note(connection, "key_made", whose, key_id=_id_in(key), name=name, scopes=scopes, **bound)
        return key

    return await postgres.run("db.keys", body)


async def rotate(postgres: Postgres, key_id: str, overlap: timedelta, *, expires: Expiry | None = None) -> str:
    """Make a key that replaces another, with all that it had; the old one expires after ``overlap``.

    Raises:
        NotFound: there is no valid key of this id.
        Refused: the old key expires, and ``expires`` does not say whether the new one does.
    """

    async def body(connection: Connection) -> str:
        old = await connection.fetchrow(_LOCK, key_id)
        if old is None:
            raise _no_such_key(key_id)
        if expires is None and old["expires_at"] is not None:
            raise Refused(f"the key {key_id} expires: decide with --expires when the new one does, or --expires never")
        await connection.execute(_END, key_id, overlap)
        kept = tuple(old[name] for name in ("name", "scopes", "requests_per_second", "tenant", "bots"))
        key = await _insert(connection, kept, expires or "never", key_id)
        names = {"name": old["name"], "scopes": old["scopes"]}
        whose = Tenant(number=old["tenant"], name=old["tenant_name"])
        await _note(connection, "key_rotated", whose, key_id=_id_in(key), replaces=key_id, **names)
        return key

    return await postgres.run("db.keys", body)


async def _insert(connection: Connection, kept: tuple[Any, ...], expires: Expiry, replaces: str | None = None) -> str:
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    at = expires if isinstance(expires, datetime) else None
    after = expires if isinstance(expires, timedelta) else None
    if await connection.fetchval(_NEW, key_id, digest_of(secret), *kept, at, after, replaces) is None:
        raise Refused(f"the key would have expired already: {expires}")
    return f"{PREFIX}{key_id}_{secret}"


async def read_good(postgres: Postgres, known_mark: str = "") -> GoodKeys:
    """Read the keys that are valid, newest first, at most ``KEYS_MAX``, unless they are those of ``known_mark``.

    Raises:
        DatabaseUnavailable, DeadlineExceeded: they cannot be read now.
    """

    async def body(connection: Connection) -> tuple[GoodKeys, Sequence[Mapping[str, Any]] | None]:
        # Before the keys: where one changes between the two, the mark is an old one, and they are read again next time.
        marked = GoodKeys(keys=None, **(await connection.fetchrow(_MARK) or {}))
        return marked, None if marked.mark == known_mark else await connection.fetch(_GOOD, KEYS_MAX)

    marked, rows = await postgres.run("db.keys", body, begin=RELAXED)
    if rows is None:
        return marked
    keys: list[ApiKey] = []
    for start in range(0, len(rows), _SLICE):
        await trio.lowlevel.checkpoint()
        keys += map(key_of_row, rows[start : start + _SLICE])
    return structs.replace(marked, keys=keys)


async def find_good(postgres: Postgres, key_ids: Collection[str]) -> list[ApiKey]:
    """Read those of these keys that are valid.

    Raises:
        DatabaseUnavailable, DeadlineExceeded: as ``read_good``.
    """

    async def body(connection: Connection) -> list[ApiKey]:
        return [key_of_row(row) for row in await connection.fetch(_GOOD_OF, list(key_ids))]

    return await postgres.run("db.keys", body, begin=RELAXED)


async def not_revoked(postgres: Postgres) -> list[ApiKey]:
    """Read the keys that are not revoked, newest first, also those that have expired; at most ``KEYS_MAX``."""

    async def body(connection: Connection) -> list[ApiKey]:
        return [key_of_row(row) for row in await connection.fetch(_NOT_REVOKED, KEYS_MAX)]

    return await postgres.run("db.keys", body, begin=RELAXED)


async def revoke(postgres: Postgres, key_id: str) -> None:
    """Revoke a key, and end its sessions.

    Raises:
        NotFound: there is no valid key of this id.
    """

    async def body(connection: Connection) -> object:
        revoked = await connection.fetchrow(_REVOKE, key_id)
        if revoked:
            whose = Tenant(number=revoked["tenant"], name=revoked["tenant_name"])
            await _note(connection, "key_revoked", whose, key_id=key_id)
            await connection.execute(_END_SESSIONS, key_id)
        return revoked

    if await postgres.run("db.keys", body) is None:
        raise _no_such_key(key_id)


async def note_used(postgres: Postgres, key_ids: Collection[str]) -> None:
    """Note that these keys were used just now, exactly to a minute: so it costs one write a minute for each key.

    It waits for nobody: what another process notes, or revokes, at this moment is left out.
    """

    async def body(connection: Connection) -> None:
        await connection.execute(_USED, list(key_ids))

    await postgres.run("db.keys", body, begin=RELAXED)


def _id_in(key: str) -> str:
    return key.removeprefix(PREFIX).partition("_")[0]


async def _note(connection: Connection, action: AuditAction, tenant: Tenant, **detail: object) -> None:
    await audit_log.append(connection, AuditEntry(action=action, tenant=tenant, detail=detail))


def _no_such_key(key_id: str) -> NotFound:
    return NotFound(f"there is no valid key {key_id!r}; `convo key list` shows the valid ones")


def key_of_row(row: Mapping[str, Any]) -> ApiKey:
    """Return the key in a row of ``GOOD_KEY``."""
    own = {name: row[name] for name in _OWN}
    tenant = Tenant(number=row["tenant"], name=row["tenant_name"]) if row["tenant"] else DEFAULT
    bots = None if row["bots"] is None else tuple(row["bots"])
    reach = Reach(tenant=tenant, bots=bots) if tenant is not DEFAULT or bots is not None else WHOLE_DEFAULT
    return ApiKey(**{**own, "scopes": tuple(row["scopes"]), "reach": reach})


_OWN = tuple(name for name in ApiKey.__struct_fields__ if name != "reach")


_NEW = """
INSERT INTO api_key (key_id, digest, name, scopes, requests_per_second, tenant, bots, expires_at, replaces)
SELECT $1, $2, $3, $4, $5, $6, $7, expires_at, $10
FROM (SELECT COALESCE($8::timestamptz, convo_now() + $9::interval) AS expires_at) AS asked
WHERE expires_at IS NULL OR expires_at > convo_now() RETURNING 1
"""
_FIELDS = f"""
SELECT key_id, digest, name, scopes, requests_per_second, created_at, last_used_at, expires_at,
       EXTRACT(EPOCH FROM expires_at - convo_now())::float8 AS expires_in, replaces, bots,
       tenant, {TENANT_NAME.format("tenant")} AS tenant_name
FROM api_key WHERE revoked_at IS NULL
"""
_NOT_REVOKED = f"{_FIELDS} ORDER BY created_at DESC LIMIT $1"
_VALID = "(expires_at IS NULL OR expires_at > convo_now())"
# All that can change of a key that is valid: which there are, and when they expire. Their hashes are added up, so that
# no order matters.
_MARK = f"""
SELECT count(*) || ' ' || COALESCE(sum(hashtextextended(concat(key_id, EXTRACT(EPOCH FROM expires_at)), 0)), 0) AS mark,
       EXISTS (SELECT FROM tenant WHERE number > 0) AS several,
       left(encode(sha256(convert_to(({FINGERPRINT}) || current_database() || (
           SELECT system_identifier::text FROM pg_control_system()), 'UTF8')), 'hex'), 8) AS installation
FROM api_key WHERE revoked_at IS NULL AND {_VALID}
"""
GOOD_KEY = f"{_FIELDS} AND {_VALID}"
"""The keys that are valid, as ``key_of_row`` reads them: the beginning of a statement that says which of them."""
_GOOD = f"{GOOD_KEY} ORDER BY created_at DESC LIMIT $1"
_GOOD_OF = f"{GOOD_KEY} AND key_id = ANY($1::text[])"
_LOCK = f"""
SELECT name, scopes, requests_per_second, expires_at, bots, tenant, {TENANT_NAME.format("tenant")} AS tenant_name
FROM api_key WHERE key_id = $1 AND revoked_at IS NULL AND {_VALID} FOR UPDATE
"""
_END = "UPDATE api_key SET expires_at = LEAST(expires_at, convo_now() + $2::interval) WHERE key_id = $1"
_REVOKE = f"""
UPDATE api_key SET revoked_at = convo_now() WHERE key_id = $1 AND revoked_at IS NULL
RETURNING tenant, {TENANT_NAME.format("tenant")} AS tenant_name
"""
# They would not be found any more, and need not stay until their time.
_END_SESSIONS = "DELETE FROM session WHERE key_id = $1"
# In the order of ids: two processes that note the same keys must not wait for each other in a circle.
_USED = """
UPDATE api_key SET last_used_at = convo_now() WHERE key_id IN (
    SELECT key_id FROM api_key
    WHERE key_id = ANY($1::text[]) AND (last_used_at IS NULL OR last_used_at < convo_now() - interval '1 minute')
    ORDER BY key_id FOR UPDATE SKIP LOCKED)
"""
