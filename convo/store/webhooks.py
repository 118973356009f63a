"""The endpoints to which events are posted: registered, changed and removed, with the log of attempts.

Open it to change what an endpoint holds. How far it has confirmed events is moved by ``store/deliveries.py`` alone.

The secret itself is stored, because signing needs it: a backup holds it, too.
"""

from __future__ import annotations

import secrets as dice
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from convo.audit_actions import AuditAction
from convo.conversation.tenant import Tenant
from convo.errors import NotFound, TooMany
from convo.event_types import EventType, WebhookState
from convo.standard_webhooks import new_secret
from convo.store import audit_log
from convo.store.audit_log import AuditEntry, Caller
from convo.store.event_rows import LAST_SEQUENCE
from convo.store.postgres import RELAXED, Connection, Postgres

WEBHOOKS_MAX = 50
"""So many endpoints a tenant has at most."""

WEBHOOKS_IN_ALL = 500
"""So many endpoints all tenants together have at most: a process keeps one worker free for each."""

_ROTATION_DAYS = 1
_LOOKED_AT_MAX = 20_000
# Events have their order by their commit. One may have happened so long before the one in front of it.
_OUT_OF_ORDER = "1 hour"


class Webhook(Struct, frozen=True, kw_only=True):
    """An endpoint; ``reason`` is why it is off, ``confirmed`` up to which number it has all that it wants.

    ``types`` and ``bots`` are all where they are empty. With the secret before the present one events are signed, too,
    until ``old_secret_until``.
    """

    webhook_id: str
    url: str
    types: tuple[EventType, ...]
    bots: tuple[str, ...]
    state: WebhookState
    reason: str | None
    created_at: datetime
    failing_since: datetime | None
    old_secret_until: datetime | None
    confirmed: int


class WebhookDraft(Struct, frozen=True, kw_only=True):
    """An endpoint that is to be registered; without a ``secret`` one is made."""

    url: str
    types: tuple[EventType, ...] = ()
    bots: tuple[str, ...] = ()
    secret: str = ""


class WebhookChange(Struct, frozen=True, kw_only=True):
    """What is changed of an endpoint; ``active`` switches it on, after a ping, or off."""

    url: str | UnsetType = UNSET
    types: tuple[EventType, ...] | UnsetType = UNSET
    bots: tuple[str, ...] | UnsetType = UNSET
    active: bool | UnsetType = UNSET


class Attempt(Struct, frozen=True, kw_only=True):
    """One attempt to deliver: ``status`` is None where there was no answer, ``error`` what was wrong."""

    number: int
    event_id: str
    at: datetime
    status: int | None
    error: str | None
    answer: bytes
    seconds: float


class ReplayFilter(Struct, frozen=True, kw_only=True):
    """Which events are sent again; None is no filter. ``after`` is the number that all of them are above."""

    since: datetime | None = None
    until: datetime | None = None
    type: EventType | None = None
    event: tuple[int, int] | None = None
    after: int = 0


class Replayed(Struct, frozen=True, kw_only=True):
    """How many events will be sent again, and behind which number the next call goes on, if there may be more."""

    count: int
    next_after: int | None


async def make_webhook(postgres: Postgres, tenant: Tenant, draft: WebhookDraft, caller: Caller) -> tuple[Webhook, str]:
    """Register an endpoint for what happens from now on; return it and its secret, a new one where none is given.

    Raises:
        TooMany: the tenant has ``WEBHOOKS_MAX``, or all together have ``WEBHOOKS_IN_ALL``.
    """
    webhook_id = f"wh_{dice.token_hex(8)}"
    kept = draft.secret or new_secret()
    wanted = list(draft.types), list(draft.bots)

    async def body(connection: Connection) -> Webhook:
        limits = WEBHOOKS_MAX, WEBHOOKS_IN_ALL
        row = await connection.fetchrow(_MAKE, webhook_id, draft.url, *wanted, kept, tenant.number, *limits)
        if row is None:
            raise TooMany(
                f"a tenant has at most {WEBHOOKS_MAX} endpoints, and an installation {WEBHOOKS_IN_ALL}; none is free:"
                " delete one that is not needed"
            )
        await audit_log.append(connection, _noted("webhook_made", tenant, webhook_id, caller))
        return _webhook(row)

    return await postgres.run("db.webhooks", body), kept


async def list_webhooks(postgres: Postgres, tenant: Tenant) -> list[Webhook]:
    """Return every endpoint, the oldest first."""

    async def body(connection: Connection) -> list[Webhook]:
        return [_webhook(row) for row in await connection.fetch(_LIST, WEBHOOKS_MAX, tenant.number)]

    return await postgres.run("db.webhooks", body, begin=RELAXED)


async def read_webhook(postgres: Postgres, tenant: Tenant, webhook_id: str) -> Webhook:
    """Return one endpoint.

    Raises:
        NotFound: there is none of this id.
    """

    async def body(connection: Connection) -> Webhook:
        return _webhook(await connection.fetchrow(_READ, webhook_id, tenant.number), webhook_id)

    return await postgres.run("db.webhooks", body, begin=RELAXED)


async def change_webhook(
    postgres: Postgres, tenant: Tenant, webhook_id: str, change: WebhookChange, caller: Caller
) -> Webhook:
    """Change an endpoint; with another address, or switched on, it gets events again when it has answered a ping.

    Raises:
        NotFound: there is none of this id.
    """

    async def body(connection: Connection) -> Webhook:
        values = [None if value is UNSET else value for value in (change.url, change.types, change.bots, change.active)]
        listed = [list(value) if isinstance(value, tuple) else value for value in values]
        found = _webhook(await connection.fetchrow(_CHANGE, webhook_id, *listed, tenant.number), webhook_id)
        await audit_log.append(connection, _noted("webhook_changed", tenant, webhook_id, caller))
        return found

    return await postgres.run("db.webhooks", body)


async def rotate_secret(
    postgres: Postgres, tenant: Tenant, webhook_id: str, secret: str, caller: Caller
) -> tuple[Webhook, str]:
    """Give an endpoint another secret; for a day events are signed with the one before, too.

    Raises:
        NotFound: there is none of this id.
    """
    kept = secret or new_secret()

    async def body(connection: Connection) -> Webhook:
        found = _webhook(
            await connection.fetchrow(_ROTATE, webhook_id, kept, _ROTATION_DAYS, tenant.number), webhook_id
        )
        await audit_log.append(connection, _noted("webhook_changed", tenant, webhook_id, caller))
        return found

    return await postgres.run("db.webhooks", body), kept


async def delete_webhook(postgres: Postgres, tenant: Tenant, webhook_id: str, caller: Caller) -> None:
    """Remove an endpoint; its attempts, and what it was to get apart from the order, go with the events.

    Raises:
        NotFound: there is none of this id.
    """

    async def body(connection: Connection) -> None:
        if await connection.fetchval(_DELETE, webhook_id, tenant.number) is None:
            raise _absent(webhook_id)
        await audit_log.append(connection, _noted("webhook_deleted", tenant, webhook_id, caller))

    await postgres.run("db.webhooks", body)


async def read_attempts(
    postgres: Postgres, tenant: Tenant, webhook_id: str, before: int | None, limit: int
) -> list[Attempt]:
    """Return the newest attempts, one more than ``limit`` where there are more.

    Raises:
        NotFound: there is none of this id.
    """

    async def body(connection: Connection) -> list[Attempt]:
        _webhook(await connection.fetchrow(_READ, webhook_id, tenant.number), webhook_id)
        last = (1 << 63) - 1 if before is None else before - 1
        rows = await connection.fetch(_ATTEMPTS, webhook_id, last, limit + 1)
        return [Attempt(**{name: row[name] for name in Attempt.__struct_fields__}) for row in rows]

    return await postgres.run("db.webhooks", body, begin=RELAXED)


async def replay(postgres: Postgres, tenant: Tenant, webhook_id: str, wanted: ReplayFilter) -> Replayed:
    """Have events sent again that an endpoint has got, in their order, apart from those that it is yet to get.

    One call looks at 20,000 of them at most.

    Raises:
        NotFound: there is no such endpoint, or no such event.
    """

    async def body(connection: Connection) -> Replayed:
        endpoint = _webhook(await connection.fetchrow(_READ, webhook_id, tenant.number), webhook_id)
        if wanted.event is not None:
            if await connection.fetchval(_RESEND, webhook_id, *wanted.event, tenant.number) is None:
                raise NotFound("there is no such event; events are kept for events.keep_days")
            return Replayed(count=1, next_after=None)
        after = max(wanted.after, await _before(connection, wanted.since) if wanted.since else 0)
        row = await connection.fetchrow(
            _REPLAY,
            *(webhook_id, after, endpoint.confirmed, _LOOKED_AT_MAX, wanted.since, wanted.until, wanted.type),
            *(list(endpoint.types), list(endpoint.bots), tenant.number),
        )
        found = row or {"n": 0, "looked_at": 0, "last": None}
        return Replayed(count=found["n"], next_after=found["last"] if found["looked_at"] == _LOOKED_AT_MAX else None)

    return await postgres.run("db.webhooks", body)


async def _before(connection: Connection, since: datetime) -> int:
    """Return a number below which nothing happened since then: found by halves, for there is no index by time."""
    low, high = 0, await connection.fetchval(LAST_SEQUENCE)
    while high - low > 1:
        middle = (low + high) // 2
        if await connection.fetchval(_IS_OLD, middle, since):
            low = middle
        else:
            high = middle
    return low


def _noted(action: AuditAction, tenant: Tenant, webhook_id: str, caller: Caller) -> AuditEntry:
    return AuditEntry(action=action, tenant=tenant, caller=caller, detail={"webhook": webhook_id})


def _absent(webhook_id: str) -> NotFound:
    return NotFound(f"there is no webhook {webhook_id!r}")


def _webhook(row: Mapping[str, Any] | None, webhook_id: str = "") -> Webhook:
    if row is None:
        raise _absent(webhook_id)
    return Webhook(
        **{name: row[name] for name in ("webhook_id", "url", "state", "reason", "created_at", "failing_since")},
        types=tuple(row["types"]),
        bots=tuple(row["bots"]),
        old_secret_until=row["old_until"],
        confirmed=row["cursor"],
    )


_COLUMNS = """webhook_id, url, types, bots, state, reason, created_at, failing_since, cursor,
          CASE WHEN old_until > convo_now() THEN old_until END AS old_until"""
_MAKE = f"""
INSERT INTO webhook (webhook_id, url, types, bots, secret, tenant, cursor)
SELECT $1, $2, $3::text[], $4::text[], $5, $6, (SELECT last_sequence FROM event_counter)
WHERE (SELECT count(*) FROM webhook WHERE tenant = $6) < $7 AND (SELECT count(*) FROM webhook) < $8
RETURNING {_COLUMNS}
"""
_LIST = f"SELECT {_COLUMNS} FROM webhook WHERE tenant = $2 ORDER BY created_at, webhook_id LIMIT $1"
_READ = f"SELECT {_COLUMNS} FROM webhook WHERE webhook_id = $1 AND tenant = $2"
_CHANGE = f"""
UPDATE webhook SET url = coalesce($2, url), types = coalesce($3::text[], types), bots = coalesce($4::text[], bots),
    state = CASE WHEN $5::boolean IS FALSE THEN 'off' WHEN $5 OR (state <> 'off' AND $2 <> url) THEN 'new'
                 ELSE state END,
    reason = CASE WHEN $5 IS FALSE THEN 'switched off by hand' WHEN $5 THEN NULL ELSE reason END,
    failing_since = CASE WHEN $5 OR $2 <> url THEN NULL ELSE failing_since END,
    version = version + 1
WHERE webhook_id = $1 AND tenant = $6 RETURNING {_COLUMNS}
"""
_ROTATE = f"""
UPDATE webhook SET old_secret = secret, old_until = convo_now() + make_interval(days => $3), secret = $2,
                   version = version + 1
WHERE webhook_id = $1 AND tenant = $4 RETURNING {_COLUMNS}
"""
_DELETE = "DELETE FROM webhook WHERE webhook_id = $1 AND tenant = $2 RETURNING webhook_id"
_ATTEMPTS = """
SELECT attempt AS number, event_id, at, status, error, answer, seconds FROM webhook_attempt
WHERE (webhook_id, attempt) >= ($1, 0) AND (webhook_id, attempt) <= ($1, $2)
ORDER BY webhook_id DESC, attempt DESC LIMIT $3
"""
_AGAIN = """
ON CONFLICT (webhook_id, number) DO UPDATE SET attempts = 0, first_at = convo_now(), due_at = convo_now()
"""
_RESEND = f"""
INSERT INTO webhook_aside (webhook_id, number)
SELECT $1, number FROM event WHERE number = $2 AND salt = $3 AND tenant = $4 AND sequence IS NOT NULL
{_AGAIN} RETURNING number
"""
# event_by_sequence
_REPLAY = f"""
WITH page AS MATERIALIZED (
    SELECT number, sequence, at, type, bot_id, tenant FROM event
    WHERE sequence > $2 AND sequence <= $3 ORDER BY sequence LIMIT $4
), again AS (
    INSERT INTO webhook_aside (webhook_id, number)
    SELECT $1, number FROM page
    WHERE ($5::timestamptz IS NULL OR at >= $5) AND ($6::timestamptz IS NULL OR at < $6)
      AND ($7::text IS NULL OR type = $7)
      AND (cardinality($8::text[]) = 0 OR type = ANY($8))
      AND (cardinality($9::text[]) = 0 OR bot_id IS NULL OR bot_id = ANY($9))
      AND tenant = $10
    {_AGAIN} RETURNING number
)
SELECT (SELECT count(*) FROM again) AS n, count(*) AS looked_at, max(sequence) AS last FROM page
"""
# One probe of event_by_sequence; numbers of events that are over lead to the oldest that is there.
_IS_OLD = f"""
SELECT coalesce((SELECT at FROM event WHERE sequence >= $1 ORDER BY sequence LIMIT 1)
                < $2::timestamptz - interval '{_OUT_OF_ORDER}', false)
"""
