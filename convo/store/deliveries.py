"""How far each endpoint has confirmed events: leases endpoints, reads what they are to get, and notes what came of it.

Open it to change when an event steps aside, when it is given up, or when an endpoint is switched off.

One process delivers to an endpoint at a time (``store/courier_leases.py``). A cursor moves over the numbers of
``store/event_numbers.py``, and only behind what this endpoint has confirmed. A crash can lose the last moves of a
cursor, and then events are delivered again, under the same ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from convo.conversation.tenant import Tenant
from convo.errors import NotFound
from convo.event_types import EventType
from convo.store.courier_leases import LEASABLE, LEASE, LEASE_SECONDS
from convo.store.event_rows import EVENT_COLUMNS, EventPage, StoredEvent, stored_event
from convo.store.postgres import RELAXED, Connection, Postgres
from convo.store.webhooks import WEBHOOKS_IN_ALL

_OFF_AFTER_DAYS = 5
_GIVE_UP_HOURS = 10
# Apart from the others an event is tried again after a minute, then after twice as long each time.
_ASIDE_SECONDS = 60.0
_ASIDE_SECONDS_MAX = 3600.0
_STORED_ANSWER_BYTES = 500


class LeasedWebhook(Struct, frozen=True, kw_only=True):
    """An endpoint that this process delivers to; ``secrets`` are those that events are signed with."""

    webhook_id: str
    token: int
    url: str
    types: tuple[EventType, ...]
    bots: tuple[str, ...]
    secrets: tuple[str, ...]
    active: bool
    cursor: int
    version: int
    tenant: int


class AsideEvent(Struct, frozen=True, kw_only=True):
    """An event that is delivered apart from the order, since when it is due, and how often that was tried."""

    event: StoredEvent
    attempts: int
    due_at: datetime


class Delivery(Struct, frozen=True, kw_only=True):
    """What came of one attempt; ``number`` is that of the event, None for a ping.

    ``aside_since``: it was apart from the order already, and due since then. ``steps_aside``: it is so from now on, and
    was first tried ``tried_seconds`` ago.
    """

    number: int | None
    event_id: str
    good: bool
    status: int | None
    error: str | None
    answer: bytes
    seconds: float
    aside_since: datetime | None = None
    steps_aside: bool = False
    tried_seconds: float = 0.0


class Noted(Struct, frozen=True, kw_only=True):
    """What became of an endpoint: it became active, or off with a reason; and which events were given up."""

    became_active: bool = False
    off: str | None = None
    given_up: tuple[int, ...] = ()


async def lease_webhooks(postgres: Postgres, owner: str) -> list[LeasedWebhook]:
    """Lease the endpoints that nobody delivers to, and renew the leases of this process; return all of these."""

    async def body(connection: Connection) -> list[LeasedWebhook]:
        return [_leased(row) for row in await connection.fetch(_LEASE, owner, LEASE_SECONDS, WEBHOOKS_IN_ALL)]

    return await postgres.run("db.courier", body, begin=RELAXED)


async def release_webhooks(postgres: Postgres, owner: str) -> None:
    """Give the endpoints of this process back: another one takes them at once."""

    async def body(connection: Connection) -> None:
        await connection.execute(_RELEASE, owner, WEBHOOKS_IN_ALL)

    await postgres.run("db.courier", body, begin=RELAXED)


async def read_page(postgres: Postgres, endpoint: LeasedWebhook, after: int, rows: int) -> EventPage:
    """Read the next events behind ``after``, and leave out what the endpoint does not want."""

    async def body(connection: Connection) -> EventPage:
        found = await connection.fetch(_PAGE, after, rows, list(endpoint.types), list(endpoint.bots), endpoint.tenant)
        wanted = [stored_event(row) for row in found if row["wanted"]]
        return EventPage(events=wanted, looked_to=found[-1]["sequence"] if found else after)

    return await postgres.run("db.courier", body, begin=RELAXED)


async def read_aside(postgres: Postgres, webhook_id: str, known: Sequence[int], rows: int) -> list[AsideEvent]:
    """Read what is due apart from the order, but for the ``known``."""

    async def body(connection: Connection) -> list[AsideEvent]:
        found = await connection.fetch(_ASIDE, webhook_id, list(known), rows)
        return [AsideEvent(event=stored_event(row), attempts=row["attempts"], due_at=row["due_at"]) for row in found]

    return await postgres.run("db.courier", body, begin=RELAXED)


async def read_erased(postgres: Postgres, numbers: Sequence[int]) -> set[int]:
    """Return which of these events have become stubs."""

    async def body(connection: Connection) -> set[int]:
        return {row["number"] for row in await connection.fetch(_ERASED, list(numbers))}

    return await postgres.run("db.courier", body, begin=RELAXED)


async def note_deliveries(
    postgres: Postgres, endpoint: LeasedWebhook, cursor: int, found: Sequence[Delivery]
) -> Noted | None:
    """Note attempts, and move the cursor; return None, and change nothing, where the lease is lost."""

    async def body(connection: Connection) -> Noted | None:
        held = await connection.fetchrow(_HOLD, endpoint.webhook_id, endpoint.token)
        if held is None:
            return None
        await _log(connection, endpoint.webhook_id, found)
        await _move_aside(connection, endpoint.webhook_id, found)
        answered = any(one.number is None and one.good for one in found) and held["version"] == endpoint.version
        row = await connection.fetchrow(
            _NOTE,
            *(endpoint.webhook_id, cursor, any(one.good for one in found), any(not one.good for one in found)),
            *(answered, _OFF_AFTER_DAYS),
        )
        failed = [one.number for one in found if not one.good and (one.aside_since or one.steps_aside)]
        given_up = await connection.fetch(_GIVE_UP, endpoint.webhook_id, failed, _GIVE_UP_HOURS) if failed else []
        off = row["reason"] if row is not None and row["state"] == "off" else None
        return Noted(
            became_active=answered and held["state"] == "new",
            off=off,
            given_up=tuple(one["number"] for one in given_up),
        )

    return await postgres.run("db.courier", body, begin=RELAXED)


class PingTarget(Struct, frozen=True, kw_only=True):
    """Where a ping goes, and what it is signed with; ``version`` tells whether that has changed meanwhile."""

    url: str
    secrets: tuple[str, ...]
    version: int


async def ping_target(postgres: Postgres, tenant: Tenant, webhook_id: str) -> PingTarget:
    """Read where a ping goes that somebody asks for.

    Raises:
        NotFound: there is no such endpoint.
    """

    async def body(connection: Connection) -> PingTarget:
        row = await connection.fetchrow(_PING_TARGET, webhook_id, tenant.number)
        if row is None:
            raise NotFound(f"there is no webhook {webhook_id!r}")
        return PingTarget(url=row["url"], secrets=_secrets(row), version=row["version"])

    return await postgres.run("db.webhooks", body, begin=RELAXED)


async def note_ping(postgres: Postgres, webhook_id: str, version: int, outcome: Delivery) -> None:
    """Note a ping that somebody asked for: an endpoint that was new is active if it has answered."""

    async def body(connection: Connection) -> None:
        await _log(connection, webhook_id, [outcome])
        if outcome.good:
            await connection.execute(_ANSWERED, webhook_id, version)

    await postgres.run("db.webhooks", body)


async def _log(connection: Connection, webhook_id: str, found: Sequence[Delivery]) -> None:
    if found:
        await connection.execute(
            _LOG,
            webhook_id,
            [one.event_id for one in found],
            [one.status for one in found],
            [one.error for one in found],
            [one.answer[:_STORED_ANSWER_BYTES] for one in found],
            [one.seconds for one in found],
        )


async def _move_aside(connection: Connection, webhook_id: str, found: Sequence[Delivery]) -> None:
    confirmed = [one for one in found if one.good and one.aside_since]
    if confirmed:
        since = [one.aside_since for one in confirmed]
        await connection.execute(_CONFIRM_ASIDE, webhook_id, [one.number for one in confirmed], since)
    again = [one.number for one in found if not one.good and one.aside_since]
    if again:
        await connection.execute(_TRY_LATER, webhook_id, again, _ASIDE_SECONDS, _ASIDE_SECONDS_MAX)
    stepping = [one for one in found if one.steps_aside]
    if stepping:
        await connection.execute(
            _STEP_ASIDE,
            *(webhook_id, [one.number for one in stepping], [one.tried_seconds for one in stepping], _ASIDE_SECONDS),
        )


def _leased(row: Mapping[str, Any]) -> LeasedWebhook:
    return LeasedWebhook(
        **{name: row[name] for name in ("webhook_id", "url", "cursor", "version", "tenant")},
        token=row["lease_token"],
        types=tuple(row["types"]),
        bots=tuple(row["bots"]),
        secrets=_secrets(row),
        active=row["state"] == "active",
    )


def _secrets(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(filter(None, (row["secret"], row["old_secret"])))


_PING_TARGET = """
SELECT url, secret, version, CASE WHEN old_until > convo_now() THEN old_secret END AS old_secret
FROM webhook WHERE webhook_id = $1 AND tenant = $2
"""
_ANSWERED = """
UPDATE webhook SET state = 'active', failing_since = NULL, version = version + 1
WHERE webhook_id = $1 AND version = $2 AND state = 'new'
"""
_LEASE = f"""
UPDATE webhook SET {LEASE}
WHERE webhook_id = ANY(ARRAY(
    SELECT webhook_id FROM webhook WHERE state <> 'off' AND {LEASABLE}
    ORDER BY webhook_id LIMIT $3 FOR UPDATE SKIP LOCKED))
RETURNING webhook_id, tenant, url, types, bots, secret, state, cursor, version, lease_token,
          CASE WHEN old_until > convo_now() THEN old_secret END AS old_secret
"""
_RELEASE = """
UPDATE webhook SET leased_until = NULL WHERE webhook_id = ANY(ARRAY(
    SELECT webhook_id FROM webhook WHERE leased_by = $1 ORDER BY webhook_id LIMIT $2 FOR UPDATE))
"""
# event_by_sequence
_PAGE = f"""
SELECT {EVENT_COLUMNS}, (cardinality($3::text[]) = 0 OR type = ANY($3))
                  AND (cardinality($4::text[]) = 0 OR bot_id IS NULL OR bot_id = ANY($4)) AND tenant = $5 AS wanted
FROM event WHERE sequence > $1 ORDER BY sequence LIMIT $2
"""
# webhook_aside_due; what one replay brought is due at one time, and goes in its order.
_ASIDE = f"""
SELECT {EVENT_COLUMNS}, attempts, due_at
FROM (
    SELECT number, attempts, due_at FROM webhook_aside
    WHERE webhook_id = $1 AND due_at <= convo_now() AND number <> ALL($2::bigint[]) ORDER BY due_at, number LIMIT $3
) AS due JOIN event USING (number)
WHERE sequence IS NOT NULL ORDER BY due_at, number
"""
_ERASED = "SELECT number FROM event WHERE number = ANY($1::bigint[]) AND data IS NULL"
_HOLD = """
SELECT state, version FROM webhook
WHERE webhook_id = $1 AND lease_token = $2 AND leased_until IS NOT NULL AND state <> 'off' FOR UPDATE
"""
_LOG = """
INSERT INTO webhook_attempt (webhook_id, event_id, status, error, answer, seconds)
SELECT $1, event_id, status, error, answer, seconds
FROM unnest($2::text[], $3::integer[], $4::text[], $5::bytea[], $6::real[])
    AS made (event_id, status, error, answer, seconds)
"""
# One that was asked for again while it was under way is due since later, and stays.
_CONFIRM_ASIDE = """
DELETE FROM webhook_aside AS a USING unnest($2::bigint[], $3::timestamptz[]) AS sent (number, due_at)
WHERE a.webhook_id = $1 AND a.number = sent.number AND a.due_at = sent.due_at
"""
_TRY_LATER = """
UPDATE webhook_aside SET attempts = attempts + 1,
    due_at = convo_now() + make_interval(secs => least($4::float8, $3::float8 * power(2, least(attempts, 20))))
WHERE webhook_id = $1 AND number = ANY($2::bigint[])
"""
_STEP_ASIDE = """
INSERT INTO webhook_aside (webhook_id, number, attempts, first_at, due_at)
SELECT $1, number, 1, convo_now() - make_interval(secs => tried), convo_now() + make_interval(secs => $4)
FROM unnest($2::bigint[], $3::float8[]) AS stepping (number, tried)
ON CONFLICT (webhook_id, number) DO NOTHING
"""
_NOTE = """
UPDATE webhook SET
    cursor = greatest(cursor, $2),
    failing_since = CASE WHEN $3 THEN NULL WHEN $4 THEN coalesce(failing_since, convo_now()) ELSE failing_since END,
    state = CASE WHEN $5 THEN 'active'
                 WHEN $4 AND NOT $3 AND failing_since < convo_now() - make_interval(days => $6) THEN 'off'
                 ELSE state END,
    reason = CASE WHEN $4 AND NOT $3 AND failing_since < convo_now() - make_interval(days => $6)
                  THEN 'every attempt since ' || to_char(failing_since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')
                       || ' UTC has failed'
                  ELSE reason END
WHERE webhook_id = $1 RETURNING state, reason
"""
# Not while the endpoint fails as a whole: then nothing is wrong with the event.
_GIVE_UP = """
DELETE FROM webhook_aside AS a USING webhook AS w
WHERE a.webhook_id = $1 AND a.number = ANY($2::bigint[]) AND w.webhook_id = a.webhook_id
  AND a.first_at < convo_now() - make_interval(hours => $3)
  AND (w.failing_since IS NULL OR w.failing_since > a.first_at + interval '5 minutes')
RETURNING a.number
"""
